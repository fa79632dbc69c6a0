//! The kernel: what it was built with, and how its cgroups and file systems are set up.

use std::{fs, path::Path, process::Command};

use super::Finding;

/// What CRIU can't do without, as `Documentation` of CRIU lists it.
const NEEDED: [&str; 7] = [
    "CONFIG_CHECKPOINT_RESTORE",
    "CONFIG_NAMESPACES",
    "CONFIG_PID_NS",
    "CONFIG_UNIX_DIAG",
    "CONFIG_INET_DIAG",
    "CONFIG_PACKET_DIAG",
    "CONFIG_NETLINK_DIAG",
];

/// Who asks.
pub fn user() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::ok("user", "root")
    } else {
        Finding::warn(
            "user",
            "not root: some of what follows could not be looked at",
            "run `sudo kybernate doctor`",
        )
    }
}

/// Looks at everything else.
pub fn examine() -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let ns_last_pid = Path::new("/proc/sys/kernel/ns_last_pid").exists();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    vec![
        judge_release(release, std::env::consts::ARCH),
        judge_options(options(release).as_deref(), ns_last_pid),
        judge_cgroups(&read("/proc/self/mountinfo")),
        judge_filesystems(&read("/proc/filesystems")),
        judge_thp(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
    ]
}

/// The text of the kernel's configuration, where it tells one.
fn options(release: &str) -> Option<String> {
    let boot = format!("/boot/config-{release}");
    let modules = format!("/lib/modules/{release}/config");
    [boot, modules]
        .into_iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .or_else(|| {
            let output = Command::new("gzip")
                .args(["-dc", "/proc/config.gz"])
                .output()
                .ok()?;
            (output.status.success() && !output.stdout.is_empty())
                .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
}

fn judge_release(release: &str, arch: &str) -> Finding {
    let found = format!("Linux {release} on {arch}");
    if arch == "x86_64" {
        Finding::ok("kernel", found)
    } else {
        Finding::warn(
            "kernel",
            found,
            "only x86_64 is tested; use it where you can",
        )
    }
}

/// Judges the kernel's options, or without them the one file that gives the chief one away.
fn judge_options(config: Option<&str>, ns_last_pid: bool) -> Finding {
    const CHECK: &str = "kernel options";
    const REMEDY: &str = "boot a kernel with these options; distributions' own have them";
    let Some(config) = config else {
        return if ns_last_pid {
            Finding::ok(
                CHECK,
                "CONFIG_CHECKPOINT_RESTORE by its traces; no configuration to read",
            )
        } else {
            Finding::fail(CHECK, "no CONFIG_CHECKPOINT_RESTORE", REMEDY)
        };
    };
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|name| !config.lines().any(|line| is_set(line, name)))
        .collect();
    if missing.is_empty() {
        Finding::ok(
            CHECK,
            format!("{} and {} more", NEEDED[0], NEEDED.len() - 1),
        )
    } else {
        Finding::fail(CHECK, format!("without {}", missing.join(", ")), REMEDY)
    }
}

fn is_set(line: &str, name: &str) -> bool {
    line.strip_prefix(name)
        .is_some_and(|rest| matches!(rest, "=y" | "=m"))
}

fn judge_cgroups(mountinfo: &str) -> Finding {
    const CHECK: &str = "cgroups";
    let mut unified = false;
    let mut freezer = false;
    let mut legacy = false;
    for line in mountinfo.lines() {
        let Some((_, tail)) = line.split_once(" - ") else {
            continue;
        };
        let mut fields = tail.split_whitespace();
        match fields.next() {
            Some("cgroup2") => unified = true,
            Some("cgroup") => {
                legacy = true;
                let options = fields.nth(1).unwrap_or_default();
                freezer |= options.split(',').any(|option| option == "freezer");
            }
            _ => {}
        }
    }
    match (legacy, unified) {
        (false, true) => Finding::ok(CHECK, "v2"),
        (true, _) if freezer => Finding::ok(
            CHECK,
            if unified {
                "hybrid (v1 controllers)"
            } else {
                "v1"
            },
        ),
        (true, _) => Finding::fail(
            CHECK,
            "v1 without the freezer",
            "mount the freezer controller, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
        (false, false) => {
            Finding::fail(CHECK, "none are mounted", "mount cgroup2 on /sys/fs/cgroup")
        }
    }
}

fn judge_filesystems(filesystems: &str) -> Finding {
    if filesystems
        .lines()
        .any(|line| line.trim() == "nodev\toverlay")
    {
        Finding::ok("overlayfs", "there")
    } else {
        Finding::warn(
            "overlayfs",
            "not loaded; file system changes are saved from overlay snapshots alone",
            "run `modprobe overlay`, and use containerd's overlayfs snapshotter",
        )
    }
}

fn judge_thp(enabled: &str) -> Finding {
    const CHECK: &str = "huge pages";
    let chosen = enabled
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    match chosen.map(|(mode, _)| mode) {
        Some("never") => Finding::warn(
            CHECK,
            "transparent huge pages are off; GPU checkpoints take about twice as long",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some(mode) => Finding::ok(CHECK, format!("transparent, {mode}")),
        None => Finding::ok(CHECK, "the kernel has no transparent ones"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn every_needed_option_is_looked_for() {
        let mut config: String = NEEDED.iter().map(|name| format!("{name}=y\n")).collect();
        assert_eq!(judge_options(Some(&config), false).level, Level::Ok);
        config = config.replace("CONFIG_UNIX_DIAG=y", "CONFIG_UNIX_DIAG=m");
        assert_eq!(judge_options(Some(&config), false).level, Level::Ok);
        config = config.replace("CONFIG_UNIX_DIAG=m", "# CONFIG_UNIX_DIAG is not set");
        let found = judge_options(Some(&config), true);
        assert_eq!(
            (found.level, found.found.as_str()),
            (Level::Fail, "without CONFIG_UNIX_DIAG")
        );
        assert_eq!(judge_options(None, true).level, Level::Ok);
        assert_eq!(judge_options(None, false).level, Level::Fail);
    }

    #[test]
    fn cgroups_of_all_kinds_are_told_apart() {
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let v1 = "31 24 0:27 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n";
        let cpu = "32 24 0:28 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(judge_cgroups(v2), Finding::ok("cgroups", "v2"));
        assert_eq!(
            judge_cgroups(&format!("{v1}{cpu}")),
            Finding::ok("cgroups", "v1")
        );
        assert!(
            judge_cgroups(&format!("{v1}{v2}"))
                .found
                .starts_with("hybrid")
        );
        assert_eq!(judge_cgroups(cpu).level, Level::Fail);
        assert_eq!(judge_cgroups("").level, Level::Fail);
    }

    #[test]
    fn overlay_and_huge_pages_are_read_as_the_kernel_writes_them() {
        assert_eq!(
            judge_filesystems("nodev\ttmpfs\nnodev\toverlay\n\text4\n").level,
            Level::Ok
        );
        assert_eq!(judge_filesystems("\text4\n").level, Level::Warn);
        assert_eq!(judge_thp("always [madvise] never\n").level, Level::Ok);
        assert_eq!(judge_thp("always madvise [never]\n").level, Level::Warn);
        assert_eq!(judge_thp("").level, Level::Ok);
    }

    #[test]
    fn other_architectures_are_warned_of() {
        assert_eq!(judge_release("6.18", "x86_64").level, Level::Ok);
        assert_eq!(judge_release("6.18", "aarch64").level, Level::Warn);
    }
}
