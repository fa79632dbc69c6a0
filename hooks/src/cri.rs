//! The Container Runtime Interface, as far as Linux containers need it.

use std::collections::HashMap;

use serde::Deserialize;

pub use crate::proto::runtime::v1;

/// Go's `omitempty`: fields that hold their zero value are left out of JSON.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What containerd adds to a verbose `PodSandboxStatus`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct SandboxInfo {
    /// The config that the sandbox was made with. `CreateContainer` wants it again.
    #[serde(default)]
    pub config: Option<v1::PodSandboxConfig>,
}

impl SandboxInfo {
    /// Reads the `info` of a verbose answer; `None` where there is none.
    ///
    /// # Errors
    /// It is not the JSON that containerd writes.
    pub fn parse(info: &HashMap<String, String>) -> Option<serde_json::Result<Self>> {
        info.get("info").map(|text| serde_json::from_str(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_config_is_read_as_go_wrote_it() {
        let text = r#"{
          "pid": 12, "processStatus": "running", "runtimeHandler": "kybernate",
          "config": {
            "metadata": {"name": "web-0", "uid": "u1", "namespace": "shop"},
            "log_directory": "/var/log/pods/x",
            "dns_config": {"servers": ["10.0.0.10"]},
            "port_mappings": [{"container_port": 80}, {"protocol": 1, "container_port": 53}],
            "labels": {"a": "b"},
            "linux": {
              "cgroup_parent": "/kubepods",
              "security_context": {
                "namespace_options": {"pid": 1, "userns_options": {"mode": 2}},
                "run_as_user": {"value": 65535},
                "seccomp": {"profile_type": 1}
              },
              "resources": {"cpu_period": 100000}
            },
            "windows": {}
          },
          "sandboxMetadata": null
        }"#;
        let info = HashMap::from([("info".to_owned(), text.to_owned())]);
        let config = SandboxInfo::parse(&info).unwrap().unwrap().config.unwrap();
        assert_eq!(config.metadata.unwrap().namespace, "shop");
        assert_eq!(config.port_mappings[1].protocol(), v1::Protocol::Udp);
        let linux = config.linux.unwrap();
        assert_eq!(linux.resources.unwrap().cpu_period, 100_000);
        let security = linux.security_context.unwrap();
        assert_eq!(security.run_as_user.unwrap().value, 65535);
        assert_eq!(
            security.namespace_options.unwrap().pid(),
            v1::NamespaceMode::Container
        );
        assert!(SandboxInfo::parse(&HashMap::new()).is_none());
    }
}
