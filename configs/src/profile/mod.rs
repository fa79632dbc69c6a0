//! Node profiles: where each distribution of Kubernetes keeps what Kybernate needs.
//!
//! A profile is data, one file of `configs/profiles/` each:
//!
//! ```text
//! name = "kubeadm"            what --profile says
//! supersedes = ["containerd"] profiles that also match such a node, and less exactly
//! refused = "…"               the reason, where a node of this kind can't be changed
//! [[evidence]]                what such a node shows; see `evidence`
//! [node]                      paths and commands; a list means: the first that exists
//! ```
//!
//! Nothing is told by a name alone: [`detect`] looks for evidence under a root directory.

mod detect;
mod evidence;
mod node;
mod root;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use detect::{Candidate, DetectError, Detected, detect, find};
pub use evidence::Evidence;
pub use node::{KEYS, Node, NodeError, NodeSettings, Resolved, Style, resolve};
pub use root::Root;

use node::OneOrMany;

/// The files, compiled in. The order is that of messages.
const FILES: &[&str] = &[
    include_str!("../../profiles/microk8s.toml"),
    include_str!("../../profiles/kubeadm.toml"),
    include_str!("../../profiles/k3s.toml"),
    include_str!("../../profiles/rke2.toml"),
    include_str!("../../profiles/k0s.toml"),
    include_str!("../../profiles/eks.toml"),
    include_str!("../../profiles/gke.toml"),
    include_str!("../../profiles/gke-cos.toml"),
    include_str!("../../profiles/aks.toml"),
    include_str!("../../profiles/minikube.toml"),
    include_str!("../../profiles/kind.toml"),
    include_str!("../../profiles/docker.toml"),
    include_str!("../../profiles/containerd.toml"),
    include_str!("../../profiles/talos.toml"),
    include_str!("../../profiles/bottlerocket.toml"),
    include_str!("../../profiles/windows.toml"),
    include_str!("../../profiles/openshift.toml"),
    include_str!("../../profiles/cri-o.toml"),
    include_str!("../../profiles/cri-dockerd.toml"),
];

/// One kind of node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What `--profile` says.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// Profiles that match such a node too, and less exactly.
    #[serde(default)]
    pub supersedes: Vec<String>,
    /// Why a node of this kind can't be changed; absent where it can.
    pub refused: Option<String>,
    /// Why `--with-hooks` does not work here; absent where it does.
    pub hooks_refused: Option<String>,
    /// What an administrator of such a node has to know after an installation.
    pub note: Option<String>,
    /// What such a node shows.
    pub evidence: Vec<Evidence>,
    /// Paths and commands by the names of [`KEYS`].
    #[serde(default)]
    node: BTreeMap<String, OneOrMany>,
}

/// All profiles that this build knows.
///
/// # Panics
/// When a file of this crate is broken, which a test rules out.
pub fn all() -> Vec<Profile> {
    FILES
        .iter()
        .map(|text| match toml::from_str(text) {
            Ok(profile) => profile,
            Err(error) => panic!("a profile does not parse: {error}\n{text}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_whole() {
        let all = all();
        let names: Vec<&str> = all.iter().map(|p| p.name.as_str()).collect();
        for profile in &all {
            assert_eq!(
                names.iter().filter(|name| **name == profile.name).count(),
                1
            );
            assert!(
                profile.evidence.iter().any(Evidence::is_required),
                "{} would match every node",
                profile.name
            );
            for other in &profile.supersedes {
                assert!(names.contains(&other.as_str()), "{}: {other}", profile.name);
            }
            assert_eq!(
                profile.node.is_empty(),
                profile.refused.is_some(),
                "{} must have either paths or a reason to refuse",
                profile.name
            );
            if profile.refused.is_none() {
                let root = Root::new("/nonexistent");
                let resolved = resolve(profile, &root, &[]).unwrap();
                assert_eq!(resolved.node.profile, profile.name);
            }
        }
    }

    /// The paths that the project promises.
    #[test]
    fn the_paths_of_standard_kubernetes_and_microk8s() {
        let all = all();
        let node = |name| {
            let root = Root::new("/nonexistent");
            resolve(find(&all, name).unwrap(), &root, &[]).unwrap().node
        };
        let standard = node("kubeadm");
        let paths = |node: &Node| {
            [
                &node.containerd_config,
                &node.containerd_socket,
                &node.cni_bin_dir,
                &node.runc,
            ]
            .map(|path| path.display().to_string())
        };
        assert_eq!(
            paths(&standard),
            [
                "/etc/containerd/config.toml",
                "/run/containerd/containerd.sock",
                "/opt/cni/bin",
                "/usr/bin/runc"
            ]
        );
        assert_eq!(
            paths(&node("microk8s")),
            [
                "/var/snap/microk8s/current/args/containerd-template.toml",
                "/var/snap/microk8s/common/run/containerd.sock",
                "/var/snap/microk8s/current/opt/cni/bin",
                "/var/snap/microk8s/current/bin/runc"
            ]
        );
    }
}
