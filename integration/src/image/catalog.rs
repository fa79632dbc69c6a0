//! The images that labs have: made from a lab's root and from `workloads/`, once.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::Image;
use crate::lab::roots::{self, Root};

/// Keeps a pod's namespaces; nothing but the program.
pub const PAUSE: &str = "kybernate.test/pause:1";
/// Busybox with its applets, and every program of `workloads/` in `/bin`.
pub const TOOLS: &str = "kybernate.test/tools:1";
/// Python, Redis and nginx of Debian with the libraries they need, on top of [`TOOLS`].
pub const APPS: &str = "kybernate.test/apps:1";

/// File name of the double of the CUDA driver.
const DOUBLE: &str = "double-libcuda.so";
/// File name of what stands between programs and the kernel.
const FAULTS: &str = "faults.so";

/// Image tars of one root.
#[derive(Debug, Clone)]
pub struct Catalog {
    dir: PathBuf,
}

impl Catalog {
    /// Makes what is missing. The caller holds the lock on the lab directory.
    pub fn build(root: &Root) -> Result<Self> {
        let sources = workload_sources()?;
        let mut key = vec![
            root.key.clone(),
            include_str!("mod.rs").into(),
            include_str!("catalog.rs").into(),
        ];
        for source in sources.iter().chain(&double_sources()) {
            key.push(fs::read_to_string(source)?);
        }
        let dir = roots::lab_dir()?.join(format!("images-{}", roots::key_of(&key)));
        let catalog = Self { dir };
        if catalog.dir.is_dir() {
            return Ok(catalog);
        }
        remove_old_catalogs()?;
        let partial = catalog.dir.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        let programs = compile(&sources, &partial)?;
        let [double, _, faults] = double_sources();
        let hidden: &[&str] = &["-shared", "-fPIC", "-fvisibility=hidden"];
        cc(hidden, &double, &partial.join(DOUBLE))?;
        cc(&["-shared", "-fPIC"], &faults, &partial.join(FAULTS))?;
        pause(&programs)?.write(&partial.join(file_name(PAUSE)))?;
        tools(TOOLS, root, &programs)?.write(&partial.join(file_name(TOOLS)))?;
        apps(root, &programs)?.write(&partial.join(file_name(APPS)))?;
        fs::rename(&partial, &catalog.dir)?;
        Ok(catalog)
    }

    /// The double of the CUDA driver's library, `doubles/cuda.c`.
    pub fn double(&self) -> PathBuf {
        self.dir.join(DOUBLE)
    }

    /// The library that makes calls of programs fail, `doubles/faults.c`.
    pub fn faults(&self) -> PathBuf {
        self.dir.join(FAULTS)
    }

    /// The tar of an image of this catalog.
    pub fn tar(&self, image: &str) -> PathBuf {
        self.dir.join(file_name(image))
    }
}

/// Removes catalogs of earlier sources. One of the last hour may still be in use.
fn remove_old_catalogs() -> Result<()> {
    for entry in fs::read_dir(roots::lab_dir()?)?.flatten() {
        let is_catalog = entry.file_name().to_string_lossy().starts_with("images-");
        let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        if is_catalog && age > Duration::from_secs(3600) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn file_name(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    format!("{}.tar", name.split(':').next().unwrap_or(name))
}

fn workload_sources() -> Result<Vec<PathBuf>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
    let mut sources: Vec<_> = fs::read_dir(&dir)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    sources.retain(|path| path.extension().is_some_and(|ext| ext == "c"));
    sources.sort();
    Ok(sources)
}

fn double_sources() -> [PathBuf; 3] {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("doubles");
    ["cuda.c", "cuda.h", "faults.c"].map(|name| dir.join(name))
}

fn cc(arguments: &[&str], source: &Path, result: &Path) -> Result<()> {
    let output = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror"])
        .args(arguments)
        .arg("-o")
        .arg(result)
        .arg(source)
        .output()
        .context("cannot run cc: install gcc and libc6-dev")?;
    ensure!(
        output.status.success(),
        "cc {}: {}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Compiles each source to a static program of its name, without the `.c`.
fn compile(sources: &[PathBuf], dir: &Path) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for source in sources {
        let program = dir.join(source.file_stem().context("a workload without a name")?);
        cc(&["-static", "-pthread"], source, &program)?;
        programs.push(program);
    }
    Ok(programs)
}

fn pause(programs: &[PathBuf]) -> Result<Image> {
    let program = programs
        .iter()
        .find(|path| path.ends_with("pause"))
        .context("workloads/pause.c is missing")?;
    Ok(Image::new(PAUSE)
        .program("/pause")
        .file("pause", program, 0o755))
}

fn tools(name: &str, root: &Root, programs: &[PathBuf]) -> Result<Image> {
    let busybox = root.path.join("usr/bin/busybox");
    let applets = Command::new(&busybox)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {}", busybox.display()))?;
    let mut image = Image::new(name)
        .directory("bin", 0o755)
        .directory("etc", 0o755)
        .directory("home", 0o755)
        .directory("root", 0o700)
        .directory("tmp", 0o1777)
        .directory("var", 0o755)
        .text(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000:worker:/home:/bin/sh\n",
        )
        .text(
            "etc/group",
            "root:x:0:\nworker:x:1000:\nextra:x:2000:worker\n",
        )
        // What workloads/filesystem.c changes and deletes.
        .directory("srv", 0o755)
        .text("srv/keep", "kept under another name\n")
        .text("srv/gone", "deleted\n")
        .text("srv/edited", "as in the image\n")
        .directory("srv/hidden", 0o755)
        .text("srv/hidden/one", "1\n")
        .text("srv/hidden/two", "2\n")
        .directory("srv/removed", 0o755)
        .text("srv/removed/one", "1\n")
        .directory("srv/removed/deep", 0o755)
        .text("srv/removed/deep/two", "2\n")
        .file("bin/busybox", busybox, 0o755);
    for applet in String::from_utf8(applets.stdout)?.lines() {
        if applet != "busybox" {
            image = image.link(&format!("bin/{applet}"), "busybox");
        }
    }
    for program in programs {
        let name = program.file_name().context("a workload without a name")?;
        image = image.file(&format!("bin/{}", name.to_string_lossy()), program, 0o755);
    }
    Ok(image)
}

fn apps(root: &Root, programs: &[PathBuf]) -> Result<Image> {
    let mut image = tools(APPS, root, programs)?
        .directory("usr", 0o755)
        .directory("usr/bin", 0o755)
        .directory("usr/sbin", 0o755)
        .directory("usr/lib", 0o755)
        .directory("usr/lib64", 0o755)
        .link("lib", "usr/lib")
        .link("lib64", "usr/lib64");
    let programs = [
        "/usr/bin/python3",
        "/usr/bin/redis-server",
        "/usr/bin/redis-cli",
        "/usr/sbin/nginx",
    ];
    let mut directories = BTreeSet::new();
    for library in libraries(root, &programs)? {
        // ldd may say /lib or /usr/lib; both are the same directory.
        let path = library.trim_start_matches('/');
        let path = if path.starts_with("usr/") {
            path.to_owned()
        } else {
            format!("usr/{path}")
        };
        let parent = Path::new(&path).parent().context("a library at the root")?;
        if directories.insert(parent.to_owned()) && parent.components().count() > 2 {
            image = image.directory(&parent.to_string_lossy(), 0o755);
        }
        image = image.file(&path, root.path.join(&path), 0o755);
    }
    for program in programs {
        image = image.file(
            program.trim_start_matches('/'),
            root.path.join(program.trim_start_matches('/')),
            0o755,
        );
    }
    let python = fs::read_dir(root.path.join("usr/lib"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with("python3."))
        .context("the root has no Python library")?;
    let path = format!("usr/lib/{python}");
    image.tree(&path, &root.path.join(&path))
}

/// What the dynamic loader would load for the programs, loader included.
fn libraries(root: &Root, programs: &[&str]) -> Result<BTreeSet<String>> {
    let output = Command::new("chroot")
        .arg(&root.path)
        .arg("ldd")
        .args(programs)
        .output()
        .context("cannot run ldd in the lab's root")?;
    ensure!(
        output.status.success(),
        "ldd: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with('/') && !word.ends_with(':'))
                .map(str::to_owned)
        })
        .collect())
}
