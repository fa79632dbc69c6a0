//! Which archives go. Nothing here touches a file.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use kybernate_config::settings::RetentionSettings;

use super::held::{Held, Owner};

/// Whether there is any limit.
pub(super) fn limits(settings: &RetentionSettings) -> bool {
    settings.per_pod > 0 || settings.per_node > 0 || settings.total.bytes() > 0
}

/// Size of the newest archive of a container.
pub(super) fn last_size(held: &[Held], owner: &Owner) -> Option<u64> {
    held.iter()
        .filter(|h| h.owner == *owner)
        .max_by_key(|h| h.created)
        .map(|h| h.bytes)
}

/// The oldest archives that together have `lacking` bytes; `None` when all that may go are less.
pub(super) fn room(held: &[Held], lacking: u64) -> Option<Vec<usize>> {
    let mut victims = Vec::new();
    let mut gained = 0u64;
    for index in expendable(held) {
        if gained >= lacking {
            break;
        }
        gained = gained.saturating_add(held[index].bytes);
        victims.push(index);
    }
    (gained >= lacking).then_some(victims)
}

/// Sees that the archive which was just taken stays, also where the clock says that it is older than
/// others.
pub(super) fn keep(held: &mut [Held], taken: &Path) {
    // All of them lie in one directory.
    let is_it = |archive: &&mut Held| archive.path.file_name() == taken.file_name();
    for archive in held.iter_mut().filter(is_it) {
        archive.pinned = true;
    }
}

/// The oldest archives that are more than the limits allow.
pub(super) fn excess(held: &[Held], settings: &RetentionSettings) -> Vec<usize> {
    let mut per_pod: HashMap<_, u64> = HashMap::new();
    for archive in held {
        *per_pod.entry(archive.owner.pod()).or_default() += 1;
    }
    let over = |count: u64, limit: u64| limit > 0 && count > limit;
    let expendable = expendable(held);
    let mut victims = HashSet::new();
    for &index in &expendable {
        let count = per_pod.entry(held[index].owner.pod()).or_default();
        if over(*count, settings.per_pod) {
            *count -= 1;
            victims.insert(index);
        }
    }
    let mut count = (held.len() - victims.len()) as u64;
    let gone: u64 = victims.iter().map(|index| held[*index].bytes).sum();
    let mut bytes = held.iter().map(|h| h.bytes).sum::<u64>() - gone;
    for &index in &expendable {
        if !over(count, settings.per_node) && !over(bytes, settings.total.bytes()) {
            break;
        }
        if victims.insert(index) {
            count -= 1;
            bytes -= held[index].bytes;
        }
    }
    expendable
        .into_iter()
        .filter(|index| victims.contains(index))
        .collect()
}

/// All that may go, oldest first.
fn expendable(held: &[Held]) -> Vec<usize> {
    let mut newest: HashMap<&Owner, usize> = HashMap::new();
    for (index, archive) in held.iter().enumerate() {
        let best = newest.entry(&archive.owner).or_insert(index);
        if held[*best].created < archive.created {
            *best = index;
        }
    }
    let mut may_go: Vec<usize> = (0..held.len())
        .filter(|index| !held[*index].pinned && newest[&held[*index].owner] != *index)
        .collect();
    may_go.sort_by_key(|index| held[*index].created);
    may_go
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(owner: (&str, &str), created: i64, bytes: u64) -> Held {
        Held {
            path: format!("/c/{created}").into(),
            owner: Owner::of_pod("shop", owner.0, owner.1),
            created: (created, 0),
            bytes,
            pinned: false,
        }
    }

    fn settings(per_pod: u64, per_node: u64, total: &str) -> RetentionSettings {
        RetentionSettings {
            per_pod,
            per_node,
            total: total.to_owned().try_into().unwrap(),
            ..RetentionSettings::default()
        }
    }

    fn created(held: &[Held], victims: &[usize]) -> Vec<i64> {
        victims.iter().map(|index| held[*index].created.0).collect()
    }

    #[test]
    fn the_oldest_of_a_pod_go_and_the_newest_of_each_container_stays() {
        let all = [
            held(("web", "app"), 1, 10),
            held(("web", "side"), 2, 10),
            held(("web", "app"), 3, 10),
            held(("web", "app"), 4, 10),
            held(("db", "app"), 5, 10),
        ];
        let gone = |n| created(&all, &excess(&all, &settings(n, 0, "0")));
        assert_eq!(gone(0), Vec::<i64>::new());
        assert_eq!(gone(4), Vec::<i64>::new());
        assert_eq!(gone(3), [1]);
        assert_eq!(gone(2), [1, 3]);
        // 2 is the only one of its container, 4 the newest of its own.
        assert_eq!(gone(1), [1, 3]);
    }

    #[test]
    fn limits_of_the_node_come_after_those_of_pods() {
        let all = [
            held(("a", "x"), 1, 10),
            held(("b", "x"), 2, 20),
            held(("a", "x"), 3, 30),
            held(("b", "x"), 4, 40),
            held(("b", "x"), 5, 50),
        ];
        let gone = |p, n, t: &str| created(&all, &excess(&all, &settings(p, n, t)));
        assert_eq!(gone(2, 0, "0"), [2]);
        assert_eq!(gone(2, 3, "0"), [1, 2]);
        assert_eq!(gone(0, 4, "0"), [1]);
        assert_eq!(gone(0, 0, "140B"), [1]);
        assert_eq!(gone(0, 0, "139B"), [1, 2]);
        assert_eq!(gone(0, 1, "1B"), [1, 2, 4]);
    }

    #[test]
    fn a_pin_holds() {
        let mut all = [
            held(("a", "x"), 1, 10),
            held(("a", "x"), 2, 10),
            held(("a", "x"), 3, 10),
        ];
        all[0].pinned = true;
        assert_eq!(created(&all, &excess(&all, &settings(1, 0, "0"))), [2]);
        assert_eq!(room(&all, 11), None);
    }

    #[test]
    fn what_was_just_taken_stays_though_the_clock_was_set_back() {
        let mut all = [
            held(("a", "x"), 1, 10),
            held(("a", "x"), 7, 10),
            held(("a", "x"), 8, 10),
            held(("b", "x"), 6, 10),
        ];
        keep(&mut all, Path::new("/other/name/of/the/directory/1"));
        assert_eq!(created(&all, &excess(&all, &settings(2, 0, "0"))), [7]);
        assert_eq!(created(&all, &excess(&all, &settings(0, 1, "1B"))), [7]);
    }

    #[test]
    fn room_is_made_from_the_oldest_or_not_at_all() {
        let all = [
            held(("a", "x"), 3, 30),
            held(("a", "x"), 1, 10),
            held(("b", "x"), 2, 20),
            held(("a", "x"), 4, 40),
            held(("b", "x"), 5, 50),
        ];
        let victims = |lacking| room(&all, lacking).map(|v| created(&all, &v));
        assert_eq!(victims(0), Some(vec![]));
        assert_eq!(victims(1), Some(vec![1]));
        assert_eq!(victims(11), Some(vec![1, 2]));
        assert_eq!(victims(60), Some(vec![1, 2, 3]));
        assert_eq!(victims(61), None);
        let owner = Owner::of_pod("shop", "b", "x");
        assert_eq!(last_size(&all, &owner), Some(50));
        assert_eq!(last_size(&all, &Owner::alone("c")), None);
    }
}
