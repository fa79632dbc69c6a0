//! What reaches a checkpoint from outside: CRIU's pages and texts, a client's request.

use std::{fs, net::SocketAddr, path::Path};

use kybernate_config::{request::REQUEST_FILE, settings::CheckpointSettings};

pub(crate) use super::page_server::fuzzing::{dumps, page_server};
use super::{facts, peer, request::Request};
use crate::criu::{Version, log};

/// Texts of CRIU and of the kernel about processes that somebody else has written.
pub(crate) fn criu(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let causes = log::causes(&text);
    assert!(causes.len() <= 8);
    for cause in &causes {
        assert!(text.contains(cause.as_str()) && !cause.contains('\n'));
    }
    for line in text.lines() {
        if let Some(version) = Version::parse(line) {
            assert_eq!(Version::parse(&version.to_string()), Some(version));
        }
    }
    for mount in facts::list_mounts(&text, &[]) {
        assert!(text.contains(&mount.destination) && text.contains(&mount.source));
    }
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    if let Some(inode) = peer::inode_of(&text, address(54321), address(40000)) {
        // Both addresses stand there, in this order.
        let line = text
            .lines()
            .find(|l| l.contains("0100007F:D431 0100007F:9C40"));
        let spaced = text.lines().any(|l| l.contains("0100007F:D431"));
        assert!(line.is_some() || spaced, "inode {inode}");
    }
}

pub(crate) fn criu_texts() -> Vec<Vec<u8>> {
    [
        "(00.000012) Version: 4.2.1 (gitid 0)\n(00.01) Warn  (a.c:1): odd\n4.2.1\n",
        "(00.1) 1: Error (criu/sk-inet.c:189): inet: Connected TCP socket\n(00.2) Error (x): y\n",
        "2 1 8:1 /var/x /etc/hosts ro,relatime shared:1 - ext4 /dev/vda rw\n1 2 - ext4 /dev/vda rw\n",
        "  sl  local_address rem_address\n   1: 0100007F:D431 0100007F:9C40 01 00000000:00000000 \
         00:00000000 00000000     0        0 4242 1 0\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// A request names files by plain names alone, and is of this user.
pub(crate) fn request(data: &[u8], scratch: &Path) {
    let path = scratch.join(REQUEST_FILE);
    fs::write(&path, data).unwrap();
    if let Ok(request) = Request::read(scratch, &CheckpointSettings::default()) {
        let request = request.expect("it is there");
        for (name, file) in &request.include {
            assert!(!name.contains('/') && !name.starts_with('.') && !name.is_empty());
            assert!(file.is_absolute());
        }
    }
    fs::remove_file(path).unwrap();
}

pub(crate) fn requests() -> Vec<Vec<u8>> {
    [
        r#"{"version":1,"level":"fast","buffer":"1MiB","deadline":5,"requester":"me"}"#,
        r#"{"version":1,"include":[{"name":"config.dump","path":"config.dump"}]}"#,
        r#"{"version":1,"include":[{"name":"../x","path":"/etc/shadow"}]}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
