//! Which kind of node is told from which evidence.

use std::{fs, os::unix::fs::symlink, path::Path};

use kybernate_config::profile::{DetectError, Root, all, detect};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");

/// A directory that stands for a node: fixtures laid over each other, and processes.
fn node(fixtures: &[&str], processes: &[&str], files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in fixtures {
        copy(&Path::new(FIXTURES).join(name), dir.path());
    }
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    for (index, line) in processes.iter().enumerate() {
        let process = dir.path().join(format!("proc/{}", index + 1));
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("cmdline"), line.replace(' ', "\0")).unwrap();
    }
    dir
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else if kind.is_symlink() {
            let _ = fs::remove_file(&target);
            symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

fn told(dir: &tempfile::TempDir) -> Result<String, DetectError> {
    let profiles = all();
    detect(&profiles, &Root::new(dir.path())).map(|found| {
        assert!(!found.evidence.is_empty());
        found.profile.name.clone()
    })
}

#[test]
fn every_distribution_is_told_by_its_files_alone() {
    for (fixture, name) in [
        ("kubeadm-1.7", "kubeadm"),
        ("kubeadm-2.1", "kubeadm"),
        ("kubeadm-debian", "kubeadm"),
        ("kubeadm-nvidia", "kubeadm"),
        ("microk8s", "microk8s"),
        ("k3s-1.7", "k3s"),
        ("k3s-2.1", "k3s"),
        ("rke2", "rke2"),
        ("k0s", "k0s"),
        ("eks-1.7", "eks"),
        ("eks-2.1", "eks"),
        ("gke", "gke"),
        ("gke-cos", "gke-cos"),
        ("aks", "aks"),
        ("minikube", "minikube"),
        ("kind", "kind"),
        ("docker", "docker"),
    ] {
        assert_eq!(
            told(&node(&[fixture], &[], &[])).as_deref(),
            Ok(name),
            "{fixture}"
        );
    }
    let plain = node(&[], &[], &[("etc/containerd/config.toml", "version = 2\n")]);
    assert_eq!(told(&plain).as_deref(), Ok("containerd"));
}

#[test]
fn a_node_that_may_be_two_things_lists_both_with_what_was_seen() {
    let system = [("run/containerd/containerd.sock", "")];
    for (fixtures, files, names) in [
        (
            &["docker", "kubeadm-1.7"][..],
            &[][..],
            ["kubeadm", "docker"],
        ),
        (&["microk8s"], &system[..], ["microk8s", "containerd"]),
        (&["k3s-1.7"], &system[..], ["k3s", "containerd"]),
        (&["k3s-1.7", "microk8s"], &[], ["microk8s", "k3s"]),
        (
            &["kubeadm-1.7"],
            &[("etc/crio/crio.conf", "")],
            ["kubeadm", "cri-o"],
        ),
    ] {
        let error = told(&node(fixtures, &[], files)).unwrap_err();
        let DetectError::Ambiguous { candidates } = &error else {
            panic!("{fixtures:?}: {error}")
        };
        let found: Vec<&str> = candidates.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(found, names, "{fixtures:?}");
        assert!(candidates.iter().all(|c| !c.evidence.is_empty()));
        let text = error.to_string();
        assert!(
            text.contains("--profile") && text.contains("/etc/") || text.contains("/var/"),
            "{text}"
        );
    }
}

#[test]
fn what_runs_decides() {
    let kubelet =
        "/usr/bin/kubelet --container-runtime-endpoint=unix:///run/containerd/containerd.sock";
    let both = node(
        &["docker", "kubeadm-1.7"],
        &[kubelet, "/usr/bin/dockerd -H fd://"],
        &[],
    );
    assert_eq!(told(&both).as_deref(), Ok("kubeadm"));
    let both = node(
        &["microk8s"],
        &["/snap/microk8s/7000/kubelite --x", "/usr/bin/containerd"],
        &[("run/containerd/containerd.sock", "")],
    );
    assert_eq!(told(&both).as_deref(), Ok("microk8s"));
    // Two kubelets on one machine are still two answers.
    let both = node(
        &["microk8s", "kubeadm-1.7"],
        &["/snap/microk8s/7000/kubelite", kubelet],
        &[],
    );
    assert!(matches!(told(&both), Err(DetectError::Ambiguous { .. })));
}

#[test]
fn nodes_that_cannot_be_changed_are_refused_with_the_reason() {
    let config = ("etc/containerd/config.toml", "version = 3\n");
    for (files, title) in [
        (
            vec![config, ("etc/os-release", "NAME=Talos\nID=talos\n")],
            "Talos",
        ),
        (
            vec![config, ("etc/os-release", "ID=bottlerocket\n")],
            "Bottlerocket",
        ),
        (vec![("Windows/System32/ntdll.dll", "")], "Windows"),
        (
            vec![
                ("etc/os-release", "ID=\"rhcos\"\n"),
                ("etc/crio/crio.conf", ""),
            ],
            "OpenShift",
        ),
        (vec![("var/run/crio/crio.sock", "")], "CRI-O"),
    ] {
        let error = told(&node(&[], &[], &files)).unwrap_err();
        assert!(matches!(error, DetectError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(title), "{error}");
    }
    let dockerd = "/usr/bin/kubelet --container-runtime-endpoint=unix:///var/run/cri-dockerd.sock";
    let error = told(&node(&["docker", "kubeadm-1.7"], &[dockerd], &[])).unwrap_err();
    assert!(error.to_string().contains("cri-dockerd"), "{error}");
}

#[test]
fn an_empty_machine_is_told_what_was_looked_for() {
    let error = told(&node(&[], &[], &[])).unwrap_err().to_string();
    assert!(
        error.contains("/etc/containerd/config.toml") && error.contains("--node"),
        "{error}"
    );
}
