//! AdaRound's step on slices, for measuring what the boundary costs: the same code runs in a library and linked in.
//!
//! Soft rounding h(V) = clip(1.2 sigmoid(V) − 0.1, 0, 1) and Adam (Nagel et al., arXiv 2004.10568), without the regulariser.

use taq_plugin::{
    Batch, BlockJob, BlockRounder, Context, Error, Grid, LayerValues, Plugin, Result, RoundedLayer,
};

/// Settings of `soft`.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SoftSettings {
    /// Steps.
    pub iters: usize,
    /// Rows in each.
    pub batch_size: usize,
}

impl Default for SoftSettings {
    fn default() -> Self {
        Self { iters: 50, batch_size: 16 }
    }
}

/// One layer's variables.
pub struct Variables {
    grid: Grid,
    scale: Vec<f32>,
    zero_point: Vec<f32>,
    floor: Vec<f32>,
    v: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    /// The weight with soft rounding.
    pub values: Vec<f32>,
}

impl Variables {
    /// Where soft rounding changes nothing.
    pub fn new(weight: &[f32], grid: Grid, scale: &[f32], zero_point: &[f32]) -> Self {
        let of = |i: usize| (scale[i / grid.group_len], zero_point[i / grid.group_len]);
        let floor = |(i, w): (usize, &f32)| (w / of(i).0 + of(i).1).floor();
        let floor: Vec<f32> = weight.iter().enumerate().map(floor).collect();
        let start = |(i, w): (usize, &f32)| {
            let h = ((w / of(i).0 + of(i).1 - floor[i] + 0.1) / 1.2).clamp(0.01, 0.99);
            (h / (1.0 - h)).ln()
        };
        let v: Vec<f32> = weight.iter().enumerate().map(start).collect();
        let zeros = vec![0.0; weight.len()];
        let mut this = Self {
            grid,
            scale: scale.to_vec(),
            zero_point: zero_point.to_vec(),
            floor,
            v,
            first: zeros.clone(),
            second: zeros,
            values: weight.to_vec(),
        };
        this.compute();
        this
    }

    fn compute(&mut self) {
        let (low, high) = (f32::from(self.grid.qmin()), f32::from(self.grid.qmax()));
        for (i, value) in self.values.iter_mut().enumerate() {
            let group = i / self.grid.group_len;
            let h = (1.2 / (1.0 + (-self.v[i]).exp()) - 0.1).clamp(0.0, 1.0);
            *value = ((self.floor[i] + h).clamp(low, high) - self.zero_point[group]) * self.scale[group];
        }
    }

    /// One step of Adam, the `at`th from 1; `gradient` is that with respect to the weight.
    pub fn step(&mut self, gradient: &[f32], at: usize) {
        let (one, two) = (1.0 - 0.9_f32.powi(at as i32), 1.0 - 0.999_f32.powi(at as i32));
        for (i, gradient) in gradient.iter().enumerate() {
            let s = 1.0 / (1.0 + (-self.v[i]).exp());
            let open = (1.2 * s - 0.1) > 0.0 && (1.2 * s - 0.1) < 1.0;
            let slope = if open { 1.2 * s * (1.0 - s) * self.scale[i / self.grid.group_len] } else { 0.0 };
            let g = gradient * slope;
            self.first[i] = 0.9 * self.first[i] + 0.1 * g;
            self.second[i] = 0.999 * self.second[i] + 0.001 * g * g;
            self.v[i] -= 0.02 * (self.first[i] / one) / ((self.second[i] / two).sqrt() + 1e-8);
        }
        self.compute();
    }

    /// The integers.
    pub fn rounded(&self) -> RoundedLayer {
        let (low, high) = (f32::from(self.grid.qmin()), f32::from(self.grid.qmax()));
        let up = |v: f32| f32::from(u8::from(v >= 0.0));
        let integer = |(f, v): (&f32, &f32)| (f + up(*v)).clamp(low, high) as i8;
        RoundedLayer {
            weight_int: self.floor.iter().zip(&self.v).map(integer).collect(),
            scale: self.scale.clone(),
            zero_point: self.zero_point.clone(),
            input_scale: None,
        }
    }
}

/// The rounder `soft`.
pub struct Soft(SoftSettings);

impl Plugin for Soft {
    type Settings = SoftSettings;
    const NAME: &'static str = "soft";
    const SUMMARY: &'static str = "AdaRound's steps without a regulariser, for measurements.";
    fn new(settings: SoftSettings) -> Result<Self> {
        if settings.batch_size == 0 { Err(Error::invalid("batch_size = 0")) } else { Ok(Self(settings)) }
    }
}

impl BlockRounder for Soft {
    fn round(&self, job: &mut BlockJob<'_>, cx: &Context<'_>) -> Result<Vec<RoundedLayer>> {
        let BlockJob { layers, reconstruction, .. } = job;
        let variables =
            |l: &taq_plugin::Layer<'_>| Variables::new(l.weight, l.grid, l.start_scale, l.start_zero_point);
        let mut all: Vec<Variables> = layers.iter().map(variables).collect();
        let rows = reconstruction.rows() as u64;
        for at in 1..=self.0.iters {
            cx.check()?;
            let first = (at * self.0.batch_size) as u64;
            let rows: Vec<u64> = (0..self.0.batch_size as u64).map(|i| (first + i) % rows).collect();
            let values: Vec<_> =
                all.iter().map(|v| LayerValues { weight: &v.values, input_scale: None }).collect();
            let (_, gradients) =
                reconstruction.loss_and_gradients(&values, Batch { rows: &rows, drop: None }, false)?;
            all.iter_mut().zip(&gradients).for_each(|(v, g)| v.step(g.weight, at));
            cx.progress(at as u64, self.0.iters as u64);
        }
        Ok(all.iter().map(Variables::rounded).collect())
    }
}
