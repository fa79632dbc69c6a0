//! Ctrl-C and its relatives, for commands that have something to clean up.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::signal::unix::{SignalKind, signal};

/// A command that a signal has ended, and what became of what it had begun.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; {0}")]
pub struct Interrupted(pub &'static str);

/// Completes at the first SIGINT, SIGTERM or SIGHUP. They do not end the process any more once
/// this was called.
pub fn interrupted() -> io::Result<impl Future<Output = ()> + Send> {
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut hup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
    })
}

/// A flag that the first of those signals sets, for code that does not wait but works.
pub fn flag(runtime: &tokio::runtime::Runtime) -> io::Result<Arc<AtomicBool>> {
    let _guard = runtime.enter();
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let interrupted = interrupted()?;
    runtime.spawn(async move {
        interrupted.await;
        set.store(true, Ordering::Relaxed);
    });
    Ok(flag)
}
