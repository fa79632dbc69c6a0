//! What containerd is configured to do, and what has to be added.
//!
//! The keys depend on the version of the configuration, which is that of the file, not of
//! containerd:
//!
//! | version | containerd | CRI | NRI |
//! |---|---|---|---|
//! | 1 | 1.x | `plugins.cri` | `plugins.nri` |
//! | 2 | 1.x, 2.x | `plugins."io.containerd.grpc.v1.cri"` | `plugins."io.containerd.nri.v1.nri"` |
//! | 3 | 2.x | `plugins."io.containerd.cri.v1.runtime"` | the same |
//!
//! containerd 1.7 puts defaults aside as soon as one runtime is configured: a file that says only
//! `kybernate` would leave the node without `runc`.

use kybernate_config::names::{ANNOTATION_PREFIX, RUNC_RUNTIME_TYPE, RUNTIME_HANDLER, SHIM_BINARY};
use toml::{Table, Value};

use super::edit::{self, NewTable};

/// Keys of the default runtime that a runtime beside it must have too.
const COPIED: &[&str] = &[
    "base_runtime_spec",
    "cgroup_writable",
    "cni_conf_dir",
    "cni_max_conf_num",
    "privileged_without_host_devices",
    "privileged_without_host_devices_all_devices_allowed",
    "snapshotter",
];

/// A configuration of containerd, merged.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Version of its keys.
    pub version: i64,
    /// All of it.
    pub table: Table,
}

/// What to register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// containerd's runtime type.
    pub runtime_type: String,
    /// The directory of the shim.
    pub bin_dir: String,
    /// runc's path, where containerd would not find it by itself.
    pub runc: Option<String>,
}

/// Keys that lead to the CRI plugin's table.
pub fn cri(version: i64) -> [&'static str; 2] {
    let name = match version {
        ..=1 => "cri",
        2 => "io.containerd.grpc.v1.cri",
        3.. => "io.containerd.cri.v1.runtime",
    };
    ["plugins", name]
}

/// Keys that lead to the NRI plugin's table.
pub fn nri(version: i64) -> [&'static str; 2] {
    let name = match version {
        ..=1 => "nri",
        2.. => "io.containerd.nri.v1.nri",
    };
    ["plugins", name]
}

/// Keys that lead to a runtime's table.
pub fn runtime(version: i64, handler: &str) -> Vec<String> {
    let [plugins, cri] = cri(version);
    [plugins, cri, "containerd", "runtimes", handler]
        .map(str::to_owned)
        .to_vec()
}

impl Config {
    /// Parses the text of one file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
        let version = version(&table);
        Ok(Self { version, table })
    }

    /// The value that `path` leads to.
    pub fn get(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter()
            .try_fold(self.table.get(*first)?, |value, key| value.get(*key))
    }

    /// The runtimes by their handlers.
    pub fn runtimes(&self) -> Option<&Table> {
        let [plugins, cri] = cri(self.version);
        self.get(&[plugins, cri, "containerd", "runtimes"])?
            .as_table()
    }

    /// Whether the CRI plugin is switched off.
    pub fn cri_is_disabled(&self) -> bool {
        let listed = |value: &Value| {
            value.as_array().is_some_and(|list| {
                list.iter().filter_map(Value::as_str).any(|name| {
                    name == "cri"
                        || name.ends_with(".cri")
                        || name.starts_with("io.containerd.cri.")
                })
            })
        };
        self.table.get("disabled_plugins").is_some_and(listed)
    }

    /// Whether NRI is switched off; nothing where the configuration does not say.
    pub fn nri_is_disabled(&self) -> Option<bool> {
        let [plugins, nri] = nri(self.version);
        self.get(&[plugins, nri, "disable"])?.as_bool()
    }

    /// Where NRI looks for plugins to launch.
    pub fn nri_plugin_dir(&self) -> &str {
        let [plugins, nri] = nri(self.version);
        self.get(&[plugins, nri, "plugin_path"])
            .and_then(Value::as_str)
            .filter(|path| path.starts_with('/'))
            .unwrap_or(NRI_PLUGINS)
    }

    /// The runtime that pods without a class get.
    fn default_runtime(&self) -> Option<&Table> {
        let [plugins, cri] = cri(self.version);
        let name = self
            .get(&[plugins, cri, "containerd", "default_runtime_name"])
            .and_then(Value::as_str)
            // MicroK8s writes a variable here.
            .filter(|name| !name.is_empty() && !name.contains('$'))
            .unwrap_or("runc");
        self.runtimes()?.get(name)?.as_table()
    }

    /// The tables that register our runtime, with `version`'s keys.
    pub fn tables(&self, version: i64, registration: &Registration) -> Vec<NewTable> {
        let default = self.default_runtime();
        let mut annotations = vec![format!("{ANNOTATION_PREFIX}*")];
        let theirs = default
            .and_then(|table| table.get("container_annotations")?.as_array())
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned);
        annotations.extend(theirs.filter(|glob| !glob.starts_with(ANNOTATION_PREFIX)));
        let annotations: Vec<String> = annotations.iter().map(|a| edit::string(a)).collect();
        let shim = format!("{}/{SHIM_BINARY}", registration.bin_dir);
        let mut values = vec![
            (
                "runtime_type".into(),
                edit::string(&registration.runtime_type),
            ),
            ("runtime_path".into(), edit::string(&shim)),
            (
                "container_annotations".into(),
                format!("[{}]", annotations.join(", ")),
            ),
        ];
        for name in COPIED {
            let value = default.and_then(|table| table.get(*name));
            if let Some(value) = value.filter(|value| says_something(value)) {
                values.push(((*name).into(), value.to_string()));
            }
        }
        let mut tables = vec![NewTable {
            path: runtime(version, RUNTIME_HANDLER),
            values,
        }];
        let mut options: Vec<(String, String)> = default
            .and_then(|table| table.get("options")?.as_table())
            .into_iter()
            .flatten()
            .filter(|(_, value)| says_something(value))
            .map(|(name, value)| (name.clone(), value.to_string()))
            .collect();
        if let Some(runc) = &registration.runc
            && !options.iter().any(|(name, _)| name == "BinaryName")
        {
            options.push(("BinaryName".into(), edit::string(runc)));
        }
        if !options.is_empty() {
            let mut path = runtime(version, RUNTIME_HANDLER);
            path.push("options".into());
            tables.push(NewTable {
                path,
                values: options,
            });
        }
        tables
    }

    /// Whether our handler is there and says what `tables` would say.
    pub fn has(&self, tables: &[NewTable]) -> bool {
        tables.iter().all(|table| {
            let path: Vec<&str> = table.path.iter().map(String::as_str).collect();
            self.get(&path).is_some_and(|found| {
                table
                    .values
                    .iter()
                    .all(|(name, value)| found.get(name).is_some_and(|v| v.to_string() == *value))
            })
        })
    }

    /// How this configuration differs from `other` in anything that an installation must not
    /// touch: nothing, or what it is.
    pub fn foreign_change(&self, other: &Self) -> Option<String> {
        let reduced = |config: &Self| {
            let mut table = config.table.clone();
            table.remove("imports");
            let [plugins, cri] = cri(config.version);
            let [_, nri] = nri(config.version);
            if let Some(Value::Table(plugins)) = table.get_mut(plugins) {
                if let Some(Value::Table(nri)) = plugins.get_mut(nri) {
                    nri.remove("disable");
                    nri.remove("plugin_path");
                }
                let runtimes = plugins
                    .get_mut(cri)
                    .and_then(|cri| cri.get_mut("containerd")?.get_mut("runtimes"));
                if let Some(Value::Table(runtimes)) = runtimes {
                    runtimes.remove(RUNTIME_HANDLER);
                }
            }
            table
        };
        first_difference("", &reduced(self), &reduced(other))
    }
}

/// Where containerd looks for NRI plugins by default.
pub const NRI_PLUGINS: &str = "/opt/nri/plugins";

/// The table that keeps runc where a first runtime is configured on containerd 1.7.
pub fn stock_runtime(version: i64) -> NewTable {
    NewTable {
        path: runtime(version, "runc"),
        values: vec![
            ("runtime_type".into(), edit::string(RUNC_RUNTIME_TYPE)),
            ("sandbox_mode".into(), edit::string("podsandbox")),
        ],
    }
}

/// The version of a configuration's keys.
pub fn version(table: &Table) -> i64 {
    table
        .get("version")
        .and_then(Value::as_integer)
        .filter(|version| *version > 0)
        .unwrap_or(1)
}

/// Whether a value is another than the one that no value means.
fn says_something(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.is_empty(),
        Value::Boolean(yes) => *yes,
        Value::Integer(number) => *number != 0,
        Value::Array(list) => !list.is_empty(),
        Value::Table(table) => !table.is_empty(),
        Value::Float(_) | Value::Datetime(_) => true,
    }
}

fn first_difference(prefix: &str, a: &Table, b: &Table) -> Option<String> {
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find_map(|key| {
        let name = format!("{prefix}{}", edit::key(key));
        match (a.get(key), b.get(key)) {
            (Some(Value::Table(a)), Some(Value::Table(b))) => {
                first_difference(&format!("{name}."), a, b)
            }
            (Some(Value::Table(a)), None) => {
                first_difference(&format!("{name}."), a, &Table::new())
            }
            (None, Some(Value::Table(b))) => {
                first_difference(&format!("{name}."), &Table::new(), b)
            }
            (a, b) if a == b => None,
            // Go tells an empty value and an absent one apart in neither direction.
            (a, b) if !a.is_some_and(says_something) && !b.is_some_and(says_something) => None,
            (a, b) => {
                let show = |v: Option<&Value>| v.map_or("nothing".into(), ToString::to_string);
                Some(format!("{name} changes from {} to {}", show(b), show(a)))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration() -> Registration {
        Registration {
            runtime_type: RUNC_RUNTIME_TYPE.into(),
            bin_dir: "/usr/local/bin".into(),
            runc: None,
        }
    }

    #[test]
    fn the_default_runtime_is_what_ours_is_made_like() {
        let config = Config::parse(
            "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\n\
             default_runtime_name = 'nvidia'\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]\n\
             base_runtime_spec = '/etc/base.json'\ncni_max_conf_num = 0\n\
             container_annotations = ['x.io/*']\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]\n\
             BinaryName = '/usr/bin/nvidia-container-runtime'\nSystemdCgroup = true\nRoot = ''\n",
        )
        .unwrap();
        let tables = config.tables(3, &registration());
        let value = |table: usize, name: &str| {
            let found = tables[table].values.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(value(0, "base_runtime_spec"), Some("\"/etc/base.json\""));
        assert_eq!(
            value(0, "container_annotations"),
            Some("[\"kybernate.io/*\", \"x.io/*\"]")
        );
        assert_eq!(value(0, "cni_max_conf_num"), None);
        assert_eq!(
            value(1, "BinaryName"),
            Some("\"/usr/bin/nvidia-container-runtime\"")
        );
        assert_eq!(value(1, "SystemdCgroup"), Some("true"));
        assert_eq!(value(1, "Root"), None);
    }

    #[test]
    fn runc_is_named_where_containerd_would_not_find_it() {
        let registration = Registration {
            runc: Some("/snap/runc".into()),
            ..registration()
        };
        let config = Config::parse("version = 2\n").unwrap();
        let tables = config.tables(2, &registration);
        assert_eq!(
            tables[1].values,
            [("BinaryName".into(), "\"/snap/runc\"".into())]
        );
        assert_eq!(
            tables[0].path.join(" "),
            "plugins io.containerd.grpc.v1.cri containerd runtimes kybernate"
        );
    }

    #[test]
    fn a_change_of_anything_else_is_told() {
        let before = Config::parse("version = 2\n[plugins.x]\na = 1\n").unwrap();
        let mut after = before.clone();
        assert_eq!(after.foreign_change(&before), None);
        after = Config::parse(
            "version = 2\nimports = ['x']\n[plugins.x]\na = 1\n\
             [plugins.'io.containerd.nri.v1.nri']\ndisable = false\n\
             [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kybernate]\nx = 1\n",
        )
        .unwrap();
        assert_eq!(after.foreign_change(&before), None);
        let before = Config::parse(
            "version = 2\n[plugins.x]\na = 1\n[plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
             [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes]\n",
        )
        .unwrap();
        assert_eq!(after.foreign_change(&before), None);
        let other = Config::parse("version = 2\n[plugins.x]\na = 2\n").unwrap();
        let change =
            other.foreign_change(&Config::parse("version = 2\n[plugins.x]\na = 1\n").unwrap());
        assert_eq!(change.unwrap(), "plugins.x.a changes from 1 to 2");
    }

    #[test]
    fn the_cri_may_be_off() {
        let off = |text| Config::parse(text).unwrap().cri_is_disabled();
        assert!(off("disabled_plugins = ['cri']"));
        assert!(off("disabled_plugins = ['io.containerd.grpc.v1.cri']"));
        assert!(off("disabled_plugins = ['io.containerd.cri.v1.runtime']"));
        assert!(!off(
            "disabled_plugins = ['io.containerd.snapshotter.v1.btrfs']"
        ));
    }
}
