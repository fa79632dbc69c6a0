//! runc and CRIU.

use std::path::Path;

use super::{
    Finding,
    config::Handler,
    probe::{self, Answer},
};

/// CRIU's files of defaults; runc's is read on top.
const CRIU_CONFIGS: [&str; 2] = ["/etc/criu/default.conf", "/etc/criu/runc.conf"];

/// Looks for both and asks them.
pub async fn examine(handler: Option<&Handler>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let runc = handler
        .map(|h| h.options.binary_name.as_str())
        .filter(|name| !name.is_empty());
    let runc = runc.unwrap_or("runc");
    match probe::find(runc) {
        None => findings.push(Finding::fail(
            "runc",
            format!("no {runc} in PATH"),
            "install runc 1.1 or later; containerd must find it in its own PATH",
        )),
        Some(path) => {
            let version = probe::run(&path, &["--version"]).await;
            let features = probe::run(&path, &["features"]).await;
            findings.push(judge_runc(&path, version, features));
        }
    }
    match probe::find("criu") {
        None => findings.push(Finding::fail(
            "CRIU",
            "no criu in PATH",
            "install CRIU 4.1 or later; runc must find it in containerd's PATH",
        )),
        Some(path) => {
            findings.push(judge_criu(&path, probe::run(&path, &["--version"]).await));
            findings.push(judge_check(probe::run(&path, &["check"]).await));
        }
    }
    let configs = CRIU_CONFIGS.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let programs = ["iptables-restore", "nft"].map(|name| probe::find(name).is_some());
    findings.extend(judge_configs(&configs, programs));
    findings
}

fn judge_runc(
    path: &Path,
    version: Result<Answer, String>,
    features: Result<Answer, String>,
) -> Finding {
    const CHECK: &str = "runc";
    let path = path.display();
    let answer = match version {
        Ok(answer) if answer.success => answer,
        other => return broken(CHECK, &path.to_string(), other),
    };
    let line = answer.stdout.lines().next().unwrap_or_default();
    let found = format!("{line} at {path}");
    if !line.starts_with("runc") {
        return Finding::warn(CHECK, found, "only runc is tested; name it as BinaryName");
    }
    if probe::version(line).is_none_or(|version| version < (1, 1)) {
        return Finding::fail(CHECK, found, "install runc 1.1 or later");
    }
    // Since runc 1.1; a build without it says so here.
    let enabled = features.ok().and_then(|answer| {
        let features: serde_json::Value = serde_json::from_str(&answer.stdout).ok()?;
        Some(features["annotations"]["org.opencontainers.runc.checkpoint.enabled"] == "true")
    });
    if enabled == Some(false) {
        return Finding::fail(
            CHECK,
            format!("{found}, built without checkpoints"),
            "install a runc whose `runc features` says checkpoint.enabled",
        );
    }
    Finding::ok(CHECK, found)
}

fn judge_criu(path: &Path, version: Result<Answer, String>) -> Finding {
    const CHECK: &str = "CRIU";
    let path = path.display();
    let answer = match version {
        Ok(answer) if answer.success => answer,
        other => return broken(CHECK, &path.to_string(), other),
    };
    let found = format!("{} at {path}", answer.stdout.trim().replace('\n', ", "));
    match probe::version(&answer.stdout) {
        Some((4, 1..) | (5.., _)) => Finding::ok(CHECK, found),
        Some((4, _) | (3, 16..)) => Finding::warn(
            CHECK,
            found,
            "only 4.1 and later are tested; install one of them",
        ),
        _ => Finding::fail(CHECK, found, "install CRIU 4.1 or later"),
    }
}

fn judge_check(answer: Result<Answer, String>) -> Finding {
    const CHECK: &str = "criu check";
    match answer {
        Ok(answer) if answer.success => Finding::ok(CHECK, "the kernel has what CRIU needs"),
        Ok(answer) => {
            let output = format!("{}\n{}", answer.stdout, answer.stderr);
            let errors: Vec<&str> = output
                .lines()
                .filter(|line| line.contains("Error"))
                .take(3)
                .collect();
            let found = if errors.is_empty() {
                output.trim().to_owned()
            } else {
                errors.join("; ")
            };
            Finding::fail(
                CHECK,
                found,
                "run `criu check` as root; it names what the kernel or this user lacks",
            )
        }
        Err(error) => broken(CHECK, "criu", Err(error)),
    }
}

/// Judges CRIU's files of defaults. `programs` says whether iptables-restore and nft are there.
fn judge_configs(configs: &[String], programs: [bool; 2]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let words = |name: &str| {
        configs
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                (words.next() == Some(name)).then(|| words.next().unwrap_or_default().to_owned())
            })
            .next_back()
    };
    if words("stream").is_some() {
        findings.push(Finding::fail(
            "CRIU defaults",
            "`stream` in /etc/criu makes CRIU crash under runc",
            format!("remove it from {}", CRIU_CONFIGS.join(" and ")),
        ));
    }
    let [iptables, nft] = programs;
    let lock = words("network-lock").unwrap_or_else(|| "iptables".to_owned());
    let found = format!("locks the network with {lock}");
    findings.push(match lock.as_str() {
        "iptables" if iptables => Finding::ok("network lock", found),
        "nftables" | "skip" => Finding::ok("network lock", found),
        _ if nft => Finding::warn(
            "network lock",
            format!("{found}, which is not installed; containers with open TCP connections fail"),
            "write `network-lock nftables` into /etc/criu/runc.conf, or install iptables",
        ),
        _ => Finding::warn(
            "network lock",
            format!("{found}, which is not installed; containers with open TCP connections fail"),
            "install iptables, or nftables with `network-lock nftables` in /etc/criu/runc.conf",
        ),
    });
    findings
}

fn broken(check: &'static str, program: &str, answer: Result<Answer, String>) -> Finding {
    let why = match answer {
        Ok(answer) => answer.stderr.trim().to_owned(),
        Err(error) => error,
    };
    Finding::fail(
        check,
        format!("{program} does not run: {why}"),
        "install it anew for this distribution and architecture",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn says(stdout: &str) -> Result<Answer, String> {
        Ok(Answer {
            success: true,
            stdout: stdout.into(),
            ..Answer::default()
        })
    }

    #[test]
    fn runc_must_be_recent_and_able() {
        let level = |version: &str, features: &str| {
            judge_runc(Path::new("/runc"), says(version), says(features)).level
        };
        let able = r#"{"annotations": {"org.opencontainers.runc.checkpoint.enabled": "true"}}"#;
        assert_eq!(level("runc version 1.3.6+ds1\ncommit: x", able), Level::Ok);
        assert_eq!(level("runc version 1.1.15", "no JSON"), Level::Ok);
        assert_eq!(level("runc version 1.0.3", able), Level::Fail);
        assert_eq!(
            level("runc version 1.3.0", "{\"annotations\": {}}"),
            Level::Fail
        );
        assert_eq!(level("crun version 1.14", able), Level::Warn);
        let dead = judge_runc(
            Path::new("/runc"),
            Err("exec format error".into()),
            says(able),
        );
        assert_eq!(dead.level, Level::Fail);
        assert!(dead.found.contains("exec format error"));
    }

    #[test]
    fn criu_must_be_recent_and_content() {
        let level = |version: &str| judge_criu(Path::new("/criu"), says(version)).level;
        assert_eq!(level("Version: 4.2.1\n"), Level::Ok);
        assert_eq!(level("Version: 3.17.1\n"), Level::Warn);
        assert_eq!(level("Version: 3.10\n"), Level::Fail);
        assert_eq!(judge_check(says("Looks good.\n")).level, Level::Ok);
        let bad = judge_check(Ok(Answer {
            success: false,
            stdout: String::new(),
            stderr: "Warn  (x): meh\nError (criu/cr-check.c:1): prctl: no\n".into(),
        }));
        assert_eq!(bad.found, "Error (criu/cr-check.c:1): prctl: no");
    }

    #[test]
    fn the_network_lock_needs_its_program() {
        let level = |config: &str, programs| {
            judge_configs(&[String::new(), config.into()], programs)
                .pop()
                .unwrap()
                .level
        };
        assert_eq!(level("", [true, false]), Level::Ok);
        assert_eq!(level("", [false, true]), Level::Warn);
        assert_eq!(level("", [false, false]), Level::Warn);
        assert_eq!(
            level("# x\nnetwork-lock nftables\n", [false, true]),
            Level::Ok
        );
        let stream = judge_configs(&["stream\n".into()], [true, true]);
        assert_eq!(stream[0].level, Level::Fail);
    }
}
