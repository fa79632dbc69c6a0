//! What every part of Kybernate agrees on: names, settings, and the request that
//! travels from a checkpoint client to the shim.
#![forbid(unsafe_code)]

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod layers;
pub mod names;
pub mod profile;
pub mod request;
pub mod settings;
pub mod size;
pub mod units;
pub mod wishes;

pub use settings::Settings;
