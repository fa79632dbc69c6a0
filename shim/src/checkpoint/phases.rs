//! How long each phase of a checkpoint took, for the manifest.

use std::time::{Duration, Instant};

use kybernate_oci::manifest;

use super::stop::millis;

/// Phases in the order in which they ended.
#[derive(Debug, Default)]
pub struct Phases(Vec<manifest::Phase>);

impl Phases {
    /// A phase that began then ends now.
    pub fn end(&mut self, name: &str, begun: Instant) {
        self.add(name, begun.elapsed());
    }

    /// A phase that took so long.
    pub fn add(&mut self, name: &str, took: Duration) {
        self.0.push(manifest::Phase {
            name: name.into(),
            ms: millis(took),
        });
    }

    /// As the manifest has them.
    #[must_use]
    pub fn into_manifest(self) -> Vec<manifest::Phase> {
        self.0
    }
}
