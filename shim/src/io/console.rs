//! The socket on which runc hands over a terminal's master (`--console-socket`).

use std::{
    fs, io,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::unistd::mkdtemp;
use rustix::{
    io::{ioctl_fionbio, retry_on_intr},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixListener,
};

use crate::sys;

/// A listening socket in a directory of its own, removed when this is dropped.
#[derive(Debug)]
pub struct ConsoleSocket {
    directory: PathBuf,
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Binds. A bundle's path is too long for a socket, so this is a temporary directory.
    pub fn bind() -> io::Result<Self> {
        let base =
            std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let directory = mkdtemp(&base.join("kybernate-pty-XXXXXX"))?;
        let path = directory.join("pty.sock");
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self {
                directory,
                path,
                listener,
            }),
            Err(error) => {
                let _ = fs::remove_dir(&directory);
                Err(error)
            }
        }
    }

    /// For runc's command line.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for runc's connection and the terminal.
    pub async fn receive(self) -> io::Result<AsyncFd<OwnedFd>> {
        let (stream, _) = self.listener.accept().await?;
        let master = stream
            .async_io(Interest::READABLE, || receive_fd(&stream))
            .await?;
        ioctl_fionbio(&master, true)?;
        sys::watch(master)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Takes one descriptor from a message; its text is the name of the slave, which nobody needs.
fn receive_fd(stream: &tokio::net::UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let mut text = [IoSliceMut::new(&mut name)];
    retry_on_intr(|| recvmsg(stream, &mut text, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor in the message"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSlice, Write},
        os::{fd::AsFd, unix::net::UnixStream},
    };

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    #[tokio::test]
    async fn the_descriptor_of_the_first_message_is_taken() {
        let socket = ConsoleSocket::bind().unwrap();
        let directory = socket.directory.clone();
        let stream = UnixStream::connect(socket.path()).unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let fds = [read.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let text = [IoSlice::new(b"/dev/pts/0")];
        sendmsg(&stream, &text, &mut control, SendFlags::empty()).unwrap();
        let got = socket.receive().await.unwrap();
        fs::File::from(write).write_all(b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(got.get_ref(), &mut byte).unwrap(), 1);
        assert!(!directory.exists());
    }

    #[tokio::test]
    async fn a_message_without_descriptor_is_an_error() {
        let socket = ConsoleSocket::bind().unwrap();
        let mut stream = UnixStream::connect(socket.path()).unwrap();
        stream.write_all(b"x").unwrap();
        assert_eq!(
            socket.receive().await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
