//! Runtime options: how an administrator configures the runtime in containerd.
//!
//! containerd sends them as an `Any`, whose type depends on the runtime type alone:
//!
//! | runtime type | `type_url` | value |
//! |---|---|---|
//! | `io.containerd.runc.v2` | `containerd.runc.v1.Options` | the options as protobuf |
//! | any other | `runtimeoptions.v1.Options` | a TOML table as text, or the path of a TOML file |
//!
//! Field numbers: containerd 2.1 api/types/runtimeoptions/v1/api.proto (`type_url` 1,
//! `config_path` 2, `config_body` 3).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use containerd_shim_protos::shim::oci;
use protobuf::{CodedInputStream, Message, well_known_types::any::Any};
use serde::{Deserialize, Serialize};

use crate::runc::{DEFAULT_BINARY, DEFAULT_ROOT};

/// `type_url` of runc's options.
pub const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
/// `type_url` of options of a runtime type that containerd has no options for.
pub const TOML_OPTIONS: &str = "runtimeoptions.v1.Options";
/// Copy of the options in the bundle, for `delete` when the daemon is gone.
pub const OPTIONS_FILE: &str = "options.json";

/// Options of the runtime, whatever form they came in. Keys as in containerd's configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Options {
    /// runc, or a program like it.
    pub binary_name: String,
    /// runc's state directory, without the namespace.
    pub root: PathBuf,
    /// Whether cgroups are systemd's. The form of the cgroup path decides, not this.
    pub systemd_cgroup: bool,
    /// cgroup that the shim moves to.
    pub shim_cgroup: String,
    /// Owner of the stdio pipes.
    pub io_uid: u32,
    /// Group of the stdio pipes.
    pub io_gid: u32,
    /// `runc create --no-pivot`.
    pub no_pivot_root: bool,
    /// `runc create --no-new-keyring`.
    pub no_new_keyring: bool,
    /// Where CRIU's images go when a request does not say.
    pub criu_image_path: PathBuf,
    /// Where CRIU's logs go when a request does not say.
    pub criu_work_path: PathBuf,
    /// Keys that this build does not know.
    #[serde(flatten, skip_serializing)]
    pub unknown: BTreeMap<String, toml::Value>,
}

/// Why options could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The message is damaged.
    #[error("runtime options of type {type_url} do not decode: {source}")]
    Decode {
        /// Type of the message.
        type_url: String,
        /// The decoder's message.
        source: protobuf::Error,
    },
    /// The TOML is wrong.
    #[error("runtime options {origin} do not parse: {source}")]
    Toml {
        /// A file, or the table in containerd's configuration.
        origin: String,
        /// The parser's message.
        source: Box<toml::de::Error>,
    },
    /// The file that the options name can't be read.
    #[error("cannot read the runtime options file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another runtime's options.
    #[error("runtime options have the type {0}; expected {RUNC_OPTIONS} or {TOML_OPTIONS}")]
    Type(String),
}

impl Options {
    /// Options from what containerd sent; none sent means defaults.
    pub fn from_any(any: Option<&Any>) -> Result<Self, OptionsError> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        let kind = any.type_url.rsplit('/').next().unwrap_or_default();
        let decode = |source| OptionsError::Decode {
            type_url: kind.into(),
            source,
        };
        match kind {
            RUNC_OPTIONS => oci::Options::parse_from_bytes(&any.value)
                .map(Self::from_runc)
                .map_err(decode),
            TOML_OPTIONS => {
                let (path, body) = parse_toml_options(&any.value).map_err(decode)?;
                Self::from_toml_source(&path, body)
            }
            other => Err(OptionsError::Type(other.into())),
        }
    }

    fn from_toml_source(path: &str, body: String) -> Result<Self, OptionsError> {
        if !body.is_empty() || path.is_empty() {
            return Self::from_toml("in containerd's configuration", &body);
        }
        let text = fs::read_to_string(path).map_err(|source| OptionsError::Read {
            path: path.into(),
            source,
        })?;
        Self::from_toml(path, &text)
    }

    /// Parses a TOML table; `origin` is for messages alone.
    pub fn from_toml(origin: &str, text: &str) -> Result<Self, OptionsError> {
        toml::from_str(text).map_err(|source| OptionsError::Toml {
            origin: origin.into(),
            source: Box::new(source),
        })
    }

    fn from_runc(options: oci::Options) -> Self {
        Self {
            binary_name: options.binary_name,
            root: options.root.into(),
            systemd_cgroup: options.systemd_cgroup,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            criu_image_path: options.criu_image_path.into(),
            criu_work_path: options.criu_work_path.into(),
            unknown: BTreeMap::new(),
        }
    }

    /// The program to run as runc.
    #[must_use]
    pub fn binary(&self) -> &str {
        if self.binary_name.is_empty() {
            DEFAULT_BINARY
        } else {
            &self.binary_name
        }
    }

    /// runc's state directory for a namespace.
    #[must_use]
    pub fn runc_root(&self, namespace: &str) -> PathBuf {
        let root = if self.root.as_os_str().is_empty() {
            Path::new(DEFAULT_ROOT)
        } else {
            self.root.as_path()
        };
        root.join(namespace)
    }

    /// Keeps the options in a bundle.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        fs::write(bundle.join(OPTIONS_FILE), serde_json::to_vec(self)?)
    }

    /// Options of a bundle as [`Options::write`] left them; defaults when there are none.
    #[must_use]
    pub fn read(bundle: &Path) -> Self {
        fs::read(bundle.join(OPTIONS_FILE))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }
}

/// `config_path` and `config_body` of a `runtimeoptions.v1.Options`.
pub(crate) fn parse_toml_options(value: &[u8]) -> protobuf::Result<(String, String)> {
    const CONFIG_PATH: u32 = 2 << 3 | 2;
    const CONFIG_BODY: u32 = 3 << 3 | 2;
    let (mut path, mut body) = (String::new(), String::new());
    let mut input = CodedInputStream::from_bytes(value);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            CONFIG_PATH => path = input.read_string()?,
            CONFIG_BODY => body = String::from_utf8_lossy(&input.read_bytes()?).into_owned(),
            other => protobuf::rt::skip_field_for_tag(other, &mut input)?,
        }
    }
    Ok((path, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.into(),
            value,
            ..Any::default()
        }
    }

    fn field(number: u8, text: &str) -> Vec<u8> {
        let length = u8::try_from(text.len())
            .ok()
            .filter(|n| *n < 128)
            .expect("a short text");
        let mut bytes = vec![number << 3 | 2, length];
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn runc_options_decode_under_both_forms_of_their_type() {
        let message = oci::Options {
            binary_name: "crun".into(),
            systemd_cgroup: true,
            io_uid: 7,
            ..oci::Options::default()
        };
        for url in [
            RUNC_OPTIONS.to_owned(),
            format!("types.containerd.io/{RUNC_OPTIONS}"),
        ] {
            let options =
                Options::from_any(Some(&any(&url, message.write_to_bytes().unwrap()))).unwrap();
            assert_eq!((options.binary(), options.io_uid), ("crun", 7));
            assert!(options.systemd_cgroup);
        }
    }

    #[test]
    fn a_toml_table_is_not_taken_for_runc_options() {
        let body = "BinaryName = \"/opt/runc\"\nSystemdCgroup = true\nRoot = \"/run/r\"\n";
        let mut value = field(1, "io.containerd.kybernate.v1");
        value.extend(field(3, body));
        let options = Options::from_any(Some(&any(TOML_OPTIONS, value))).unwrap();
        assert_eq!(options.binary(), "/opt/runc");
        assert!(options.systemd_cgroup && options.shim_cgroup.is_empty());
        assert_eq!(options.runc_root("k8s.io"), Path::new("/run/r/k8s.io"));
    }

    #[test]
    fn a_toml_file_is_read_when_there_is_no_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.toml");
        fs::write(&path, "IoUid = 12\nRuntimeRoot = \"x\"\n").unwrap();
        let value = field(2, path.to_str().unwrap());
        let options = Options::from_any(Some(&any(TOML_OPTIONS, value))).unwrap();
        assert_eq!(options.io_uid, 12);
        assert_eq!(options.unknown.keys().collect::<Vec<_>>(), ["RuntimeRoot"]);
    }

    #[test]
    fn wrong_toml_and_foreign_types_are_errors() {
        let value = field(3, "IoUid = \"x\"");
        let error = Options::from_any(Some(&any(TOML_OPTIONS, value)))
            .unwrap_err()
            .to_string();
        assert!(error.contains("IoUid"), "{error}");
        let error = Options::from_any(Some(&any("a.b.C", vec![])))
            .unwrap_err()
            .to_string();
        assert!(error.contains("a.b.C"), "{error}");
        assert!(matches!(
            Options::from_any(Some(&any(RUNC_OPTIONS, vec![0xff]))),
            Err(OptionsError::Decode { .. })
        ));
    }

    #[test]
    fn no_options_are_defaults() {
        assert_eq!(Options::from_any(None).unwrap(), Options::default());
        assert_eq!(
            Options::from_any(Some(&Any::new())).unwrap(),
            Options::default()
        );
        assert_eq!(
            Options::default().runc_root("ns"),
            Path::new("/run/containerd/runc/ns")
        );
    }

    #[test]
    fn options_come_back_from_the_bundle() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Options::read(dir.path()), Options::default());
        let options = Options {
            binary_name: "crun".into(),
            io_gid: 3,
            ..Options::default()
        };
        options.write(dir.path()).unwrap();
        assert_eq!(Options::read(dir.path()), options);
    }
}
