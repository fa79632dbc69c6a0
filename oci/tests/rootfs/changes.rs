//! A base image, and everything that a container can do to it.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::mkfifo;

/// An access ACL: owner rw, user 1234 r, group r, mask r, others none.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xd2\x04\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
/// A default ACL by which everything made in the directory gets an ACL of its own.
const DEFAULT_ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x07\0\xd2\x04\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
/// cap_net_raw+ep, revision 2. The newline byte in the second one must survive.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const CAPABILITY_NEWLINE: &[u8] = b"\x01\0\0\x02\x0a\x20\0\0\x0a\0\0\0\0\0\0\0\0\0\0\0";

pub fn put(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn stamp(path: &Path, sec: i64, nsec: i64) {
    let time = TimeSpec::new(sec, nsec);
    let nofollow = UtimensatFlags::NoFollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, nofollow).unwrap();
}

pub fn odd(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// A base image.
pub fn base(at: &Path) {
    for name in [
        "keep", "modify", "append", "chmod", "chown", "touch", "delete", "to-dir",
    ] {
        put(&at.join("files").join(name), format!("base {name}"));
    }
    for dir in [
        "kept",
        "deleted",
        "recreated",
        "to-file",
        "moved",
        "chmodded",
        "emptied",
    ] {
        for name in ["a", "b", "sub/c", "sub/deep/d"] {
            put(&at.join(dir).join(name), format!("{dir} {name}"));
        }
    }
    put(&at.join("links/one"), "linked");
    fs::hard_link(at.join("links/one"), at.join("links/two")).unwrap();
    put(&at.join("links/three"), "linked too");
    fs::hard_link(at.join("links/three"), at.join("links/four")).unwrap();
    symlink("files/keep", at.join("link")).unwrap();
    symlink("nowhere", at.join("dangling")).unwrap();
    put(&at.join("bin/suid"), "elf");
    mode(&at.join("bin/suid"), 0o4755);
    put(&at.join("bin/caps"), "elf");
    xattr::set(at.join("bin/caps"), "security.capability", CAPABILITY).unwrap();
    put(&at.join("attrs/file"), "x");
    xattr::set(at.join("attrs/file"), "user.gone", b"1").unwrap();
    xattr::set(at.join("attrs/file"), "user.kept", b"2").unwrap();
    put(&at.join("aclbase/file"), "x");
    xattr::set(at.join("aclbase"), "system.posix_acl_default", DEFAULT_ACL).unwrap();
    put(&at.join(odd(b"odd-\xff\xfe")), "not utf-8");
    put(&at.join(odd(b"odddir-\xff/in")), "not utf-8");
    stamp(&at.join("kept"), 1_000_000_000, 123_456_789);
    stamp(at, 1_100_000_000, 1);
}

/// Everything that a container can do to it.
pub fn change(at: &Path) {
    let files = at.join("files");
    put(&files.join("modify"), "changed");
    OpenOptions::new()
        .append(true)
        .open(files.join("append"))
        .unwrap()
        .write_all(b"+")
        .unwrap();
    mode(&files.join("chmod"), 0o600);
    chown(files.join("chown"), Some(1234), Some(0x7fff_fff0)).unwrap();
    stamp(&files.join("touch"), 987_654_321, 987_654_321);
    fs::remove_file(files.join("delete")).unwrap();
    fs::remove_file(files.join("to-dir")).unwrap();
    put(&files.join("to-dir/inner/file"), "was a file");
    put(&files.join("new"), "new");
    mode(&files.join("new"), 0);
    put(&files.join("empty"), "");

    fs::remove_dir_all(at.join("deleted")).unwrap();
    fs::remove_dir_all(at.join("recreated")).unwrap();
    put(&at.join("recreated/b"), "again");
    put(&at.join("recreated/sub/new"), "again");
    mode(&at.join("recreated"), 0o1777);
    fs::remove_dir_all(at.join("to-file")).unwrap();
    put(&at.join("to-file"), "was a directory");
    // Where redirects are off the kernel refuses and `mv` copies.
    if fs::rename(at.join("moved"), at.join("moved-away")).is_err() {
        Command::new("cp")
            .arg("-a")
            .args([at.join("moved"), at.join("moved-away")])
            .status()
            .unwrap();
        fs::remove_dir_all(at.join("moved")).unwrap();
    }
    put(&at.join("moved-away/sub/added"), "added");
    fs::remove_file(at.join("moved-away/a")).unwrap();
    mode(&at.join("chmodded"), 0o2700);
    for name in ["a", "b"] {
        fs::remove_file(at.join("emptied").join(name)).unwrap();
    }
    fs::remove_dir_all(at.join("emptied/sub")).unwrap();
    fs::create_dir_all(at.join("new-dirs/empty")).unwrap();
    stamp(&at.join("new-dirs/empty"), -1_500_000_000, 250_000_000);
    stamp(&at.join("new-dirs"), 12_345_678_901, 5);

    put(&at.join("links/one"), "changed through one");
    fs::hard_link(at.join("links/three"), at.join("links/five")).unwrap();
    put(&at.join("links/new1"), "new pair");
    fs::hard_link(at.join("links/new1"), at.join("kept/new2")).unwrap();
    symlink("odd target \u{fffd}", at.join("links/sym")).unwrap();
    fs::hard_link(at.join("links/sym"), at.join("links/sym2")).unwrap();
    lchown(at.join("links/sym"), Some(7), Some(8)).unwrap();
    stamp(&at.join("links/sym"), 5, 6);
    fs::remove_file(at.join("link")).unwrap();
    symlink("kept", at.join("link")).unwrap();
    fs::remove_file(at.join("dangling")).unwrap();
    fs::create_dir(at.join("dangling")).unwrap();

    mkfifo(&at.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    for (name, kind) in [("null", SFlag::S_IFCHR), ("disk", SFlag::S_IFBLK)] {
        let all = Mode::from_bits_truncate(0o666);
        mknod(&at.join(name), kind, all, makedev(1, 0x1_2345)).unwrap();
    }
    put(&at.join("bin/suid2"), "elf");
    chown(at.join("bin/suid2"), Some(33), Some(33)).unwrap();
    mode(&at.join("bin/suid2"), 0o6711);
    put(&at.join("bin/caps2"), "elf");
    xattr::set(
        at.join("bin/caps2"),
        "security.capability",
        CAPABILITY_NEWLINE,
    )
    .unwrap();
    put(&at.join("bin/caps"), "elf again");

    xattr::remove(at.join("attrs/file"), "user.gone").unwrap();
    xattr::set(at.join("attrs/file"), "user.a=b%3D", b"\n\0=\n12 x=y\n").unwrap();
    xattr::set(at.join("attrs"), "user.dir", vec![0xa5; 3000].as_slice()).unwrap();
    xattr::set(at.join("attrs"), "trusted.mine", b"t").unwrap();
    put(&at.join("acl/file"), "x");
    xattr::set(at.join("acl/file"), "system.posix_acl_access", ACL).unwrap();
    put(&at.join("acl/dir/before"), "x");
    xattr::set(at.join("acl/dir"), "system.posix_acl_default", DEFAULT_ACL).unwrap();
    put(&at.join("acl/dir/after/inner"), "inherits");
    put(&at.join("aclbase/plain"), "x");
    xattr::remove(at.join("aclbase/plain"), "system.posix_acl_access").unwrap();
    put(&at.join("aclbase/file"), "y");

    let sparse = fs::File::create(at.join("sparse")).unwrap();
    sparse.write_all_at(b"data", 5 << 20).unwrap();
    sparse.write_all_at(b"more", (9 << 20) + 4095).unwrap();
    sparse.set_len((16 << 20) + 3).unwrap();

    let long = at.join("long").join("d".repeat(120)).join("e".repeat(200));
    put(&long.join("f".repeat(255)), "long");
    symlink("t".repeat(300), long.join("link")).unwrap();
    fs::hard_link(long.join("f".repeat(255)), long.join("hard")).unwrap();
    for length in 90..=110 {
        put(&at.join("edge").join("n".repeat(length)), "x");
        put(
            &at.join("edge")
                .join("p".repeat(250 - length))
                .join("q".repeat(100)),
            "x",
        );
    }
    fs::remove_file(at.join(odd(b"odd-\xff\xfe"))).unwrap();
    fs::remove_dir_all(at.join(odd(b"odddir-\xff"))).unwrap();
    put(&at.join(odd(b"new-\xff\n\x01")), "not utf-8");
    symlink(odd(b"\xff\xfe"), at.join(odd(b"sym-\xff"))).unwrap();
    put(&at.join("new\\line\n\"quoted\" name"), "x");
    put(&at.join(".wh.literal"), "a name like a whiteout's");
    drop(UnixListener::bind(at.join("socket")).unwrap());
    mode(at, 0o711);
    stamp(&files, 1_234_567_890, 1);
    stamp(at, 1_300_000_000, 999_999_999);
}
