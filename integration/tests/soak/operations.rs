//! What is done to a container, one thing at a time.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use kybernate_hooks::containerd::{
    task::Status,
    tasks::{PauseTaskRequest, ResumeTaskRequest},
};
use kybernate_integration::{
    Pod,
    checkpoint::{ARCHIVES, Archive, Finished, into_directory, run},
    eventually, tasks,
};

use crate::{
    slot::{Kind, Slot},
    tally::Outcome,
    world::{LOST_TRACK, promised},
};

const SIGKILL: u32 = 9;
/// How a checkpoint may fail whose container is killed meanwhile: before, in and after its dump.
const ITS_CONTAINER_WAS_KILLED: [&str; 3] = ["it was killed", "only a running", "process"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Checkpoint,
    CheckpointPaused,
    CheckpointDuringExec,
    TwoAtOnce,
    PlainCheckpoint,
    ClientKilled,
    KilledMeanwhile,
    ExitAndRestore,
    KillAndRestore,
    Recreate,
    Exec,
    PauseResume,
}

/// Each with how often it is done.
pub const ALL: [(Operation, u64); 12] = [
    (Operation::Checkpoint, 22),
    (Operation::CheckpointPaused, 6),
    (Operation::CheckpointDuringExec, 5),
    (Operation::TwoAtOnce, 4),
    (Operation::PlainCheckpoint, 5),
    (Operation::ClientKilled, 8),
    (Operation::KilledMeanwhile, 8),
    (Operation::ExitAndRestore, 16),
    (Operation::KillAndRestore, 10),
    (Operation::Recreate, 3),
    (Operation::Exec, 10),
    (Operation::PauseResume, 6),
];

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::CheckpointPaused => "checkpoint of a paused one",
            Self::CheckpointDuringExec => "checkpoint during exec",
            Self::TwoAtOnce => "two checkpoints at once",
            Self::PlainCheckpoint => "plain checkpoint",
            Self::ClientKilled => "checkpoint, client killed",
            Self::KilledMeanwhile => "checkpoint, container killed",
            Self::ExitAndRestore => "checkpoint and restore",
            Self::KillAndRestore => "kill and restore",
            Self::Recreate => "delete and recreate",
            Self::Exec => "exec",
            Self::PauseResume => "pause and resume",
        }
    }
}

impl Slot {
    /// Does one thing and looks whether the container is as it should be after it. What
    /// containerd's restarts have cut off is put in order.
    pub async fn turn(&mut self, pod: &Pod) -> Result<()> {
        let operation = self.random.pick(&ALL);
        let world = self.world.clone();
        let _gate = world.gate.read().await;
        let _busy = world.busy.acquire().await?;
        self.replace_unknown(pod).await?;
        let restarts = world.restarts();
        let subject = format!(
            "{} of {} ({:?})",
            operation.name(),
            self.container.as_ref().map_or("none", |c| &c.id),
            self.kind
        );
        match self.perform(operation, pod).await {
            Ok(outcome) => world.tally.note(operation.name(), outcome),
            Err(error) if world.excuses(restarts, &error) => {
                eprintln!("cut off: {subject}: {error:#}");
                let settled = self.settle(pod).await;
                settled.with_context(|| format!("{subject}, cut off ({error:#}): after that"))?;
                world
                    .tally
                    .note(operation.name(), Outcome::Failed("containerd restarted"));
            }
            Err(error) if restarts > 0 && format!("{error:#}").contains(LOST_TRACK) => {
                self.ending = true;
                let settled = self.settle(pod).await;
                settled.with_context(|| format!("{subject}, which containerd lost: after that"))?;
                world.tally.note(
                    operation.name(),
                    Outcome::Failed("containerd lost track of it"),
                );
            }
            Err(error) => return Err(error.context(subject)),
        }
        Ok(())
    }

    async fn perform(&mut self, operation: Operation, pod: &Pod) -> Result<Outcome> {
        match operation {
            Operation::Checkpoint => self.checkpoint().await,
            Operation::CheckpointPaused => self.checkpoint_paused().await,
            Operation::CheckpointDuringExec => self.checkpoint_during_exec().await,
            Operation::TwoAtOnce => self.two_at_once().await,
            Operation::PlainCheckpoint => self.plain_checkpoint().await,
            Operation::ClientKilled => self.client_killed().await,
            Operation::KilledMeanwhile => self.killed_meanwhile(pod).await,
            Operation::ExitAndRestore => self.exit_and_restore(pod).await,
            Operation::KillAndRestore => self.kill_and_restore(pod).await,
            Operation::Recreate => self.recreate(pod).await,
            Operation::Exec => self.exec().await,
            Operation::PauseResume => self.pause_resume().await,
        }
    }

    async fn checkpoint(&mut self) -> Result<Outcome> {
        let (mark, archive) = (self.mark()?, Archive::new(&self.world.cx.lab)?);
        let finished = archive.try_take(&self.running()?.id, &[]).await?;
        taken(&archive, finished)?;
        self.keep(archive, mark).await?;
        self.goes_on().await?;
        Ok(Outcome::Done)
    }

    async fn checkpoint_paused(&mut self) -> Result<Outcome> {
        let (mark, archive) = (self.mark()?, Archive::new(&self.world.cx.lab)?);
        let id = self.running()?.id.clone();
        self.pause(&id).await?;
        let finished = archive.try_take(&id, &[]).await?;
        taken(&archive, finished)?;
        self.keep(archive, mark).await?;
        let status = tasks::get(&self.world.cx.lab, &id).await?.status();
        promised!(
            status == Status::Paused,
            "{id} was paused and is {status:?}"
        );
        self.resume(&id).await?;
        self.goes_on().await?;
        Ok(Outcome::Done)
    }

    async fn checkpoint_during_exec(&mut self) -> Result<Outcome> {
        let (mark, archive) = (self.mark()?, Archive::new(&self.world.cx.lab)?);
        let container = self.running()?.clone();
        let executed = container.shell("sleep 1; echo here");
        let (finished, executed) = tokio::join!(archive.try_take(&container.id, &[]), executed);
        taken(&archive, finished?)?;
        self.keep(archive, mark).await?;
        ensure!(executed? == "here", "an exec has said something else");
        self.goes_on().await?;
        Ok(Outcome::Done)
    }

    async fn two_at_once(&mut self) -> Result<Outcome> {
        let lab = &self.world.cx.lab;
        let (mark, id) = (self.mark()?, self.running()?.id.clone());
        let (one, two) = (Archive::new(lab)?, Archive::new(lab)?);
        let (a, b) = tokio::join!(one.try_take(&id, &[]), two.try_take(&id, &[]));
        let (a, b) = (taken(&one, a?), taken(&two, b?));
        // One may have been cut off and the other not.
        for (archive, taken) in [(one, &a), (two, &b)] {
            if taken.is_ok() {
                self.keep(archive, mark).await?;
            }
        }
        a.and(b)?;
        self.goes_on().await?;
        Ok(Outcome::Done)
    }

    async fn plain_checkpoint(&mut self) -> Result<Outcome> {
        let lab = self.world.cx.lab.clone();
        let id = self.running()?.id.clone();
        let path = format!("{ARCHIVES}/plain-{id}-{}", self.random.below(u64::MAX));
        fs::create_dir_all(lab.path(&path))?;
        let dumped = into_directory(&lab, &id, &path, Some(Duration::from_secs(60))).await;
        let images = fs::read_dir(lab.path(&path))?.flatten().count();
        let inventory = lab.path(&path).join("inventory.img").exists();
        if let Err(status) = dumped {
            // The shim may be at it yet, when it is containerd that has gone.
            self.wait_for_its_operation(&id).await;
            fs::remove_dir_all(lab.path(&path))?;
            bail!("Tasks.Checkpoint: {status}");
        }
        fs::remove_dir_all(lab.path(&path))?;
        promised!(inventory, "{images} files of a plain checkpoint of {id}");
        self.goes_on().await?;
        Ok(Outcome::Done)
    }

    async fn client_killed(&mut self) -> Result<Outcome> {
        let lab = self.world.cx.lab.clone();
        let (mark, archive) = (self.mark()?, Archive::new(&lab)?);
        let id = self.running()?.id.clone();
        let after = self.random.millis(50, 900).as_secs_f64().to_string();
        let (path, arguments) = (&archive.path, ["-s", "KILL", &after]);
        let command = ["kybernate", "checkpoint", &id, "-o", path];
        let argv = [&["timeout"][..], &arguments, &command].concat();
        let finished = run(&lab, &argv).await?;
        // `timeout` does not wait for what it kills.
        eventually("the client's end", Duration::from_secs(10), || async {
            let mut processes = lab.processes()?.into_iter();
            Ok((!processes.any(|(_, arguments)| arguments.contains(path))).then_some(()))
        })
        .await?;
        let outcome = match finished.code {
            0 => {
                self.keep(archive, mark).await?;
                Outcome::Done
            }
            // Killed between the publication and its own end.
            _ if archive.file().exists() => {
                self.keep(archive, mark).await?;
                Outcome::Failed("client killed")
            }
            // `timeout` ends like what it has killed.
            -1 | 137 => Outcome::Failed("client killed"),
            code => {
                Self::has_no_archive(&archive, &finished.stderr)?;
                bail!("code {code} of the client: {}", finished.stderr)
            }
        };
        self.goes_on().await?;
        Ok(outcome)
    }

    async fn killed_meanwhile(&mut self, pod: &Pod) -> Result<Outcome> {
        let lab = self.world.cx.lab.clone();
        let (mark, archive) = (self.mark()?, Archive::new(&lab)?);
        let id = self.running()?.id.clone();
        let after = self.random.millis(20, 900);
        let kill = async {
            tokio::time::sleep(after).await;
            tasks::kill(&lab, &id, SIGKILL, false).await
        };
        self.ending = true;
        let (finished, killed) = tokio::join!(archive.try_take(&id, &[]), kill);
        let finished = finished?;
        let outcome = if finished.code == 0 {
            self.keep(archive, mark).await?;
            Outcome::Done
        } else {
            let said = finished.refused()?;
            Self::has_no_archive(&archive, &said)?;
            let known = ITS_CONTAINER_WAS_KILLED
                .iter()
                .any(|part| said.contains(part));
            ensure!(known, "its container was killed, and it says: {said}");
            Outcome::Failed("container killed")
        };
        killed?;
        let status = self.running()?.wait_exit().await?;
        // containerd says 255 where it has lost the exit in a restart of its own.
        ensure!(status.exit_code == 137, "killed, and {}", status.exit_code);
        self.remove().await?;
        self.bring_back(pod).await?;
        Ok(outcome)
    }

    async fn exit_and_restore(&mut self, pod: &Pod) -> Result<Outcome> {
        self.exit().await?;
        self.remove().await?;
        self.bring_back(pod).await?;
        Ok(Outcome::Done)
    }

    /// Takes it into an archive and ends it. What is cut off has it either running or archived.
    pub async fn exit(&mut self) -> Result<()> {
        let (mark, archive) = (self.mark()?, Archive::new(&self.world.cx.lab)?);
        let container = self.running()?.clone();
        let finished = archive.try_take(&container.id, &["--exit"]).await?;
        if finished.code == 0 {
            self.ending = true;
            self.keep(archive, mark).await?;
            container.wait_exit().await?;
            return Ok(());
        }
        let said = finished.refused()?;
        Self::has_no_archive(&archive, &said)?;
        if let Some(kept) = kept(&said) {
            self.ending = true;
            let lab = self.world.cx.lab.clone();
            fs::rename(lab.path(format!("{kept}/archive.tar.zst")), archive.file())?;
            fs::remove_dir_all(lab.path(kept))?;
            self.keep(archive, mark).await?;
        }
        bail!("kybernate checkpoint --exit: {said}")
    }

    async fn kill_and_restore(&mut self, pod: &Pod) -> Result<Outcome> {
        self.ending = true;
        let id = self.running()?.id.clone();
        tasks::kill(&self.world.cx.lab, &id, SIGKILL, false).await?;
        let status = self.running()?.wait_exit().await?;
        // containerd says 255 where it has lost the exit in a restart of its own.
        ensure!(status.exit_code == 137, "killed, and {}", status.exit_code);
        self.remove().await?;
        self.bring_back(pod).await?;
        Ok(Outcome::Done)
    }

    async fn recreate(&mut self, pod: &Pod) -> Result<Outcome> {
        self.ending = true;
        if let Some(old) = self.saved.take() {
            fs::remove_file(old.archive.file())?;
        }
        self.remove().await?;
        self.bring_back(pod).await?;
        Ok(Outcome::Done)
    }

    async fn exec(&mut self) -> Result<Outcome> {
        let container = self.running()?.clone();
        match self.kind {
            Kind::Gpu => ensure!(container.shell("echo here").await? == "here"),
            _ => {
                let file = format!("cat /{}", self.work.name);
                let number: u64 = container.shell(&file).await?.parse()?;
                promised!(
                    number >= self.floor,
                    "{} has counted to {}, and its file holds {number}",
                    container.id,
                    self.floor
                );
            }
        }
        self.goes_on().await?;
        Ok(Outcome::Done)
    }

    async fn pause_resume(&mut self) -> Result<Outcome> {
        let container = self.running()?.clone();
        self.pause(&container.id).await?;
        let refused = container.shell("true").await.is_err();
        // What was in its pipe is read by now.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let paused = self.work.counted(&container)?;
        tokio::time::sleep(self.random.millis(200, 1500)).await;
        let later = self.work.counted(&container)?;
        self.resume(&container.id).await?;
        ensure!(refused, "an exec in a paused container");
        ensure!(
            paused == later,
            "paused, and counts from {paused} to {later}"
        );
        self.goes_on().await?;
        Ok(Outcome::Done)
    }

    async fn pause(&self, id: &str) -> Result<()> {
        let container_id = id.into();
        let pause = PauseTaskRequest { container_id };
        self.world.cx.lab.tasks().pause(pause).await?;
        Ok(())
    }

    async fn resume(&self, id: &str) -> Result<()> {
        let container_id = id.into();
        let resume = ResumeTaskRequest { container_id };
        self.world.cx.lab.tasks().resume(resume).await?;
        Ok(())
    }

    /// Waits until no operation on the container is noted any more, for a while.
    async fn wait_for_its_operation(&self, id: &str) {
        let journal = self.world.cx.lab.path("/run/kybernate/journal");
        let is_noted = || {
            let records = fs::read_dir(&journal).into_iter().flatten().flatten();
            let mut names = records.map(|record| record.file_name());
            names.any(|name| name.to_string_lossy().contains(id))
        };
        for _ in 0..200 {
            if !is_noted() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Fails unless an archive was taken; then there must be none.
fn taken(archive: &Archive, finished: Finished) -> Result<()> {
    if finished.code != 0 {
        let said = finished.refused()?;
        Slot::has_no_archive(archive, &said)?;
        bail!("kybernate checkpoint: {said}");
    }
    Ok(())
}

/// Where the client has kept what a container left that may have ended.
fn kept(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("is kept in ")?;
    rest.split_once(": move it away").map(|(path, _)| path)
}
