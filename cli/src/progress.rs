//! Progress on standard error: a bar on a terminal, a line per phase elsewhere.

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kybernate_config::{request::Progress, size};

use crate::display::millis;

/// Shows how far something is.
#[derive(Debug)]
pub struct Display {
    bar: ProgressBar,
    /// Lines instead of a bar.
    plain: bool,
    quiet: bool,
    phase: String,
    last: Option<Progress>,
}

impl Display {
    /// For a terminal, a pipe or, if `quiet`, nobody.
    pub fn new(quiet: bool) -> Self {
        let plain = quiet || !stderr().is_terminal();
        let target = if plain {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style("{spinner} {msg}"));
        Self {
            bar,
            plain,
            quiet,
            phase: String::new(),
            last: None,
        }
    }

    /// Begins; `total` bytes are expected, 0 means that nobody knows.
    pub fn start(&mut self, total: u64) {
        let template = if total > 0 {
            self.bar.set_length(total);
            "{msg:9} [{bar:32}] {bytes:>11} of {total_bytes} {bytes_per_sec:>13} {elapsed:>4}"
        } else {
            "{spinner} {msg:9} {bytes:>11} {bytes_per_sec:>13} {elapsed:>4}"
        };
        self.bar.set_style(style(template));
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// Names what goes on.
    pub fn phase(&mut self, name: &str) {
        if self.phase == name {
            return;
        }
        self.end_phase();
        name.clone_into(&mut self.phase);
        self.bar.set_message(self.phase.clone());
    }

    /// So many bytes are done.
    pub fn bytes(&self, done: u64) {
        // What was expected was a guess.
        if self.bar.length().is_some_and(|length| length < done) {
            self.bar.set_length(done);
        }
        self.bar.set_position(done);
    }

    /// What the shim reports.
    pub fn report(&mut self, progress: Progress) {
        self.phase(&progress.phase);
        self.bytes(progress.read_bytes);
        self.last = Some(progress);
    }

    /// Something to read, whether there is a bar or not.
    pub fn say(&self, text: &str) {
        if self.quiet {
            return;
        }
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Something to read even if quiet.
    pub fn warn(&self, text: &str) {
        self.bar.suspend(|| eprintln!("kybernate: warning: {text}"));
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        self.end_phase();
        self.bar.finish_and_clear();
    }

    fn end_phase(&mut self) {
        let Some(last) = self.last.take().filter(|_| self.plain && !self.quiet) else {
            return;
        };
        eprintln!("{}", line(&last));
    }
}

/// A phase in a line.
fn line(last: &Progress) -> String {
    format!(
        "{:<9} {:>9} read, {:>9} written, at {}",
        last.phase,
        size::display(last.read_bytes),
        size::display(last.written_bytes),
        millis(last.elapsed_ms)
    )
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_a_line() {
        let last = Progress {
            phase: "dump".into(),
            read_bytes: 512 << 20,
            written_bytes: 1536,
            elapsed_ms: 1234,
        };
        assert_eq!(
            line(&last),
            "dump        512 MiB read,  1.50 KiB written, at 1.23 s"
        );
    }

    #[test]
    fn templates_parse_and_a_guess_grows() {
        for total in [0, 10] {
            let mut display = Display::new(true);
            display.start(total);
            display.report(Progress {
                phase: "dump".into(),
                read_bytes: 20,
                written_bytes: 5,
                elapsed_ms: 1,
            });
            assert_eq!(display.bar.position(), 20);
            assert_eq!(display.bar.length(), (total > 0).then_some(20));
            display.finish();
        }
        assert!(ProgressStyle::with_template("{bar:32} {bytes_per_sec:>13} {elapsed:>4}").is_ok());
    }
}
