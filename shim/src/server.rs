//! The daemon's server: one ttrpc service under both names that containerd has for it.

use std::{collections::HashMap, io, os::unix::net::UnixListener, sync::Arc, time::Duration};

use containerd_shim_protos::shim_async::create_task;
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::asynchronous::{Server, Service};

use crate::{
    args::Args, container::Shared, events::Events, pod::Pod, reaper::Reaper, repair,
    socket::Address, task::TaskService,
};

/// The task API of containerd 1.x, which 2.x speaks, too.
const TASK_V2: &str = "containerd.task.v2.Task";
/// The same since containerd 2.0: the messages are identical.
const TASK_V3: &str = "containerd.task.v3.Task";

/// How long events may take to be delivered at the end.
const FLUSH: Duration = Duration::from_secs(5);
/// How long replies that are under way may take at the end.
const LINGER: Duration = Duration::from_millis(100);
const DISCONNECT: Duration = Duration::from_secs(1);

/// Serves until containerd shuts the shim down.
pub async fn run(args: &Args, listener: UnixListener) -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let reaper = Reaper::new();
    tokio::spawn(reaper.clone().run());
    let (events, queue) = Events::new(&args.namespace);
    tokio::spawn(queue.forward(std::env::var("TTRPC_ADDRESS").unwrap_or_default()));
    let shared = Shared {
        namespace: args.namespace.clone(),
        reaper,
        events: events.clone(),
    };
    let pod = Arc::new(Pod::new(shared));
    // Others' leftovers, too: whoever comes first.
    tokio::task::spawn_blocking(repair::quietly);

    let listener = tokio::net::UnixListener::from_std(listener)?;
    let mut server = Server::new()
        .add_listener(listener.into())
        .register_service(services(&pod));
    server.start().await.map_err(io::Error::other)?;
    tracing::info!(id = args.id, namespace = args.namespace, "shim started");

    let (mut terminated, mut interrupted) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        () = pod.closed() => {}
        _ = terminated.recv() => tracing::warn!("terminated"),
        _ = interrupted.recv() => tracing::warn!("interrupted"),
    }
    // First of all, so that the next container of this group gets a shim of its own.
    if let Some(address) = Address::parse(&format!("unix://{}", args.socket)) {
        let _ = address.remove();
    }
    tokio::join!(events.flush(FLUSH), tokio::time::sleep(LINGER));
    let _ = tokio::time::timeout(DISCONNECT, server.shutdown()).await;
    Ok(())
}

fn services(pod: &Arc<Pod>) -> HashMap<String, Service> {
    let task = Arc::new(TaskService::new(Arc::clone(pod)));
    let mut services = create_task(task.clone());
    if let Some(service) = services.remove(TASK_V3) {
        services.insert(TASK_V2.into(), service);
    }
    services.extend(create_task(task));
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_calls_are_there_under_both_names() {
        let (events, _) = Events::new("n");
        let shared = Shared {
            namespace: "n".into(),
            reaper: Reaper::new(),
            events,
        };
        let services = services(&Arc::new(Pod::new(shared)));
        assert_eq!(services.len(), 2);
        for name in [TASK_V2, TASK_V3] {
            assert_eq!(services[name].methods.len(), 17);
        }
    }
}
