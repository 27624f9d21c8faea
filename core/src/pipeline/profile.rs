//! `profile`: what comes out of GELU, channel by channel and timestep by timestep.
//!
//! The unit of work is a timestep, whose `activations/post_gelu/step_{k}.npz` says that it is done. At the end all of them
//! become `activations/post_gelu_profile.npz` (docs/profile.md).

use std::collections::BTreeMap;

use mlx_rs::Array;
use rayon::prelude::*;
use serde_json::json;

use super::observe::{host_inputs, values_of};
use super::session::{Encoded, measured, parts};
use super::{Outcome, SampleSet, Session};
use crate::artifacts::{Npz, RunFolder, StageState, write_npz};
use crate::stats::{ChannelProfile, PROFILE_BINS, all_finite, profile_edges};
use crate::{Error, LayerId, LayerSpec, LinearCall, Result, Tap};

/// Images in one forward pass.
const BATCH: usize = 8;

/// One layer over all timesteps: a row of the table that `profile` ends with.
#[derive(Debug, Clone, PartialEq)]
pub struct ProfileSummary {
    /// The layer.
    pub layer: LayerId,
    /// Channels of its input.
    pub channels: usize,
    /// Values seen.
    pub values: u64,
    /// Mean of all values.
    pub mean: f64,
    /// Standard deviation of all values.
    pub std: f64,
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// Share of the values below 0.
    pub negative: f64,
    /// The step with the largest value.
    pub largest_at: usize,
}

/// Runs the stage on so many samples, spread evenly over the timesteps; `None`: on all that are calibrated.
pub fn profile(session: &Session, num_samples: Option<usize>) -> Result<Outcome> {
    measured(session, "profile", || {
        let (run, spec) = (&session.run, session.model.spec());
        let set = SampleSet::open(run, "profile", &*session.model)?;
        let layers: Vec<&LayerSpec> = spec.layers().filter(|l| l.post_gelu).collect();
        if layers.is_empty() {
            let what =
                format!("model `{}` has no layer behind a GELU; there is nothing to profile", spec.name);
            return Err(Error::Unsupported { what });
        }
        let steps = set.manifest.kept_steps.clone();
        let images = images(num_samples, steps.len(), set.manifest.n_completed)?;
        let parts = parts([("samples", set.identity(session)?), ("images", json!(images))]);
        let outputs = [run.post_gelu_profile(), run.post_gelu_parts()];
        let state = run.begin_stage("profile", &parts, &outputs, session.force)?;
        let samples: usize = images.iter().sum();
        let summary = format!("{} post-GELU layers × {} steps, {samples} samples", layers.len(), steps.len());
        if state == StageState::Complete && run.post_gelu_profile().exists() {
            return Ok((summary, true));
        }
        let encoded = set.encode(session, images[0])?;
        session.cx.progress.begin("profile", steps.len() as u64);
        for (&step, &images) in steps.iter().zip(&images) {
            session.cx.check()?;
            if !run.post_gelu_part(step).exists() {
                write_part(run, step, &layers, profile_step(session, &set, &encoded, images, step)?)?;
            }
            session.cx.progress.advance(1, "");
        }
        session.cx.progress.end();
        merge(run, &set, &layers, &steps)?;
        run.finish_stage("profile")?;
        Ok((summary, false))
    })
}

/// How many images to look at in each step: all alike, but for a remainder that goes to the first steps.
fn images(num_samples: Option<usize>, steps: usize, calibrated: usize) -> Result<Vec<usize>> {
    let all = steps * calibrated;
    let samples = num_samples.unwrap_or(all);
    if !(steps..=all).contains(&samples) {
        let reason = format!(
            "num_samples is {samples}, expected {steps} (one at each timestep) to {all} (all that are calibrated)"
        );
        return Err(Error::settings("profile", reason));
    }
    Ok((0..steps).map(|step| samples / steps + usize::from(step < samples % steps)).collect())
}

type Profiles = BTreeMap<LayerId, ChannelProfile>;

fn profile_step(
    session: &Session,
    set: &SampleSet,
    encoded: &Encoded,
    images: usize,
    step: usize,
) -> Result<Profiles> {
    let mut tap = ProfileTap { step, profiles: Profiles::new(), pending: Vec::new() };
    let ids: Vec<usize> = (0..images).collect();
    set.show(session, encoded, step, ids.chunks(BATCH), &mut tap, ProfileTap::flush)?;
    Ok(tap.profiles)
}

/// Profiles the input of every post-GELU layer.
struct ProfileTap {
    step: usize,
    profiles: Profiles,
    /// Inputs of the block that the pass is in, profiled in parallel.
    pending: Vec<(LayerSpec, Array)>,
}

impl ProfileTap {
    fn flush(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let inputs = host_inputs(pending.iter().map(|(_, input)| input))?;
        let mut work = Vec::new();
        for ((layer, _), input) in pending.into_iter().zip(&inputs) {
            let profile = self.profiles.remove(&layer.id);
            let profile = profile.unwrap_or_else(|| ChannelProfile::new(layer.in_features));
            work.push((values_of(&layer.id, input)?, layer.id, profile));
        }
        let step = self.step;
        let done = work.into_par_iter().map(|(values, id, mut profile)| {
            if !all_finite(values) {
                return Err(Error::NotFinite { what: format!("the input of {id} at step {step}") });
            }
            profile.add(values);
            Ok((id, profile))
        });
        self.profiles.extend(done.collect::<Result<Vec<_>>>()?);
        Ok(())
    }
}

impl Tap for ProfileTap {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        if self.pending.last().is_some_and(|(last, _)| last.block != call.layer.block) {
            self.flush()?;
        }
        if call.layer.post_gelu {
            self.pending.push((call.layer.clone(), call.input.clone()));
        }
        call.compute()
    }
}

fn name(layer: &LayerSpec, field: &str) -> String {
    format!("{}__{field}", layer.id.array_prefix())
}

fn missing(layer: &LayerSpec) -> Error {
    Error::Unsupported { what: format!("the model did not call its layer {}", layer.id) }
}

fn write_part(run: &RunFolder, step: usize, layers: &[&LayerSpec], profiles: Profiles) -> Result<()> {
    write_npz(&run.post_gelu_part(step), |npz| {
        for layer in layers {
            let profile = profiles.get(&layer.id).ok_or_else(|| missing(layer))?;
            let channels = [layer.in_features];
            let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<f32>>();
            npz.add(&name(layer, "count"), &channels, &vec![profile.tokens; layer.in_features])?;
            npz.add(&name(layer, "mean"), &channels, &narrow(&profile.mean))?;
            npz.add(&name(layer, "std"), &channels, &narrow(&profile.std()))?;
            npz.add(&name(layer, "min"), &channels, &profile.min)?;
            npz.add(&name(layer, "max"), &channels, &profile.max)?;
            npz.add(&name(layer, "hist_counts"), &[PROFILE_BINS], &profile.histogram)?;
        }
        Ok(())
    })
}

/// All steps in one file, step by step along the first axis.
fn merge(run: &RunFolder, set: &SampleSet, layers: &[&LayerSpec], steps: &[usize]) -> Result<()> {
    let parts = steps.iter().map(|&step| Npz::open(&run.post_gelu_part(step))).collect::<Result<Vec<_>>>()?;
    write_npz(&run.post_gelu_profile(), |npz| {
        npz.add("steps", &[steps.len()], &steps.iter().map(|&s| s as i64).collect::<Vec<_>>())?;
        npz.add(
            "sigmas",
            &[steps.len()],
            &steps.iter().map(|&s| set.manifest.sigmas[s]).collect::<Vec<_>>(),
        )?;
        npz.add("hist_edges", &[PROFILE_BINS + 1], &profile_edges())?;
        for layer in layers {
            for (field, columns) in [("count", layer.in_features), ("hist_counts", PROFILE_BINS)] {
                let name = name(layer, field);
                let rows = parts.iter().map(|part| part.vec::<u64>(&name, &[columns]));
                npz.add(&name, &[steps.len(), columns], &rows.collect::<Result<Vec<_>>>()?.concat())?;
            }
            for field in ["mean", "std", "min", "max"] {
                let (name, columns) = (name(layer, field), layer.in_features);
                let rows = parts.iter().map(|part| part.vec::<f32>(&name, &[columns]));
                npz.add(&name, &[steps.len(), columns], &rows.collect::<Result<Vec<_>>>()?.concat())?;
            }
        }
        Ok(())
    })
}

/// What the run's profile says of each layer, over all timesteps.
pub fn profile_summary(session: &Session) -> Result<Vec<ProfileSummary>> {
    let npz = Npz::open(&session.run.post_gelu_profile())?;
    let steps: Vec<i64> = npz.read("steps")?.data;
    let layers = session.model.spec().layers().filter(|l| l.post_gelu);
    layers.map(|layer| summarise(&npz, layer, &steps)).collect()
}

fn summarise(npz: &Npz, layer: &LayerSpec, steps: &[i64]) -> Result<ProfileSummary> {
    let shape = [steps.len(), layer.in_features];
    let read = |field: &str| npz.vec::<f32>(&name(layer, field), &shape);
    let counts: Vec<u64> = npz.vec(&name(layer, "count"), &shape)?;
    let histogram: Vec<u64> = npz.vec(&name(layer, "hist_counts"), &[steps.len(), PROFILE_BINS])?;
    let (mean, std, min, max) = (read("mean")?, read("std")?, read("min")?, read("max")?);
    let values: u64 = counts.iter().sum();
    let total = |f: &dyn Fn(usize) -> f64| {
        counts.iter().enumerate().map(|(i, &n)| n as f64 * f(i)).sum::<f64>() / values as f64
    };
    let overall = total(&|i| f64::from(mean[i]));
    // What channels and timesteps vary by themselves, and by how much they are apart.
    let variance = total(&|i| f64::from(std[i]).powi(2) + (f64::from(mean[i]) - overall).powi(2));
    let below = histogram.chunks(PROFILE_BINS).flat_map(|bins| &bins[..PROFILE_BINS / 2]).sum::<u64>();
    let largest = (0..max.len()).max_by(|&a, &b| max[a].total_cmp(&max[b])).unwrap_or(0);
    Ok(ProfileSummary {
        layer: layer.id.clone(),
        channels: layer.in_features,
        values,
        mean: overall,
        std: variance.sqrt(),
        min: min.iter().copied().fold(f32::INFINITY, f32::min),
        max: max[largest],
        negative: below as f64 / values as f64,
        largest_at: steps[largest / layer.in_features] as usize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_over_the_timesteps() {
        assert_eq!(images(None, 3, 4).unwrap(), [4, 4, 4]);
        assert_eq!(images(Some(3), 3, 4).unwrap(), [1, 1, 1]);
        assert_eq!(images(Some(8), 3, 4).unwrap(), [3, 3, 2]);
        for wrong in [0, 2, 13] {
            let message = images(Some(wrong), 3, 4).unwrap_err().to_string();
            assert!(message.contains(&format!("num_samples is {wrong}, expected 3 (one")), "{message}");
        }
    }
}
