//! A bare node: a lab whose containerd knows nothing of Kybernate, with the files that tell what
//! kind of node it is, and doubles of `systemctl` and `snap` that restart its containerd.

use std::{
    fmt, fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kybernate_hooks::cri::v1::StatusRequest;
use kybernate_integration::{
    Distro, Handler, Lab, LabOptions,
    checkpoint::{Finished, run},
    cri::PodBuilder,
    eventually,
    lab::binaries,
};
use tokio::runtime::Runtime;

/// Where the package is unpacked.
pub const PACKAGE: &str = "/opt/package";
const SNAP: &str = "/var/snap/microk8s";
const PID: &str = "/run/lab-containerd.pid";
/// Lines of shell that are to be run as services.
const SERVICES: &str = "/run/services";
/// There once kubelet was restarted.
pub const KUBELET_RESTARTED: &str = "/run/kubelet-restarted";

/// How a node is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Standard paths.
    Kubeadm,
    /// Paths of the snap.
    Microk8s,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kubeadm => "kubeadm",
            Self::Microk8s => "microk8s",
        })
    }
}

/// A node.
pub struct Node {
    /// The lab that it is.
    pub lab: Arc<Lab>,
    /// How it is laid out.
    pub layout: Layout,
    runtime: Runtime,
}

impl Node {
    /// Starts one, without anything of Kybernate but the package.
    pub fn start(distro: Distro, layout: Layout) -> Result<Self> {
        let runtime = Runtime::new()?;
        let nothing = tempfile::tempdir()?;
        let options = LabOptions {
            binaries: nothing.path().to_owned(),
            ..LabOptions::default()
        };
        let lab = runtime.block_on(Lab::start(distro, options))?;
        let node = Self {
            lab,
            layout,
            runtime,
        };
        node.unpack()?;
        node.runtime.block_on(node.lab.kill_containerd())?;
        match layout {
            Layout::Kubeadm => node.lay_out_kubeadm()?,
            Layout::Microk8s => node.lay_out_microk8s()?,
        }
        node.serve()?;
        node.restart()?;
        Ok(node)
    }

    /// Waits for what a case does.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Ends it and looks for what is left.
    pub fn close(self) -> Result<()> {
        self.lab.close()
    }

    /// A pod of a handler.
    pub fn pod(&self, handler: Handler) -> PodBuilder {
        PodBuilder::new(&self.lab, handler)
    }

    /// Runs a program on the node.
    pub fn run(&self, argv: &[&str]) -> Result<Finished> {
        self.wait(run(&self.lab, argv))
    }

    /// Runs the script that users run.
    pub fn install(&self, args: &[&str]) -> Result<Finished> {
        let script = format!("{PACKAGE}/install_shim.sh");
        let mut argv = vec![script.as_str()];
        argv.extend(args);
        self.run(&argv)
    }

    /// Where containerd's configuration is changed.
    pub fn config(&self) -> String {
        match self.layout {
            Layout::Kubeadm => "/etc/containerd/config.toml".into(),
            Layout::Microk8s => format!("{SNAP}/current/args/containerd-template.toml"),
        }
    }

    /// Where kubelet wants archives.
    pub fn checkpoints(&self) -> String {
        match self.layout {
            Layout::Kubeadm => "/var/lib/kubelet/checkpoints".into(),
            Layout::Microk8s => format!("{SNAP}/common/var/lib/kubelet/checkpoints"),
        }
    }

    /// What tells kubelet where the CRI is, once the hooks are installed.
    pub fn kubelet(&self) -> Result<String> {
        let path = match self.layout {
            Layout::Kubeadm => "/etc/systemd/system/kubelet.service.d/90-kybernate.conf".into(),
            Layout::Microk8s => format!("{SNAP}/current/args/kubelet"),
        };
        self.lab.exec(&["cat", &path])
    }

    /// containerd's pid.
    pub fn containerd(&self) -> Result<u32> {
        let text = self.lab.exec(&["cat", PID])?;
        text.trim().parse().context("containerd's pid")
    }

    /// Restarts containerd as an administrator does, and waits for it.
    pub fn restart(&self) -> Result<()> {
        match self.layout {
            Layout::Kubeadm => self.lab.exec(&["systemctl", "restart", "containerd"])?,
            Layout::Microk8s => {
                self.lab
                    .exec(&["snap", "restart", "microk8s.daemon-containerd"])?
            }
        };
        self.wait(eventually("the CRI", Duration::from_secs(30), || async {
            let status = self.lab.cri().status(StatusRequest::default()).await?;
            let status = status.into_inner().status.unwrap_or_default();
            Ok((status.conditions.iter().filter(|c| c.status).count() >= 2).then_some(()))
        }))
    }

    /// Every file of the node that an installation could touch: kind, permissions, owner, and
    /// size, time and digest of files.
    pub fn tree(&self) -> Result<String> {
        const SCRIPT: &str = "
            find / -xdev '(' -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run \
                -o -path /var/log -o -path /var/lib/containerd -o -path /var/lib/cni \
                -o -path /var/snap/microk8s/common ')' -prune -o \
                '(' -type f -printf '%p %y %m %U %G %s %T@\\n' -o -printf '%p %y %m %U %G %l\\n' ')' | sort
            find /var/lib/kybernate -printf '%p %y %m %U %G\\n' | sort
            find /etc /opt /usr/local /var/snap/microk8s/current/ -type f -exec sha256sum '{}' + 2>/dev/null | sort";
        self.lab.exec(&["sh", "-c", SCRIPT])
    }

    /// Writes a file on the node.
    pub fn write(&self, path: &str, text: &str, mode: u32) -> Result<()> {
        let path = self.lab.path(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    /// Starts what starts services, with all rights and in no container's cgroup, as systemd does;
    /// they are process 1's children, which takes their exits.
    fn serve(&self) -> Result<()> {
        let script = format!(
            "mkfifo {SERVICES}
             setsid sh -c 'while read -r line; do (setsid sh -c \"$line\" &); done <>{SERVICES}' \
                 >/dev/null 2>&1 &"
        );
        self.lab.exec(&["sh", "-c", &script])?;
        Ok(())
    }

    fn unpack(&self) -> Result<()> {
        let package = self.lab.path(PACKAGE);
        fs::create_dir_all(&package)?;
        for name in [
            "kybernate",
            "containerd-shim-kybernate-v1",
            "kybernate-nri",
            "kybernate-cri-hooks",
        ] {
            fs::copy(binaries().join(name), package.join(name))
                .with_context(|| format!("{name} is not built: run `make build`"))?;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/install_shim.sh");
        fs::copy(script, package.join("install_shim.sh"))?;
        Ok(())
    }

    /// The lab's configuration without NRI's switch: off by default on containerd 1.7.
    fn bare_config(&self) -> Result<String> {
        let text = fs::read_to_string(self.lab.path("/etc/containerd/config.toml"))?;
        ensure!(!text.contains("runtimes.kybernate"), "the node is not bare");
        Ok(text.replace(
            "[plugins.'io.containerd.nri.v1.nri']\ndisable = false\n",
            "",
        ))
    }

    fn lay_out_kubeadm(&self) -> Result<()> {
        let config = self.bare_config()?;
        self.write("/etc/containerd/config.toml", &config, 0o644)?;
        self.write("/etc/kubernetes/kubelet.conf", "kind: Config\n", 0o600)?;
        self.write("/var/lib/kubelet/kubeadm-flags.env", "", 0o644)?;
        let start = "exec containerd";
        self.write(
            "/usr/lib/systemd/system/kubelet.service",
            "[Service]\nExecStart=/usr/bin/kubelet $KUBELET_KUBEADM_ARGS\n",
            0o644,
        )?;
        self.write(
            "/usr/local/bin/systemctl",
            &double("restart containerd", "restart kubelet", "", start),
            0o755,
        )
    }

    fn lay_out_microk8s(&self) -> Result<()> {
        let socket = format!("{SNAP}/common/run/containerd.sock");
        let template = self
            .bare_config()?
            .replace(
                "'/var/lib/containerd'",
                "'${SNAP_COMMON}/var/lib/containerd'",
            )
            .replace("'/run/containerd'", "'${SNAP_COMMON}/run/containerd'");
        let template =
            format!("{template}\n[grpc]\naddress = '${{SNAP_COMMON}}/run/containerd.sock'\n");
        self.write(
            &format!("{SNAP}/7000/args/containerd-template.toml"),
            &template,
            0o660,
        )?;
        symlink("7000", self.lab.path(format!("{SNAP}/current")))?;
        self.lab.exec(&[
            "sh",
            "-c",
            &format!(
                "set -e; rm -rf /etc/containerd; mkdir -p {SNAP}/7000/bin {SNAP}/7000/opt/cni \
                 {SNAP}/common/run {SNAP}/common/var/lib/containerd /snap/microk8s/current/bin
                 mount --bind /var/lib/containerd {SNAP}/common/var/lib/containerd
                 mv /usr/sbin/runc {SNAP}/7000/bin/runc
                 mv /usr/bin/containerd /snap/microk8s/current/bin/containerd
                 cp -r /usr/lib/cni {SNAP}/7000/opt/cni/bin
                 cp /bin/sleep /snap/microk8s/current/kubelite
                 # What talks to containerd here uses the standard place.
                 rm -f /run/containerd/containerd.sock
                 ln -s ../..{socket} /run/containerd/containerd.sock
                 setsid /snap/microk8s/current/kubelite 1000000 >/dev/null 2>&1 &"
            ),
        ])?;
        let render = format!(
            "sed 's@${{SNAP_DATA}}@{SNAP}/current@g;s@${{SNAP_COMMON}}@{SNAP}/common@g' \
             {SNAP}/current/args/containerd-template.toml >{SNAP}/common/run/containerd.toml"
        );
        // The snap's own programs come first in the daemon's PATH.
        let start = format!(
            "PATH={SNAP}/current/bin:$PATH exec /snap/microk8s/current/bin/containerd \
             --config {SNAP}/common/run/containerd.toml"
        );
        self.write(
            &format!("{SNAP}/7000/args/kubelet"),
            "--container-runtime-endpoint=${SNAP_COMMON}/run/containerd.sock\n",
            0o660,
        )?;
        let double = double(
            "restart microk8s.daemon-containerd",
            "restart microk8s.daemon-kubelite",
            &render,
            &start,
        );
        // The hooks are a service of the system's.
        self.write("/usr/local/bin/systemctl", &double, 0o755)?;
        self.write("/usr/local/bin/snap", &double, 0o755)
    }
}

/// A program that stands for the one that starts and restarts services. Files in /run tell it to
/// misbehave. What it starts has nothing of whoever has asked for it.
fn double(containerd: &str, kubelet: &str, prepare: &str, start: &str) -> String {
    format!(
        r#"#!/bin/sh
start() {{ printf '%s\n' "{{ $1; }} >>$2 2>&1 </dev/null" >{SERVICES}; }}
case $* in
"{containerd}") ;;
"{kubelet}") exec touch {KUBELET_RESTARTED} ;;
"enable --now kybernate-cri-hooks.service")
	mkdir -p /run/kybernate
	start "exec $(sed -n s/^ExecStart=//p /etc/systemd/system/kybernate-cri-hooks.service)" /var/log/hooks.log
	exit 0
	;;
"stop kybernate-cri-hooks.socket kybernate-cri-hooks.service") exec pkill -x kybernate-cri-h ;;
*) exit 0 ;;
esac
if [ -e /run/restart-fails ]; then rm /run/restart-fails; echo "Job failed." >&2; exit 1; fi
if [ -e {PID} ] && pid=$(cat {PID}) && kill "$pid" 2>/dev/null; then
	while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
fi
{prepare}
start 'echo $$ >{PID}; {start}' /var/log/containerd.log
if [ -e /run/restart-kills ]; then rm /run/restart-kills; pkill -9 -x kybernate; fi
exit 0
"#
    )
}
