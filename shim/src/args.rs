//! The command line, as containerd writes it: Go's flag package. `-name value`,
//! `-name=value`, one dash or two, flags first, then the action.

/// What to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Action {
    /// Serve: this is the daemon.
    #[default]
    Serve,
    /// Start a daemon and tell its address.
    Start,
    /// Clean up behind a daemon.
    Delete,
    /// Bring back what dead daemons have left. Not containerd's; needs no flags.
    Repair,
}

/// A parsed command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// containerd namespace.
    pub namespace: String,
    /// Container id.
    pub id: String,
    /// containerd's gRPC address.
    pub address: String,
    /// containerd's binary. Events go to `TTRPC_ADDRESS`, so it is not used.
    pub publish_binary: String,
    /// Bundle, when it is not the working directory.
    pub bundle: String,
    /// Path of the socket to serve, for removal at the end.
    pub socket: String,
    /// Path of a socket for profiles, which only Go has; not used.
    pub debug_socket: String,
    /// More in the log.
    pub debug: bool,
    /// Print what the runtime can do.
    pub info: bool,
    /// Print the version.
    pub version: bool,
    /// What to do.
    pub action: Action,
}

/// Why a command line was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// No such flag.
    #[error("unknown flag -{0}")]
    Flag(String),
    /// A flag without its value.
    #[error("flag -{0} needs a value")]
    Value(String),
    /// No such action.
    #[error("unknown action {0:?}; it is start, delete, repair or none")]
    Action(String),
    /// A flag that is needed is missing.
    #[error("flag -{0} is missing or empty")]
    Missing(&'static str),
}

impl Args {
    /// Parses arguments, without the program's name.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, ArgsError> {
        let mut parsed = Self::default();
        let mut args = args.into_iter();
        let mut action = None;
        while let Some(arg) = args.next() {
            let flag = match arg.strip_prefix('-') {
                None | Some("") => {
                    action = Some(arg);
                    break;
                }
                Some("-") => {
                    action = args.next();
                    break;
                }
                Some(flag) => flag.strip_prefix('-').unwrap_or(flag).to_owned(),
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (flag, None),
            };
            if let Some(switch) = parsed.switch(&name) {
                *switch = value.is_none_or(|value| matches!(value.as_str(), "1" | "t" | "true"));
            } else {
                let target = parsed
                    .text(&name)
                    .ok_or_else(|| ArgsError::Flag(name.clone()))?;
                *target = value
                    .or_else(|| args.next())
                    .ok_or(ArgsError::Value(name))?;
            }
        }
        parsed.action = match action.as_deref() {
            None | Some("") => Action::Serve,
            Some("start") => Action::Start,
            Some("delete") => Action::Delete,
            Some("repair") => Action::Repair,
            Some(other) => return Err(ArgsError::Action(other.into())),
        };
        parsed.checked()
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "debug" => Some(&mut self.debug),
            "info" => Some(&mut self.info),
            "v" => Some(&mut self.version),
            _ => None,
        }
    }

    fn text(&mut self, name: &str) -> Option<&mut String> {
        match name {
            "namespace" => Some(&mut self.namespace),
            "id" => Some(&mut self.id),
            "address" => Some(&mut self.address),
            "publish-binary" => Some(&mut self.publish_binary),
            "bundle" => Some(&mut self.bundle),
            "socket" => Some(&mut self.socket),
            "debug-socket" => Some(&mut self.debug_socket),
            _ => None,
        }
    }

    fn checked(self) -> Result<Self, ArgsError> {
        if self.info || self.version || self.action == Action::Repair {
            return Ok(self);
        }
        if self.namespace.is_empty() {
            return Err(ArgsError::Missing("namespace"));
        }
        // The id becomes part of a path.
        if self.id.is_empty() || self.id.contains('/') || self.id == ".." {
            return Err(ArgsError::Missing("id"));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn the_line_of_containerd_is_understood() {
        let line = "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd \
                    -id abc -debug start";
        let args = parse(line).unwrap();
        assert_eq!(
            (args.namespace.as_str(), args.id.as_str()),
            ("k8s.io", "abc")
        );
        assert!(args.debug && args.action == Action::Start);
        let delete = parse("--namespace=n --id=a --bundle=/b delete").unwrap();
        assert_eq!(
            (delete.bundle.as_str(), delete.action),
            ("/b", Action::Delete)
        );
    }

    #[test]
    fn info_and_version_need_nothing_else() {
        assert!(parse("-info").unwrap().info);
        assert!(parse("-v").unwrap().version);
        assert!(!parse("-debug=false -v").unwrap().debug);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("-x y"), Err(ArgsError::Flag("x".into())));
        assert_eq!(parse("-id"), Err(ArgsError::Value("id".into())));
        assert_eq!(
            parse("-namespace n -id a stop"),
            Err(ArgsError::Action("stop".into()))
        );
        assert_eq!(parse("-id a start"), Err(ArgsError::Missing("namespace")));
        assert_eq!(
            parse("-namespace n -id ../a"),
            Err(ArgsError::Missing("id"))
        );
    }
}
