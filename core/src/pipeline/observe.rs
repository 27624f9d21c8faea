//! `observe`: statistics of every layer's input at every timestep, through a tap.
//!
//! The unit of work is a timestep: all images of a step are shown in order, and the step's files are written. A
//! killed run goes on with the first step whose index is not there.

use std::collections::BTreeMap;

use mlx_rs::Array;
use rayon::prelude::*;
use serde_json::json;

use super::session::{Encoded, measured, parts};
use super::{Guidance, Outcome, SampleSet, Session};
use crate::artifacts::{StageState, read_json, write_json, write_npz};
use crate::manifest::ObserveSettings;
use crate::registry::Kind;
use crate::stats::{
    LayerScalars, LayerStats, STATISTICS_FORMAT, StatisticsIndex, StatisticsMetadata, StepIndex, quantile,
};
use crate::{Error, LayerId, LayerSpec, LinearCall, ObservationPoint, Observer, Result, Tap};

/// The ancestor's names for parts of the schedule.
const BUCKETS: [(&str, [f32; 2]); 3] = [("early", [0.7, 1.0]), ("mid", [0.3, 0.7]), ("late", [0.0, 0.3])];

/// Counted up when the step indexes get other scalars, so that a run folder never holds both kinds.
const SCALARS: u32 = 2;

/// Runs the stage.
pub fn observe(session: &Session, settings: &ObserveSettings) -> Result<Outcome> {
    measured(session, "observe", || {
        if settings.batch_size == 0 {
            return Err(Error::settings("observe", "batch_size must be at least 1, not 0"));
        }
        let run = &session.run;
        let set = SampleSet::open(run, "observe", &session.model.spec().fingerprint)?;
        let images = match settings.num_images {
            Some(0) => return Err(Error::settings("observe", "num_images must be at least 1, not 0")),
            Some(n) if n > set.manifest.n_completed => {
                let reason =
                    format!("num_images is {n}, but only {} are calibrated", set.manifest.n_completed);
                return Err(Error::settings("observe", reason));
            }
            n => n.unwrap_or(set.manifest.n_completed),
        };
        let parts = parts([
            ("samples", session.stage_identity("calibrate")?),
            ("observer", session.identity(Kind::Observer, &settings.observer)?),
            ("images", json!(images)),
            ("batch_size", json!(settings.batch_size)),
            ("scalars", json!(SCALARS)),
        ]);
        let outputs = [run.layer_statistics(), run.timestep_stats()];
        let state = run.begin_stage("observe", &parts, &outputs, session.force)?;
        let steps = set.manifest.kept_steps.clone();
        let summary = format!(
            "{} layers × {} steps, {images} images",
            session.model.spec().layers().count(),
            steps.len()
        );
        if state == StageState::Complete && run.layer_statistics().exists() {
            return Ok((summary, true));
        }
        let encoded = session.encode(&set.prompts())?;
        session.cx.progress.begin("observe", steps.len() as u64);
        for &step in &steps {
            session.cx.check()?;
            if !run.step_index(step).exists() {
                observe_step(session, settings, &set, &encoded, images, step)?;
            }
            session.cx.progress.advance(1, "");
        }
        session.cx.progress.end();
        write_index(session, settings, &set, images)?;
        run.finish_stage("observe")?;
        Ok((summary, false))
    })
}

fn observe_step(
    session: &Session,
    settings: &ObserveSettings,
    set: &SampleSet,
    encoded: &Encoded,
    images: usize,
    step: usize,
) -> Result<()> {
    let guidance = Guidance::new(set.manifest.cfg_scale)?;
    let sigma = set.manifest.sigmas[step];
    let mut tap =
        ObserverTap { session, settings, step, sigma, observers: BTreeMap::new(), pending: Vec::new() };
    let ids: Vec<usize> = (0..images).collect();
    for batch in ids.chunks(settings.batch_size) {
        session.cx.check()?;
        let pairs: Vec<_> = batch.iter().map(|&image| (image, step)).collect();
        let x = set.latents(&pairs)?;
        let conditioning = encoded.batch(guidance, batch)?;
        let velocity = guidance.velocity(&*session.model, &x, set.timestep(step), &conditioning, &mut tap)?;
        tap.flush()?;
        velocity.eval()?;
    }
    write_step(session, step, tap.finish()?)
}

/// Shows every layer's input to the layer's observer.
struct ObserverTap<'a> {
    session: &'a Session,
    settings: &'a ObserveSettings,
    step: usize,
    sigma: f32,
    observers: BTreeMap<LayerId, Box<dyn Observer>>,
    /// Inputs of the block that the pass is in. They are evaluated together, then observed in parallel.
    pending: Vec<(LayerSpec, Array)>,
}

impl ObserverTap<'_> {
    fn flush(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let inputs: Vec<Array> = pending.iter().map(|(_, x)| Ok(x.contiguous()?)).collect::<Result<_>>()?;
        mlx_rs::transforms::eval(&inputs)?;
        let mut work = Vec::with_capacity(pending.len());
        for ((layer, _), input) in pending.iter().zip(&inputs) {
            let observer = match self.observers.remove(&layer.id) {
                Some(observer) => observer,
                None => {
                    let choice = &self.settings.observer;
                    self.session.registry.observer(&choice.name, &choice.settings())?
                }
            };
            let values = input.try_as_slice::<f32>().map_err(|e| Error::Unsupported {
                what: format!("observing needs f32 activations; the input of {}: {e}", layer.id),
            })?;
            work.push((layer, values, observer));
        }
        let (step, sigma) = (self.step, self.sigma);
        let seen = work
            .into_par_iter()
            .map(|(layer, values, mut observer)| {
                let point = ObservationPoint { layer, step, sigma };
                observer.observe(&point, values, layer.in_features)?;
                Ok((layer.id.clone(), observer))
            })
            .collect::<Result<Vec<_>>>()?;
        self.observers.extend(seen);
        Ok(())
    }

    fn finish(self) -> Result<BTreeMap<LayerId, LayerStats>> {
        self.observers.into_iter().map(|(id, observer)| Ok((id, observer.finish()?))).collect()
    }
}

impl Tap for ObserverTap<'_> {
    fn linear(&mut self, call: LinearCall<'_>) -> Result<Array> {
        if self.pending.last().is_some_and(|(last, _)| last.block != call.layer.block) {
            self.flush()?;
        }
        self.pending.push((call.layer.clone(), call.input.clone()));
        call.compute()
    }
}

/// Writes a step's npz, then its index: the index says that the step is done.
fn write_step(session: &Session, step: usize, stats: BTreeMap<LayerId, LayerStats>) -> Result<()> {
    write_npz(&session.run.step_stats(step), |npz| {
        for (id, stats) in &stats {
            let name = |field: &str| format!("{}__{field}", id.array_prefix());
            npz.add(&name("avg_min"), &[stats.avg_min.len()], &stats.avg_min)?;
            npz.add(&name("avg_max"), &[stats.avg_max.len()], &stats.avg_max)?;
            if let Some(shift) = &stats.shift {
                npz.add(&name("shift"), &[shift.len()], shift)?;
            }
            if let Some(histogram) = &stats.histogram {
                npz.add(&name("hist_counts"), &[histogram.counts.len()], &histogram.counts)?;
                npz.add(&name("hist_edges"), &[histogram.edges.len()], &histogram.edges)?;
            }
        }
        Ok(())
    })?;
    let index = StepIndex(stats.iter().map(|(id, stats)| (id.clone(), scalars(stats))).collect());
    write_json(&session.run.step_index(step), &index)
}

fn scalars(stats: &LayerStats) -> LayerScalars {
    let value = |q| stats.histogram.as_ref().and_then(|h| h.quantile(q));
    let magnitude = |q| stats.histogram.as_ref().and_then(|h| h.magnitude_quantile(q));
    let shift = stats.shift.as_deref();
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0f32, |a, v| a.max(v.abs()));
    let channels = stats.channel_absmax();
    let over_channels = |q| quantile(&channels, q).unwrap_or(0.0);
    LayerScalars {
        n_batches: stats.batches,
        tensor_absmax: stats.absmax(),
        tensor_min: stats.tensor_min,
        tensor_max: stats.tensor_max,
        spike_fraction: spike_fraction(stats),
        channel_p50: over_channels(0.5),
        channel_p99: over_channels(0.99),
        channel_max: over_channels(1.0),
        has_shift: shift.is_some(),
        has_hist: stats.histogram.is_some(),
        shift_absmax: shift.map(|s| largest(&mut s.iter().copied())),
        shifted_absmax: shift.map(|s| {
            let low = s.iter().zip(&stats.avg_min).map(|(s, v)| v - s);
            let high = s.iter().zip(&stats.avg_max).map(|(s, v)| v - s);
            largest(&mut low.chain(high))
        }),
        hist_p999: magnitude(0.999),
        hist_p99: magnitude(0.99),
        hist_p50: magnitude(0.5),
        hist_p01: value(0.01),
        hist_p001: value(0.001),
    }
}

/// Share of channels whose range is over 5 times the median channel's.
fn spike_fraction(stats: &LayerStats) -> f32 {
    let ranges: Vec<f32> = stats.avg_max.iter().zip(&stats.avg_min).map(|(high, low)| high - low).collect();
    let mut sorted = ranges.clone();
    sorted.sort_by(f32::total_cmp);
    let Some(&median) = sorted.get(sorted.len() / 2) else { return 0.0 };
    ranges.iter().filter(|&&r| r > 5.0 * median).count() as f32 / ranges.len() as f32
}

fn write_index(session: &Session, settings: &ObserveSettings, set: &SampleSet, images: usize) -> Result<()> {
    let steps = &set.manifest.kept_steps;
    let observer = settings.observer.settings();
    let number = |key: &str| observer.get(key).and_then(serde_json::Value::as_f64);
    let first: StepIndex = read_json(&session.run.step_index(steps[0]), "step index")?;
    let has_hist = first.0.values().any(|s| s.has_hist);
    let index = StatisticsIndex {
        format: STATISTICS_FORMAT.to_owned(),
        hist_bins: if has_hist { number("hist_bins").map_or(256, |n| n as usize) } else { 0 },
        timestep_dir: "timestep_stats".to_owned(),
        sigma_map: steps.iter().map(|&s| (s, set.manifest.sigmas[s])).collect(),
        bucket_definitions: BUCKETS.iter().map(|(name, range)| ((*name).to_owned(), *range)).collect(),
        shift_momentum: number("shift_momentum").map_or(0.95, |n| n as f32),
        post_gelu_suffix: ".mlp.fc2".to_owned(),
        step_keys: steps.clone(),
        metadata: StatisticsMetadata {
            num_images: images,
            num_timesteps: steps.len(),
            total_processed: images * steps.len(),
            selected_image_ids: (0..images).collect(),
            model: session.model.spec().fingerprint.clone(),
            observer: settings.observer.name.clone(),
        },
    };
    write_json(&session.run.layer_statistics(), &index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_over_channels_are_those_of_numpy() {
        let stats = LayerStats {
            avg_min: vec![-1.0, -0.25, 0.0, -7.5, -0.5, -1.25],
            avg_max: vec![0.5, 0.75, 0.0, 2.0, 2.5, 1.0],
            tensor_min: -9.0,
            tensor_max: 3.0,
            batches: 2,
            ..LayerStats::default()
        };
        let found = scalars(&stats);
        // numpy.quantile of maximum(|avg_min|, |avg_max|) = [1, 0.75, 0, 7.5, 2.5, 1.25], numpy 2.4.6.
        assert_eq!((found.channel_p50, found.channel_p99, found.channel_max), (1.125, 7.25, 7.5));
        assert_eq!((found.tensor_absmax, found.n_batches, found.hist_p50), (9.0, 2, None));
        // Ranges [1.5, 1, 0, 9.5, 3, 2.25], the median counted from above 2.25: none is over 11.25.
        assert_eq!(found.spike_fraction, 0.0);
    }
}
