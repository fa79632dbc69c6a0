//! Who can see a GPU, and who holds one: read from `/proc`, before the driver is asked.

use std::fs;

/// Prefix of the driver's device files.
const DEVICES: &str = "/dev/nvidia";
/// The driver's library, whatever its version.
const LIBRARY: &str = "libcuda.so";

/// Whether a container can hold GPU state: its first process sees a GPU's device file, or one of
/// its processes has one open or has loaded the driver.
pub fn sees_gpu(init: u32, pids: &[u32]) -> bool {
    has_devices(init) || pids.iter().any(|pid| held(*pid).is_some() || loads(*pid))
}

fn has_devices(init: u32) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{init}/root/dev")) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"nvidia"))
}

/// A GPU's device file that a process has open or mapped.
pub fn held(pid: u32) -> Option<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .find(|path| path.starts_with(DEVICES));
    open.or_else(|| mapped(&maps(pid), DEVICES))
}

fn loads(pid: u32) -> bool {
    mapped(&maps(pid), LIBRARY).is_some()
}

fn maps(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default()
}

/// The first mapped file whose path contains `part`, from the text of `/proc/<pid>/maps`.
fn mapped(maps: &str, part: &str) -> Option<String> {
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| &line[start..]))
        .find(|path| path.contains(part))
        .map(str::to_owned)
}

/// The name of a process, for messages.
pub fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "gone".into(), |name| name.trim().to_owned())
}

/// The pid of a process in its own PID namespace.
pub fn inner_pid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_files_are_found_by_a_part_of_their_path() {
        let maps = "\
7f00-7f01 r-xp 0 08:01 7 /usr/lib/x86_64-linux-gnu/libcuda.so.580.159.04
7f02-7f03 rw-s 0 00:06 9 /dev/nvidiactl
7f04-7f05 rw-p 0 00:00 0 [heap]
";
        assert_eq!(mapped(maps, DEVICES).as_deref(), Some("/dev/nvidiactl"));
        assert!(mapped(maps, LIBRARY).is_some());
        assert_eq!(mapped(maps, "libcudart"), None);
    }

    #[test]
    fn this_process_holds_no_gpu_and_has_a_name() {
        let own = std::process::id();
        assert_eq!(held(own), None);
        assert!(!loads(own));
        assert_ne!(name(own), "gone");
        assert!(inner_pid(own).is_some());
    }
}
