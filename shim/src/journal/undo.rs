//! Bringing the world back behind an operation that did not reach its end.
//!
//! ```text
//! end CRIU and runc ─> remove cgroups ─> thaw ─> GPU state back, kernel settings back ─> remove partial files
//! ```
//!
//! Every step may be taken twice, and by two at the same time: it looks at what is there.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use kybernate_config::{names::CUDA_BINARY, settings::GpuSettings};
use kybernate_cuda::serve::REVIVED;
use rustix::io::Errno;

use super::{
    made,
    record::{Operation, Paused, Record},
    strays::{Strays, mark},
};
use crate::checkpoint::{Freezer, workdir};

/// How long CRIU may take to undo its dump by itself.
const GRACE: Duration = Duration::from_secs(3);
/// How long a freezer may take to let go.
const THAW: Duration = Duration::from_secs(2);
/// How long a helper that undoes GPU state may take. It gives up by itself before.
const HELPER: Duration = Duration::from_secs(330);
const POLL: Duration = Duration::from_millis(10);

/// Who brings the world back, and so what has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The shim, which lives and whose caller hears of the failure.
    Owner,
    /// The same, whose container was killed meanwhile: nothing may freeze it again.
    Survivor,
    /// Whoever finds what a dead shim has left. Nobody resumes the container any more.
    Heir,
    /// `delete`: the container ends next, so nothing is waited for.
    Cleaner,
}

/// Brings back what a record tells of. The error says what could not be, and what to do. Blocks.
pub fn undo(record: &Record, by: By) -> Result<(), String> {
    let mut left = Vec::new();
    let intent = &record.intent;
    let restored = intent.operation == Operation::Restore;
    let strays = Strays {
        programs: record.programs.clone(),
        mark: restored.then(|| mark(&intent.namespace, &intent.id)),
        cgroup: intent.freezer.as_ref().map(|f| f.directory().to_owned()),
    };
    // A restore has nothing to undo: its processes belong to nobody.
    let grace = match by {
        By::Cleaner => Duration::ZERO,
        _ if restored => Duration::ZERO,
        By::Owner | By::Survivor | By::Heir => GRACE,
    };
    left.extend(strays.end(grace).err());
    left.extend(made::remove(&intent.cgroups).err());
    let state = intent.runc.as_deref();
    left.extend(state.and_then(|state| made::forget(state).err()));
    let stays_frozen = match intent.paused {
        Paused::No => false,
        Paused::ForCheckpoint => by == By::Owner,
        Paused::Before => matches!(by, By::Owner | By::Heir),
    };
    let locked: Vec<_> = record.locked.iter().filter(|p| p.lives()).collect();
    let revives = by != By::Cleaner && !restored && !locked.is_empty();
    if let Some(freezer) = &intent.freezer {
        // What is frozen can't give its GPU state back.
        if !stays_frozen || revives {
            left.extend(thaw(freezer).err());
        }
        if revives {
            left.extend(revive(record).err());
        }
        // A CRIU that was killed has left it running.
        if stays_frozen {
            left.extend(freeze(freezer).err());
        }
    }
    if !revives && !record.helpers.is_empty() {
        left.extend(put_settings_back(&intent.gpu).err());
    }
    let results = intent.results.iter().filter(|_| !record.complete);
    for path in intent.remove.iter().chain(results) {
        left.extend(remove(path).err());
    }
    if let Some(filled) = intent.fills.as_ref().filter(|_| !record.complete) {
        let emptied = filled.empty();
        left.extend(emptied.err().map(|error| {
            format!(
                "cannot remove what was written to {}: {error}",
                filled.directory.display()
            )
        }));
    }
    if left.is_empty() {
        Ok(())
    } else {
        Err(left.join("; "))
    }
}

fn thaw(freezer: &Freezer) -> Result<(), String> {
    let until = Instant::now() + THAW;
    loop {
        let thawed = freezer.thaw();
        match thawed {
            // The cgroup went with its container.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Ok(()) if !freezer.is_frozen() => return Ok(()),
            _ if Instant::now() < until => thread::sleep(POLL),
            other => {
                let (file, value) = freezer.thaw_file();
                let found = other
                    .err()
                    .map_or("it stays frozen".into(), |e| e.to_string());
                return Err(format!(
                    "cannot thaw the container: {found}; write {value} into {}",
                    file.display()
                ));
            }
        }
    }
}

fn freeze(freezer: &Freezer) -> Result<(), String> {
    match freezer.freeze() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot freeze the container again: {error}"))
        }
        _ => Ok(()),
    }
}

/// Waits for a helper that does it itself, and makes sure that it is done.
fn revive(record: &Record) -> Result<(), String> {
    let until = Instant::now() + HELPER;
    while record.helpers.iter().any(|helper| helper.lives()) && Instant::now() < until {
        thread::sleep(POLL);
    }
    let processes = record.locked.iter().map(ToString::to_string);
    run(&record.intent.gpu, processes)
}

/// Puts back kernel settings whose holders are dead.
pub(crate) fn put_settings_back(settings: &GpuSettings) -> Result<(), String> {
    run(settings, [])
}

fn run(settings: &GpuSettings, processes: impl IntoIterator<Item = String>) -> Result<(), String> {
    let program = helper(settings);
    let mut command = Command::new(&program);
    command
        .arg("revive")
        .arg("--records")
        .arg(&settings.records);
    if !settings.libcuda.as_os_str().is_empty() {
        command.arg("--libcuda").arg(&settings.libcuda);
    }
    for root in &settings.driver_roots {
        command.arg("--driver-root").arg(root);
    }
    command.args(processes).stdin(Stdio::null());
    let failed = |error: io::Error| format!("cannot run {}: {error}", program.display());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let said = read(stderr).map_err(failed)?;
    let is_done = match child.wait() {
        Ok(status) => status.success(),
        // This shim's reaper was faster; the helper has said it, too.
        Err(error) if error.raw_os_error() == Some(Errno::CHILD.raw_os_error()) => {
            read(stdout).map_err(failed)?.trim() == REVIVED
        }
        Err(error) => return Err(failed(error)),
    };
    if is_done {
        return Ok(());
    }
    Err(format!("GPU state is not back: {}", said.trim()))
}

fn read(pipe: Option<impl Read>) -> io::Result<String> {
    let mut text = Vec::new();
    pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut text))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The helper lies beside the shim unless the settings say otherwise.
pub(crate) fn helper(settings: &GpuSettings) -> PathBuf {
    if !settings.helper.as_os_str().is_empty() {
        return settings.helper.clone();
    }
    std::env::current_exe()
        .ok()
        .and_then(|shim| Some(shim.parent()?.join(CUDA_BINARY)))
        .filter(|path| path.exists())
        .unwrap_or_else(|| CUDA_BINARY.into())
}

fn remove(path: &Path) -> Result<(), String> {
    let removed = match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => workdir::remove(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::record::{Filled, tests::intent},
        *,
    };

    /// A freezer of v1 with files for a kernel.
    fn frozen(paused: Paused) -> (tempfile::TempDir, Record) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("freezer.state"), "FROZEN").unwrap();
        fs::write(dir.path().join("partial"), "x").unwrap();
        fs::create_dir_all(dir.path().join("work/images")).unwrap();
        let mut intent = intent();
        intent.freezer = Some(Freezer::V1(dir.path().into()));
        intent.paused = paused;
        intent.remove = vec![dir.path().join("partial"), dir.path().join("work")];
        (dir, Record::new(intent))
    }

    fn state(dir: &tempfile::TempDir) -> String {
        fs::read_to_string(dir.path().join("freezer.state")).unwrap()
    }

    #[test]
    fn what_ran_runs_and_nothing_partial_stays() {
        let (dir, record) = frozen(Paused::No);
        undo(&record, By::Heir).unwrap();
        assert_eq!(state(&dir), "THAWED");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        undo(&record, By::Heir).unwrap();
    }

    #[test]
    fn a_pause_is_ended_only_when_nobody_else_will() {
        for (paused, by, wanted) in [
            (Paused::ForCheckpoint, By::Owner, "FROZEN"),
            (Paused::ForCheckpoint, By::Heir, "THAWED"),
            (Paused::Before, By::Owner, "FROZEN"),
            (Paused::Before, By::Heir, "FROZEN"),
            (Paused::Before, By::Cleaner, "THAWED"),
            (Paused::Before, By::Survivor, "THAWED"),
        ] {
            let (dir, record) = frozen(paused);
            // As a CRIU that was killed leaves it, or as it was.
            for found in ["THAWED", "FROZEN"] {
                fs::write(dir.path().join("freezer.state"), found).unwrap();
                undo(&record, by).unwrap();
                assert_eq!(state(&dir), wanted, "{paused:?} {by:?} {found}");
            }
        }
    }

    #[test]
    fn a_complete_result_stays() {
        let (dir, mut record) = frozen(Paused::ForCheckpoint);
        let images = dir.path().join("images");
        fs::create_dir(&images).unwrap();
        record.intent.fills = Some(Filled::note(&images).unwrap());
        record.intent.results = vec![dir.path().join("archive")];
        for complete in [true, false] {
            record.complete = complete;
            fs::write(dir.path().join("archive"), "x").unwrap();
            fs::write(images.join("pages-1.img"), "x").unwrap();
            undo(&record, By::Heir).unwrap();
            assert_eq!(state(&dir), "THAWED");
            assert_eq!(dir.path().join("archive").exists(), complete);
            assert_eq!(images.join("pages-1.img").exists(), complete);
            assert!(!dir.path().join("partial").exists());
        }
    }

    #[test]
    fn a_container_that_is_gone_needs_nothing() {
        let (dir, record) = frozen(Paused::No);
        drop(dir);
        undo(&record, By::Heir).unwrap();
    }
}
