//! The packages of `make dist`, made here from the programs of this build: what they hold, and that
//! a node is installed and left from the .deb and from the container image as it is by hand.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use kybernate_hooks::cri::v1::{
    Capability, Int64Value, Mount, MountPropagation, NamespaceMode, SecurityProfile,
};
use kybernate_integration::{Handler, lab::binaries};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{node::Node, whole::is_as_it_was};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const PROGRAMS: [&str; 5] = [
    "containerd-shim-kybernate-v1",
    "kybernate",
    "kybernate-cri-hooks",
    "kybernate-cuda",
    "kybernate-nri",
];

static MADE: Mutex<Option<TempDir>> = Mutex::new(None);

/// What the packages can't be made without, and is not there.
pub fn missing() -> Option<String> {
    let tools = ["dpkg-deb", "rpmbuild", "rpm", "objdump", "strip", "python3"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let missing = tools.iter().find(|name| !is_there(name))?;
    Some(format!("{missing} is not installed: run `make tools`"))
}

/// The packages, made once.
fn packages() -> Result<PathBuf> {
    let mut made = MADE.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(made) = made.as_ref() {
        return Ok(made.path().join("dist"));
    }
    let dir = tempfile::tempdir()?;
    let bin = dir.path().join("bin");
    fs::create_dir(&bin)?;
    for name in PROGRAMS {
        // As in a release; it also takes most of what would have to be compressed.
        let stripped = Command::new("strip")
            .arg("-o")
            .arg(bin.join(name))
            .arg(binaries().join(name))
            .output()?;
        check("strip", &stripped)?;
    }
    let dist = dir.path().join("dist");
    let output = Command::new(configs("package/dist.sh"))
        .args([&bin, &dist])
        .output()?;
    check("dist.sh", &output)?;
    *made = Some(dir);
    Ok(dist)
}

/// Removes what was made.
pub fn forget() {
    drop(MADE.lock().unwrap_or_else(|e| e.into_inner()).take());
}

fn configs(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../configs")
        .join(path)
}

fn check(what: &str, output: &std::process::Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "{what}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn said(program: &str, args: &[&str], directory: &Path) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .current_dir(directory)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    check(program, &output)
}

pub fn sums() -> Result<()> {
    let dist = packages()?;
    said("sha256sum", &["--check", "--strict", "SHA256SUMS"], &dist)?;
    let listed = fs::read_to_string(dist.join("SHA256SUMS"))?;
    let listed: BTreeSet<&str> = listed
        .lines()
        .filter_map(|l| l.split("  ").nth(1))
        .collect();
    let expected = [
        format!("kybernate-{VERSION}-1.x86_64.rpm"),
        format!("kybernate-{VERSION}-image.tar"),
        format!("kybernate-{VERSION}-x86_64.tar.gz"),
        format!("kybernate-{VERSION}.cdx.json"),
        format!("kybernate-chart-{VERSION}.tgz"),
        format!("kybernate_{VERSION}-1_amd64.deb"),
    ];
    ensure!(
        listed == expected.iter().map(String::as_str).collect(),
        "{listed:?}"
    );
    Ok(())
}

pub fn tarball() -> Result<()> {
    let dist = packages()?;
    let dir = tempfile::tempdir()?;
    let archive = dist.join(format!("kybernate-{VERSION}-x86_64.tar.gz"));
    said("tar", &["xzf", &archive.display().to_string()], dir.path())?;
    let top = dir.path().join(format!("kybernate-{VERSION}"));
    for name in PROGRAMS {
        // containerd asks a shim in its own way.
        let flag = if name.contains("shim") {
            "-v"
        } else {
            "--version"
        };
        let version = said(&format!("bin/{name}"), &[flag], &top)?;
        ensure!(version.contains(VERSION), "{name}: {version}");
    }
    ensure!(said("./install_shim.sh", &["--help"], &top)?.contains("install_shim.sh [OPTIONS]"));
    for directory in [
        "profiles",
        "kubernetes",
        "chart",
        "apparmor",
        "systemd",
        "nri",
    ] {
        said(
            "diff",
            &["-r", directory, &configs(directory).display().to_string()],
            &top,
        )?;
    }
    let page = fs::read_to_string(top.join("man/man1/kybernate-checkpoint.1"))?;
    ensure!(page.contains("Write a running container"), "{page}");
    for shell in ["bash", "zsh", "fish"] {
        let script = fs::read_to_string(top.join(format!("completions/kybernate.{shell}")))?;
        ensure!(script.contains("uninstall"), "{shell}");
    }
    for file in ["LICENSE", "CHANGELOG.md", "doc/install.md"] {
        ensure!(top.join(file).is_file(), "{file} is missing");
    }
    Ok(())
}

/// Paths that both packages of the system install, programs aside.
const INSTALLED: [&str; 6] = [
    "/usr/share/bash-completion/completions/kybernate",
    "/usr/share/doc/kybernate/install.md",
    "/usr/share/kybernate/apparmor/kybernate-nri",
    "/usr/share/kybernate/install_shim.sh",
    "/usr/share/kybernate/kubernetes/base/installer.yaml",
    "/usr/share/man/man1/kybernate.1.gz",
];

pub fn rpm() -> Result<()> {
    let dist = packages()?;
    let package = format!("kybernate-{VERSION}-1.x86_64.rpm");
    let query = |what: &[&str]| {
        let args: Vec<&str> = [&["-qp"], what, &[package.as_str()]].concat();
        said("rpm", &args, &dist)
    };
    said("rpm", &["-K", "--nosignature", &package], &dist)?;
    let files = query(&[
        "--qf",
        "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}\n]",
    ])?;
    for name in PROGRAMS {
        let line = format!("/usr/bin/{name} -rwxr-xr-x root\n");
        ensure!(files.contains(&line), "{line}{files}");
    }
    for path in INSTALLED {
        ensure!(
            files.contains(&format!("{path} ")),
            "{path} is missing: {files}"
        );
    }
    ensure!(files.lines().all(|line| line.ends_with(" root")), "{files}");
    let scripts = query(&["--scripts"])?;
    ensure!(scripts.contains("kybernate uninstall"), "{scripts}");
    ensure!(query(&["--requires"])?.contains("libc.so.6"));
    Ok(())
}

pub fn bill_of_materials() -> Result<()> {
    let path = packages()?.join(format!("kybernate-{VERSION}.cdx.json"));
    let bill: Value = serde_json::from_slice(&fs::read(path)?)?;
    ensure!(bill["bomFormat"] == "CycloneDX" && bill["specVersion"] == "1.5");
    let components = bill["components"].as_array().context("no components")?;
    let mut references = BTreeSet::new();
    for component in components {
        let name = component["name"].as_str().context("no name")?;
        let purl = component["purl"].as_str().context("no purl")?;
        ensure!(purl.starts_with("pkg:cargo/"), "{purl}");
        ensure!(component["licenses"][0]["expression"].is_string(), "{name}");
        // Everything but our own comes from a registry, with its digest.
        let own = name.starts_with("kybernate-");
        let digest = component["hashes"][0]["content"].as_str();
        ensure!(own || digest.is_some_and(|sum| sum.len() == 64), "{name}");
        references.insert(purl);
    }
    for expected in ["kybernate-shim", "kybernate-cuda", "tokio", "zstd-sys"] {
        let prefix = format!("pkg:cargo/{expected}@");
        ensure!(
            references.iter().any(|purl| purl.starts_with(&prefix)),
            "{expected}"
        );
    }
    for absent in ["proptest", "libtest-mimic", "syn"] {
        let prefix = format!("pkg:cargo/{absent}@");
        ensure!(
            !references.iter().any(|purl| purl.starts_with(&prefix)),
            "{absent} is not shipped"
        );
    }
    for dependency in bill["dependencies"].as_array().context("no dependencies")? {
        for on in dependency["dependsOn"].as_array().into_iter().flatten() {
            ensure!(
                references.contains(on.as_str().unwrap_or_default()),
                "{on} is not listed"
            );
        }
    }
    Ok(())
}

/// The reference that the manifests name.
fn reference() -> Result<String> {
    let text = fs::read_to_string(configs("kubernetes/base/kustomization.yaml"))?;
    let word = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
        line.map(str::trim)
            .with_context(|| format!("no {key} in kustomization.yaml"))
    };
    Ok(format!("{}:{}", word("newName:")?, word("newTag:")?))
}

pub fn image_layout() -> Result<()> {
    let dist = packages()?;
    let dir = tempfile::tempdir()?;
    let tar = dist.join(format!("kybernate-{VERSION}-image.tar"));
    said("tar", &["xf", &tar.display().to_string()], dir.path())?;
    let json = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).context("not JSON");
    let read = |path: &str| fs::read(dir.path().join(path)).with_context(|| path.to_owned());
    let hex = |bytes: &[u8]| -> String {
        Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    let mut blobs = 0;
    let mut blob = |descriptor: &Value| -> Result<Vec<u8>> {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        let sum = digest.strip_prefix("sha256:").context("another digest")?;
        let bytes = read(&format!("blobs/sha256/{sum}"))?;
        ensure!(hex(&bytes) == sum, "{digest} is not that of the blob");
        ensure!(descriptor["size"] == bytes.len(), "{descriptor}");
        blobs += 1;
        Ok(bytes)
    };
    ensure!(json(read("oci-layout")?)?["imageLayoutVersion"] == "1.0.0");
    let index = json(read("index.json")?)?;
    let listed = &index["manifests"][0];
    let named = &listed["annotations"]["io.containerd.image.name"];
    ensure!(*named == reference()?, "the image is {named}");
    let manifest = json(blob(listed)?)?;
    let config = json(blob(&manifest["config"])?)?;
    ensure!(config["architecture"] == "amd64" && config["os"] == "linux");
    ensure!(config["config"]["Entrypoint"] == serde_json::json!(["/usr/bin/kybernate"]));
    let layer = blob(&manifest["layers"][0])?;
    ensure!(fs::read_dir(dir.path().join("blobs/sha256"))?.count() == blobs);

    let root = dir.path().join("root");
    fs::create_dir(&root)?;
    fs::write(dir.path().join("layer.tar.gz"), layer)?;
    said("gzip", &["-d", "layer.tar.gz"], dir.path())?;
    let plain = format!("sha256:{}", hex(&read("layer.tar")?));
    ensure!(config["rootfs"]["diff_ids"] == serde_json::json!([plain]));
    said("tar", &["xf", "../layer.tar"], &root)?;
    for name in PROGRAMS {
        ensure!(
            root.join("usr/bin").join(name).is_file(),
            "{name} is missing"
        );
    }
    ensure!(root.join("host").is_dir());
    // It has all that it needs to run.
    let version = said("chroot", &[".", "/usr/bin/kybernate", "--version"], &root)?;
    ensure!(version.contains(VERSION), "{version}");
    Ok(())
}

/// A tree without what dpkg keeps for itself.
fn without_dpkg(tree: &str) -> String {
    let kept = |line: &&str| {
        !["/var/lib/dpkg", "/var/cache"]
            .iter()
            .any(|dir| line.contains(dir))
    };
    tree.lines()
        .filter(kept)
        .map(|line| format!("{line}\n"))
        .collect()
}

pub fn deb(node: &Node) -> Result<()> {
    let before = without_dpkg(&node.tree()?);
    let package = packages()?.join(format!("kybernate_{VERSION}-1_amd64.deb"));
    fs::copy(package, node.lab.path("/tmp/kybernate.deb"))?;
    node.run(&["dpkg", "--install", "/tmp/kybernate.deb"])?
        .ok()?;
    let listed = node.run(&["dpkg", "--listfiles", "kybernate"])?.ok()?;
    for path in INSTALLED {
        ensure!(
            listed.lines().any(|line| line == path),
            "{path} is missing: {listed}"
        );
    }

    let said = node.run(&["/usr/share/kybernate/install_shim.sh"])?.ok()?;
    ensure!(said.contains("Kybernate is installed"), "{said}");
    let config = fs::read_to_string(node.lab.path(node.config()))?;
    ensure!(
        config.contains("/usr/bin/containerd-shim-kybernate-v1"),
        "{config}"
    );
    ensure!(
        !node.lab.path("/usr/local/bin/kybernate").exists(),
        "a second copy"
    );
    node.run(&["kybernate", "status"])?.ok()?;
    let again = node.run(&["kybernate", "upgrade"])?.ok()?;
    ensure!(again.contains("Nothing had to be changed"), "{again}");
    let newer = node
        .run(&["dpkg", "--install", "/tmp/kybernate.deb"])?
        .ok()?;
    ensure!(newer.contains("kybernate upgrade"), "{newer}");

    let pod = node.wait(node.pod(Handler::Kybernate).start())?;
    let refused = node.run(&["dpkg", "--remove", "kybernate"])?.refused()?;
    ensure!(refused.contains("pods of the class still run"), "{refused}");
    node.run(&["kybernate", "status"])?.ok()?;
    node.wait(pod.remove())?;
    node.run(&["dpkg", "--purge", "kybernate"])?.ok()?;
    is_as_it_was(&before, &without_dpkg(&node.tree()?))?;
    ensure!(node.wait(node.pod(Handler::Kybernate).start()).is_err());
    Ok(())
}

pub fn image(node: &Node) -> Result<()> {
    let before = node.tree()?;
    // As systemd has it; a lab's is private.
    node.lab.exec(&["mount", "--make-rshared", "/"])?;
    let tar = packages()?.join(format!("kybernate-{VERSION}-image.tar"));
    fs::copy(tar, node.lab.path("/tmp/image.tar"))?;
    node.run(&["ctr", "-n", "k8s.io", "images", "import", "/tmp/image.tar"])?
        .ok()?;
    let said = init_container(node, "base")?;
    ensure!(said.contains("Kybernate is installed"), "{said}");
    ensure!(
        !said.contains("not checked") && !said.contains("not restarted"),
        "{said}"
    );
    node.run(&["kybernate", "status"])?.ok()?;
    let pod = node.wait(node.pod(Handler::Kybernate).start())?;
    node.wait(pod.remove())?;

    // As when a node boots, or the DaemonSet is rolled out anew.
    let pid = node.containerd()?;
    let said = init_container(node, "base")?;
    ensure!(said.contains("Nothing had to be changed"), "{said}");
    ensure!(
        node.containerd()? == pid,
        "containerd was restarted for nothing"
    );

    let said = init_container(node, "uninstall")?;
    ensure!(said.contains("uninstalled"), "{said}");
    is_as_it_was(&before, &node.tree()?)?;
    Ok(())
}

/// Runs the DaemonSet's init container as the manifests of production describe it, and tells what
/// it has said.
fn init_container(node: &Node, overlay: &str) -> Result<String> {
    let text = fs::read_to_string(configs("kubernetes/base/installer.yaml"))?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).map_err(|e| anyhow!("installer.yaml: {e}"))?;
    let spec = &documents[1]["spec"]["template"]["spec"];
    ensure!(spec["hostPID"] == true);
    let described = &spec["initContainers"][0];
    let security = &described["securityContext"];
    let words = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    let mut args = words(&described["args"]);
    if overlay == "uninstall" {
        args[0] = "uninstall".into();
    }
    let capabilities = Capability {
        add_capabilities: words(&security["capabilities"]["add"]),
        drop_capabilities: words(&security["capabilities"]["drop"]),
        ..Default::default()
    };
    ensure!(capabilities.add_capabilities.len() == 6);
    node.wait(async {
        let host = |options: &mut kybernate_hooks::cri::v1::NamespaceOption| {
            options.pid = NamespaceMode::Node.into();
        };
        let pod = node.pod(Handler::Runc).namespaces(host).start().await?;
        let container = pod
            .container("install")
            .image(&reference()?)
            .command(Vec::<String>::new())
            .edit(|config| {
                config.args = args;
                config.mounts.push(Mount {
                    host_path: "/".into(),
                    container_path: "/host".into(),
                    propagation: MountPropagation::PropagationHostToContainer.into(),
                    ..Default::default()
                });
            })
            .security(|context| {
                context.capabilities = Some(capabilities);
                context.readonly_rootfs = security["readOnlyRootFilesystem"] == true;
                context.privileged = security["privileged"] == true;
                context.run_as_user = security["runAsUser"]
                    .as_i64()
                    .map(|value| Int64Value { value });
                context.no_new_privs = security["allowPrivilegeEscalation"] == false;
                context.seccomp = Some(SecurityProfile::default());
            })
            .start()
            .await?;
        let status = container.wait_exit().await?;
        let said = container.stdout()? + &container.stderr()?;
        if status.exit_code != 0 {
            bail!("exit code {}: {said}", status.exit_code);
        }
        pod.remove().await?;
        Ok(said)
    })
}
