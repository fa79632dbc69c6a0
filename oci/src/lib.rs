//! Kybernate checkpoint archives.
#![forbid(unsafe_code)]

pub mod manifest;
