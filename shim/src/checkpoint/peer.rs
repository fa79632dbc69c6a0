//! Who is at the other end of a loopback connection.
//!
//! `/proc/net/tcp` names the socket's inode, `/proc/<pid>/fd` says who holds it. The holder
//! must be the given process or a descendant of it.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use super::tree;

/// Whether the client end `from` of a connection to `to` is held by `ancestor` or one of its
/// descendants.
#[must_use]
pub fn belongs_to(from: SocketAddr, to: SocketAddr, ancestor: u32) -> bool {
    let Ok(table) = fs::read_to_string("/proc/net/tcp") else {
        return false;
    };
    let Some(inode) = inode_of(&table, from, to) else {
        return false;
    };
    let socket = format!("socket:[{inode}]");
    tree::descendants(ancestor)
        .into_iter()
        .any(|pid| holds(pid, &socket))
}

/// Finds the inode of the socket `local` that is connected to `remote` in the text of
/// `/proc/net/tcp` (IPv4).
pub(super) fn inode_of(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let (local, remote) = (hex(local)?, hex(remote)?);
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let matches = fields.nth(1)? == local && fields.next()? == remote;
        if matches {
            fields.nth(6)?.parse().ok()
        } else {
            None
        }
    })
}

/// An address as `/proc/net/tcp` writes it: the IPv4 address as one little-endian word.
fn hex(address: SocketAddr) -> Option<String> {
    match address.ip() {
        IpAddr::V4(ip) => Some(format!(
            "{:08X}:{:04X}",
            u32::from_le_bytes(ip.octets()),
            address.port()
        )),
        IpAddr::V6(_) => None,
    }
}

fn holds(pid: u32, socket: &str) -> bool {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    fds.flatten()
        .any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:9C40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0
   1: 0100007F:D431 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4242 1 0
";

    #[test]
    fn the_client_end_is_found_by_both_addresses() {
        let client = "127.0.0.1:54321".parse().unwrap();
        let server = "127.0.0.1:40000".parse().unwrap();
        assert_eq!(inode_of(TABLE, client, server), Some(4242));
        assert_eq!(inode_of(TABLE, server, client), None);
        assert_eq!(
            inode_of(TABLE, client, "127.0.0.1:40001".parse().unwrap()),
            None
        );
    }
}
