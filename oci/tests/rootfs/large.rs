//! Sizes beyond what a plain tar header can say, through a pipe rather than through memory.

use std::fs::{self, File};
use std::io::pipe;
use std::os::unix::fs::{FileExt, MetadataExt};

use kybernate_oci::rootfs::{apply, diff};

use crate::lab::{ALL, Lab};

#[test]
fn nine_gibibytes_with_holes() {
    const SIZE: u64 = (9 << 30) + 17;
    let Some(lab) = Lab::new("index=off") else {
        return;
    };
    let root = lab.root();
    let file = File::create(root.merged.join("large")).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"at eight and a half", 17 << 29).unwrap();
    file.write_all_at(b"end", SIZE - 3).unwrap();
    fs::write(root.merged.join("next"), "after the large one").unwrap();

    let fresh = lab.root();
    let (reader, mut writer) = pipe().unwrap();
    let overlay = root.overlay();
    let (found, applied) = std::thread::scope(|scope| {
        let taking = scope.spawn(move || diff(&overlay, &root.merged, &mut writer).unwrap());
        let applied = apply(&fresh.merged, reader, &[], &ALL).unwrap();
        (taking.join().unwrap(), applied)
    });
    assert_eq!(found.bytes, SIZE + 19);
    assert_eq!(applied.bytes, SIZE + 19);
    let file = File::open(fresh.merged.join("large")).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), SIZE);
    assert!(meta.blocks() < 64, "{} blocks", meta.blocks());
    let mut found = [0; 19];
    file.read_exact_at(&mut found, 17 << 29).unwrap();
    assert_eq!(&found, b"at eight and a half");
    let mut end = [0; 4];
    file.read_exact_at(&mut end, SIZE - 4).unwrap();
    assert_eq!(&end, b"\0end");
    let next = fs::read_to_string(fresh.merged.join("next")).unwrap();
    assert_eq!(next, "after the large one");
}
