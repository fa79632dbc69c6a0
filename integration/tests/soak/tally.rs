//! What was done how often, and how it has failed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// How an operation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// As it should.
    Done,
    /// It failed, and this is why it was to be expected.
    Failed(&'static str),
}

#[derive(Debug, Default)]
pub struct Tally {
    counts: Mutex<BTreeMap<(&'static str, Outcome), u32>>,
}

impl Tally {
    pub fn note(&self, operation: &'static str, outcome: Outcome) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((operation, outcome)).or_default() += 1;
    }

    /// So many operations in all.
    pub fn total(&self) -> u32 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.values().sum()
    }

    /// Two lines: operations by kind, failures by kind.
    pub fn summary(&self) -> String {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut operations, mut failures) = (BTreeMap::new(), BTreeMap::new());
        for ((operation, outcome), count) in counts.iter() {
            *operations.entry(*operation).or_insert(0) += count;
            if let Outcome::Failed(why) = outcome {
                *failures.entry(*why).or_insert(0) += count;
            }
        }
        let list = |of: &BTreeMap<&str, u32>| {
            let each: Vec<_> = of.iter().map(|(name, n)| format!("{name} {n}")).collect();
            format!("{} ({})", of.values().sum::<u32>(), each.join(", "))
        };
        format!(
            "operations: {}\nfailures, all of an expected kind: {}",
            list(&operations),
            list(&failures)
        )
    }
}
