//! The shim's reaper takes the exit status of every child, also of those that others wait for.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use kybernate_config::settings::GpuSettings;
use kybernate_cuda::process::Process;
use kybernate_shim::{
    journal::{By, Record, VERSION, undo},
    reaper::Reaper,
};
use serde_json::json;

/// A checkpoint that has locked a process which still lives.
fn locked(freezer: &Path, helper: &Path) -> Record {
    let own = Process::own().unwrap();
    let gpu = GpuSettings {
        helper: helper.into(),
        ..GpuSettings::default()
    };
    let intent = json!({
        "version": VERSION, "operation": "checkpoint", "namespace": "k8s.io", "id": "abc",
        "shim": own, "freezer": { "v1": freezer }, "paused": "no", "gpu": gpu, "remove": [],
    });
    let note = json!({ "step": "gpu-lock", "locked": [own] });
    Record::parse(&format!("{intent}\n{note}\n")).unwrap()
}

#[tokio::test]
async fn a_revival_is_what_the_helper_says_also_when_the_reaper_was_faster() {
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("helper");
    let reaper = tokio::spawn(Reaper::new().run());
    for (script, good) in [
        ("#!/bin/sh\necho revived\n", true),
        ("#!/bin/sh\necho not at all >&2; exit 1\n", false),
    ] {
        fs::write(&helper, script).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
        for _ in 0..40 {
            let record = locked(dir.path(), &helper);
            let undone = tokio::task::spawn_blocking(move || undo(&record, By::Owner));
            let undone = undone.await.unwrap();
            if good {
                assert_eq!(undone, Ok(()));
            } else {
                assert!(undone.unwrap_err().contains("not at all"));
            }
        }
    }
    reaper.abort();
}
