//! Medians against targets, for a terminal and for `docs/benchmarks.md`.

use std::fmt::Write as _;

use super::{
    checkpoints::{Sample, Size, WAYS, Way},
    machine::Machine,
    pods::Both,
    restores::Restores,
};

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// Everything that was measured.
#[derive(Debug, Clone)]
pub struct Report {
    pub(super) machine: Machine,
    pub(super) pods: Both,
    pub(super) sizes: Vec<Size>,
    pub(super) restores: Restores,
}

/// A promise and what came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// What is compared.
    pub what: &'static str,
    /// The ratio or figure that was found.
    pub found: f64,
    /// The bound.
    pub bound: f64,
    /// Whether more is better.
    pub at_least: bool,
    /// Unit of both, empty for a ratio.
    pub unit: &'static str,
}

impl Target {
    /// Whether the promise is kept.
    pub fn holds(&self) -> bool {
        if self.at_least {
            self.found >= self.bound
        } else {
            self.found <= self.bound
        }
    }

    fn line(&self) -> [String; 4] {
        let unit = if self.unit.is_empty() {
            "×".to_owned()
        } else {
            format!(" {}", self.unit)
        };
        let sign = if self.at_least { "≥" } else { "≤" };
        [
            self.what.to_owned(),
            format!("{:.2}{unit}", self.found),
            format!("{sign} {}{unit}", self.bound),
            if self.holds() { "PASS" } else { "FAIL" }.to_owned(),
        ]
    }
}

impl Report {
    /// Whether every promise is kept.
    pub fn passed(&self) -> bool {
        self.targets().iter().all(Target::holds)
    }

    /// The promises, from the largest container.
    pub fn targets(&self) -> Vec<Target> {
        let Some(size) = self.sizes.last() else {
            return Vec::new();
        };
        let of = |way, figure: fn(&Sample) -> f64| size.median(way, figure);
        let (wall, pause) = (|s: &Sample| s.wall, |s: &Sample| s.pause);
        let (written, bytes) = (|s: &Sample| s.written, |s: &Sample| s.size);
        let target = |what, found, bound, at_least, unit| Target {
            what,
            found,
            bound,
            at_least,
            unit,
        };
        let stock = of(Way::Stock, wall);
        vec![
            target(
                "times faster than stock, level default",
                stock / of(Size::DEFAULT, wall),
                4.0,
                true,
                "",
            ),
            target(
                "times faster than stock, level fast",
                stock / of(Size::FAST, wall),
                6.0,
                true,
                "",
            ),
            target(
                "archive to stock's, level default",
                of(Size::DEFAULT, bytes) / of(Way::Stock, bytes),
                0.6,
                false,
                "",
            ),
            target(
                "bytes written to the archive's size",
                of(Size::DEFAULT, written) / of(Size::DEFAULT, bytes),
                1.1,
                false,
                "",
            ),
            target(
                "pause to runc's into tmpfs, buffer auto",
                of(Size::DEFAULT, pause) / of(Way::RuncToMemory, pause),
                1.25,
                false,
                "",
            ),
            target(
                "pause to stock's, buffer 256MiB",
                of(Size::BOUNDED, pause) / of(Way::Stock, pause),
                0.5,
                false,
                "",
            ),
            target(
                "extra memory of the shim, buffer 256MiB",
                of(Size::BOUNDED, |s| s.shim) / MIB,
                300.0,
                false,
                "MiB",
            ),
            target(
                "restore to unpacking and runc restore",
                self.restores.ours() / self.restores.in_sequence(),
                1.0,
                false,
                "",
            ),
            target(
                "pod start to stock's",
                self.pods.ours.median() / self.pods.stock.median(),
                1.0,
                false,
                "",
            ),
            target(
                "idle shim, resident",
                self.pods.ours.idle.resident as f64 / 1e6,
                8.0,
                false,
                "MB",
            ),
        ]
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for [what, found, bound, holds] in self.targets().iter().map(Target::line) {
            let _ = writeln!(text, "{holds}  {what:<42} {found:>12}  ({bound})");
        }
        text
    }

    /// For `docs/benchmarks.md`.
    pub fn markdown(&self) -> String {
        let mut text = String::from(HEAD);
        let m = &self.machine;
        let _ = write!(
            text,
            "## Machine\n\n{}, {} cores, {:.0} GiB of memory, Linux {}, cgroup {}; {} at {:.1} GB/s \
             (sequential, direct).\n{}; Kybernate {}.\n\n",
            m.cpu,
            m.cores,
            m.memory as f64 / GIB,
            m.kernel,
            m.cgroup,
            m.filesystem,
            m.disk / 1e9,
            m.versions,
            env!("CARGO_PKG_VERSION"),
        );
        text.push_str("## Targets\n\n| | found | target | |\n|---|---|---|---|\n");
        for line in self.targets().iter().map(Target::line) {
            let _ = writeln!(text, "| {} |", line.join(" | "));
        }
        if let Some(size) = self.sizes.last() {
            self.disk_bound(&mut text, size);
        }
        for size in &self.sizes {
            checkpoint_table(&mut text, size);
        }
        self.restore_table(&mut text);
        self.pod_table(&mut text);
        text
    }

    /// What the disk can do for the target of level `fast`.
    fn disk_bound(&self, text: &mut String, size: &Size) {
        let allowed = size.median(Way::Stock, |s| s.wall) / 6.0;
        let _ = writeln!(
            text,
            "\nLevel `fast` compresses what this disk has no time for: in a sixth of stock's time, \
             {allowed:.2} s,\nit takes {:.0} MiB.",
            allowed * self.machine.disk / MIB,
        );
    }

    fn restore_table(&self, text: &mut String) {
        let r = &self.restores;
        let median = |values: &[f64]| super::median(values.to_vec());
        let _ = write!(
            text,
            "\n## Restore, {} MiB\n\n| way | seconds to the running program |\n|---|---|\n\
             | Kybernate: CreateContainer, then StartContainer | {:.2} ({:.2} + {:.2}) |\n\
             | `zstd -d \\| tar x` into tmpfs, then `runc restore` | {:.2} ({:.2} + {:.2}) |\n",
            r.mib,
            r.ours(),
            median(&r.create),
            median(&r.start),
            r.in_sequence(),
            median(&r.unpack),
            median(&r.runc),
        );
    }

    fn pod_table(&self, text: &mut String) {
        text.push_str(
            "\n## Pods\n\n| shim | start, median | fastest and slowest | idle, resident | private \
             dirty |\n|---|---|---|---|---|\n",
        );
        for (name, pods) in [("stock", &self.pods.stock), ("Kybernate", &self.pods.ours)] {
            let ms = |seconds: Option<&f64>| seconds.map_or(0.0, |s| s * 1000.0);
            let _ = writeln!(
                text,
                "| {name} | {:.0} ms | {:.0} and {:.0} ms | {:.1} MB | {:.1} MB |",
                pods.median() * 1000.0,
                ms(pods.start.first()),
                ms(pods.start.last()),
                pods.idle.resident as f64 / 1e6,
                pods.idle.private_dirty as f64 / 1e6,
            );
        }
    }
}

fn checkpoint_table(text: &mut String, size: &Size) {
    let _ = write!(
        text,
        "\n## Checkpoint, {} MiB, half of it compressible\n\n\
         | way | wall | pause | reported | result | written to disk | shim, extra | containerd, extra |\n\
         |---|---|---|---|---|---|---|---|\n",
        size.mib
    );
    for way in WAYS {
        let of = |figure: fn(&Sample) -> f64| size.median(way, figure);
        let reported = of(|s| s.reported);
        let reported = if reported > 0.0 {
            format!("{reported:.2} s")
        } else {
            "–".into()
        };
        let _ = writeln!(
            text,
            "| {} | {:.2} s | {:.2} s | {reported} | {:.0} MiB | {:.0} MiB | {:.0} MiB | {:.0} MiB |",
            way.title(),
            of(|s| s.wall),
            of(|s| s.pause),
            of(|s| s.size) / MIB,
            of(|s| s.written) / MIB,
            of(|s| s.shim) / MIB,
            of(|s| s.containerd) / MIB,
        );
    }
    let _ = writeln!(
        text,
        "\nSome seconds after its last checkpoint our shim has {:.1} MB resident.",
        size.afterwards as f64 / 1e6
    );
}

const HEAD: &str = "\
# Benchmarks

Written by `make bench`: medians of one run, in which stock containerd and Kybernate take turns
on the same machine. GPUs have [their own page](benchmarks-gpu.md), and so has
[the hook](benchmarks-hooks.md).

- Stock is containerd's CRI `CheckpointContainer` with its own shim. Kybernate is `kybernate
  checkpoint`, from the start of the command to its end.
- Pause is what the program itself sees: a thread of it wakes every millisecond and notes the
  longest time between two wakes. Reported is the pause in the archive's manifest.
- Written counts what containerd and the shim send to disk files (`write_bytes` in
  `/proc/<pid>/io`), whether it has reached the disk yet or not. Stock's CRIU images go to `/tmp`,
  which is memory here as on Debian 13, and are not counted.
- Extra memory is the peak resident size during the checkpoint beyond the size before: for the
  shim, when its pod was new.
- `runc checkpoint --leave-running` into tmpfs makes no archive; it shows how short a pause can be.

";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_says_what_it_wants() {
        let target = Target {
            what: "x",
            found: 3.9,
            bound: 4.0,
            at_least: true,
            unit: "",
        };
        assert!(!target.holds());
        assert_eq!(target.line(), ["x", "3.90×", "≥ 4×", "FAIL"]);
        let target = Target {
            found: 7.9,
            at_least: false,
            bound: 8.0,
            unit: "MB",
            ..target
        };
        assert!(target.holds());
        assert_eq!(target.line()[2], "≤ 8 MB");
    }
}
