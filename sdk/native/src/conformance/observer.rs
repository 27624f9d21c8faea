//! What the host expects of an observer.

use taq_policy::testing::{Random, layer};
use taq_policy::{LayerSpec, Role};

use super::{Begins, Report, Suite};
use crate::{Error, InputRange, Result};

/// An observer under test, in whatever way it is written.
pub trait Observes: Sync {
    /// Makes an instance from settings (JSON), or from its own, and ends it.
    ///
    /// # Errors
    /// What the observer says of the settings.
    fn create(&self, settings: Option<&str>) -> Result<()>;

    /// The range of these batches of a layer's input, by a new instance.
    ///
    /// # Errors
    /// What the observer says, or what is wrong with its answer.
    fn range(&self, layer: &LayerSpec, batches: &[&[f32]]) -> Result<InputRange>;
}

/// Panics with a list of what is wrong, if anything is.
///
/// # Panics
/// If the observer does not conform.
#[track_caller]
pub fn assert_observer_conforms(observer: &dyn Observes) {
    check_observer(observer, &mut |_| {}).assert();
}

/// Holds an observer to what the host expects of it. `begins` is told of each check.
pub fn check_observer(observer: &dyn Observes, begins: Begins<'_>) -> Report {
    let mut suite = Suite::new(begins);
    let spec = layer("block.img.mlp.fc1", Role::Fc1, 8, 4);
    let mut random = Random::new(1);
    let values: Vec<f32> = (0..8 * 60).map(|i| (1 + i % 8) as f32 * random.between(-1.0, 2.0)).collect();
    let batches: Vec<&[f32]> = values.chunks(8 * 20).collect();
    suite.check("settings that are none are refused", || {
        for wrong in ["[1]", "{", "{\"no such setting\": 1}"] {
            match observer.create(Some(wrong)) {
                Err(Error::Invalid(text)) if !text.is_empty() => {}
                other => return Err(format!("settings {wrong}: {other:?}, expected INVALID with a text")),
            }
        }
        observer.create(None).map_err(|e| format!("its own settings are refused: {e}"))
    });
    suite.check("shapes: a range of finite ends in order", || {
        for width in [1, 3, 8] {
            let spec = LayerSpec { in_features: width, ..spec.clone() };
            let batches: Vec<&[f32]> = values.chunks(width * 10).filter(|b| b.len() % width == 0).collect();
            range(observer, &spec, &batches).map_err(|e| format!("{width} channels: {e}"))?;
        }
        Ok(())
    });
    suite.check("the same batches, the same range", || {
        let once = range(observer, &spec, &batches)?;
        if once == range(observer, &spec, &batches)? { Ok(()) } else { Err("two ranges differ".into()) }
    });
    suite.check("threads: several at once", || {
        let here = range(observer, &spec, &batches)?;
        std::thread::scope(|scope| {
            let work = || range(observer, &spec, &batches);
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                match thread.join() {
                    Ok(Ok(there)) if there == here => {}
                    Ok(Ok(_)) => return Err("another thread has another range".into()),
                    Ok(Err(e)) => return Err(e),
                    Err(_) => return Err("a thread panicked".into()),
                }
            }
            Ok(())
        })
    });
    suite.check("degenerate inputs", || {
        for (what, values) in
            [("zeros", vec![0.0; 64]), ("all the same", vec![-3.0; 64]), ("one token", vec![0.5; 8])]
        {
            range(observer, &spec, &[&values]).map_err(|e| format!("{what}: {e}"))?;
        }
        Ok(())
    });
    suite.check("an observer that saw nothing ends quietly", || {
        observer.create(None).map_err(|e| e.to_string())
    });
    suite.report
}

/// The range, if it is one.
fn range(observer: &dyn Observes, spec: &LayerSpec, batches: &[&[f32]]) -> Result<InputRange, String> {
    let range = observer.range(spec, batches).map_err(|e| e.to_string())?;
    let ends = [("min", &range.min), ("max", &range.max)];
    for (what, values) in ends {
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(format!("{what}[{at}] is {}, expected a finite number", values[at]));
        }
    }
    if !(range.low.is_finite() && range.high.is_finite() && range.low <= range.high) {
        return Err(format!("the range is {} to {}", range.low, range.high));
    }
    match range.min.iter().zip(&range.max).position(|(low, high)| low > high) {
        Some(at) => Err(format!("channel {at} goes from {} to {}", range.min[at], range.max[at])),
        None => Ok(range),
    }
}
