//! A containerd shim over runc that checkpoints and restores.
