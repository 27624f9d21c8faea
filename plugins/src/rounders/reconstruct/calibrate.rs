//! Where learned grids of inputs begin: shift, migration, and the step size with the smallest error.
//!
//! After TaQ-DiT (arXiv 2411.14172; 6xy-liu/Taq-DiT@749208e, `GELULSQFakeQuantize`): channels are centred by a shift, and
//! those of a wide range get an integer factor that moves it to the weight. Step sizes minimise Σ|x − Q(x)|^2.4 over 100
//! ranges, as in QDrop's and TaQ-DiT's MSEObserver. What a factor takes from the input's error it adds to the weight's,
//! the more the fewer bits that has; so factors of several sizes, and none, are tried with the weight rounded to nearest,
//! and the layer's output decides, on rows that nothing was fitted to. The plan's own grids are a candidate as well.

use mlx_rs::Array;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taq_core::quant::{Clipping, GridParams, activation_qmax, round_nearest, to_matrix, to_vec};
use taq_core::{BlockJob, Context, Error, LayerJob, LearnedInput, LinearCall, Result, RoundedLayer};

use super::math::pow;
use super::start::scaled_columns;

/// Sizes of the factors that are tried: exponents of the ratio between an outlier's step size and that of the others.
const MIGRATIONS: [f32; 4] = [0.25, 0.5, 0.75, 1.0];

/// Ranges that are tried for a step size.
const CANDIDATES: usize = 100;
/// Exponent of the error that a step size minimises.
const EXPONENT: f32 = 2.4;
/// A channel is an outlier if its range exceeds the median channel's by this factor.
const OUTLIER: f32 = 2.5;
/// Rows that are looked at, and values of them that are kept for each layer, about.
const ROWS: usize = 256;
const VALUES: usize = 1 << 19;
/// Rows in one forward pass.
const CHUNK: usize = 32;

/// Which inputs something is done to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Inputs {
    /// None.
    None,
    /// Those that come from a GELU (TaQ-DiT).
    #[default]
    PostGelu,
    /// All.
    All,
}

impl Inputs {
    fn include(self, layer: &LayerJob) -> bool {
        match self {
            Self::None => false,
            Self::PostGelu => layer.spec.post_gelu,
            Self::All => true,
        }
    }
}

/// How the grids of inputs are found.
#[derive(Debug, Clone, Copy)]
pub(in crate::rounders) struct InputCalibration {
    /// Whether every timestep has its own step size.
    pub(in crate::rounders) per_timestep: bool,
    /// Inputs that are centred.
    pub(in crate::rounders) shift: Inputs,
    /// Inputs whose outlier channels are moved to the weight.
    pub(in crate::rounders) migrate: Inputs,
    /// Clipping of the weights' grids.
    pub(in crate::rounders) clipping: Clipping,
}

/// What was found for one layer.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::rounders) struct Calibrated {
    /// The group of each timestep; groups are numbered from 0.
    pub(in crate::rounders) groups: Vec<usize>,
    /// Step sizes by group.
    pub(in crate::rounders) scale: Vec<f32>,
    /// Row-major `[steps, in_features]`; empty: 0.
    pub(in crate::rounders) shift: Vec<f32>,
    /// `[in_features]`; empty: 1.
    pub(in crate::rounders) multiplier: Vec<f32>,
    /// Root mean square of the input.
    pub(in crate::rounders) rms: f32,
}

/// Values of one layer's input at one timestep.
#[derive(Clone, Default)]
struct Seen {
    rows: usize,
    low: Vec<f32>,
    high: Vec<f32>,
    /// Whole tokens, row-major, of every other row: what grids are fitted to.
    tokens: Vec<f32>,
    /// Those of the other rows: what grids are judged by.
    others: Vec<f32>,
}

impl Seen {
    /// Takes one row's tokens in, keeping every `stride`th for later.
    fn add(&mut self, values: &[f32], channels: usize, stride: usize) {
        if self.low.is_empty() {
            (self.low, self.high) = (vec![f32::INFINITY; channels], vec![f32::NEG_INFINITY; channels]);
        }
        for (i, token) in values.chunks_exact(channels).enumerate() {
            for ((low, high), &x) in self.low.iter_mut().zip(&mut self.high).zip(token) {
                *low = low.min(x);
                *high = high.max(x);
            }
            if i % stride == 0 {
                let half = if self.rows.is_multiple_of(2) { &mut self.tokens } else { &mut self.others };
                half.extend_from_slice(token);
            }
        }
        self.rows += 1;
    }
}

/// Looks at the inputs of all layers and fits their grids, in the order of the job.
///
/// # Errors
/// [`Error::NotFinite`] names a layer whose input holds NaN or infinity.
pub(in crate::rounders) fn calibrate_inputs(
    job: &BlockJob<'_>,
    settings: InputCalibration,
    cx: &Context,
) -> Result<Vec<Calibrated>> {
    let steps = job.layers.first().map_or(0, |l| l.input.steps());
    let rows = spread_rows(job, steps);
    let mut seen = vec![vec![Seen::default(); steps]; job.layers.len()];
    for rows in rows.chunks(CHUNK) {
        cx.check()?;
        job.reconstruction.inputs(rows, &mut |layer, input| {
            let values = to_vec(input)?;
            let what = || format!("input of layer `{}`", job.layers[layer].spec.id);
            if !values.iter().all(|v| v.is_finite()) {
                return Err(Error::NotFinite { what: what() });
            }
            let channels = job.layers[layer].spec.in_features;
            let row_len = values.len() / rows.len();
            let stride = (row_len * ROWS / VALUES).max(1);
            for (&row, values) in rows.iter().zip(values.chunks(row_len)) {
                seen[layer][job.reconstruction.step(row)].add(values, channels, stride);
            }
            Ok(())
        })?;
    }
    job.layers.iter().zip(seen).map(|(layer, seen)| fit(layer, seen, settings)).collect()
}

/// Up to [`ROWS`] rows, as many of each timestep as there are, in turn.
fn spread_rows(job: &BlockJob<'_>, steps: usize) -> Vec<usize> {
    let mut by_step = vec![Vec::new(); steps];
    for row in 0..job.reconstruction.rows() {
        by_step[job.reconstruction.step(row)].push(row);
    }
    let longest = by_step.iter().map(Vec::len).max().unwrap_or(0);
    let in_turn = (0..longest).flat_map(|i| by_step.iter().filter_map(move |rows| rows.get(i).copied()));
    in_turn.take(ROWS).collect()
}

/// The best of the candidates.
fn fit(layer: &LayerJob, seen: Vec<Seen>, settings: InputCalibration) -> Result<Calibrated> {
    let groups = groups(&layer.input.bits, settings.per_timestep);
    let channels = layer.spec.in_features;
    let mut shifts = vec![Vec::new()];
    if settings.shift.include(layer) {
        shifts.push(centres(&seen, &groups, channels));
    }
    let mut candidates = Vec::new();
    for shift in shifts {
        let centred = Centred::new(&seen, &groups, &shift, channels);
        if shift.is_empty() {
            // The plan has seen more, and clips less.
            let (rms, groups) = (centred.rms, groups.clone());
            let (scale, shift) = planned(layer, &groups)?;
            candidates.push(Calibrated { groups, scale, shift, multiplier: Vec::new(), rms });
        }
        let mut multipliers = vec![Vec::new()];
        if settings.migrate.include(layer) {
            let ratios = ratios(&centred.values, channels, layer.input.bits[0])?;
            let of_size = |&size: &f32| ratios.iter().map(|r| r.powf(size).round().max(1.0)).collect();
            multipliers.extend(MIGRATIONS.iter().map(of_size));
            multipliers.retain(|m: &Vec<f32>| m.is_empty() || m.iter().any(|m| *m > 1.0));
            multipliers.dedup();
        }
        for multiplier in multipliers {
            let scale = centred.step_sizes(layer, &groups, &multiplier)?;
            let (shift, groups) = (shift.clone(), groups.clone());
            candidates.push(Calibrated { groups, scale, shift, multiplier, rms: centred.rms });
        }
    }
    let judge = Judge::new(layer, &seen, settings.clipping)?;
    let mut best = (f32::INFINITY, 0);
    for (at, candidate) in candidates.iter().enumerate() {
        let error = judge.error(candidate)?;
        if error < best.0 {
            best = (error, at);
        }
    }
    Ok(candidates.swap_remove(best.1))
}

/// The plan's own step sizes by group, the largest of each, and its shift.
fn planned(layer: &LayerJob, groups: &[usize]) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut scale = vec![0.0_f32; count(groups)];
    for (&group, own) in groups.iter().zip(to_vec(&layer.input.scale)?) {
        scale[group] = scale[group].max(own);
    }
    let shift = layer.input.shift.as_ref().map_or(Ok(Vec::new()), to_vec)?;
    Ok((scale, shift))
}

/// Values of a layer's input after a shift, by group.
struct Centred {
    values: Vec<Vec<f32>>,
    /// Root mean square of the input itself.
    rms: f32,
}

impl Centred {
    fn new(seen: &[Seen], groups: &[usize], shift: &[f32], channels: usize) -> Self {
        let mut values = vec![Vec::new(); count(groups)];
        for (step, (seen, &group)) in seen.iter().zip(groups).enumerate() {
            let z = shift.get(step * channels..(step + 1) * channels);
            let centred = |(i, x): (usize, &f32)| x - z.map_or(0.0, |z| z[i % channels]);
            values[group].extend(seen.tokens.iter().enumerate().map(centred));
        }
        let squares: f64 = seen.iter().flat_map(|s| &s.tokens).map(|x| f64::from(x * x)).sum();
        let elements = values.iter().map(Vec::len).sum::<usize>().max(1);
        Self { values, rms: (squares / elements as f64).sqrt() as f32 }
    }

    /// The best step size of each group; the plan's for a group that no row belongs to.
    fn step_sizes(&self, layer: &LayerJob, groups: &[usize], multiplier: &[f32]) -> Result<Vec<f32>> {
        let planned = to_vec(&layer.input.scale)?;
        let of_group = |(group, values): (usize, &Vec<f32>)| {
            let step = groups.iter().position(|&g| g == group).unwrap_or(0);
            let qmax = activation_qmax(layer.input.bits[step])?;
            Ok(step_size(values, multiplier, qmax).unwrap_or(planned[step]))
        };
        self.values.iter().enumerate().map(of_group).collect()
    }
}

/// How many groups there are.
pub(super) fn count(groups: &[usize]) -> usize {
    groups.iter().max().map_or(0, |g| g + 1)
}

/// Judges grids of a layer's input by the error of its output, the weight being rounded to nearest.
struct Judge<'a> {
    layer: &'a LayerJob,
    clipping: Clipping,
    weight: Vec<f32>,
    shape: [usize; 2],
    /// `[tokens, 1, in_features]`, and the timestep of each token.
    tokens: Array,
    steps: Vec<usize>,
}

impl<'a> Judge<'a> {
    fn new(layer: &'a LayerJob, seen: &[Seen], clipping: Clipping) -> Result<Self> {
        let (weight, shape) = to_matrix(&format!("weight of layer `{}`", layer.spec.id), &layer.weight)?;
        let channels = layer.spec.in_features;
        // With a single row there is no other to judge by.
        let half = if seen.iter().all(|s| s.others.is_empty()) {
            |s: &Seen| s.tokens.clone()
        } else {
            |s: &Seen| s.others.clone()
        };
        let tokens: Vec<f32> = seen.iter().flat_map(half).collect();
        let steps: Vec<usize> = seen
            .iter()
            .enumerate()
            .flat_map(|(step, s)| std::iter::repeat_n(step, half(s).len() / channels))
            .collect();
        let tokens = Array::from_slice(&tokens, &[steps.len() as i32, 1, channels as i32]);
        Ok(Self { layer, clipping, weight, shape, tokens, steps })
    }

    /// Mean squared error of the layer's output.
    fn error(&self, candidate: &Calibrated) -> Result<f32> {
        let weight = scaled_columns(self.weight.clone(), &candidate.multiplier);
        let params = GridParams::fit(&weight, self.shape, &self.layer.grid, self.clipping)?;
        let rounded = round_nearest(&weight, self.shape, &self.layer.grid, params)?;
        let learned = LearnedInput {
            scale: candidate.groups.iter().map(|&g| candidate.scale[g]).collect(),
            shift: candidate.shift.clone(),
            multiplier: candidate.multiplier.clone(),
            bias: Vec::new(),
        };
        let quantized = RoundedLayer { learned: Some(learned), ..rounded }.quantized(&self.layer.input)?;
        let call = LinearCall {
            layer: &self.layer.spec,
            input: &self.tokens,
            weight: &self.layer.weight,
            bias: None,
        };
        let off = quantized.forward(&call, &self.steps, None)?.subtract(call.compute()?)?;
        Ok(to_vec(&off.square()?.mean(None)?)?[0])
    }
}

/// Every timestep on its own, or all of one width together.
pub(super) fn groups(bits: &[u8], per_timestep: bool) -> Vec<usize> {
    if per_timestep {
        return (0..bits.len()).collect();
    }
    let mut widths: Vec<u8> = Vec::new();
    bits.iter()
        .map(|b| {
            widths.iter().position(|w| w == b).unwrap_or_else(|| {
                widths.push(*b);
                widths.len() - 1
            })
        })
        .collect()
}

/// The middle of every channel's range, over the timesteps of a group.
fn centres(seen: &[Seen], groups: &[usize], channels: usize) -> Vec<f32> {
    let mut low = vec![f32::INFINITY; count(groups) * channels];
    let mut high = vec![f32::NEG_INFINITY; count(groups) * channels];
    for (seen, group) in seen.iter().zip(groups) {
        let of = |values: &mut Vec<f32>, own: &[f32], pick: fn(f32, f32) -> f32| {
            values[group * channels..].iter_mut().zip(own).for_each(|(a, b)| *a = pick(*a, *b));
        };
        of(&mut low, &seen.low, f32::min);
        of(&mut high, &seen.high, f32::max);
    }
    let middle = |i: usize| if low[i] <= high[i] { 0.5 * (low[i] + high[i]) } else { 0.0 };
    groups.iter().flat_map(|group| (0..channels).map(move |c| group * channels + c)).map(middle).collect()
}

/// How much larger an outlier channel's own best step size is than that of the others; 1 for the others.
fn ratios(values: &[Vec<f32>], channels: usize, bits: u8) -> Result<Vec<f32>> {
    let tokens = || values.iter().flat_map(|v| v.chunks_exact(channels));
    let mut absmax = vec![0.0_f32; channels];
    for token in tokens() {
        absmax.iter_mut().zip(token).for_each(|(a, x)| *a = a.max(x.abs()));
    }
    let mut sorted = absmax.clone();
    sorted.sort_by(f32::total_cmp);
    let median = sorted[channels / 2];
    let outlier: Vec<bool> = absmax.iter().map(|a| *a > OUTLIER * median && median > 0.0).collect();
    let qmax = activation_qmax(bits)?;
    let pick = |wanted: &dyn Fn(usize) -> bool| -> Vec<f32> {
        tokens().flat_map(|t| t.iter().enumerate().filter(|(c, _)| wanted(*c)).map(|(_, x)| *x)).collect()
    };
    let rest = step_size(&pick(&|c| !outlier[c]), &[], qmax);
    let ratio = |channel: usize| {
        let own = if outlier[channel] { step_size(&pick(&|c| c == channel), &[], qmax) } else { None };
        own.zip(rest).map_or(1.0, |(own, rest)| own / rest)
    };
    Ok((0..channels).map(ratio).collect())
}

/// The step size with the smallest Σ|m · (x/m − Q(x/m))|^2.4; `None` if there is no value but 0.
fn step_size(values: &[f32], multiplier: &[f32], qmax: f32) -> Option<f32> {
    let channels = multiplier.len().max(1);
    let m = |i: usize| multiplier.get(i % channels).copied().unwrap_or(1.0);
    let absmax = values.iter().enumerate().map(|(i, x)| (x / m(i)).abs()).fold(0.0, f32::max);
    if absmax == 0.0 {
        return None;
    }
    let ones;
    let multiplier = if multiplier.is_empty() {
        ones = [1.0; 64];
        &ones[..]
    } else {
        multiplier
    };
    let error = |candidate: usize| {
        let scale = absmax * candidate as f32 / CANDIDATES as f32 / qmax;
        let part = |part: &[f32]| f64::from(error(part, multiplier, scale, qmax));
        values.chunks(multiplier.len()).map(part).sum::<f64>()
    };
    let errors: Vec<f64> = (1..=CANDIDATES).into_par_iter().map(error).collect();
    let best = (1..=CANDIDATES).rev().reduce(|a, b| if errors[b - 1] < errors[a - 1] { b } else { a })?;
    Some(absmax * best as f32 / CANDIDATES as f32 / qmax)
}

#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+avx512f+avx512vl"))]
fn error(values: &[f32], multiplier: &[f32], scale: f32, qmax: f32) -> f32 {
    const LANES: usize = 16;
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer.
    const SHIFT: f32 = 12_582_912.0;
    let mut lanes = [0.0_f32; LANES];
    let one = |x: f32, m: f32| {
        let step = scale * m;
        let on_grid = ((x / step).clamp(-qmax - 1.0, qmax) + SHIFT - SHIFT) * step;
        pow((x - on_grid).abs(), EXPONENT)
    };
    let whole = values.len() / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for lane in 0..LANES {
            lanes[lane] += one(values[start + lane], multiplier[start + lane]);
        }
    }
    for i in whole..values.len() {
        lanes[i - whole] += one(values[i], multiplier[i]);
    }
    lanes.iter().sum()
}
