//! The demo: real commands in a lab, shown with what they print, and the claim checked.

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::runtime::Runtime;

use crate::{
    Distro, Handler, Lab, LabOptions,
    cri::{Pod, PodBuilder},
    lab::missing,
    time::eventually,
};

const ARCHIVE: &str = "/var/lib/kybernate/counter.tar.zst";

/// Runs the demo; fails when the container did not go on where it was.
pub fn run() -> Result<()> {
    if let Some(reason) = missing() {
        anyhow::bail!(reason);
    }
    Runtime::new()?.block_on(play())
}

async fn play() -> Result<()> {
    let started = Instant::now();
    say(
        "A node of its own: containerd, runc and CRIU of Debian in separate namespaces. Nothing of this machine changes.",
    );
    let lab = Lab::start(Distro::Forky, LabOptions::default()).await?;
    ensure!(
        lab.has(Handler::Kybernate),
        "containerd-shim-kybernate-v1 is not beside this program: run `make demo`"
    );
    for program in ["containerd", "runc", "criu"] {
        let version = lab.exec(&[program, "--version"])?;
        println!(
            "  {program}: {}",
            version.lines().next().unwrap_or_default()
        );
    }
    let played = scenes(&lab).await;
    lab.close()?;
    played?;
    say(&format!(
        "Done in {:.0} s. The node is gone; nothing is left of it.",
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

async fn scenes(lab: &Arc<Lab>) -> Result<()> {
    say(
        "A pod of the runtime class kybernate runs a counter over 256 MiB of memory. It checks the memory's sum every second.",
    );
    let pod = named(lab, "first").start().await?;
    let app = pod
        .container("counter")
        .command(["memhog", "256"])
        .start()
        .await?;
    app.wait_stdout("t=25\n").await?;
    let before = Log::of(&pod);
    show(lab, &["tail", "-n", "3", &before.inside()?])?;

    say("Checkpoint it while it runs, into one file.");
    show(
        lab,
        &[
            "kybernate",
            "checkpoint",
            "demo/first/counter",
            "-o",
            ARCHIVE,
        ],
    )?;
    show(lab, &["ls", "-lh", ARCHIVE])?;
    let sum = before.sum()?;

    say("What is in the file, says our tool, and says checkpointctl, which does not know us.");
    show(lab, &["kybernate", "inspect", ARCHIVE])?;
    show(lab, &["checkpointctl", "show", ARCHIVE])?;

    say("Delete the pod with all that was in it.");
    let last_alive = before.count()?;
    println!("  the counter's last word: t={last_alive}");
    pod.remove().await?;
    show(lab, &["ctr", "-n", "k8s.io", "tasks", "list"])?;

    say("A new pod, and the container from the file.");
    let second = named(lab, "second").start().await?;
    show(
        lab,
        &["kybernate", "restore", ARCHIVE, "--pod", "demo/second"],
    )?;
    let after = Log::of(&second);
    let (first, now) = eventually("the restored counter", Duration::from_secs(20), || async {
        Ok((after.sum().is_ok() && after.lines()?.len() > 12)
            .then_some((after.first_count()?, after.count()?)))
    })
    .await?;
    show(lab, &["tail", "-n", "12", &after.inside()?])?;

    say("Did it go on where it was?");
    ensure!(
        first > 20 && now > first,
        "the counter began at {first}, before the checkpoint it was beyond 20"
    );
    ensure!(
        after.sum()? == sum,
        "the memory's sum is {}, it was {sum}",
        after.sum()?
    );
    println!("  yes: it counts from t={first}, not from 1, and its memory has the sum {sum}.");
    second.remove().await
}

fn named(lab: &Arc<Lab>, name: &str) -> PodBuilder {
    PodBuilder::new(lab, Handler::Kybernate).edit(|config| {
        let metadata = config.metadata.get_or_insert_default();
        metadata.name = name.into();
        metadata.namespace = "demo".into();
        config.hostname = name.into();
        config.log_directory = format!("/var/log/pods/demo_{name}_{}", metadata.uid);
    })
}

/// The counter's log in a pod, whatever attempt its container is.
struct Log {
    directory: PathBuf,
    pod: Pod,
}

impl Log {
    fn of(pod: &Pod) -> Self {
        let directory = PathBuf::from(&pod.config.log_directory).join("counter");
        Self {
            directory,
            pod: pod.clone(),
        }
    }

    /// Its path in the lab.
    fn inside(&self) -> Result<String> {
        let name = fs::read_dir(self.pod.lab.path(&self.directory))
            .context("the container has no log")?
            .next()
            .context("the container has no log")??
            .file_name();
        Ok(self.directory.join(name).display().to_string())
    }

    /// The counter's lines, without what the CRI puts in front.
    fn lines(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.pod.lab.path(self.inside()?))?;
        let counted = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        Ok(counted.map(str::to_owned).collect())
    }

    fn counts(&self) -> Result<Vec<u64>> {
        let lines = self.lines()?;
        let counts = lines.iter().filter_map(|line| {
            let count = line.strip_prefix("t=")?.split(' ').next()?;
            count.parse().ok()
        });
        Ok(counts.collect())
    }

    fn count(&self) -> Result<u64> {
        self.counts()?
            .last()
            .copied()
            .context("the counter is silent")
    }

    /// The first count of the second life: the log may begin with that of the first.
    fn first_count(&self) -> Result<u64> {
        let counts = self.counts()?;
        let second = counts.windows(2).position(|pair| pair[1] < pair[0]);
        let second = second.map_or(0, |at| at + 1);
        counts.get(second).copied().context("the counter is silent")
    }

    /// The last sum that the counter has found right.
    fn sum(&self) -> Result<String> {
        let lines = self.lines()?;
        let checked = lines
            .iter()
            .rev()
            .find(|line| line.starts_with("t=") && line.contains("sum="));
        let checked = checked.context("the counter has not summed yet")?;
        ensure!(
            checked.ends_with(" OK"),
            "the memory is not what it was: {checked}"
        );
        let sum = checked
            .split("sum=")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        Ok(sum.context("a sum without digits")?.to_owned())
    }
}

/// Runs a command in the lab and shows both it and its output.
fn show(lab: &Lab, argv: &[&str]) -> Result<()> {
    let (bold, plain) = style("\x1b[1m");
    println!("\n{bold}# {}{plain}", argv.join(" "));
    let output = lab.exec(argv)?;
    for line in output.lines() {
        println!("{line}");
    }
    std::io::stdout().flush()?;
    Ok(())
}

fn say(text: &str) {
    let (colour, plain) = style("\x1b[36m");
    println!("\n{colour}== {text}{plain}");
}

fn style(start: &'static str) -> (&'static str, &'static str) {
    if std::io::stdout().is_terminal() {
        (start, "\x1b[0m")
    } else {
        ("", "")
    }
}
