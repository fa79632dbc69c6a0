//! Kybernate checkpoint archives.
#![forbid(unsafe_code)]

pub mod archive;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod manifest;
pub mod memory;
pub mod rootfs;
pub mod signature;
