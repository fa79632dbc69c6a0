//! The command line: that of NVIDIA's `cuda-checkpoint` 580, and `serve`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::{
    driver::{Driver, DriverError},
    library::Search,
    process::Process,
    protocol::State,
};

/// Checkpoints and restores the GPU state of a process, like NVIDIA's cuda-checkpoint.
#[derive(Debug, Parser)]
#[command(
    name = "kybernate-cuda",
    version,
    args_conflicts_with_subcommands = true
)]
pub struct Arguments {
    /// Serves the shim.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// One step for one process.
    #[command(flatten)]
    pub step: Step,
}

/// What else it does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve requests, one JSON object a line, from standard input; undo all when it ends.
    Serve {
        /// Directory for the records of kernel settings that are to be put back.
        #[arg(long, default_value = "/run/kybernate/levers")]
        records: PathBuf,
        /// Where the driver is.
        #[command(flatten)]
        place: Place,
    },
    /// Make processes that an operation has left run on their GPUs again, and put back kernel
    /// settings that nobody holds any more.
    Revive {
        /// Directory for the records of kernel settings that are to be put back.
        #[arg(long, default_value = "/run/kybernate/levers")]
        records: PathBuf,
        /// Where the driver is.
        #[command(flatten)]
        place: Place,
        /// The processes, as PID:START with the start time of /proc/PID/stat.
        processes: Vec<Process>,
    },
}

/// Where the driver is.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// The driver's library; by default it is searched for.
    #[arg(long, env = "KYBERNATE_GPU_LIBCUDA")]
    pub libcuda: Option<PathBuf>,
    /// A root of a driver installation to search, besides the linker's path; may be repeated.
    #[arg(long = "driver-root")]
    pub driver_roots: Vec<PathBuf>,
}

/// One step for one process.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(false))]
pub struct Step {
    /// Print the state: running, locked, checkpointed or failed.
    #[arg(long, group = "what", requires = "pid")]
    pub get_state: bool,
    /// Print the id of the thread that restores the process.
    #[arg(long, group = "what", requires = "pid")]
    pub get_restore_tid: bool,
    /// Take one step.
    #[arg(long, group = "what", requires = "pid")]
    pub action: Option<Action>,
    /// Checkpoint a running process, bring back a checkpointed one.
    #[arg(long, group = "what", requires = "pid")]
    pub toggle: bool,
    /// The process.
    #[arg(long)]
    pub pid: Option<u32>,
    /// For lock: milliseconds to wait for CUDA calls that run; without it, for ever.
    #[arg(long)]
    pub timeout: Option<u32>,
    /// For restore: old and new GPUs, as OLD-UUID=NEW-UUID, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = pair)]
    pub device_map: Vec<(String, String)>,
    /// Where the driver is.
    #[command(flatten)]
    pub place: Place,
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Stop CUDA calls.
    Lock,
    /// Move device memory to the host and let go of the GPUs.
    Checkpoint,
    /// Take the GPUs and move the memory back.
    Restore,
    /// Let CUDA calls go on.
    Unlock,
}

impl Place {
    /// As the search for it.
    #[must_use]
    pub fn search(self) -> Search {
        Search {
            exact: self.libcuda,
            roots: self.driver_roots,
        }
    }
}

impl Step {
    /// Takes it, and returns what is to be printed.
    pub fn run(&self, driver: &Driver, pid: u32) -> Result<Option<String>, DriverError> {
        if self.get_state {
            return Ok(Some(driver.state(pid)?.as_str().into()));
        }
        if self.get_restore_tid {
            return Ok(Some(driver.restore_thread(pid)?.to_string()));
        }
        let timeout = self.timeout.unwrap_or(0);
        match self.action {
            Some(Action::Lock) => driver.lock(pid, timeout)?,
            Some(Action::Checkpoint) => driver.checkpoint(pid)?,
            Some(Action::Restore) => driver.restore(pid, &self.device_map)?,
            Some(Action::Unlock) => driver.unlock(pid)?,
            None if self.toggle => self.toggle(driver, pid, timeout)?,
            None => {}
        }
        Ok(None)
    }

    fn toggle(&self, driver: &Driver, pid: u32, timeout: u32) -> Result<(), DriverError> {
        if driver.state(pid)? == State::Checkpointed {
            driver.restore(pid, &self.device_map)?;
            return driver.unlock(pid);
        }
        driver.lock(pid, timeout)?;
        driver.checkpoint(pid).inspect_err(|_| {
            // As it was: what could not be saved goes on.
            if let Err(error) = driver.unlock(pid) {
                eprintln!("cannot unlock process {pid} again: {error}");
            }
        })
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(old, new)| (old.to_owned(), new.to_owned()))
        .ok_or_else(|| format!("{text:?} is not OLD-UUID=NEW-UUID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("kybernate-cuda").chain(text.split(' ')))
    }

    #[test]
    fn the_flags_are_those_of_cuda_checkpoint() {
        let step = parse("--action lock --pid 7 --timeout 5000").unwrap().step;
        assert_eq!(
            (step.action, step.pid, step.timeout),
            (Some(Action::Lock), Some(7), Some(5000))
        );
        assert!(parse("--get-state --pid 7").unwrap().step.get_state);
        assert!(
            parse("--get-restore-tid --pid 7")
                .unwrap()
                .step
                .get_restore_tid
        );
        assert!(parse("--toggle --pid 7").unwrap().step.toggle);
        let map = parse("--action restore --pid 7 --device-map a=b,c=d").unwrap();
        assert_eq!(map.step.device_map[1], ("c".into(), "d".into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "--get-state",
            "--toggle --action lock --pid 7",
            "--action freeze --pid 7",
            "--action restore --pid 7 --device-map a",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn serve_stands_apart() {
        let arguments = parse("serve --driver-root /run/nvidia/driver").unwrap();
        assert!(matches!(arguments.command, Some(Command::Serve { .. })));
        let arguments = parse("revive --records /r 7:42 8:43").unwrap();
        let Some(Command::Revive { processes, .. }) = arguments.command else {
            panic!("{arguments:?}");
        };
        assert_eq!(processes[1], Process { pid: 8, start: 43 });
    }
}
