//! Metrics of cgroup v2: one directory (kernel Documentation/admin-guide/cgroup-v2.rst).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats,
    PidsStat, RdmaEntry, RdmaStat,
};
use protobuf::MessageField;

use super::{
    read::{Pairs, number, pairs},
    v1,
};

/// Reads the metrics. Files of controllers that are off count as zero.
pub fn metrics(path: &Path) -> io::Result<Metrics> {
    if !path.exists() {
        let message = format!("{} does not exist any more", path.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    let file = |name: &str| path.join(name);
    let mut metrics = Metrics::new();
    metrics.pids = MessageField::some(PidsStat {
        current: number(&file("pids.current")),
        limit: number(&file("pids.max")),
        ..PidsStat::default()
    });
    metrics.cpu = MessageField::some(CPUStat {
        psi: pressure(&file("cpu.pressure")),
        ..cpu(&pairs(&file("cpu.stat")))
    });
    metrics.memory = MessageField::some(MemoryStat {
        usage: number(&file("memory.current")),
        usage_limit: number(&file("memory.max")),
        max_usage: number(&file("memory.peak")),
        swap_usage: number(&file("memory.swap.current")),
        swap_limit: number(&file("memory.swap.max")),
        swap_max_usage: number(&file("memory.swap.peak")),
        psi: pressure(&file("memory.pressure")),
        ..memory(&pairs(&file("memory.stat")))
    });
    let events = pairs(&file("memory.events"));
    if events.has("oom_kill") {
        metrics.memory_events = MessageField::some(memory_events(&events));
    }
    metrics.io = MessageField::some(IOStat {
        usage: io_entries(&fs::read_to_string(file("io.stat")).unwrap_or_default()),
        psi: pressure(&file("io.pressure")),
        ..IOStat::default()
    });
    let rdma = |name: &str| {
        v1::rdma(&fs::read_to_string(file(name)).unwrap_or_default())
            .map(|(device, hca_handles, hca_objects)| RdmaEntry {
                device,
                hca_handles,
                hca_objects,
                ..RdmaEntry::default()
            })
            .collect()
    };
    metrics.rdma = MessageField::some(RdmaStat {
        current: rdma("rdma.current"),
        limit: rdma("rdma.max"),
        ..RdmaStat::default()
    });
    metrics.hugetlb = huge_pages(path);
    Ok(metrics)
}

fn cpu(stat: &Pairs) -> CPUStat {
    CPUStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        ..CPUStat::default()
    }
}

fn memory(stat: &Pairs) -> MemoryStat {
    MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        workingset_refault: stat.get("workingset_refault"),
        workingset_activate: stat.get("workingset_activate"),
        workingset_nodereclaim: stat.get("workingset_nodereclaim"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        ..MemoryStat::default()
    }
}

fn memory_events(events: &Pairs) -> MemoryEvents {
    MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
        ..MemoryEvents::default()
    }
}

/// Lines `major:minor rbytes=N wbytes=N rios=N wios=N dbytes=N dios=N`, keys in any order.
fn io_entries(text: &str) -> Vec<IOEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = fields.next()?.split_once(':')?;
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        let mut entry = IOEntry {
            major,
            minor,
            ..IOEntry::default()
        };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => entry.rbytes = value,
                "wbytes" => entry.wbytes = value,
                "rios" => entry.rios = value,
                "wios" => entry.wios = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

fn pressure(path: &PathBuf) -> MessageField<PSIStats> {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| parse_pressure(&text))
        .into()
}

/// Lines `some|full avg10=N avg60=N avg300=N total=N`.
fn parse_pressure(text: &str) -> Option<PSIStats> {
    let data = |kind: &str| {
        let line = text
            .lines()
            .find(|line| line.split(' ').next() == Some(kind))?;
        let total = line
            .split(' ')
            .find_map(|field| field.strip_prefix("total="))?;
        Some(PSIData {
            total: total.parse().ok()?,
            ..PSIData::default()
        })
    };
    let (some, full) = (data("some"), data("full"));
    (some.is_some() || full.is_some()).then(|| PSIStats {
        some: some.into(),
        full: full.into(),
        ..PSIStats::default()
    })
}

fn huge_pages(path: &Path) -> Vec<HugeTlbStat> {
    v1::page_sizes(path, ".current")
        .into_iter()
        .map(|pagesize| HugeTlbStat {
            current: number(&path.join(format!("hugetlb.{pagesize}.current"))),
            max: number(&path.join(format!("hugetlb.{pagesize}.max"))),
            failcnt: pairs(&path.join(format!("hugetlb.{pagesize}.events"))).get("max"),
            pagesize,
            ..HugeTlbStat::default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_a_real_machine_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("pids.current", "12\n"),
            ("pids.max", "512\n"),
            (
                "cpu.stat",
                "usage_usec 77\nuser_usec 50\nsystem_usec 27\nnr_throttled 3\n",
            ),
            (
                "cpu.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=42\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "8192\n"),
            ("memory.swap.current", "0\n"),
            (
                "memory.stat",
                "anon 1000\nfile 96\ninactive_file 64\nthp_fault_alloc 2\n",
            ),
            (
                "memory.events",
                "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n",
            ),
            (
                "io.stat",
                "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:0 \n",
            ),
            ("rdma.max", "mlx4_0 hca_handle=2 hca_object=max\n"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 6\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let m = metrics(dir.path()).unwrap();
        assert_eq!((m.pids.current, m.pids.limit), (12, 512));
        assert_eq!((m.cpu.usage_usec, m.cpu.nr_throttled), (77, 3));
        assert_eq!(m.cpu.psi.some.total, 42);
        assert!(m.cpu.psi.full.is_none() && m.memory.psi.is_none());
        assert_eq!(
            (m.memory.usage, m.memory.usage_limit, m.memory.max_usage),
            (4096, u64::MAX, 8192)
        );
        assert_eq!(
            (
                m.memory.anon,
                m.memory.inactive_file,
                m.memory.thp_fault_alloc
            ),
            (1000, 64, 2)
        );
        assert_eq!((m.memory_events.oom_kill, m.memory_events.high), (4, 1));
        assert_eq!(m.io.usage.len(), 2);
        assert_eq!((m.io.usage[0].major, m.io.usage[0].wbytes), (254, 20));
        assert_eq!(m.rdma.limit[0].hca_objects, u32::MAX);
        assert_eq!((m.hugetlb.len(), m.hugetlb[0].failcnt), (1, 6));
    }

    #[test]
    fn controllers_that_are_off_leave_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let m = metrics(dir.path()).unwrap();
        assert_eq!(m.memory.usage, 0);
        assert!(m.memory_events.is_none());
    }

    #[test]
    fn a_deleted_group_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = metrics(&dir.path().join("gone")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
