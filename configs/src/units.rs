//! The systemd units that are shipped, as files of `configs/systemd/`.

/// The CRI hooks.
pub const HOOKS_SERVICE: &str = include_str!("../systemd/kybernate-cri-hooks.service");
/// The socket on which systemd keeps kubelet's calls while the hooks are away.
pub const HOOKS_SOCKET: &str = include_str!("../systemd/kybernate-cri-hooks.socket");
/// Where the programs of both are.
pub const BIN_DIR: &str = "/usr/local/bin";
