//! One fault at one step, as `shim/src/fault.rs` reads it.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use kybernate_config::names::{CUDA_BINARY, SHIM_BINARY};
use kybernate_integration::{Lab, eventually, lab::DOUBLE};

/// The file, and what every program has in it that has faults.
pub const FILE: &str = "/run/kybernate/faults";
/// Where `doubles/faults.c` looks for its rule.
const RULE: &str = "/run/kybernate-faults";
/// How long a step may take to be reached.
const REACH: Duration = Duration::from_secs(20);

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// EIO.
    Error,
    /// ENOSPC.
    Full,
    /// It does not end, and the call has a deadline.
    Hang,
    /// A bug.
    Panic,
    /// SIGKILL for CRIU.
    KillCriu,
    /// SIGSTOP for CRIU, and the call has a deadline.
    StopCriu,
    /// SIGKILL for runc.
    KillRunc,
    /// SIGKILL for kybernate-cuda.
    KillHelper,
    /// SIGKILL for the guardian: nothing comes of it.
    KillGuardian,
    /// SIGKILL for containerd.
    KillContainerd,
    /// SIGKILL for kybernate-cri-hooks, which has asked.
    KillHook,
    /// SIGKILL for the shim, while containerd lives and cleans up.
    KillShim,
    /// SIGKILL for containerd and the shim at once.
    KillShimAlone,
}

impl Kind {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Full => "disk full",
            Self::Hang => "hang",
            Self::Panic => "panic",
            Self::KillCriu => "kill CRIU",
            Self::StopCriu => "stop CRIU",
            Self::KillRunc => "kill runc",
            Self::KillHelper => "kill helper",
            Self::KillGuardian => "kill guardian",
            Self::KillContainerd => "kill containerd",
            Self::KillHook => "kill hook",
            Self::KillShim => "kill shim",
            Self::KillShimAlone => "kill shim alone",
        }
    }

    /// What the error must say of the cause; nothing where the operation may succeed, or where
    /// nobody is left to say anything.
    pub fn cause(self) -> Option<&'static str> {
        match self {
            Self::Error => Some("os error 5"),
            Self::Full => Some("os error 28"),
            Self::Hang | Self::StopCriu => Some("not done within"),
            Self::Panic => Some("fault on demand"),
            Self::KillCriu => Some("CRIU"),
            Self::KillRunc => Some("runc"),
            _ => None,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Error => "error 5",
            Self::Full => "error 28",
            Self::Hang => "hang",
            Self::Panic => "panic",
            Self::KillShim => "kill",
            _ => "wait",
        }
    }

    /// Whether the shim waits at the step for what is done to others.
    pub fn waits(self) -> bool {
        self.words() == "wait"
    }
}

/// A fault that is set until this is dropped.
#[derive(Debug)]
pub struct Fault {
    lab: Arc<Lab>,
    file: PathBuf,
    reached: PathBuf,
    /// For a fault that CRIU waits for.
    _preload: Option<Preload>,
}

impl Fault {
    /// Sets one.
    pub fn set(lab: &Arc<Lab>, step: &str, kind: Kind) -> Result<Self> {
        let fault = Self {
            lab: lab.clone(),
            file: lab.path(FILE),
            reached: lab.path(format!("{FILE}.reached")),
            _preload: None,
        };
        fs::create_dir_all(lab.path("/run/kybernate"))?;
        fs::write(&fault.file, format!("{step} {}", kind.words()))?;
        Ok(fault)
    }

    /// Has CRIU wait at the first line of its log of that name.
    pub fn in_criu(lab: &Arc<Lab>, log: &str) -> Result<Self> {
        let preload = Preload::new(lab)?;
        let fault = Self {
            lab: lab.clone(),
            file: lab.path(RULE),
            reached: lab.path(format!("{RULE}.reached")),
            _preload: Some(preload),
        };
        fs::write(&fault.file, format!("write {log} wait 0"))?;
        Ok(fault)
    }

    /// Waits until the shim waits at the step.
    pub async fn reached(&self) -> Result<()> {
        eventually("the step of the fault", REACH, || async {
            Ok(self.reached.exists().then_some(()))
        })
        .await
    }

    /// Does to others what the fault is about, and lets the shim go on.
    pub async fn strike(self, kind: Kind, shims: &[u32]) -> Result<()> {
        self.reached().await?;
        match kind {
            Kind::KillCriu => self.signal("KILL", &named(&self.lab, "criu")?)?,
            Kind::StopCriu => self.signal("STOP", &named(&self.lab, "criu")?)?,
            Kind::KillRunc => self.signal("KILL", &self.lab.pids_of("runc")?)?,
            Kind::KillHelper => self.signal("KILL", &self.lab.pids_of(CUDA_BINARY)?)?,
            Kind::KillGuardian => self.signal("KILL", &self.lab.pids_of("kybernate-guardian")?)?,
            Kind::KillContainerd => self.lab.kill_containerd().await?,
            Kind::KillHook => self.signal("KILL", &self.lab.pids_of("kybernate-cri-hooks")?)?,
            Kind::KillShimAlone => {
                // It must not hear that containerd has gone, or it would go back by itself.
                self.signal("STOP", shims)?;
                self.lab.kill_containerd().await?;
                self.signal("KILL", shims)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn signal(&self, signal: &str, pids: &[u32]) -> Result<()> {
        // CRIU has children that end by themselves.
        let sent = pids
            .iter()
            .filter(|pid| self.lab.kill(signal, **pid).is_ok());
        ensure!(sent.count() > 0, "nobody to send SIG{signal} to");
        Ok(())
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_file(&self.reached);
    }
}

/// `doubles/faults.c` in every program that is started, until this is dropped.
#[derive(Debug)]
pub struct Preload(PathBuf);

impl Preload {
    pub fn new(lab: &Lab) -> Result<Self> {
        let file = lab.path("/etc/ld.so.preload");
        fs::write(&file, format!("{DOUBLE}/faults.so\n"))?;
        Ok(Self(file))
    }
}

impl Drop for Preload {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A rule of `doubles/faults.c`, until this is dropped.
#[derive(Debug)]
pub struct Rule(PathBuf);

impl Rule {
    pub fn set(lab: &Lab, rule: &str) -> Result<Self> {
        let file = lab.path(RULE);
        fs::write(&file, rule)?;
        Ok(Self(file))
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Pids of processes by their name, since CRIU gives itself another command line.
pub fn named(lab: &Lab, name: &str) -> Result<Vec<u32>> {
    let processes = fs::read_dir(lab.path("/proc"))?.flatten();
    let found = processes.filter(|process| {
        fs::read_to_string(process.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    });
    Ok(found
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect())
}

/// Whether the shim of a lab has faults to offer.
pub fn are_there(lab: &Lab) -> bool {
    let shim = fs::read(lab.path(format!("/usr/local/bin/{SHIM_BINARY}"))).unwrap_or_default();
    has_faults(&shim)
}

/// Whether a program has faults.
pub fn has_faults(program: &[u8]) -> bool {
    program
        .windows(FILE.len())
        .any(|window| window == FILE.as_bytes())
}
