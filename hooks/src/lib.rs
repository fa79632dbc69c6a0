//! Clients of containerd and the CRI that ask for checkpoints.
#![forbid(unsafe_code)]
