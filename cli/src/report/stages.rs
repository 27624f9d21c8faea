//! Time and memory of every stage.

use taq_core::Result;
use taq_core::artifacts::{RunFolder, read_json};
use taq_core::pipeline::{Outcome, STAGES};

use crate::output::{bytes, seconds};

/// A stage that is not part of `taq run`.
const PROFILE: &str = "profile";

/// One stage.
pub(super) struct CostRow {
    pub(super) stage: String,
    pub(super) summary: String,
    pub(super) time: String,
    pub(super) memory: String,
    /// Share of the longest stage's time, and of the largest stage's memory, in %.
    pub(super) time_share: u32,
    pub(super) memory_share: u32,
}

/// The section.
pub(super) struct Costs {
    pub(super) rows: Vec<CostRow>,
    pub(super) total: String,
}

impl Costs {
    /// What the stages noted when they were last run; `None` if none did.
    pub(super) fn read(run: &RunFolder) -> Result<Option<Self>> {
        let paths = STAGES.into_iter().chain([PROFILE]).map(|stage| run.stage_cost(stage));
        let outcomes: Vec<Outcome> = paths
            .filter(|path| path.exists())
            .map(|path| read_json(&path, "stage cost"))
            .collect::<Result<_>>()?;
        Ok((!outcomes.is_empty()).then(|| Self::of(&outcomes)))
    }

    fn of(outcomes: &[Outcome]) -> Self {
        let longest = outcomes.iter().map(|o| o.seconds).fold(0.0, f64::max);
        let largest = outcomes.iter().map(|o| o.peak_memory_bytes).max().unwrap_or(0);
        let row = |o: &Outcome| CostRow {
            stage: o.stage.clone(),
            summary: o.summary.clone(),
            time: seconds(o.seconds),
            memory: bytes(o.peak_memory_bytes as u64),
            time_share: share(o.seconds, longest),
            memory_share: share(o.peak_memory_bytes as f64, largest as f64),
        };
        Self {
            rows: outcomes.iter().map(row).collect(),
            total: seconds(outcomes.iter().map(|o| o.seconds).sum()),
        }
    }
}

fn share(part: f64, of: f64) -> u32 {
    if of > 0.0 { (100.0 * part / of).round() as u32 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_longest_and_the_largest() {
        let outcome = |stage: &str, seconds, peak_memory_bytes| Outcome {
            stage: stage.into(),
            summary: String::new(),
            reused: false,
            seconds,
            peak_memory_bytes,
        };
        let costs = Costs::of(&[outcome("observe", 5.0, 400), outcome("round", 20.0, 100)]);
        let shares: Vec<_> = costs.rows.iter().map(|r| (r.time_share, r.memory_share)).collect();
        assert_eq!(shares, [(25, 100), (100, 25)]);
        assert_eq!(costs.total, "25.0 s");
    }
}
