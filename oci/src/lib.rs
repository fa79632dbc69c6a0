//! Kybernate checkpoint archives.
#![forbid(unsafe_code)]

pub mod archive;
pub mod manifest;
pub mod memory;
pub mod rootfs;
pub mod signature;
