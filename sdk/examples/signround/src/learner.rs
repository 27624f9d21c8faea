//! One layer's variables: an offset for every weight, and both ends of every group's range.
//!
//! With a range from L to H, n steps in it and integers from qmin,
//!
//! ```text
//! s = (H − L) / n,   x = (w − L) / s + V,   ŵ = L + s · clamp(round(x), 0, n),   V in −½ … ½
//! ```
//!
//! (so that the zero point is qmin − L / s). `round` is passed straight through by the gradient: within the range dŵ/dV = s,
//! dŵ/ds = round(x) − (w − L) / s and dŵ/dL = 0; beyond it ŵ is an end. A symmetric grid has one variable, H, and L follows.

use taq_plugin::{Grid, Layer, RoundedLayer};

/// How far the ends of a range may move, in parts of where they began.
const RANGE: [f32; 2] = [0.5, 1.2];

/// What is learned of one layer.
#[derive(Clone)]
pub(crate) struct Learner {
    grid: Grid,
    /// Offset of each weight before it is rounded.
    offset: Vec<f32>,
    /// Where each group's range began.
    start: Vec<[f32; 2]>,
    /// What its ends are multiplied by.
    ends: Vec<[f32; 2]>,
}

impl Learner {
    /// Every weight rounded to nearest, on the grid that the host gives to start with.
    pub(crate) fn new(layer: &Layer<'_>) -> Self {
        let (qmin, qmax) = (f32::from(layer.grid.qmin()), f32::from(layer.grid.qmax()));
        let range = |(&s, &z): (&f32, &f32)| [(qmin - z) * s, (qmax - z) * s];
        Self {
            grid: layer.grid,
            offset: vec![0.0; layer.weight.len()],
            start: layer.start_scale.iter().zip(layer.start_zero_point).map(range).collect(),
            ends: vec![[1.0; 2]; layer.grid.groups],
        }
    }

    /// Steps in a range.
    fn steps(&self) -> f32 {
        f32::from(self.grid.qmax()) - f32::from(self.grid.qmin())
    }

    /// Lower end and step size of a group.
    fn group(&self, group: usize) -> (f32, f32) {
        let ([low, high], [for_low, for_high]) = (self.start[group], self.ends[group]);
        let for_low = if self.grid.symmetric { for_high } else { for_low };
        let (low, high) = (low * for_low, high * for_high);
        let least = f32::MIN_POSITIVE * 1e3;
        (low, ((high - low) / self.steps()).max(least))
    }

    /// ŵ, row-major.
    pub(crate) fn values(&self, weight: &[f32], out: &mut [f32]) {
        let (length, n) = (self.grid.group_len, self.steps());
        let groups = weight.chunks(length).zip(self.offset.chunks(length)).zip(out.chunks_mut(length));
        for (group, ((weight, offset), out)) in groups.enumerate() {
            let (low, s) = self.group(group);
            let inverse = 1.0 / s;
            for ((out, w), v) in out.iter_mut().zip(weight).zip(offset) {
                *out = low + s * ((w - low) * inverse + v).round_ties_even().clamp(0.0, n);
            }
        }
    }

    /// Moves every variable by its rate against the sign of the loss's derivative; `gradient` is that with respect to ŵ.
    pub(crate) fn step(&mut self, weight: &[f32], gradient: &[f32], rate: f32, range_rate: f32) {
        let (length, n) = (self.grid.group_len, self.steps());
        for group in 0..self.grid.groups {
            let (low, s) = self.group(group);
            let inverse = 1.0 / s;
            let part = group * length..(group + 1) * length;
            let offsets = &mut self.offset[part.clone()];
            // Derivatives with respect to the step size, and to the lower end at a fixed step size.
            let (mut of_step, mut of_low) = (0.0_f32, 0.0_f32);
            for ((v, w), g) in offsets.iter_mut().zip(&weight[part.clone()]).zip(&gradient[part]) {
                let x = (w - low) * inverse;
                let q = (x + *v).round_ties_even();
                if q < 0.0 {
                    of_low += g;
                } else if q > n {
                    of_low += g;
                    of_step += g * n;
                } else {
                    of_step += g * (q - x);
                    *v = (*v - rate * sign(*g)).clamp(-0.5, 0.5);
                }
            }
            // s = (H − L) / n.
            let [low, high] = self.start[group];
            let (of_low, of_high) = (of_low - of_step / n, of_step / n);
            let [for_low, for_high] = &mut self.ends[group];
            let moved = |of: f32, by: f32| (of - range_rate * by).clamp(RANGE[0], RANGE[1]);
            if self.grid.symmetric {
                *for_high = moved(*for_high, sign(of_low * low + of_high * high));
            } else {
                *for_low = moved(*for_low, sign(of_low * low));
                *for_high = moved(*for_high, sign(of_high * high));
            }
        }
    }

    /// The integers.
    pub(crate) fn rounded(&self, weight: &[f32]) -> RoundedLayer {
        let (length, n, qmin) = (self.grid.group_len, self.steps(), f32::from(self.grid.qmin()));
        let groups: Vec<(f32, f32)> = (0..self.grid.groups).map(|group| self.group(group)).collect();
        let integer = |(i, (w, v)): (usize, (&f32, &f32))| {
            let (low, s) = groups[i / length];
            ((w - low) * (1.0 / s) + v).round_ties_even().clamp(0.0, n) + qmin
        };
        let zero = |(low, s): &(f32, f32)| if self.grid.symmetric { 0.0 } else { qmin - low / s };
        RoundedLayer {
            weight_int: weight.iter().zip(&self.offset).enumerate().map(integer).map(|q| q as i8).collect(),
            scale: groups.iter().map(|(_, s)| *s).collect(),
            zero_point: groups.iter().map(zero).collect(),
            input_scale: None,
        }
    }
}

/// −1, 0 or 1; `f32::signum` has no 0.
fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taq_plugin::conformance::Problem;
    use taq_plugin::host::LayerData;

    fn layer(data: &LayerData) -> Layer<'_> {
        Layer {
            spec: data.spec.clone(),
            weight: &data.weight,
            grid: data.grid,
            input_bits: &data.input_bits,
            input_scale: &data.input_scale,
            start_scale: &data.start_scale,
            start_zero_point: &data.start_zero_point,
        }
    }

    /// A learner with offsets and ends of some kind.
    fn some(symmetric: bool) -> (Problem, Learner) {
        let shape = [4, 12];
        let problem = Problem::new(9, shape, Problem::grid(shape, 3, symmetric, 6), 4, 1);
        let mut learner = Learner::new(&layer(&problem.layers[0]));
        learner.offset.iter_mut().enumerate().for_each(|(i, v)| *v = 0.07 * ((i % 9) as f32 - 4.0));
        learner
            .ends
            .iter_mut()
            .enumerate()
            .for_each(|(i, e)| *e = [0.7 + 0.05 * i as f32, 0.9 - 0.04 * i as f32]);
        (problem, learner)
    }

    #[test]
    fn learning_begins_at_nearest_on_the_host_s_grid() {
        for symmetric in [true, false] {
            let (problem, _) = some(symmetric);
            let layer = layer(&problem.layers[0]);
            let (ours, nearest) = (Learner::new(&layer).rounded(layer.weight), layer.nearest());
            assert_eq!(ours.weight_int, nearest.weight_int);
            let near =
                |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + b.abs()));
            assert!(near(&ours.scale, &nearest.scale) && near(&ours.zero_point, &nearest.zero_point));
        }
    }

    #[test]
    fn integers_stand_for_the_values_that_were_learned_with() {
        for symmetric in [true, false] {
            let (problem, learner) = some(symmetric);
            let data = &problem.layers[0];
            let mut values = vec![0.0; data.weight.len()];
            learner.values(&data.weight, &mut values);
            for (a, b) in values.iter().zip(learner.rounded(&data.weight).values(&data.grid)) {
                assert!((a - b).abs() < 1e-5, "symmetric {symmetric}: {a} {b}");
            }
        }
    }

    /// The derivatives by which `step` goes, against those of the loss Σ g ŵ with `round` frozen where it is: ŵ is
    /// L + s · clamp((w − L) / s + V + c), c what rounding added.
    #[test]
    fn variables_move_against_the_sign_of_their_derivatives() {
        for symmetric in [true, false] {
            let (problem, learner) = some(symmetric);
            let (weight, grid) = (&problem.layers[0].weight, learner.grid);
            let gradient: Vec<f32> = (0..weight.len()).map(|i| ((i * 37 % 17) as f32 - 8.3) / 10.0).collect();
            let n = f64::from(learner.steps());
            let frozen: Vec<f64> = (0..weight.len())
                .map(|i| {
                    let (low, s) = learner.group(i / grid.group_len);
                    let x = f64::from((weight[i] - low) / s + learner.offset[i]);
                    x.round_ties_even() - x
                })
                .collect();
            let inside = |i: usize| {
                let (low, s) = learner.group(i / grid.group_len);
                let q = ((weight[i] - low) / s + learner.offset[i]).round_ties_even();
                (0.0..=learner.steps()).contains(&q)
            };
            let loss = |ends: &[[f64; 2]]| -> f64 {
                (0..weight.len())
                    .map(|i| {
                        let group = i / grid.group_len;
                        let [a, b] = if symmetric { [ends[group][1]; 2] } else { ends[group] };
                        let low = f64::from(learner.start[group][0]) * a;
                        let high = f64::from(learner.start[group][1]) * b;
                        let s = (high - low) / n;
                        let x = (f64::from(weight[i]) - low) / s + f64::from(learner.offset[i]) + frozen[i];
                        let x = if inside(i) { x } else { x.round_ties_even().clamp(0.0, n) };
                        f64::from(gradient[i]) * (low + s * x)
                    })
                    .sum()
            };
            let ends: Vec<[f64; 2]> = learner.ends.iter().map(|e| e.map(f64::from)).collect();
            let mut moved = learner.clone();
            moved.step(weight, &gradient, 0.01, 0.02);
            for (i, g) in gradient.iter().enumerate() {
                let by = moved.offset[i] - learner.offset[i];
                let expected = if inside(i) { -0.01 * sign(*g) } else { 0.0 };
                assert!((by - expected).abs() < 1e-6, "offset {i}: {by}, expected {expected}");
            }
            for group in 0..grid.groups {
                for end in if symmetric { 1..2 } else { 0..2 } {
                    let mut with = ends.clone();
                    with[group][end] += 1e-6;
                    let up = loss(&with);
                    with[group][end] -= 2e-6;
                    let slope = (up - loss(&with)) / 2e-6;
                    let by = moved.ends[group][end] - learner.ends[group][end];
                    assert!(
                        (by + 0.02 * sign(slope as f32)).abs() < 1e-5,
                        "{symmetric} {group} {end}: {by} {slope}"
                    );
                }
            }
        }
    }
}
