//! Measures how fast archives are written and read.
//!
//! `throughput DATA DIRECTORY [LEVEL…]` writes DATA as one entry to an archive in DIRECTORY at
//! each level, in plain text and encrypted, verifies it, and extracts it to DIRECTORY.

use std::error::Error;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use kybernate_age::Identity;
use kybernate_oci::archive::{Archive, Encryption, Label, Level, WriteOptions, Writer};
use kybernate_oci::manifest::Manifest;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(data), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: throughput DATA DIRECTORY [LEVEL…]".into());
    };
    let mut levels: Vec<String> = arguments.collect();
    if levels.is_empty() {
        levels = ["fast", "default", "high"].map(str::to_owned).to_vec();
    }
    println!(
        "           level     ratio   write MB/s  cpu s  verify MB/s  cpu s  extract MB/s  cpu s"
    );
    for level in levels {
        let path = Path::new(&directory).join("throughput.kybernate");
        let identity = Identity::generate()?;
        for identities in [&[][..], &[identity]] {
            measure(Path::new(&data), &path, level.parse()?, identities)?;
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn measure(
    data: &Path,
    path: &Path,
    level: Level,
    identities: &[Identity],
) -> Result<(), Box<dyn Error>> {
    let mut source = File::open(data)?;
    let cpu = cpu_seconds()?;
    let start = Instant::now();
    let options = WriteOptions {
        level,
        ..WriteOptions::default()
    };
    let file = File::create(path)?;
    let recipients: Vec<_> = identities
        .iter()
        .map(|one| one.recipient().clone())
        .collect();
    let label = Label::default();
    let mut writer = match recipients.len() {
        0 => Writer::new(file, options)?,
        _ => Writer::encrypted(file, options, &Encryption { recipients, label })?,
    };
    let mut stream = writer.stream("checkpoint/pages-1.img")?;
    loop {
        let space = stream.space()?;
        match source.read(space)? {
            0 => break,
            count => stream.filled(count),
        }
    }
    stream.finish()?;
    let summary = writer.finish(Manifest::default())?;
    let content = summary.content_bytes as f64;
    print!(
        "{:9}  {:8} {:6.3}",
        if identities.is_empty() {
            "plain"
        } else {
            "encrypted"
        },
        level.to_string(),
        summary.archive_bytes as f64 / content
    );
    report(content, start, cpu)?;

    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let archive = Archive::open_with(path, identities)?;
    archive.verify(&mut |_| {})?;
    report(content, start, cpu)?;

    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let target = path.with_extension("pages");
    let name = target.file_name().map(PathBuf::from);
    let directory = path.parent().unwrap_or(Path::new("."));
    archive.extract(
        &|entry| name.clone().filter(|_| !entry.name.ends_with('/')),
        directory,
        0,
        &AtomicBool::new(false),
    )?;
    report(content, start, cpu)?;
    fs::remove_file(target)?;
    println!();
    Ok(())
}

/// Prints rate and processor time since `start` and `cpu`.
fn report(content: f64, start: Instant, cpu: f64) -> Result<(), Box<dyn Error>> {
    let rate = content / start.elapsed().as_secs_f64() / 1e6;
    print!("{rate:13.0} {:6.2}", cpu_seconds()? - cpu);
    Ok(())
}

/// Processor time of this process so far.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
