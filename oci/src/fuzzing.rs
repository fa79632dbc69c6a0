//! What is fuzzed in this crate: everything that an archive from elsewhere reaches.

#[path = "../../fuzz/target.rs"]
mod target;

pub use target::Target;

use crate::{archive, rootfs, signature};

/// All of it.
pub const TARGETS: &[Target] = &[
    Target {
        name: "archive",
        run: archive::fuzzing::archive,
        seeds: archive::fuzzing::archives,
        rounds: 500,
    },
    Target {
        name: "seek_table",
        run: |data, _| archive::fuzzing::seek_table(data),
        seeds: archive::fuzzing::seek_tables,
        rounds: 20_000,
    },
    Target {
        name: "rootfs_diff",
        run: rootfs::fuzzing::rootfs_diff,
        seeds: rootfs::fuzzing::tars,
        rounds: 300,
    },
    Target {
        name: "signature",
        run: |data, _| signature::fuzzing::signature(data),
        seeds: signature::fuzzing::signatures,
        rounds: 300,
    },
];

#[cfg(test)]
mod tests {
    #[test]
    fn the_targets_hold() {
        super::target::hold(super::TARGETS);
    }
}
