//! The best widths of one layer along the schedule, in at most so many runs of one width: dynamic programming.
//!
//! For a price of a bit, the cost of a plan is Σₜ (error at t + price · bits). The cheapest plan up to timestep t that ends
//! with width b in its r-th run comes from the one that ends with b in the same run, or from the cheapest that ends with
//! another width in the run before: T · R · B steps, and exact.

/// The position of a width for each timestep, and Σ (error + price · bits).
///
/// `errors` is `[timesteps][widths]`; `bits` the widths, rising. Among plans of the same cost, the one with fewer runs.
pub(crate) fn cheapest(errors: &[Vec<f64>], bits: &[u8], runs: usize, price: f64) -> (Vec<usize>, f64) {
    let (steps, widths) = (errors.len(), bits.len());
    let runs = runs.clamp(1, steps.max(1));
    let Some(first) = errors.first() else { return (Vec::new(), 0.0) };
    let here = |step: &[f64], width: usize| step[width] + price * f64::from(bits[width]);
    // [run][width]
    let mut cost = vec![vec![f64::INFINITY; widths]; runs];
    cost[0].iter_mut().enumerate().for_each(|(width, cost)| *cost = here(first, width));
    // [step][run][width]: the width before, if another run began here.
    let mut before: Vec<Vec<Vec<Option<usize>>>> = Vec::with_capacity(steps);
    before.push(vec![vec![None; widths]; runs]);
    for step in &errors[1..] {
        let mut next = vec![vec![f64::INFINITY; widths]; runs];
        let mut from = vec![vec![None; widths]; runs];
        for run in 0..runs {
            let cheapest_before = run.checked_sub(1).map(|before| two_cheapest(&cost[before]));
            for width in 0..widths {
                let (mut best, mut came) = (cost[run][width], None);
                if let Some([first, second]) = cheapest_before {
                    let other = if first == Some(width) { second } else { first };
                    if let Some(other) = other
                        && cost[run - 1][other] < best
                    {
                        (best, came) = (cost[run - 1][other], Some(other));
                    }
                }
                next[run][width] = best + here(step, width);
                from[run][width] = came;
            }
        }
        cost = next;
        before.push(from);
    }
    let mut best = (0, 0);
    for run in 0..runs {
        for width in 0..widths {
            if cost[run][width] < cost[best.0][best.1] {
                best = (run, width);
            }
        }
    }
    let total = cost[best.0][best.1];
    let (mut run, mut width) = best;
    let mut plan = vec![0; steps];
    for step in (0..steps).rev() {
        plan[step] = width;
        if let Some(earlier) = before[step][run][width] {
            (run, width) = (run - 1, earlier);
        }
    }
    (plan, total)
}

/// Positions of the cheapest and the second cheapest.
fn two_cheapest(cost: &[f64]) -> [Option<usize>; 2] {
    let mut found = [None; 2];
    for at in 0..cost.len() {
        let cheaper = |than: Option<usize>| than.is_none_or(|than| cost[at] < cost[than]);
        if cheaper(found[0]) {
            found = [Some(at), found[0]];
        } else if cheaper(found[1]) {
            found[1] = Some(at);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use taq_policy::testing::Random;

    fn runs_of(plan: &[usize]) -> usize {
        1 + plan.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    fn cost(errors: &[Vec<f64>], bits: &[u8], plan: &[usize], price: f64) -> f64 {
        errors.iter().zip(plan).map(|(step, &at)| step[at] + price * f64::from(bits[at])).sum()
    }

    #[test]
    fn it_is_the_cheapest_of_all_plans() {
        let mut random = Random::new(5);
        let bits = [4, 6, 8];
        for _ in 0..200 {
            let steps = 1 + random.below(6) as usize;
            let errors: Vec<Vec<f64>> =
                (0..steps).map(|_| (0..3).map(|_| random.uniform()).collect()).collect();
            for runs in 1..=4 {
                let price = 0.2 * random.uniform();
                let mut least = f64::INFINITY;
                for code in 0..3_usize.pow(steps as u32) {
                    let plan: Vec<usize> = (0..steps).map(|t| code / 3_usize.pow(t as u32) % 3).collect();
                    if runs_of(&plan) <= runs {
                        least = least.min(cost(&errors, &bits, &plan, price));
                    }
                }
                let (plan, found) = cheapest(&errors, &bits, runs, price);
                assert!(runs_of(&plan) <= runs, "{plan:?}");
                assert!(
                    (found - least).abs() < 1e-12
                        && (cost(&errors, &bits, &plan, price) - least).abs() < 1e-12
                );
            }
        }
    }

    #[test]
    fn nothing_to_plan() {
        assert_eq!(cheapest(&[], &[4, 8], 3, 1.0), (vec![], 0.0));
        assert_eq!(cheapest(&[vec![1.0], vec![9.0]], &[8], 5, 0.0).0, [0, 0]);
    }
}
