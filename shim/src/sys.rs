//! The system calls that no crate offers in a safe form. All `unsafe` of this crate is here.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::libc;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime, in whose context this must be called.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open and the same until it is dropped, and the AsyncFd gives
    // out only shared references to it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Sends any signal, real-time ones included, to one process.
///
/// The caller makes sure that `pid` is still the process it means: see
/// [`crate::reaper::Reaper::signal`]. Signal 0 only asks whether it is there.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0);
    let Some(pid) = pid else {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    };
    // SAFETY: kill(2) takes two integers and touches no memory of this process.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the mapping of a user namespace on a mount that is attached nowhere (mount_setattr(2)),
/// and makes the mount read-only if wanted.
pub fn set_id_map(
    mount: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    read_only: bool,
) -> io::Result<()> {
    let read_only = if read_only {
        libc::MOUNT_ATTR_RDONLY
    } else {
        0
    };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | read_only,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(user_namespace.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: both descriptors are borrowed for the whole call; the path is a C string; the
    // structure lives through the call, and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_signal_goes_to_a_process_group() {
        assert_eq!(kill(0, 0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(
            kill(u32::MAX, 0).unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );
    }

    #[test]
    fn signal_zero_finds_this_process() {
        kill(std::process::id(), 0).unwrap();
    }
}
