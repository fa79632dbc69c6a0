//! Metrics of cgroup v1: one directory per controller. A file that is missing counts as zero:
//! kernels differ in what they are built with.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use protobuf::MessageField;

use super::read::{Pairs, number, pairs};

/// `cpuacct.stat` counts in this part of a second (USER_HZ, fixed in the kernel's ABI).
const TICKS_PER_SECOND: u64 = 100;
const NANOS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND;

/// Reads the metrics of all controllers that are there.
#[must_use]
pub fn metrics(paths: &BTreeMap<String, PathBuf>) -> Metrics {
    let mut metrics = Metrics::new();
    let path = |controller: &str| paths.get(controller).filter(|path| path.exists());
    if let Some(path) = path("pids") {
        metrics.pids = MessageField::some(PidsStat {
            current: number(&path.join("pids.current")),
            limit: number(&path.join("pids.max")),
            ..PidsStat::default()
        });
    }
    let (accounting, scheduler) = (path("cpuacct"), path("cpu"));
    if accounting.is_some() || scheduler.is_some() {
        metrics.cpu = MessageField::some(CPUStat {
            usage: accounting.map(|path| cpu_usage(path)).into(),
            throttling: scheduler
                .map(|path| throttling(&pairs(&path.join("cpu.stat"))))
                .into(),
            ..CPUStat::default()
        });
    }
    if let Some(path) = path("memory") {
        metrics.memory = MessageField::some(memory(path));
        metrics.memory_oom_control =
            MessageField::some(oom_control(&pairs(&path.join("memory.oom_control"))));
    }
    if let Some(path) = path("blkio") {
        metrics.blkio = MessageField::some(block_io(path));
    }
    if let Some(path) = path("hugetlb") {
        metrics.hugetlb = huge_pages(path);
    }
    if let Some(path) = path("rdma") {
        let read = |name: &str| {
            rdma(&fs::read_to_string(path.join(name)).unwrap_or_default())
                .map(|(device, hca_handles, hca_objects)| RdmaEntry {
                    device,
                    hca_handles,
                    hca_objects,
                    ..RdmaEntry::default()
                })
                .collect()
        };
        metrics.rdma = MessageField::some(RdmaStat {
            current: read("rdma.current"),
            limit: read("rdma.max"),
            ..RdmaStat::default()
        });
    }
    metrics
}

fn cpu_usage(path: &Path) -> CPUUsage {
    let stat = pairs(&path.join("cpuacct.stat"));
    let each = fs::read_to_string(path.join("cpuacct.usage_percpu")).unwrap_or_default();
    CPUUsage {
        total: number(&path.join("cpuacct.usage")),
        user: stat.get("user").saturating_mul(NANOS_PER_TICK),
        kernel: stat.get("system").saturating_mul(NANOS_PER_TICK),
        per_cpu: each
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect(),
        ..CPUUsage::default()
    }
}

fn throttling(stat: &Pairs) -> Throttle {
    Throttle {
        periods: stat.get("nr_periods"),
        throttled_periods: stat.get("nr_throttled"),
        throttled_time: stat.get("throttled_time"),
        ..Throttle::default()
    }
}

fn memory(path: &Path) -> MemoryStat {
    let entry = |module: &str| {
        let read = |name: &str| number(&path.join(format!("memory.{module}{name}")));
        MessageField::some(MemoryEntry {
            usage: read("usage_in_bytes"),
            max: read("max_usage_in_bytes"),
            failcnt: read("failcnt"),
            limit: read("limit_in_bytes"),
            ..MemoryEntry::default()
        })
    };
    MemoryStat {
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
        ..memory_stat(&pairs(&path.join("memory.stat")))
    }
}

fn memory_stat(stat: &Pairs) -> MemoryStat {
    MemoryStat {
        cache: stat.get("cache"),
        rss: stat.get("rss"),
        rss_huge: stat.get("rss_huge"),
        mapped_file: stat.get("mapped_file"),
        dirty: stat.get("dirty"),
        writeback: stat.get("writeback"),
        pg_pg_in: stat.get("pgpgin"),
        pg_pg_out: stat.get("pgpgout"),
        pg_fault: stat.get("pgfault"),
        pg_maj_fault: stat.get("pgmajfault"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        hierarchical_memory_limit: stat.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat.get("hierarchical_memsw_limit"),
        total_cache: stat.get("total_cache"),
        total_rss: stat.get("total_rss"),
        total_rss_huge: stat.get("total_rss_huge"),
        total_mapped_file: stat.get("total_mapped_file"),
        total_dirty: stat.get("total_dirty"),
        total_writeback: stat.get("total_writeback"),
        total_pg_pg_in: stat.get("total_pgpgin"),
        total_pg_pg_out: stat.get("total_pgpgout"),
        total_pg_fault: stat.get("total_pgfault"),
        total_pg_maj_fault: stat.get("total_pgmajfault"),
        total_inactive_anon: stat.get("total_inactive_anon"),
        total_active_anon: stat.get("total_active_anon"),
        total_inactive_file: stat.get("total_inactive_file"),
        total_active_file: stat.get("total_active_file"),
        total_unevictable: stat.get("total_unevictable"),
        ..MemoryStat::default()
    }
}

fn oom_control(stat: &Pairs) -> MemoryOomControl {
    MemoryOomControl {
        oom_kill_disable: stat.get("oom_kill_disable"),
        under_oom: stat.get("under_oom"),
        oom_kill: stat.get("oom_kill"),
        ..MemoryOomControl::default()
    }
}

fn block_io(path: &Path) -> BlkIOStat {
    let read = |name: &str| {
        block_entries(&fs::read_to_string(path.join(format!("blkio.{name}"))).unwrap_or_default())
    };
    let mut stat = BlkIOStat {
        io_service_bytes_recursive: read("io_service_bytes_recursive"),
        io_serviced_recursive: read("io_serviced_recursive"),
        io_queued_recursive: read("io_queued_recursive"),
        io_service_time_recursive: read("io_service_time_recursive"),
        io_wait_time_recursive: read("io_wait_time_recursive"),
        io_merged_recursive: read("io_merged_recursive"),
        io_time_recursive: read("time_recursive"),
        sectors_recursive: read("sectors_recursive"),
        ..BlkIOStat::default()
    };
    // Without the CFQ scheduler only the throttling layer counts.
    if stat.io_serviced_recursive.is_empty() && stat.io_service_bytes_recursive.is_empty() {
        stat.io_serviced_recursive = read("throttle.io_serviced");
        stat.io_service_bytes_recursive = read("throttle.io_service_bytes");
    }
    stat
}

/// Lines `major:minor [operation] value`; the line `Total value` is none.
fn block_entries(text: &str) -> Vec<BlkIOEntry> {
    let entry = |line: &str| {
        let mut fields = line.split([' ', ':']);
        let (major, minor) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (op, value) = match (fields.next()?, fields.next()) {
            (op, Some(value)) => (op.to_owned(), value),
            (value, None) => (String::new(), value),
        };
        let value = value.parse().ok()?;
        Some(BlkIOEntry {
            op,
            major,
            minor,
            value,
            ..BlkIOEntry::default()
        })
    };
    text.lines().filter_map(entry).collect()
}

fn huge_pages(path: &Path) -> Vec<HugetlbStat> {
    page_sizes(path, ".usage_in_bytes")
        .into_iter()
        .map(|pagesize| {
            let read = |name: &str| number(&path.join(format!("hugetlb.{pagesize}.{name}")));
            HugetlbStat {
                usage: read("usage_in_bytes"),
                max: read("max_usage_in_bytes"),
                failcnt: read("failcnt"),
                pagesize,
                ..HugetlbStat::default()
            }
        })
        .collect()
}

/// The page sizes for which there is a file `hugetlb.SIZE<suffix>`, sorted.
pub(super) fn page_sizes(path: &Path, suffix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut sizes: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
            Some(size.to_owned()).filter(|size| !size.contains('.'))
        })
        .collect();
    sizes.sort();
    sizes
}

/// Lines `device hca_handle=N hca_object=N`.
pub(super) fn rdma(text: &str) -> impl Iterator<Item = (String, u32, u32)> + '_ {
    text.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.next()?.to_owned();
        let mut value = |key: &str| {
            let value = fields.next()?.strip_prefix(key)?;
            if value == "max" {
                Some(u32::MAX)
            } else {
                value.parse().ok()
            }
        };
        Some((device, value("hca_handle=")?, value("hca_object=")?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(files: &[(&str, &str)]) -> (tempfile::TempDir, BTreeMap<String, PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = BTreeMap::new();
        for (file, text) in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let controller = file.split('/').next().unwrap();
            paths.insert(controller.to_owned(), dir.path().join(controller));
        }
        (dir, paths)
    }

    #[test]
    fn a_machine_of_all_controllers_is_read() {
        let (_dir, paths) = fixture(&[
            ("pids/pids.current", "3\n"),
            ("pids/pids.max", "max\n"),
            ("cpuacct/cpuacct.usage", "5000\n"),
            ("cpuacct/cpuacct.stat", "user 2\nsystem 1\n"),
            ("cpuacct/cpuacct.usage_percpu", "4000 1000 \n"),
            (
                "cpu/cpu.stat",
                "nr_periods 7\nnr_throttled 2\nthrottled_time 9\n",
            ),
            (
                "memory/memory.stat",
                "cache 1\nrss 2\ntotal_inactive_file 3\n",
            ),
            ("memory/memory.usage_in_bytes", "100\n"),
            ("memory/memory.memsw.usage_in_bytes", "120\n"),
            (
                "memory/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
            ),
            (
                "blkio/blkio.throttle.io_serviced",
                "8:0 Read 5\n8:0 Total 5\nTotal 5\n",
            ),
            ("hugetlb/hugetlb.2MB.usage_in_bytes", "2097152\n"),
            ("hugetlb/hugetlb.2MB.rsvd.usage_in_bytes", "1\n"),
            ("rdma/rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
        ]);
        let m = metrics(&paths);
        assert_eq!((m.pids.current, m.pids.limit), (3, u64::MAX));
        assert_eq!((m.cpu.usage.total, m.cpu.usage.user), (5000, 20_000_000));
        assert_eq!(m.cpu.usage.per_cpu, [4000, 1000]);
        assert_eq!(m.cpu.throttling.throttled_periods, 2);
        assert_eq!((m.memory.rss, m.memory.total_inactive_file), (2, 3));
        assert_eq!((m.memory.usage.usage, m.memory.swap.usage), (100, 120));
        assert_eq!(m.memory_oom_control.oom_kill, 4);
        let entries = &m.blkio.io_serviced_recursive;
        assert_eq!(entries.len(), 2);
        assert_eq!(
            (entries[0].op.as_str(), entries[0].major, entries[0].value),
            ("Read", 8, 5)
        );
        assert_eq!(m.hugetlb.len(), 1);
        assert_eq!(
            (m.hugetlb[0].pagesize.as_str(), m.hugetlb[0].usage),
            ("2MB", 2_097_152)
        );
        assert_eq!(m.rdma.current[0].hca_objects, 2000);
    }

    #[test]
    fn what_is_missing_is_left_out() {
        let m = metrics(&BTreeMap::new());
        assert!(m.memory.is_none() && m.cpu.is_none() && m.pids.is_none());
    }

    #[test]
    fn block_entries_without_operation_have_a_value_alone() {
        let entries = block_entries("8:16 7\nbad\n");
        assert_eq!(
            (entries.len(), entries[0].minor, entries[0].value),
            (1, 16, 7)
        );
    }
}
