//! The allocation of one budget.
//!
//! A width's *slope* is the error that it saves for each bit that it costs more. Taking the steepest step of
//! all items, again and again, follows the convex hull of each item's errors and spends the budget at the
//! best price: this is the optimum for the bits that it spends, and what Lagrange's multiplier finds. At the
//! end, where a step no longer fits, narrower and flatter ones fill what is left. The steps that are taken
//! never get steeper, hence:
//!
//! - The error is at most one step's saving above the optimum.
//! - A larger budget never predicts a larger error. Both budgets take the same steps up to the first that
//!   fits only the larger; the smaller has less than its cost left, to spend on steps that save no more for
//!   each bit.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Something that gets a width.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// What each bit of its width costs.
    pub(crate) cost: u64,
    /// The widths that it may have, rising, each with its predicted error.
    pub(crate) choices: Vec<(u8, f64)>,
}

/// A wider choice for an item.
struct Step {
    slope: f64,
    item: usize,
    to: usize,
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> Ordering {
        // Among equals the first item, so that the plan does not depend on the heap.
        self.slope.total_cmp(&other.slope).then(other.item.cmp(&self.item)).then(other.to.cmp(&self.to))
    }
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Step {}

/// A width for each item, all together within `capacity`. `Err` is what the narrowest widths cost, if that is
/// more.
pub(crate) fn allocate(items: &[Item], capacity: u64) -> Result<Vec<u8>, u64> {
    let least = items.iter().map(|item| item.cost * u64::from(item.choices[0].0)).sum::<u64>();
    let mut left = capacity.checked_sub(least).ok_or(least)?;
    let mut chosen = vec![0; items.len()];
    // From here on the item's choices are known not to fit.
    let mut end: Vec<usize> = items.iter().map(|item| item.choices.len()).collect();
    let mut heap: BinaryHeap<Step> =
        items.iter().enumerate().filter_map(|(i, item)| steepest(i, item, 0, end[i])).collect();
    while let Some(Step { item: i, to, .. }) = heap.pop() {
        let item = &items[i];
        let cost = item.cost * u64::from(item.choices[to].0 - item.choices[chosen[i]].0);
        if cost <= left {
            left -= cost;
            chosen[i] = to;
        } else {
            end[i] = to;
        }
        heap.extend(steepest(i, item, chosen[i], end[i]));
    }
    Ok(items.iter().zip(&chosen).map(|(item, &at)| item.choices[at].0).collect())
}

/// The steepest step of an item among those that save anything.
fn steepest(index: usize, item: &Item, from: usize, end: usize) -> Option<Step> {
    let (bits, error) = item.choices[from];
    let step = |to: usize| {
        let (wider, less) = item.choices[to];
        let cost = item.cost.max(1) as f64 * f64::from(wider - bits);
        Step { slope: (error - less) / cost, item: index, to }
    };
    (from + 1..end).map(step).max().filter(|step| step.slope > 0.0)
}
