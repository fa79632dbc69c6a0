//! The lab itself: however its owner ends, nothing of it stays.
//!
//! The owner is `kybernate-lab`, which holds a lab until its standard input ends.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kybernate_integration::{Distro, lab, suite};
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for distro in Distro::ALL {
        let mut add = |name: &str, body: fn(Distro) -> Result<()>| {
            let name = format!("{distro}/{name}");
            trials.push(Trial::test(name.clone(), move || {
                if let Some(reason) = lab::missing() {
                    return suite::report_skip(&name, &reason);
                }
                body(distro).map_err(|e| format!("{e:#}").into())
            }));
        };
        add("ends_with_its_input", ends_with_its_input);
        add("owner_killed", |distro| owner_signalled(distro, "KILL"));
        add("owner_interrupted", |distro| owner_signalled(distro, "INT"));
        add("supervisor_killed", supervisor_killed);
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A lab and the process that owns it.
struct Owned {
    owner: Child,
    name: String,
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.owner.kill();
        let _ = self.owner.wait();
    }
}

fn start(distro: Distro, messages: Stdio) -> Result<Owned> {
    lab::roots::prepare(distro)?; // not part of what is timed
    let started = Instant::now();
    let mut owner = Command::new(env!("CARGO_BIN_EXE_kybernate-lab"))
        .arg(distro.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(messages)
        .spawn()?;
    let output = owner.stdout.take().context("no output")?;
    let name = format!("kybernate-lab-{}-0", owner.id());
    let owned = Owned { owner, name };
    for line in BufReader::new(output).lines() {
        if line?.contains("Leave with") {
            let took = started.elapsed();
            // Three seconds on an idle machine; tests run on busy ones.
            ensure!(
                took < Duration::from_secs(15),
                "the lab took {took:?} to start"
            );
            return Ok(owned);
        }
    }
    bail!("the lab did not start")
}

/// Waits until nothing of the lab is left.
fn gone(name: &str) -> Result<()> {
    gone_after(name, || Ok(()))
}

fn gone_after(name: &str, step: fn() -> Result<()>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        step()?;
        match lab::left_behind(name) {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > end => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn ends_with_its_input(distro: Distro) -> Result<()> {
    let mut lab = start(distro, Stdio::inherit())?;
    ensure!(
        lab::left_behind(&lab.name).is_err(),
        "a running lab is not seen: this test could not fail"
    );
    drop(lab.owner.stdin.take());
    let status = lab.owner.wait()?;
    ensure!(status.success(), "{status}");
    lab::left_behind(&lab.name)
}

fn owner_signalled(distro: Distro, signal: &str) -> Result<()> {
    let mut lab = start(distro, Stdio::inherit())?;
    let pid = lab.owner.id().to_string();
    let sent = Command::new("kill").args(["-s", signal, &pid]).status()?;
    ensure!(sent.success());
    lab.owner.wait()?;
    gone(&lab.name)
}

fn supervisor_killed(distro: Distro) -> Result<()> {
    // What it says about what is left is what this case is about.
    let mut lab = start(distro, Stdio::null())?;
    let children = format!("/proc/{0}/task/{0}/children", lab.owner.id());
    let children = std::fs::read_to_string(children)?;
    for child in children.split_whitespace() {
        let line = std::fs::read_to_string(format!("/proc/{child}/cmdline"))?;
        if line.contains("instance.sh") && !line.contains("--enter") {
            ensure!(
                Command::new("kill")
                    .args(["-s", "KILL", child])
                    .status()?
                    .success()
            );
        }
    }
    drop(lab.owner.stdin.take());
    let _ = lab.owner.wait()?;
    // Nobody was there to clean up; the next lab does it, when all processes are gone.
    gone_after(&lab.name, lab::sweep)
}
