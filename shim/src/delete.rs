//! `delete`: cleans up behind a daemon that is gone.
//!
//! containerd runs it when it has lost the shim. Since task API 3 it runs it for the sandbox
//! of a pod alone, so the other containers of the pod are cleaned up along with it.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use containerd_shim_protos::api::DeleteResponse;
use kybernate_config::Settings;
use protobuf::{Message, MessageField, well_known_types::timestamp::Timestamp};
use tokio::task::JoinSet;

use crate::{
    args::Args,
    cgroup::Cgroup,
    container::{INIT_PID_FILE, ROOTFS},
    injected, journal, mount,
    options::{OPTIONS_FILE, Options},
    reaper::Reaper,
    runc::Runc,
    socket::Address,
    spec::SpecFacts,
};

/// Exit status of what was killed: 128 + SIGKILL.
const KILLED: u32 = 137;

/// Why the clean-up could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Where the bundle is.
    #[error("cannot find the bundle of container {id}: {source}")]
    Bundle {
        /// The container.
        id: String,
        /// Why not.
        source: io::Error,
    },
    /// The runtime of this process.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The answer.
    #[error("the reply does not encode: {0}")]
    Encode(protobuf::Error),
}

/// Runs the action. What can't be cleaned up is told on stderr, which containerd logs.
pub fn run(args: &Args) -> Result<(), DeleteError> {
    let host = |action| move |source| DeleteError::Host { action, source };
    let bundle = bundle(args)?;
    let pid = read_pid(&bundle);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(host("start"))?;
    runtime.block_on(async {
        let reaper = Reaper::new();
        tokio::spawn(reaper.clone().run());
        // At once: containerd waits for a few seconds only.
        let mut cleaning = JoinSet::new();
        for (id, bundle) in left_behind(args, &bundle) {
            cleaning.spawn(clean(id, args.namespace.clone(), bundle, reaper.clone()));
        }
        cleaning.join_all().await;
    });
    let reply = DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: MessageField::some(Timestamp::from(SystemTime::now())),
        ..DeleteResponse::default()
    };
    let bytes = reply.write_to_bytes().map_err(DeleteError::Encode)?;
    io::stdout().lock().write_all(&bytes).map_err(host("reply"))
}

/// The bundle of the container, beside the working directory or the bundle that is named.
fn bundle(args: &Args) -> Result<PathBuf, DeleteError> {
    let directory = if args.bundle.is_empty() {
        std::env::current_dir().map_err(|source| DeleteError::Bundle {
            id: args.id.clone(),
            source,
        })?
    } else {
        PathBuf::from(&args.bundle)
    };
    Ok(match directory.parent() {
        Some(parent) => parent.join(&args.id),
        None => directory,
    })
}

/// The container and, when it is the head of a group whose shim is dead, the others.
fn left_behind(args: &Args, bundle: &Path) -> Vec<(String, PathBuf)> {
    let mut found = vec![(args.id.clone(), bundle.to_owned())];
    let address = fs::read_to_string(bundle.join("address")).ok();
    let address = address.as_deref().and_then(Address::parse);
    let alive = address.as_ref().is_some_and(Address::is_alive);
    if alive {
        return found;
    }
    if let Some(address) = address {
        let _ = address.remove();
    }
    let siblings = bundle.parent().and_then(|parent| fs::read_dir(parent).ok());
    for sibling in siblings.into_iter().flatten().flatten() {
        let path = sibling.path();
        let ours = path != bundle
            && path.join(OPTIONS_FILE).exists()
            && SpecFacts::read(&path).is_ok_and(|facts| facts.group("") == args.id);
        if ours && let Ok(id) = sibling.file_name().into_string() {
            found.push((id, path));
        }
    }
    found
}

async fn clean(id: String, namespace: String, bundle: PathBuf, reaper: Reaper) {
    let options = Options::read(&bundle);
    let facts = SpecFacts::read(&bundle).unwrap_or_default();
    let runc = Runc::new(&options, &facts, &namespace, &bundle, reaper);
    let paths = runc.cgroup_paths(&id);
    let (of, name) = (namespace.clone(), id.clone());
    let released = tokio::task::spawn_blocking(move || {
        let settings = Settings::load().map_err(|error| error.to_string())?;
        journal::release(&settings.checkpoint.journal_dir, &of, &name)
    });
    if let Ok(Err(error)) = released.await {
        complain(&id, &error);
    }
    let rehearsal = injected::rehearsal_name(&id);
    let rehearsed = runc.root().join(&rehearsal).exists();
    for name in rehearsed.then_some(&rehearsal).into_iter().chain([&id]) {
        if let Err(error) = runc.delete(name, true).await {
            complain(name, &error);
        }
    }
    let rest = move || {
        if !paths.is_empty()
            && let Err(error) = Cgroup::of(&paths, 0).and_then(|cgroup| cgroup.kill())
        {
            complain(&id, &error);
        }
        if let Err(error) = mount::unmount_all(&bundle.join(ROOTFS)) {
            complain(&id, &error);
        }
    };
    if let Err(panic) = tokio::task::spawn_blocking(rest).await {
        complain("", &panic);
    }
}

fn complain(id: &str, error: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "container {id}: {error}");
}

fn read_pid(bundle: &Path) -> u32 {
    fs::read_to_string(bundle.join(INIT_PID_FILE))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(root: &Path, id: &str, group: &str) -> PathBuf {
        let bundle = root.join(id);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join(OPTIONS_FILE), "{}").unwrap();
        let spec = format!(r#"{{"annotations":{{"io.kubernetes.cri.sandbox-id":"{group}"}}}}"#);
        fs::write(bundle.join("config.json"), spec).unwrap();
        bundle
    }

    fn ids(args: &Args, bundle: &Path) -> Vec<String> {
        let mut ids: Vec<_> = left_behind(args, bundle)
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        ids.sort();
        ids
    }

    #[test]
    fn the_head_of_a_dead_pod_takes_its_containers_along() {
        let dir = tempfile::tempdir().unwrap();
        let pod = container(dir.path(), "pod", "pod");
        let one = container(dir.path(), "one", "pod");
        container(dir.path(), "other", "elsewhere");
        let args = |id: &str| Args {
            id: id.into(),
            ..Args::default()
        };
        assert_eq!(ids(&args("pod"), &pod), ["one", "pod"]);
        assert_eq!(ids(&args("one"), &one), ["one"]);
    }

    #[test]
    fn a_living_shim_keeps_its_containers() {
        let dir = tempfile::tempdir().unwrap();
        let pod = container(dir.path(), "pod", "pod");
        container(dir.path(), "one", "pod");
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        fs::write(pod.join("address"), format!("unix://{}", socket.display())).unwrap();
        let args = Args {
            id: "pod".into(),
            ..Args::default()
        };
        assert_eq!(ids(&args, &pod), ["pod"]);
        assert!(socket.exists());
    }

    #[test]
    fn the_bundle_is_beside_the_one_that_is_named() {
        let args = Args {
            id: "b".into(),
            bundle: "/r/a".into(),
            ..Args::default()
        };
        assert_eq!(bundle(&args).unwrap(), Path::new("/r/b"));
    }
}
