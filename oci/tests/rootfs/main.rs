//! File system changes, taken from real overlay mounts and put back onto fresh ones.
//!
//! What needs root or a file system that overlayfs can use says `SKIPPED` and why, where there
//! is none.
#![forbid(unsafe_code)]

mod changes;
mod confined;
mod exact;
mod hostile;
mod lab;
mod large;
mod random;
mod snapshot;
mod trees;
