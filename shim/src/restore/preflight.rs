//! Can this machine run what the archive holds? Asked before anything is staged.

use kybernate_oci::manifest::Manifest;

use super::RestoreError;
use crate::{checkpoint::cpu_features, criu::Version};

/// CPU flags that name instructions: a program may have chosen code by them at start and
/// would die of an illegal instruction elsewhere. Other flags describe the machine.
const INSTRUCTIONS: [&str; 26] = [
    "adx",
    "aes",
    "amx_bf16",
    "amx_int8",
    "amx_tile",
    "avx",
    "avx2",
    "bmi1",
    "bmi2",
    "cx16",
    "erms",
    "f16c",
    "fma",
    "gfni",
    "lzcnt",
    "movbe",
    "pclmulqdq",
    "popcnt",
    "rdrand",
    "rdseed",
    "sha_ni",
    "sse4_1",
    "sse4_2",
    "ssse3",
    "vaes",
    "vpclmulqdq",
];

/// This machine, as far as it matters.
#[derive(Debug)]
pub struct Here {
    /// Architecture.
    pub arch: String,
    /// CPU flags.
    pub cpu_features: Vec<String>,
    /// CRIU's version, if known.
    pub criu: Option<String>,
}

impl Here {
    /// Reads it.
    #[must_use]
    pub fn now(criu: Option<String>) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            arch: std::env::consts::ARCH.into(),
            cpu_features: cpu_features(&cpuinfo),
            criu,
        }
    }
}

/// Refuses what can't run here, with the reason.
pub fn check(manifest: &Manifest, here: &Here) -> Result<(), RestoreError> {
    let there = &manifest.host;
    if there.arch != here.arch {
        return Err(RestoreError::Arch {
            archive: there.arch.clone(),
            here: here.arch.clone(),
        });
    }
    let is_instruction = |f: &str| INSTRUCTIONS.contains(&f) || f.starts_with("avx512");
    let missing: Vec<String> = there
        .cpu_features
        .iter()
        .filter(|f| is_instruction(f) && !here.cpu_features.contains(f))
        .cloned()
        .collect();
    if !missing.is_empty() {
        return Err(RestoreError::Cpu {
            missing: missing.join(" "),
        });
    }
    if let Some(here) = &here.criu
        && let (Some(archive), Some(own)) = (Version::parse(&there.criu), Version::parse(here))
        && own < archive
    {
        // An older CRIU takes the newer page counts for zero and would restore empty memory.
        return Err(RestoreError::Criu {
            archive: there.criu.clone(),
            here: here.clone(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let mut manifest = Manifest::default();
        manifest.host.arch = "x86_64".into();
        manifest.host.cpu_features = vec!["avx512f".into(), "constant_tsc".into(), "sse4_2".into()];
        manifest.host.criu = "4.2.1".into();
        manifest
    }

    fn here() -> Here {
        Here {
            arch: "x86_64".into(),
            cpu_features: vec!["avx512f".into(), "sse4_2".into()],
            criu: Some("4.2".into()),
        }
    }

    #[test]
    fn a_like_machine_passes_whatever_its_clock() {
        check(&manifest(), &here()).unwrap();
    }

    #[test]
    fn another_architecture_is_refused() {
        let error = check(
            &manifest(),
            &Here {
                arch: "aarch64".into(),
                ..here()
            },
        )
        .unwrap_err();
        assert!(error.to_string().contains("x86_64") && error.to_string().contains("aarch64"));
    }

    #[test]
    fn a_missing_instruction_is_named() {
        let poor = Here {
            cpu_features: vec!["sse4_2".into()],
            ..here()
        };
        assert!(
            check(&manifest(), &poor)
                .unwrap_err()
                .to_string()
                .contains("avx512f")
        );
    }

    #[test]
    fn an_older_criu_is_refused() {
        let old = Here {
            criu: Some("4.1.1".into()),
            ..here()
        };
        assert!(
            check(&manifest(), &old)
                .unwrap_err()
                .to_string()
                .contains("4.1.1")
        );
        check(
            &manifest(),
            &Here {
                criu: None,
                ..here()
            },
        )
        .unwrap();
    }
}
