//! What the host expects of a rounder.

use super::driver::Host;
use super::problem::Problem;
use super::{Begins, Report, Suite};
use crate::{Error, Result, RoundedLayer};

/// A rounder under test, in whatever way it is written.
pub trait Rounds: Sync {
    /// Makes an instance from settings (JSON), or from its own, and ends it.
    ///
    /// # Errors
    /// What the rounder says of the settings.
    fn create(&self, settings: Option<&str>) -> Result<()>;

    /// Rounds a problem's layers with a new instance.
    ///
    /// # Errors
    /// What the rounder says, or what is wrong with its answer.
    fn round(&self, problem: &Problem, seed: u64, host: &Host) -> Result<Vec<RoundedLayer>>;

    /// The same with an instance that was made on this thread, and on another; `None` if it is bound to a thread.
    fn round_elsewhere(&self, problem: &Problem, seed: u64) -> Option<Result<Vec<RoundedLayer>>>;

    /// Whether it rounds by the functions of a block.
    fn by_block(&self) -> bool;
}

/// Panics with a list of what is wrong, if anything is.
///
/// # Panics
/// If the rounder does not conform.
#[track_caller]
pub fn assert_rounder_conforms(rounder: &dyn Rounds) {
    check_rounder(rounder, &mut |_| {}).assert();
}

/// Shape of the layers that are rounded.
const SHAPE: [usize; 2] = [6, 16];

/// Holds a rounder to what the host expects of it. `begins` is told of each check.
pub fn check_rounder(rounder: &dyn Rounds, begins: Begins<'_>) -> Report {
    let mut suite = Suite::new(begins);
    suite.check("settings that are none are refused", || {
        for wrong in ["[1]", "\"text\"", "{", "{\"no such setting\": 1}"] {
            match rounder.create(Some(wrong)) {
                Err(Error::Invalid(text)) if !text.is_empty() => {}
                Err(other) => {
                    return Err(format!("settings {wrong}: the error is {other:?}, expected INVALID"));
                }
                Ok(()) => return Err(format!("settings {wrong} are taken")),
            }
        }
        rounder.create(None).map_err(|e| format!("its own settings are refused: {e}"))
    });
    suite.check("shapes: grids of every kind", || {
        for (bits, symmetric, group_len) in
            [(4, false, 16), (3, true, 16), (4, false, 4), (2, true, 8), (8, false, 96), (8, true, 16)]
        {
            let grid = Problem::grid(SHAPE, bits, symmetric, group_len);
            let problem = Problem::new(3, SHAPE, grid, 24, 2);
            let what = format!("{bits} bits, symmetric {symmetric}, groups of {group_len}");
            sound(rounder, &problem, 1).map_err(|e| format!("{what}: {e}"))?;
        }
        Ok(())
    });
    suite.check("the same seed, the same integers", || {
        let problem = problem();
        let host = Host::default();
        let once = rounder.round(&problem, 7, &host).map_err(|e| e.to_string())?;
        let again = rounder.round(&problem, 7, &host).map_err(|e| e.to_string())?;
        if once == again { Ok(()) } else { Err("two calls with one seed differ".into()) }
    });
    suite.check("threads: other threads, several at once", || {
        let problem = problem();
        let here = rounder.round(&problem, 7, &Host::default()).map_err(|e| e.to_string())?;
        let Some(there) = rounder.round_elsewhere(&problem, 7) else { return Ok(()) };
        let mut all = vec![there];
        std::thread::scope(|scope| {
            let work = || rounder.round(&problem, 7, &Host::default());
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            let joined = |t: std::thread::ScopedJoinHandle<'_, Result<Vec<RoundedLayer>>>| {
                t.join().unwrap_or_else(|_| Err("a thread panicked".into()))
            };
            all.extend(threads.into_iter().map(joined));
        });
        for found in all {
            if found.map_err(|e| e.to_string())? != here {
                return Err("another thread has other integers".into());
            }
        }
        Ok(())
    });
    suite.check("cancellation and progress", || {
        let problem = problem();
        let host = Host::default();
        rounder.round(&problem, 1, &host).map_err(|e| format!("without being asked to stop: {e}"))?;
        progress(&host.progress())?;
        let cancelling = Host::cancelling();
        match rounder.round(&problem, 1, &cancelling) {
            Err(Error::Cancelled) => Ok(()),
            Ok(_) => Err(format!(
                "it went on to the end although it was asked to stop; it looked {} times",
                cancelling.asked()
            )),
            Err(other) => Err(format!("asked to stop, it said {other:?}, expected CANCELLED")),
        }
    });
    suite.check("degenerate layers", || degenerate(rounder));
    suite.check("numbers that are none", || {
        let mut problem = problem();
        for wrong in [f32::NAN, f32::INFINITY] {
            for row in 0..problem.rows {
                problem.inputs[row * 2 * SHAPE[1] + row % SHAPE[1]] = wrong;
            }
            match rounder.round(&problem, 1, &Host::default()) {
                Ok(_) | Err(Error::Invalid(_) | Error::Unsupported(_) | Error::Failed(_)) => {}
                Err(other) => return Err(format!("inputs with {wrong}: {other:?}")),
            }
            if let Ok(rounded) = rounder.round(&problem, 1, &Host::default()) {
                finite(&problem, &rounded).map_err(|e| format!("inputs with {wrong}: {e}"))?;
            }
        }
        Ok(())
    });
    if rounder.by_block() {
        suite.check("an error of the host ends the call", || {
            let host = Host::failing();
            match rounder.round(&problem(), 1, &host) {
                Err(Error::Panicked(text)) => Err(format!("it panicked: {text}")),
                Err(_) => Ok(()),
                Ok(_) if host.called() == 0 => Ok(()),
                Ok(_) => Err("it went on although the host's functions failed".into()),
            }
        });
    }
    suite.report
}

fn problem() -> Problem {
    Problem::new(5, SHAPE, Problem::grid(SHAPE, 4, false, SHAPE[1]), 24, 2)
}

/// Rounds, and looks whether the integers stand for the weights at all.
fn sound(rounder: &dyn Rounds, problem: &Problem, seed: u64) -> Result<(), String> {
    let rounded = rounder.round(problem, seed, &Host::default()).map_err(|e| e.to_string())?;
    finite(problem, &rounded)?;
    let nothing: Vec<RoundedLayer> = rounded
        .iter()
        .map(|r| RoundedLayer {
            weight_int: vec![0; r.weight_int.len()],
            zero_point: vec![0.0; r.scale.len()],
            ..r.clone()
        })
        .collect();
    let (error, of_nothing) = (problem.held_out_of(&rounded), problem.held_out_of(&nothing));
    if error < of_nothing {
        return Ok(());
    }
    Err(format!(
        "the output's error is {error}; weights of 0 have {of_nothing}: do the step sizes belong to the rows?"
    ))
}

fn finite(problem: &Problem, rounded: &[RoundedLayer]) -> Result<(), String> {
    for (layer, rounded) in problem.layers.iter().zip(rounded) {
        if let Some(at) = rounded.values(&layer.grid).iter().position(|v| !v.is_finite()) {
            return Err(format!("weight {at} of {} is not finite", layer.spec.id));
        }
    }
    Ok(())
}

fn progress(reports: &[(u64, u64)]) -> Result<(), String> {
    let mut before = 0.0;
    for &(done, total) in reports {
        if total == 0 || done > total {
            return Err(format!("it reported {done} of {total} units"));
        }
        let share = done as f64 / total as f64;
        // A new layer begins anew.
        if share < before && before < 1.0 {
            return Err(format!("its progress fell from {before:.3} to {share:.3}"));
        }
        before = share;
    }
    Ok(())
}

fn degenerate(rounder: &dyn Rounds) -> Result<(), String> {
    let size = SHAPE[0] * SHAPE[1];
    let outlier = |i: usize| if i == 5 { 1e4 } else { 1e-3 * (i as f32).sin() };
    for (what, weight) in [
        ("all zeros", vec![0.0; size]),
        ("all the same", vec![0.25; size]),
        ("tiny", vec![1e-30; size]),
        ("one far larger than the others", (0..size).map(outlier).collect()),
    ] {
        for symmetric in [true, false] {
            let grid = Problem::grid(SHAPE, 4, symmetric, SHAPE[1]);
            let problem = Problem::new(4, SHAPE, grid, 16, 1).with_weight(weight.clone());
            let rounded = rounder
                .round(&problem, 1, &Host::default())
                .map_err(|e| format!("weights {what}, symmetric {symmetric}: {e}"))?;
            finite(&problem, &rounded).map_err(|e| format!("weights {what}: {e}"))?;
            if what == "all zeros" && rounded[0].values(&grid).iter().any(|v| v.abs() > 1e-3) {
                return Err("weights of 0 became something else".into());
            }
        }
    }
    for shape in [[1, 16], [6, 1], [1, 1]] {
        let grid = Problem::grid(shape, 4, false, shape[1]);
        let problem = Problem::new(6, shape, grid, 16, 1);
        let rounded = rounder.round(&problem, 1, &Host::default());
        finite(&problem, &rounded.map_err(|e| format!("a weight of shape {shape:?}: {e}"))?)?;
    }
    let mut silent = Problem::new(8, SHAPE, Problem::grid(SHAPE, 4, false, SHAPE[1]), 16, 1);
    silent.inputs.fill(0.0);
    let rounded = rounder.round(&silent, 1, &Host::default()).map_err(|e| format!("inputs of 0: {e}"))?;
    finite(&silent, &rounded).map_err(|e| format!("inputs of 0: {e}"))
}
