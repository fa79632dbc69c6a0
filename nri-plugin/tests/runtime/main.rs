//! The plugin against a double of a container runtime.

mod double;
mod process;
mod protocol;
