//! The daemon's log: the FIFO `log` in the bundle, which containerd reads.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Mutex,
};

use rustix::fs::OFlags;
use tracing_subscriber::filter::LevelFilter;

/// Writes lines whole or not at all: a full FIFO, because containerd is away, must not stop
/// the shim.
#[derive(Debug)]
struct Lossy(File);

impl Write for Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends log lines and panics to the FIFO. Without one there is no log.
pub fn init(directory: &Path, debug: bool) {
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "bug")));
    // Both ends, so that neither opening it nor a containerd that restarts matters.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let fifo = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(directory.join("log"));
    let Ok(fifo) = fifo else { return };
    let level = if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(Mutex::new(Lossy(fifo)))
        .finish();
    // There is none yet: this is the only place that sets one.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_fifo_loses_lines_and_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&path)
            .unwrap();
        let mut log = Lossy(fifo);
        for _ in 0..1000 {
            assert_eq!(log.write(&[b'x'; 1024]).unwrap(), 1024);
        }
    }
}
