//! `run`: the stages of a manifest, one after the other, and the report at the end.

use super::{Outcome, Session, cache, calibrate, decide, generate, observe, round, sensitivity};
use crate::Result;
use crate::artifacts::read_json;
use crate::manifest::Pipeline;

/// The stages, in their order.
pub const STAGES: [&str; 7] = ["calibrate", "observe", "sensitivity", "decide", "cache", "round", "generate"];

/// Runs the manifest's stages in order; `done` hears of each as it ends.
pub fn run(session: &Session, pipeline: &Pipeline, mut done: impl FnMut(&Outcome)) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut end = |outcome: Outcome| -> Result<()> {
        done(&outcome);
        outcomes.push(outcome);
        Ok(())
    };
    if let Some(settings) = &pipeline.calibrate {
        end(calibrate(session, settings)?)?;
    }
    if let Some(settings) = &pipeline.observe {
        end(observe(session, settings)?)?;
    }
    if let Some(settings) = &pipeline.sensitivity {
        end(sensitivity(session, settings)?)?;
    }
    if let Some(settings) = &pipeline.decide {
        end(decide(session, settings)?)?;
    }
    if let Some(settings) = &pipeline.cache {
        end(cache(session, settings)?)?;
    }
    if let Some(settings) = &pipeline.round {
        end(round(session, settings)?)?;
    }
    if let Some(settings) = &pipeline.generate {
        end(generate(session, settings)?)?;
    }
    Ok(outcomes)
}

/// What the stages of this run folder cost.
pub(super) fn costs(session: &Session) -> Result<Vec<Outcome>> {
    let paths = STAGES.iter().map(|stage| session.run.stage_cost(stage));
    paths.filter(|path| path.exists()).map(|path| read_json(&path, "stage cost")).collect()
}
