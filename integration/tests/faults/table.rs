//! The cells that were run, and the table of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// One combination of an operation, a step and a fault, or of what is at fault and how.
#[derive(Debug, Clone)]
struct Cell {
    operation: String,
    step: &'static str,
    fault: &'static str,
    took: Duration,
    passed: bool,
}

static CELLS: Mutex<Vec<Cell>> = Mutex::new(Vec::new());

/// The cells of one case: all are run, and the case fails with those that failed.
#[derive(Debug, Default)]
pub struct Run {
    failures: Vec<String>,
}

impl Run {
    /// Notes how a cell went; says whether it passed.
    pub fn note(
        &mut self,
        operation: &str,
        (step, fault): (&'static str, &'static str),
        begun: Instant,
        result: Result<()>,
    ) -> bool {
        let passed = result.is_ok();
        if let Err(error) = result {
            let failure = format!("{operation}, {fault} at {step}: {error:#}");
            eprintln!("FAILED {failure}");
            self.failures.push(failure);
        }
        let cell = Cell {
            operation: operation.into(),
            step,
            fault,
            took: begun.elapsed(),
            passed,
        };
        CELLS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(cell);
        passed
    }

    /// Fails with everything that failed.
    pub fn end(self) -> Result<()> {
        if self.failures.is_empty() {
            return Ok(());
        }
        bail!(
            "{} cells failed: {}",
            self.failures.len(),
            self.failures.join("\n")
        )
    }
}

/// Prints a table for each operation: a line per step, a column per fault.
pub fn print() {
    let cells = CELLS.lock().unwrap_or_else(PoisonError::into_inner);
    print!("{}", render(&cells));
}

fn render(cells: &[Cell]) -> String {
    let mut text = String::new();
    let operations: BTreeSet<&str> = cells.iter().map(|cell| &*cell.operation).collect();
    for operation in operations {
        let of: Vec<_> = cells.iter().filter(|c| c.operation == operation).collect();
        let mut steps = Vec::new();
        let mut faults = Vec::new();
        let mut found: BTreeMap<(&str, &str), (u32, u32)> = BTreeMap::new();
        for cell in &of {
            if !steps.contains(&cell.step) {
                steps.push(cell.step);
            }
            if !faults.contains(&cell.fault) {
                faults.push(cell.fault);
            }
            let count = found.entry((cell.step, cell.fault)).or_default();
            count.0 += u32::from(cell.passed);
            count.1 += 1;
        }
        let _ = writeln!(text, "\n| {operation} | {} |", faults.join(" | "));
        let _ = writeln!(text, "|---|{}", "---|".repeat(faults.len()));
        for step in steps {
            let row = faults.iter().map(|fault| match found.get(&(step, fault)) {
                None => " ".to_owned(),
                Some((passed, all)) => format!("{passed}/{all}"),
            });
            let _ = writeln!(text, "| {step} | {} |", row.collect::<Vec<_>>().join(" | "));
        }
    }
    let passed = cells.iter().filter(|cell| cell.passed).count();
    let took: Duration = cells.iter().map(|cell| cell.took).sum();
    let _ = writeln!(
        text,
        "\n{} cells run, {passed} passed, {} s in all",
        cells.len(),
        took.as_secs()
    );
    text
}
