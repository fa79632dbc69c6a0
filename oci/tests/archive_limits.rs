//! Memory, cancellation and full disks. One test: it looks at the whole process.

mod archive_common;

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::time::{Duration, Instant};

use archive_common::{memory, options, verify};
use kybernate_oci::archive::{Level, WriteError, WriteOptions, Writer};
use kybernate_oci::manifest::Manifest;

const MIB: u64 = 1 << 20;

/// A field of /proc/self/status in bytes.
fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// CAP_SYS_NICE is bit 23.
fn may_raise_priority() -> bool {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("CapEff"))
        .unwrap();
    let bits = line.split_whitespace().nth(1).unwrap();
    u64::from_str_radix(bits, 16).unwrap() & 1 << 23 != 0
}

fn archive_threads() -> usize {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with("archive-"))
        .count()
}

#[test]
fn memory_cancellation_and_full_disks() {
    memory_stays_within_the_buffer();
    a_blocked_producer_is_cancelled();
    dropping_ends_all_threads();
    a_full_disk_is_an_error();
    options_are_checked();
    background_and_counters();
}

fn memory_stays_within_the_buffer() {
    let directory = tempfile::tempdir().unwrap();
    let content = memory(8, 32 << 20);
    for (level, rounds) in [(Level::High, 5), (Level::Fast, 12), (Level::Default, 12)] {
        let buffer = 128 * MIB;
        let before = status("VmRSS");
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let path = directory.path().join("archive");
        let options = WriteOptions {
            level,
            buffer,
            ..WriteOptions::default()
        };
        let mut writer = Writer::new(File::create(&path).unwrap(), options).unwrap();
        let mut stream = writer.stream("checkpoint/pages-1.img").unwrap();
        for _ in 0..rounds {
            stream.write_all(&content).unwrap();
        }
        stream.finish().unwrap();
        writer.finish(Manifest::default()).unwrap();
        let grown = status("VmHWM").saturating_sub(before);
        let kept = status("VmRSS").saturating_sub(before);
        assert!(grown <= buffer + 8 * MIB, "{level}: {} MiB", grown / MIB);
        assert!(kept <= 8 * MIB, "{level}: {} MiB kept", kept / MIB);
        let before = status("VmRSS");
        fs::write("/proc/self/clear_refs", "5").unwrap();
        verify(&path).unwrap();
        let grown = status("VmHWM").saturating_sub(before);
        assert!(grown <= 64 * MIB, "reading: {} MiB", grown / MIB);
    }
}

fn a_blocked_producer_is_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let file = File::create(directory.path().join("archive")).unwrap();
    let options = WriteOptions {
        buffer: 160 * MIB,
        ..options(Level::Zstd(22))
    };
    let mut writer = Writer::new(file, options).unwrap();
    let control = writer.control();
    let content = memory(3, 4 << 20);
    let producer = std::thread::spawn(move || {
        let mut stream = writer.stream("checkpoint/pages-1.img")?;
        loop {
            // Through space() rather than Write, whose errors are io::Error.
            let mut rest = content.as_slice();
            while !rest.is_empty() {
                let space = stream.space()?;
                let size = space.len().min(rest.len());
                space[..size].copy_from_slice(&rest[..size]);
                stream.filled(size);
                rest = &rest[size..];
            }
        }
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut last = (0, Instant::now());
    // Blocked when nothing was read for a while: the buffer is full, level 22 is slow.
    while control.waiting_bytes() < 16 * MIB || last.1.elapsed() < Duration::from_millis(20) {
        assert!(Instant::now() < deadline, "never blocked");
        let read = control.read_bytes();
        if read != last.0 {
            last = (read, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    control.cancel();
    let result: Result<(), WriteError> = producer.join().unwrap();
    assert!(matches!(result, Err(WriteError::Cancelled)), "{result:?}");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(archive_threads(), 0);
}

fn dropping_ends_all_threads() {
    let directory = tempfile::tempdir().unwrap();
    let file = File::create(directory.path().join("archive")).unwrap();
    let mut writer = Writer::new(file, options(Level::High)).unwrap();
    let control = writer.control();
    // Threads start on their own time.
    while archive_threads() < 3 {
        std::thread::yield_now();
    }
    let mut stream = writer.stream("checkpoint/pages-1.img").unwrap();
    stream.write_all(&memory(3, 16 << 20)).unwrap();
    let start = Instant::now();
    drop(writer);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(archive_threads(), 0);
    // The handle outlives the writer.
    control.cancel();
    control.set_background(true);
}

fn a_full_disk_is_an_error() {
    let Ok(file) = OpenOptions::new().write(true).open("/dev/full") else {
        println!("SKIPPED a_full_disk_is_an_error: no /dev/full");
        return;
    };
    let mut writer = Writer::new(file, options(Level::Fast)).unwrap();
    let content = memory(3, 1 << 20);
    let mut number = 0;
    let error = loop {
        number += 1;
        assert!(number < 10_000, "a full disk was not noticed");
        if let Err(error) = writer.bytes(&format!("f-{number}"), &content) {
            break error;
        }
    };
    match &error {
        WriteError::Io { source, .. } => {
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error}");
        }
        other => panic!("{other}"),
    }
    // The reason stays.
    let error = writer.finish(Manifest::default()).unwrap_err();
    assert!(matches!(error, WriteError::Io { .. }), "{error}");
    // Where all fits the staging, finishing notices.
    let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let writer = Writer::new(file, options(Level::Fast)).unwrap();
    let error = writer.finish(Manifest::default()).unwrap_err();
    assert!(matches!(error, WriteError::Io { .. }), "{error}");
    assert_eq!(archive_threads(), 0);
}

fn options_are_checked() {
    let file = || tempfile::tempfile().unwrap();
    let error = Writer::new(
        file(),
        WriteOptions {
            buffer: 8 * MIB,
            ..WriteOptions::default()
        },
    )
    .unwrap_err();
    let WriteError::Buffer { needed, .. } = error else {
        panic!("{error}");
    };
    Writer::new(
        file(),
        WriteOptions {
            buffer: needed,
            ..WriteOptions::default()
        },
    )
    .unwrap();
    for frame_size in [0, (64 << 10) - 1, (64 << 20) + 1] {
        let options = WriteOptions {
            frame_size,
            ..WriteOptions::default()
        };
        assert!(matches!(
            Writer::new(file(), options),
            Err(WriteError::FrameSize { .. })
        ));
    }
}

fn background_and_counters() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive");
    let mut writer = Writer::new(File::create(&path).unwrap(), options(Level::Default)).unwrap();
    let control = writer.control();
    let nice = |of: &dyn Fn(i32) -> bool| {
        let nices: Vec<i32> = fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok())
            .filter(|stat| stat.contains("(archive-"))
            .map(|stat| {
                let fields = stat.rsplit(')').next().unwrap();
                fields.split_whitespace().nth(16).unwrap().parse().unwrap()
            })
            .collect();
        !nices.is_empty() && nices.into_iter().all(of)
    };
    // Threads start on their own time.
    while archive_threads() < 3 {
        std::thread::yield_now();
    }
    let soon = |wanted: i32| {
        // A thread that has its name may not have its priority yet.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !nice(&|nice| nice == wanted) {
            assert!(Instant::now() < deadline, "no nice value of {wanted}");
            std::thread::yield_now();
        }
    };
    control.set_background(true);
    if may_raise_priority() {
        soon(19);
    } else {
        println!("SKIPPED background priority: without CAP_SYS_NICE it stays as it is");
        soon(0);
    }
    let content = memory(4, 3 << 20);
    writer.bytes("a", &content).unwrap();
    control.set_background(false);
    soon(0);
    let summary = writer.finish(Manifest::default()).unwrap();
    assert_eq!(control.read_bytes(), summary.content_bytes);
    assert_eq!(control.waiting_bytes(), 0);
    let written = control.written_bytes();
    assert!(written >= summary.archive_bytes);
    assert!(written <= summary.archive_bytes + summary.archive_bytes / 10);
    verify(&path).unwrap();
}
