//! The programs of `workloads/`, and how their output tells that all is well.
//!
//! Each prints lines with a number that rises, kept in memory alone: a restored one goes on
//! counting, a new one starts at 1. `FAIL` or `CORRUPT` in a line says what does not hold.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kybernate_config::names;

use crate::{
    Container, Pod, checkpoint::Archive, cri::ContainerBuilder, eventually, image::catalog,
};

/// How long a workload may take to get ready, and to show that it is alive.
const LIMIT: Duration = Duration::from_secs(40);
/// How far the number must rise before it counts as rising.
const STEPS: u64 = 3;
/// The end of a log that has a few lines in it.
const TAIL: u64 = 4096;

/// A program that counts.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Name of its container.
    pub name: &'static str,
    /// Its image.
    pub image: &'static str,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// What stands before the number at the start of a line.
    prefix: &'static str,
    /// What a line says when everything was looked at and found right.
    verdict: Option<&'static str>,
}

impl Workload {
    fn new(name: &'static str, argv: &[&str], prefix: &'static str) -> Self {
        Self {
            name,
            image: catalog::TOOLS,
            argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            prefix,
            verdict: None,
        }
    }

    /// Counts in memory and in a file.
    pub fn counter() -> Self {
        Self::new("counter", &["counter"], "count ")
    }

    /// Holds so many MiB with a checksum, half of it compressible.
    pub fn memory(mib: u32) -> Self {
        Self::memory_checked(mib, 10)
    }

    /// [`Workload::memory`] with a check every so many tenths of a second; 0 for none.
    pub fn memory_checked(mib: u32, tenths: u32) -> Self {
        let argv = ["memory", &mib.to_string(), "50", &tenths.to_string()];
        let verdict = (tenths > 0).then_some("OK");
        Self {
            verdict,
            ..Self::new("memory", &argv, "t=")
        }
    }

    /// Holds so many MiB that it keeps changing, and a file; knows what each page has to hold.
    pub fn ledger(mib: u32) -> Self {
        Self {
            verdict: Some("OK"),
            ..Self::new("ledger", &["ledger", &mib.to_string()], "count ")
        }
    }

    /// A tree of processes that pass a token over every kind of channel.
    pub fn tree() -> Self {
        Self::new("tree", &["tree"], "round ")
    }

    /// Threads with thread-local storage, mutexes and condition variables.
    pub fn threads(count: u32) -> Self {
        Self::new("threads", &["threads", &count.to_string()], "round ")
    }

    /// Serves TCP on a port and holds a connection to itself.
    pub fn listener(port: u16) -> Self {
        Self::new("listener", &["listener", &port.to_string()], "t=")
    }

    /// Changes its root file system and compares it with what it remembers.
    pub fn filesystem() -> Self {
        Self {
            verdict: Some("OK"),
            ..Self::new("filesystem", &["filesystem"], "check ")
        }
    }

    /// So many processes that count in the memory of a GPU's double; see `doubles/cuda.h`. Its
    /// container needs [`crate::gpu::container`].
    pub fn gpu(processes: u32) -> Self {
        Self::new("gpu", &["gpu", &processes.to_string()], "count ")
    }

    /// A Python program with objects, a generator and a thread.
    pub fn python() -> Self {
        let argv = [
            "python3",
            "-u",
            "-c",
            include_str!("../workloads/objects.py"),
        ];
        Self {
            image: catalog::APPS,
            ..Self::new("python", &argv, "round ")
        }
    }

    /// The container of a pod that will run it.
    pub fn container(&self, pod: &Pod) -> ContainerBuilder {
        pod.container(self.name)
            .image(self.image)
            .command(self.argv.clone())
    }

    /// Starts it and waits until it counts.
    pub async fn start(&self, pod: &Pod) -> Result<Container> {
        let container = self.container(pod).start().await?;
        self.is_well(&container, 0).await?;
        Ok(container)
    }

    /// Creates and starts a container of the same program from an archive.
    pub async fn restore(&self, pod: &Pod, archive: &Archive) -> Result<Container> {
        self.restore_attempt(pod, archive, 1).await
    }

    /// [`Workload::restore`] with a number: two containers of a pod differ in name or attempt.
    pub async fn restore_attempt(
        &self,
        pod: &Pod,
        archive: &Archive,
        attempt: u32,
    ) -> Result<Container> {
        self.container(pod)
            .attempt(attempt)
            .annotation(names::RESTORE_FROM, &archive.path)
            .start()
            .await
            .with_context(|| format!("restore of {}", self.name))
    }

    /// The number it has printed last; 0 when none is there yet.
    pub fn count(&self, container: &Container) -> Result<u64> {
        Ok(last_number(&container.stdout().unwrap_or_default(), self.prefix).unwrap_or(0))
    }

    /// [`Workload::count`] without reading all of a long log; 0 when nothing is there yet.
    pub fn counted(&self, container: &Container) -> Result<u64> {
        let mut file = File::open(container.log_file())?;
        let from = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(from))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        let tail = String::from_utf8_lossy(&tail);
        // What comes after the last newline is still being written.
        let whole = tail.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let text = |line: &'_ str| line.splitn(4, ' ').nth(3).map(str::to_owned);
        let numbers = whole.lines().rev().filter_map(text);
        Ok(numbers
            .filter_map(|text| number(&text, self.prefix))
            .next()
            .unwrap_or(0))
    }

    /// Fails when anything was wrong since a container's log began.
    pub fn was_never_wrong(&self, container: &Container) -> Result<()> {
        let log = container.stdout()?;
        let wrong = log.lines().filter(|line| is_wrong(line)).take(10);
        let wrong: Vec<_> = wrong.collect();
        ensure!(wrong.is_empty(), "{} says: {}", self.name, wrong.join("; "));
        Ok(())
    }

    /// The first number that a container's log has.
    pub fn first(&self, container: &Container) -> Result<u64> {
        first_number(&container.stdout()?, self.prefix).context("nothing counted yet")
    }

    /// Waits until it has counted some steps beyond `above` and has looked at everything anew;
    /// fails when anything was wrong since its log began. Returns the number.
    pub async fn is_well(&self, container: &Container, above: u64) -> Result<u64> {
        let verdicts = |log: &str| self.verdict.map_or(0, |v| log.matches(v).count());
        let before = verdicts(&container.stdout().unwrap_or_default());
        let what = format!("{} counts beyond {above}", self.name);
        let rises = eventually(&what, LIMIT, || async {
            let log = container.stdout()?;
            let looked = self.verdict.is_none() || verdicts(&log) > before;
            let number = last_number(&log, self.prefix).unwrap_or(0);
            Ok((looked && number >= above + STEPS).then_some(number))
        })
        .await;
        let log = container.stdout().unwrap_or_default();
        let wrong: Vec<_> = log.lines().filter(|line| is_wrong(line)).take(10).collect();
        ensure!(wrong.is_empty(), "{} says: {}", self.name, wrong.join("; "));
        rises.with_context(|| {
            let tail: Vec<_> = log.lines().rev().take(3).collect();
            let errors = container.stderr().unwrap_or_default();
            format!("the log of {} ends with {tail:?} {errors:?}", self.name)
        })
    }

    /// As [`Workload::is_well`], for a container that was restored when it had counted to
    /// `at`: it must go on there, neither anew nor from the future.
    pub async fn went_on(&self, container: &Container, at: u64) -> Result<u64> {
        let number = self.is_well(container, at).await?;
        let first = self.first(container)?;
        ensure!(
            (at..=at + 50).contains(&first),
            "{} was restored at {at} or soon after and goes on at {first}",
            self.name
        );
        Ok(number)
    }
}

fn is_wrong(line: &str) -> bool {
    line.contains("FAIL") || line.contains("CORRUPT")
}

fn number(line: &str, prefix: &str) -> Option<u64> {
    let rest = line.strip_prefix(prefix)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

fn first_number(log: &str, prefix: &str) -> Option<u64> {
    log.lines().find_map(|line| number(line, prefix))
}

fn last_number(log: &str, prefix: &str) -> Option<u64> {
    log.lines().rev().find_map(|line| number(line, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_behind_their_prefix_alone() {
        let log = "ready sum=77\nt=4 gap_us=1\nt=12 gap_us=9 sum=1 OK\nt=x\n";
        assert_eq!(first_number(log, "t="), Some(4));
        assert_eq!(last_number(log, "t="), Some(12));
        assert_eq!(last_number(log, "count "), None);
    }
}
