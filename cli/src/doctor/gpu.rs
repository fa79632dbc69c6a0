//! The GPU driver.

use std::{fs, path::Path};

use super::Finding;

/// First driver branch whose checkpoints of CUDA processes are complete.
const DRIVER: u32 = 570;

/// Where distributions and driver containers put the driver's library.
const LIBRARIES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "/usr/lib64/libcuda.so.1",
    "/usr/lib/libcuda.so.1",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "/run/nvidia/driver/usr/lib64/libcuda.so.1",
];

/// Looks for the driver and its library.
pub fn examine() -> Vec<Finding> {
    let Ok(version) = fs::read_to_string("/proc/driver/nvidia/version") else {
        return vec![Finding::ok(
            "GPU",
            "no NVIDIA driver; containers without GPUs only",
        )];
    };
    let library = LIBRARIES.into_iter().find(|path| Path::new(path).exists());
    vec![judge_driver(&version), judge_library(library)]
}

/// Judges the text of `/proc/driver/nvidia/version`.
fn judge_driver(text: &str) -> Finding {
    let line = text.lines().next().unwrap_or_default();
    let version = line
        .split_whitespace()
        .find(|word| word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    let branch = version.and_then(|v| v.split('.').next()?.parse::<u32>().ok());
    match (version, branch) {
        (Some(version), Some(DRIVER..)) => Finding::ok("GPU", format!("driver {version}")),
        (Some(version), _) => Finding::warn(
            "GPU",
            format!("driver {version} can't checkpoint CUDA processes"),
            format!("install driver {DRIVER} or later"),
        ),
        _ => Finding::warn(
            "GPU",
            format!("a driver whose version can't be told from {line:?}"),
            format!("install driver {DRIVER} or later"),
        ),
    }
}

fn judge_library(found: Option<&str>) -> Finding {
    match found {
        Some(path) => Finding::ok("libcuda", path),
        None => Finding::warn(
            "libcuda",
            "not in the usual places",
            "install the driver's user-space libraries on the host",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn drivers_are_told_from_what_they_print() {
        for (line, level) in [
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build",
                Level::Ok,
            ),
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Tue",
                Level::Ok,
            ),
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun",
                Level::Warn,
            ),
            ("something else", Level::Warn),
        ] {
            assert_eq!(
                judge_driver(&format!("{line}\nGCC version: gcc 12.3.0\n")).level,
                level,
                "{line}"
            );
        }
        assert_eq!(judge_library(None).level, Level::Warn);
    }
}
