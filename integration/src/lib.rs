//! The lab: a private containerd on real parts, and what the suites share.
