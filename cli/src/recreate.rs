//! From the records of an archive to the config of a container that it is restored into.
//!
//! The pod and the command line decide what the container may do. Of the archive only this is
//! taken, because a restored process needs it and none of it adds a right:
//!
//! | from | taken |
//! |---|---|
//! | `status.dump`, `config.dump` | name, image |
//! | `spec.dump` process | command, environment, working directory, user, terminal, no new privileges |
//! | `spec.dump` linux, root | masked and read-only paths, read-only root |
//!
//! Mounts, devices, capabilities, namespaces, annotations and resources are not.

use std::{collections::HashMap, path::Path, str::FromStr};

use kybernate_config::names::RESTORE_FROM;
use kybernate_hooks::cri::v1 as cri;
use serde::Deserialize;

/// The part of an OCI spec that is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    process: Process,
    root: Root,
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Process {
    terminal: bool,
    user: User,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    no_new_privileges: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct User {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Root {
    readonly: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    masked_paths: Vec<String>,
    readonly_paths: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConfigDump {
    rootfs_image_name: String,
}

/// A record that does not parse.
#[derive(Debug, thiserror::Error)]
#[error("the archive's {name} is damaged or of another kind: {source}")]
pub struct RecordError {
    name: &'static str,
    source: serde_json::Error,
}

/// What an archive says about its container.
#[derive(Debug)]
pub struct Records {
    spec: Spec,
    /// Name in its pod; empty if it had none.
    pub name: String,
    /// Image by the name it was started with; empty if it had none.
    pub image: String,
}

impl Records {
    /// Reads the records; only `spec.dump` is in every archive.
    pub fn parse(
        spec: &[u8],
        config: Option<&[u8]>,
        status: Option<&[u8]>,
    ) -> Result<Self, RecordError> {
        fn read<T: Default + for<'a> Deserialize<'a>>(
            name: &'static str,
            text: Option<&[u8]>,
        ) -> Result<T, RecordError> {
            text.map_or_else(|| Ok(T::default()), serde_json::from_slice)
                .map_err(|source| RecordError { name, source })
        }
        let spec = read("spec.dump", Some(spec))?;
        let config: ConfigDump = read("config.dump", config)?;
        let status: cri::ContainerStatus = read("status.dump", status)?;
        let image = status.image.map(|image| image.image).unwrap_or_default();
        Ok(Self {
            spec,
            name: status
                .metadata
                .map(|metadata| metadata.name)
                .unwrap_or_default(),
            image: if image.is_empty() {
                config.rootfs_image_name
            } else {
                image
            },
        })
    }

    /// The config of a container that is restored from `archive`, an absolute path.
    pub fn config(
        self,
        archive: &Path,
        place: Place,
        sandbox: &cri::PodSandboxConfig,
    ) -> cri::ContainerConfig {
        let process = self.spec.process;
        let pod = sandbox.metadata.clone().unwrap_or_default();
        let security = cri::LinuxContainerSecurityContext {
            namespace_options: Some(namespaces(sandbox)),
            run_as_user: Some(cri::Int64Value {
                value: process.user.uid.into(),
            }),
            run_as_group: Some(cri::Int64Value {
                value: process.user.gid.into(),
            }),
            supplemental_groups: process
                .user
                .additional_gids
                .iter()
                .filter(|gid| **gid != process.user.gid)
                .map(|gid| i64::from(*gid))
                .collect(),
            readonly_rootfs: self.spec.root.readonly,
            no_new_privs: process.no_new_privileges,
            masked_paths: self.spec.linux.masked_paths,
            readonly_paths: self.spec.linux.readonly_paths,
            ..Default::default()
        };
        let labels = [
            ("io.kubernetes.container.name", place.name.clone()),
            ("io.kubernetes.pod.name", pod.name),
            ("io.kubernetes.pod.namespace", pod.namespace),
            ("io.kubernetes.pod.uid", pod.uid),
        ];
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: place.name,
                attempt: place.attempt,
            }),
            image: Some(cri::ImageSpec {
                image: place.image,
                ..Default::default()
            }),
            command: process.args,
            working_dir: process.cwd,
            envs: process
                .env
                .iter()
                .filter_map(|pair| key_value(pair))
                .collect(),
            mounts: place.mounts.into_iter().map(|mount| mount.0).collect(),
            labels: labels
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            annotations: HashMap::from([(RESTORE_FROM.to_owned(), archive.display().to_string())]),
            log_path: place.log_path,
            tty: process.terminal,
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// What the command line and the pod decide.
#[derive(Debug)]
pub struct Place {
    /// Name of the container.
    pub name: String,
    /// How many of that name the pod has had.
    pub attempt: u32,
    /// Image.
    pub image: String,
    /// Mounts.
    pub mounts: Vec<MountFlag>,
    /// Log file, relative to the pod's log directory.
    pub log_path: String,
}

/// The pod's namespaces, as kubelet hands them to every container. A pod that says nothing
/// would share its PID namespace, where the pids of the archive may be taken.
fn namespaces(sandbox: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    sandbox
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone())
        .unwrap_or(cri::NamespaceOption {
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        })
}

fn key_value(pair: &str) -> Option<cri::KeyValue> {
    let (key, value) = pair.split_once('=')?;
    Some(cri::KeyValue {
        key: key.to_owned(),
        value: value.as_bytes().to_owned(),
    })
}

/// A mount of the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct MountFlag(cri::Mount);

/// Text that is no mount.
#[derive(Debug, thiserror::Error)]
#[error("write HOST:CONTAINER or HOST:CONTAINER:ro with absolute paths")]
pub struct MountFlagError;

impl FromStr for MountFlag {
    type Err = MountFlagError;

    fn from_str(text: &str) -> Result<Self, MountFlagError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (host, container, readonly) = match parts[..] {
            [host, container] | [host, container, "rw"] => (host, container, false),
            [host, container, "ro"] => (host, container, true),
            _ => return Err(MountFlagError),
        };
        if !host.starts_with('/') || !container.starts_with('/') {
            return Err(MountFlagError);
        }
        Ok(Self(cri::Mount {
            host_path: host.to_owned(),
            container_path: container.to_owned(),
            readonly,
            ..Default::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{
      "ociVersion": "1.2.0",
      "process": {
        "terminal": true, "noNewPrivileges": true,
        "user": {"uid": 7, "gid": 8, "additionalGids": [8, 9]},
        "args": ["/counter", "-v"], "env": ["PATH=/bin", "X=a=b", "odd"], "cwd": "/srv",
        "capabilities": {"bounding": ["CAP_SYS_ADMIN"]}
      },
      "root": {"path": "rootfs", "readonly": true},
      "mounts": [{"destination": "/host", "source": "/", "options": ["bind"]}],
      "hooks": {"prestart": [{"path": "/evil"}]},
      "annotations": {"kybernate.io/restore-from": "/elsewhere", "x": "y"},
      "linux": {
        "devices": [{"path": "/dev/mem", "type": "c", "major": 1, "minor": 1}],
        "namespaces": [{"type": "mount"}],
        "resources": {"devices": [{"allow": true}]},
        "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]
      }
    }"#;

    fn place() -> Place {
        Place {
            name: "counter".into(),
            attempt: 3,
            image: "example.org/counter:1".into(),
            mounts: vec!["/srv/data:/data:ro".parse().unwrap()],
            log_path: "counter/3.log".into(),
        }
    }

    #[test]
    fn an_archive_adds_no_mount_device_capability_or_annotation() {
        let records = Records::parse(SPEC.as_bytes(), None, None).unwrap();
        let sandbox = cri::PodSandboxConfig::default();
        let config = records.config(Path::new("/b/a.zst"), place(), &sandbox);
        assert_eq!(
            config.annotations,
            HashMap::from([(
                "kybernate.io/restore-from".to_owned(),
                "/b/a.zst".to_owned()
            )])
        );
        let mounts: Vec<_> = config
            .mounts
            .iter()
            .map(|m| m.container_path.as_str())
            .collect();
        assert_eq!(mounts, ["/data"]);
        assert!(config.mounts[0].readonly && config.devices.is_empty());
        assert!(config.cdi_devices.is_empty());
        let linux = config.linux.unwrap();
        assert_eq!(linux.resources, None);
        let security = linux.security_context.unwrap();
        assert_eq!(security.capabilities, None);
        assert!(!security.privileged);
    }

    #[test]
    fn what_a_restored_process_needs_is_taken() {
        let records = Records::parse(SPEC.as_bytes(), None, None).unwrap();
        let config = records.config(
            Path::new("/b/a.zst"),
            place(),
            &cri::PodSandboxConfig::default(),
        );
        assert_eq!(config.command, ["/counter", "-v"]);
        assert_eq!(config.working_dir, "/srv");
        assert!(config.tty);
        let envs: Vec<_> = config
            .envs
            .iter()
            .map(|e| (e.key.as_str(), e.value.as_slice()))
            .collect();
        assert_eq!(envs, [("PATH", b"/bin".as_slice()), ("X", b"a=b")]);
        let security = config.linux.unwrap().security_context.unwrap();
        assert_eq!(security.run_as_user.unwrap().value, 7);
        assert_eq!(security.supplemental_groups, [9]);
        assert!(security.readonly_rootfs && security.no_new_privs);
        assert_eq!(security.masked_paths, ["/proc/kcore"]);
        assert_eq!(
            security.namespace_options.unwrap().pid(),
            cri::NamespaceMode::Container
        );
    }

    #[test]
    fn the_pods_namespaces_are_kept() {
        let options = cri::NamespaceOption {
            network: cri::NamespaceMode::Node.into(),
            ..Default::default()
        };
        let sandbox = cri::PodSandboxConfig {
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(options.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(namespaces(&sandbox), options);
    }

    #[test]
    fn name_and_image_come_from_the_status_first() {
        let config = br#"{"rootfsImageName": "b:1", "id": "x"}"#;
        let status = br#"{"metadata": {"name": "web"}, "image": {"image": "a:1"}, "state": 1}"#;
        let records = Records::parse(b"{}", Some(config), Some(status)).unwrap();
        assert_eq!(
            (records.name.as_str(), records.image.as_str()),
            ("web", "a:1")
        );
        let records = Records::parse(b"{}", Some(config), None).unwrap();
        assert_eq!((records.name.as_str(), records.image.as_str()), ("", "b:1"));
        let err = Records::parse(b"{", None, None).unwrap_err();
        assert!(err.to_string().contains("spec.dump"));
    }

    #[test]
    fn only_absolute_mounts_parse() {
        for good in ["/a:/b", "/a:/b:ro", "/a:/b:rw"] {
            assert!(good.parse::<MountFlag>().is_ok(), "{good}");
        }
        for bad in ["", "/a", "a:/b", "/a:b", "/a:/b:shared", "/a:/b:ro:x"] {
            assert!(bad.parse::<MountFlag>().is_err(), "{bad}");
        }
    }
}
