//! One running lab: a Debian root with a containerd of its own, apart from the host.
//!
//! `lab/instance.sh` draws the processes. Nothing of the host changes: mounts, network, cgroups
//! and processes of a lab end with it, and a lab ends with the process that started it.
//!
//! Files inside are reached through [`Lab::path`] (`/proc/<pid 1>/root/…`), processes through
//! [`Lab::command`], services through [`Lab::cri`], [`Lab::tasks`] and their kind. Process ids
//! that containerd tells are those of the lab's PID namespace: look at them under
//! `lab.path("/proc/…")` and signal them with [`Lab::kill`].

mod config;
mod containerd;
mod leaks;
pub mod roots;

use std::{
    fmt, fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, bail, ensure};

use crate::image::catalog::{self, Catalog};

pub use containerd::{Containers, Cri, Events, Images, Namespaced, Tasks, cri_at};
pub use leaks::{left_behind, sweep};

/// Where the libraries of the double of a GPU driver lie in a lab.
pub const DOUBLE: &str = "/opt/kybernate-double";

/// Which containerd, runc and CRIU a lab has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Distro {
    /// Debian 13: containerd 1.7, runc 1.1, CRIU 4.1.
    Trixie,
    /// Debian testing on 13: containerd 2.1 or newer, runc 1.3, CRIU 4.2.
    Forky,
}

impl Distro {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Forky, Self::Trixie];
}

impl fmt::Display for Distro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        })
    }
}

/// The double of a runtime that wraps runc.
const HOOKED_RUNTIME: &str = "nvidia-container-runtime";

/// A runtime handler that labs have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Handler {
    /// The stock shim. A case that fails on it says something about the case.
    Runc,
    /// Our shim under the stock runtime type, by `runtime_path`.
    Kybernate,
    /// Our shim under its own runtime type, with a table of options.
    KybernateTyped,
    /// Our shim with a runtime that changes specs and has hooks of its own: the double of
    /// NVIDIA's, `doubles/nvidia-container-runtime`. Only for cases that say so.
    KybernateHooked,
}

impl Handler {
    /// All that labs know.
    pub const REGISTERED: [Self; 4] = [
        Self::Runc,
        Self::Kybernate,
        Self::KybernateTyped,
        Self::KybernateHooked,
    ];
    /// Those that any case runs on.
    pub const ALL: [Self; 3] = [Self::Runc, Self::Kybernate, Self::KybernateTyped];
    /// Those that run our shim.
    pub const OURS: [Self; 2] = [Self::Kybernate, Self::KybernateTyped];

    /// The runtime type to give to containerd for containers made without the CRI.
    pub fn runtime_type(self) -> &'static str {
        match self {
            Self::Runc | Self::Kybernate | Self::KybernateHooked => "io.containerd.runc.v2",
            Self::KybernateTyped => kybernate_config::names::RUNTIME_TYPE,
        }
    }

    /// Name of the shim's process.
    pub fn shim(self) -> &'static str {
        match self {
            Self::Runc => "containerd-shim-runc-v2",
            Self::Kybernate | Self::KybernateTyped | Self::KybernateHooked => {
                kybernate_config::names::SHIM_BINARY
            }
        }
    }
}

impl fmt::Display for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Runc => "runc",
            Self::Kybernate => "kybernate",
            Self::KybernateTyped => "kybernate-typed",
            Self::KybernateHooked => "kybernate-hooked",
        })
    }
}

/// What a lab may be told.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// containerd's log level; `debug` reaches the shims too.
    pub log_level: String,
    /// Images to import at the start, of [`catalog`].
    pub images: Vec<&'static str>,
    /// Directory of our built binaries; see [`binaries`].
    pub binaries: PathBuf,
    /// Where containerd's log is copied to when the lab ends, for a look after a failure.
    pub keep_log: Option<PathBuf>,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            log_level: std::env::var("KYBERNATE_LAB_LOG").unwrap_or_else(|_| "info".into()),
            images: vec![catalog::PAUSE, catalog::TOOLS],
            binaries: binaries(),
            keep_log: None,
        }
    }
}

/// Where our binaries lie: `KYBERNATE_BIN_DIR`, or beside the running program
/// (`target/<profile>`).
pub fn binaries() -> PathBuf {
    if let Some(dir) = std::env::var_os("KYBERNATE_BIN_DIR") {
        return dir.into();
    }
    let program = std::env::current_exe().unwrap_or_default();
    let dir = program.parent().unwrap_or(Path::new("."));
    match dir.file_name() {
        Some(name) if name == "deps" => dir.parent().unwrap_or(dir).into(),
        _ => dir.into(),
    }
}

/// What this machine lacks for labs, and what to do about it.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("labs need root: use sudo".into());
    }
    let built = Distro::ALL.into_iter().all(roots::is_built);
    if !built && !Path::new("/usr/bin/mmdebstrap").exists() {
        return Some("mmdebstrap is not installed: run `make deps`".into());
    }
    None
}

/// A running lab. Dropping it ends it; [`Lab::close`] also looks for what is left.
#[derive(Debug)]
pub struct Lab {
    distro: Distro,
    name: String,
    dir: PathBuf,
    pid: u32,
    supervisor: Mutex<Option<Child>>,
    catalog: Catalog,
    options: LabOptions,
    versions: String,
    has_shim: bool,
    cri_socket: Mutex<Option<String>>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// Starts a lab and waits until its containerd takes pods.
    ///
    /// The first call on a machine builds the root (about a minute) and the images.
    pub async fn start(distro: Distro, options: LabOptions) -> Result<Arc<Self>> {
        let (root, catalog) = tokio::task::block_in_place(|| roots::prepare(distro))
            .with_context(|| format!("cannot prepare the root of a {distro} lab"))?;
        sweep()?;
        let name = format!(
            "kybernate-lab-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = roots::lab_dir()?.join("run").join(&name);
        let has_shim = write_inputs(&dir, distro, &options, &catalog)?;
        let mut supervisor = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/instance.sh"))
                .arg(&root.path)
                .arg(&dir)
                .arg(&name)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                // ^C is for us: the lab ends when we do, after its clean-up.
                .process_group(0)
                .spawn()
                .context("cannot run lab/instance.sh")?;
        let mut line = String::new();
        if let Some(output) = supervisor.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let Some(pid) = line
            .strip_prefix("ready ")
            .and_then(|pid| pid.trim().parse().ok())
        else {
            let status = supervisor.wait()?;
            bail!(
                "lab/instance.sh ended with {status} before the lab was ready; its messages are above"
            );
        };
        let lab = Arc::new(Self {
            distro,
            name,
            dir,
            pid,
            supervisor: Mutex::new(Some(supervisor)),
            catalog,
            options,
            versions: fs::read_to_string(root.path.join("versions")).unwrap_or_default(),
            has_shim,
            cri_socket: Mutex::default(),
        });
        lab.start_containerd().await?;
        for image in lab.options.images.clone() {
            lab.import(image)?;
        }
        Ok(lab)
    }

    /// What the lab runs on.
    pub fn distro(&self) -> Distro {
        self.distro
    }

    /// Unique on the host; also the name of the lab's cgroup in each hierarchy.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab's directory on the host's disk. It goes with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What containerd, runc and CRIU say about their versions.
    pub fn versions(&self) -> &str {
        &self.versions
    }

    /// Whether the handler's shim is in the lab; ours must have been built.
    pub fn has(&self, handler: Handler) -> bool {
        handler == Handler::Runc || self.has_shim
    }

    /// An absolute path in the lab, as seen from here.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new("/proc")
            .join(self.pid.to_string())
            .join("root")
            .join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// A command that will run in the lab: its namespaces, its cgroups, its root.
    pub fn command(&self, program: &str) -> Command {
        let procs = Path::new("/sys/fs/cgroup")
            .join(&self.name)
            .join("init/cgroup.procs");
        let mut command = if procs.exists() {
            // Version 2 of cgroups: nobody gets in from outside of the namespace.
            let mut command = Command::new("sh");
            command
                .args(["-c", r#"echo $$ >"$0" && exec nsenter "$@""#])
                .arg(procs);
            command
        } else {
            Command::new("nsenter")
        };
        command
            .arg(format!("--target={}", self.pid))
            .args([
                "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--",
            ])
            .args(["/lab/instance.sh", "--enter", program])
            .stdin(Stdio::null());
        command
    }

    /// Runs a command in the lab and returns what it prints; fails with its messages.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        let (program, args) = argv.split_first().context("an empty command")?;
        let output = self.command(program).args(args).output()?;
        ensure!(
            output.status.success(),
            "{} in lab: {}\n{}{}",
            argv.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).context("output that is not text")
    }

    /// Sends a signal (`KILL`, `TERM`, …) to a process of the lab's PID namespace.
    pub fn kill(&self, signal: &str, pid: u32) -> Result<()> {
        self.exec(&["kill", "-s", signal, &pid.to_string()])?;
        Ok(())
    }

    /// Pids of the lab's processes whose first argument has this file name, oldest first.
    pub fn pids_of(&self, program: &str) -> Result<Vec<u32>> {
        let is_of = |arguments: &[String]| {
            let name = arguments
                .first()
                .and_then(|first| Path::new(first).file_name());
            name.is_some_and(|name| name == program)
        };
        let mut pids: Vec<_> = self
            .processes()?
            .into_iter()
            .filter(|(_, arguments)| is_of(arguments))
            .map(|(pid, _)| pid)
            .collect();
        pids.sort_unstable();
        Ok(pids)
    }

    /// Pids and arguments of the lab's processes.
    pub fn processes(&self) -> Result<Vec<(u32, Vec<String>)>> {
        let mut processes = Vec::new();
        for entry in fs::read_dir(self.path("/proc"))? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            // A process may end between being seen and being looked at.
            let Ok(line) = fs::read(self.path(format!("/proc/{pid}/cmdline"))) else {
                continue;
            };
            let arguments = line.split(|byte| *byte == 0);
            let arguments = arguments.map(|one| String::from_utf8_lossy(one).into_owned());
            processes.push((pid, arguments.collect()));
        }
        Ok(processes)
    }

    /// Imports an image of [`catalog`] into containerd's namespace of Kubernetes.
    pub fn import(&self, image: &str) -> Result<()> {
        let tar = fs::File::open(self.catalog.tar(image))
            .with_context(|| format!("no image {image} in the catalog"))?;
        let output = self
            .command("ctr")
            .args(["-n", "k8s.io", "images", "import", "-"])
            .stdin(tar)
            .output()?;
        ensure!(
            output.status.success(),
            "cannot import {image}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Ends the lab and fails when anything of it is left: a process, a mount, a cgroup, a file.
    pub fn close(&self) -> Result<()> {
        self.end();
        left_behind(&self.name)
    }

    fn end(&self) {
        let supervisor = self
            .supervisor
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .take();
        let Some(mut supervisor) = supervisor else {
            return;
        };
        if let Some(log) = &self.options.keep_log {
            if let Some(parent) = log.parent() {
                let _ = fs::create_dir_all(parent);
            }
            let _ = fs::copy(self.path(containerd::LOG), log);
        }
        // Its end of the pipe: pid 1 of the lab leaves, and everything with it.
        drop(supervisor.stdin.take());
        let _ = supervisor.wait();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.end();
    }
}

/// Lays out what `lab/instance.sh` finds in the lab's directory; tells whether our shim is built.
fn write_inputs(
    dir: &Path,
    distro: Distro,
    options: &LabOptions,
    catalog: &Catalog,
) -> Result<bool> {
    let shim = options.binaries.join(kybernate_config::names::SHIM_BINARY);
    let handlers: &[Handler] = if shim.is_file() {
        &Handler::REGISTERED
    } else {
        &[Handler::Runc]
    };
    let bin = dir.join("upper/usr/local/bin");
    fs::create_dir_all(&bin)?;
    for name in [
        kybernate_config::names::SHIM_BINARY,
        kybernate_config::names::CUDA_BINARY,
        "kybernate",
        "kybernate-nri",
        "kybernate-cri-hooks",
    ] {
        let program = options.binaries.join(name);
        if program.is_file() {
            // A copy: a build may replace the file while the lab runs.
            fs::copy(&program, bin.join(name))?;
        }
    }
    let doubles = Path::new(env!("CARGO_MANIFEST_DIR")).join("doubles");
    fs::copy(doubles.join(HOOKED_RUNTIME), bin.join(HOOKED_RUNTIME))?;
    // The double of a GPU driver: a lab has no GPU, and what has none never asks for it.
    let double = dir.join("upper").join(DOUBLE.trim_start_matches('/'));
    fs::create_dir_all(&double)?;
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        fs::copy(catalog.double(), double.join(name))?;
    }
    fs::copy(catalog.faults(), double.join("faults.so"))?;
    let etc = dir.join("upper/etc");
    fs::create_dir_all(etc.join("kybernate"))?;
    fs::write(
        etc.join("kybernate/config.toml"),
        format!("[gpu]\nlibcuda = \"{DOUBLE}/libcuda.so.1\"\nlock_timeout_s = 2\n"),
    )?;
    fs::create_dir_all(etc.join("containerd"))?;
    fs::create_dir_all(etc.join("cni/net.d"))?;
    fs::write(
        etc.join("containerd/config.toml"),
        config::containerd(distro, options, handlers),
    )?;
    fs::write(etc.join("cni/net.d/10-lab.conflist"), config::CNI)?;
    Ok(shim.is_file())
}
