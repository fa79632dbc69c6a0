//! Runs the fuzz targets of Kybernate's crates (their modules `fuzzing`) with libFuzzer.
//!
//! `make fuzz SECONDS=60` runs all, `make fuzz TARGETS=archive SECONDS=600` one of them. Seeds are
//! made by the crates and written into `corpus/<target>` at each start; what is found lies in
//! `artifacts/<target>`. An input that was a finding belongs into `regressions/<target>`, where the
//! crates' own tests run it.

use std::{
    fs,
    path::{Path, PathBuf},
};

#[doc(hidden)]
pub use libfuzzer_sys::fuzz_target;

/// One program: a target of a crate, by its name.
#[macro_export]
macro_rules! target {
    ($of:ident, $name:literal) => {
        static READY: std::sync::LazyLock<(std::path::PathBuf, fn(&[u8], &std::path::Path))> =
            std::sync::LazyLock::new(|| {
                let target = $of::fuzzing::TARGETS.iter().find(|t| t.name == $name);
                let target = target.expect("the crate has a target of this name");
                ($crate::prepare($name, (target.seeds)()), target.run)
            });

        $crate::fuzz_target!(
            init: {
                std::sync::LazyLock::force(&READY);
            },
            |data: &[u8]| {
                let (scratch, run) = &*READY;
                run(data, scratch);
            }
        );
    };
}

/// Writes the seeds, and makes an empty directory for this process.
#[doc(hidden)]
#[must_use]
pub fn prepare(name: &str, seeds: Vec<Vec<u8>>) -> PathBuf {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    fs::create_dir_all(&corpus).expect("a directory for the corpus");
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(corpus.join(format!("seed-{number}")), seed).expect("a seed");
    }
    let scratch = std::env::temp_dir().join(format!("kybernate-fuzz-{}", std::process::id()));
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir(&scratch).expect("a directory for temporary files");
    scratch
}
