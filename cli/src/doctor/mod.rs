//! What a node can and can't do.
//!
//! Every check is two functions: one that asks the machine, and one that judges the answer and
//! is told all it needs, so that tests can be other machines.

mod config;
mod containerd;
mod encryption;
mod gpu;
mod kernel;
mod leftovers;
mod nri;
mod probe;
mod space;
mod tools;

use std::fmt::Write;

use kybernate_config::Settings;
use serde::Serialize;

use crate::display::clean;

pub use config::from_status;
pub use probe::version;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Something does not work, or not well.
    Warn,
    /// No checkpoint or no restore works.
    Fail,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it went.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Warn,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn fail(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Fail,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// All findings, in the order in which a checkpoint needs the things.
#[derive(Debug, Serialize)]
pub struct Report {
    findings: Vec<Finding>,
}

/// Looks at this machine; with `repair`, what dead shims have left on it is undone first.
pub async fn examine(settings: &Settings, repair: bool) -> Report {
    let mut findings = vec![kernel::user()];
    findings.extend(leftovers::examine(settings, repair).await);
    let node = containerd::ask(&settings.containerd.socket).await;
    findings.extend(node.findings);
    findings.extend(tools::examine(node.handler.as_ref()).await);
    findings.extend(kernel::examine());
    findings.extend(gpu::examine());
    findings.extend(space::examine(settings));
    findings.extend(encryption::examine(settings));
    Report { findings }
}

impl Report {
    /// Whether something must be mended before anything works.
    pub fn has_failed(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.level == Level::Fail)
    }

    /// A line per finding, and one for its remedy.
    pub fn render(&self) -> String {
        let width = self
            .findings
            .iter()
            .map(|f| f.check.len())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for Finding {
            check,
            level,
            found,
            remedy,
        } in &self.findings
        {
            let level = match level {
                Level::Ok => "OK  ",
                Level::Warn => "WARN",
                Level::Fail => "FAIL",
            };
            let _ = writeln!(text, "{level}  {check:width$}  {}", clean(found));
            if let Some(remedy) = remedy {
                for line in remedy.lines() {
                    let _ = writeln!(text, "      {:width$}  {}", "", clean(line));
                }
            }
        }
        let count = |level| self.findings.iter().filter(|f| f.level == level).count();
        let _ = match (count(Level::Fail), count(Level::Warn)) {
            (0, 0) => writeln!(text, "\nThis node is ready."),
            (0, n) => writeln!(text, "\nThis node is ready, with {n} warnings."),
            (n, _) => writeln!(text, "\nThis node is not ready: {n} checks failed."),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_stand_below_what_they_mend() {
        let report = Report {
            findings: vec![
                Finding::ok("kernel", "6.18"),
                Finding::fail("criu", "not \u{1b}found", "install it\nand restart"),
            ],
        };
        assert!(report.has_failed());
        let text = report.render();
        assert_eq!(
            text,
            "OK    kernel  6.18\n\
             FAIL  criu    not \\u{1b}found\n              install it\n              and restart\n\
             \nThis node is not ready: 1 checks failed.\n"
        );
    }

    #[tokio::test]
    async fn this_machine_can_be_examined() {
        let mut settings = Settings::default();
        settings.containerd.socket = "/nonexistent/containerd.sock".into();
        let report = examine(&settings, false).await;
        let containerd = report
            .findings
            .iter()
            .find(|f| f.check == "containerd")
            .unwrap();
        assert_eq!(containerd.level, Level::Fail);
        assert!(containerd.found.contains("/nonexistent/containerd.sock"));
        assert!(report.findings.iter().any(|f| f.check == "kernel"));
        assert!(
            report
                .findings
                .iter()
                .all(|f| f.remedy.is_some() == (f.level != Level::Ok)),
            "{report:?}"
        );
    }
}
