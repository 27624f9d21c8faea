//! A rounder for taq as a native library: coordinate descent on the error of each layer's output.
//!
//! Where a layer's inputs are the rows of X, the error of one output is (ŵ − w)ᵀ G (ŵ − w), with G = XᵀX. From the nearest
//! integers, one weight after the other goes to the integer where this error is smallest while all others stay, until
//! none moves: QuantEase (Behdin et al., arXiv 2309.01885). Change [`descend`] to have a method of your own.

use taq_plugin::{Context, Error, Layer, LayerJob, LayerRounder, Plugin, Result, RoundedLayer};

/// How often every weight has its turn, at most.
const PASSES: usize = 50;

/// Settings, as in `rounder = { name = "coordinate-descent", damping = 1 }`. Their comments are shown by
/// `taq plugins show coordinate-descent --plugin ./rounder.so`.
#[derive(Debug, Clone, Copy, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What is added to the diagonal of G, in parts of its mean. Without it weights would go far to make up for each other
    /// in calibration's inputs, and miss in others: in what guidance subtracts, above all.
    #[schemars(range(min = 0.0))]
    pub damping: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { damping: 1.0 }
    }
}

/// The rounder.
pub struct CoordinateDescent(Settings);

impl Plugin for CoordinateDescent {
    type Settings = Settings;
    const NAME: &'static str = "coordinate-descent";
    const SUMMARY: &'static str =
        "Moves one weight after the other to the integer where the layer's output errs least (QuantEase).";

    fn new(settings: Settings) -> Result<Self> {
        let damping = settings.damping;
        if !(damping >= 0.0 && damping.is_finite()) {
            return Err(Error::invalid(format!("damping = {damping}, expected a number from 0 on")));
        }
        Ok(Self(settings))
    }
}

impl LayerRounder for CoordinateDescent {
    fn round(&self, job: &LayerJob<'_>, cx: &Context<'_>) -> Result<RoundedLayer> {
        let gram = gram(job.inputs, job.layer.spec.in_features, self.0.damping, cx)?;
        let mut rounded = job.layer.nearest();
        let outputs = job.layer.spec.out_features;
        for output in 0..outputs {
            cx.check()?; // Ctrl-C
            descend(&job.layer, output, &gram, &mut rounded);
            cx.progress(output as u64 + 1, outputs as u64);
        }
        Ok(rounded)
    }
}

/// XᵀX with damping, row-major `[width, width]`.
fn gram(inputs: &[f32], width: usize, damping: f32, cx: &Context<'_>) -> Result<Vec<f32>> {
    let mut gram = vec![0.0; width * width];
    for (i, x) in inputs.chunks(width).enumerate() {
        if i % 64 == 0 {
            cx.check()?;
        }
        for (row, &by) in gram.chunks_mut(width).zip(x) {
            add(row, x, by);
        }
    }
    let mean = (0..width).map(|j| gram[j * width + j]).sum::<f32>() / width as f32;
    if !mean.is_finite() {
        return Err(Error::invalid("the layer's inputs are not finite, or too large"));
    }
    (0..width).for_each(|j| gram[j * width + j] += damping * mean);
    Ok(gram)
}

/// `to += by · from`.
fn add(to: &mut [f32], from: &[f32], by: f32) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += by * from);
}

/// Moves the integers of one output to where no single one of them can make the error smaller.
fn descend(layer: &Layer<'_>, output: usize, gram: &[f32], rounded: &mut RoundedLayer) {
    let width = layer.spec.in_features;
    let first = output * width; // its place in the row-major weight
    let RoundedLayer { weight_int, scale, zero_point, .. } = rounded;
    let value = |at: usize, q: i8| {
        let group = at / layer.grid.group_len;
        (f32::from(q) - zero_point[group]) * scale[group]
    };
    // Half the error's slope, G (ŵ − w), kept up to date.
    let mut slope = vec![0.0; width];
    for j in 0..width {
        let difference = value(first + j, weight_int[first + j]) - layer.weight[first + j];
        add(&mut slope, &gram[j * width..(j + 1) * width], difference);
    }
    for _ in 0..PASSES {
        let mut moved = false;
        for j in 0..width {
            let (at, curvature) = (first + j, gram[j * width + j]);
            if curvature <= 0.0 {
                continue; // no input ever
            }
            let (now, group) = (value(at, weight_int[at]), at / layer.grid.group_len);
            // The error is a parabola in this weight: the best integer is the one nearest to its bottom.
            let best = layer.grid.integer(now - slope[j] / curvature, scale[group], zero_point[group]);
            if best != weight_int[at] {
                add(&mut slope, &gram[j * width..(j + 1) * width], value(at, best) - now);
                weight_int[at] = best;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
}

taq_plugin::export_plugin! { layer_rounders: [CoordinateDescent] }

#[cfg(test)]
mod tests {
    use super::*;
    use taq_plugin::conformance::{Host, Problem, RounderUnderTest, Rounds, assert_rounder_conforms};

    const SHAPE: [usize; 2] = [8, 24];

    fn rounder(settings: &str) -> RounderUnderTest {
        RounderUnderTest::of_layers::<CoordinateDescent>(settings)
    }

    /// A layer on a grid of three bits.
    fn problem(seed: u64) -> Problem {
        Problem::new(seed, SHAPE, Problem::grid(SHAPE, 3, false, SHAPE[1]), 64, 1)
    }

    /// Little of it, for problems this small have nothing but their inputs.
    const DAMPING: f32 = 0.01;

    fn round(problem: &Problem) -> RoundedLayer {
        rounder(r#"{"damping": 0.01}"#).round(problem, 0, &Host::default()).unwrap().remove(0)
    }

    /// The integers that are nearest to the weights.
    fn nearest(problem: &Problem) -> RoundedLayer {
        let data = &problem.layers[0];
        let integer = |(i, w): (usize, &f32)| {
            let group = i / data.grid.group_len;
            data.grid.integer(*w, data.start_scale[group], data.start_zero_point[group])
        };
        RoundedLayer {
            weight_int: data.weight.iter().enumerate().map(integer).collect(),
            scale: data.start_scale.clone(),
            zero_point: data.start_zero_point.clone(),
            input_scale: None,
        }
    }

    /// What is made small, without G: Σ (x·(ŵ − w))² over the rows, and the damping's part.
    fn error(problem: &Problem, rounded: &RoundedLayer) -> f64 {
        let (inputs, _, _) = problem.rows_of(0);
        let data = &problem.layers[0];
        let power = inputs.iter().map(|x| f64::from(x * x)).sum::<f64>() / SHAPE[1] as f64;
        let values = rounded.values(&data.grid);
        let difference: Vec<f64> = values.iter().zip(&data.weight).map(|(a, b)| f64::from(a - b)).collect();
        let of_output = |d: &[f64]| {
            let at = |x: &[f32]| x.iter().zip(d).map(|(x, d)| f64::from(*x) * d).sum::<f64>().powi(2);
            let of_inputs: f64 = inputs.chunks(SHAPE[1]).map(at).sum();
            of_inputs + f64::from(DAMPING) * power * d.iter().map(|d| d * d).sum::<f64>()
        };
        difference.chunks(SHAPE[1]).map(of_output).sum()
    }

    #[test]
    fn conforms() {
        assert_rounder_conforms(&rounder("{}"));
    }

    #[test]
    fn is_better_than_nearest_on_rows_that_it_never_saw() {
        for seed in 0..4 {
            let problem = problem(seed);
            let ours = problem.held_out_of(&[round(&problem)]);
            let theirs = problem.held_out_of(&[nearest(&problem)]);
            assert!(ours < 0.6 * theirs, "seed {seed}: {ours} of {theirs}");
        }
    }

    #[test]
    fn no_single_integer_can_be_better() {
        let problem = problem(1);
        let rounded = round(&problem);
        let least = error(&problem, &rounded);
        assert!(least < 0.6 * error(&problem, &nearest(&problem)));
        for at in 0..rounded.weight_int.len() {
            for by in [-1, 1] {
                let mut other = rounded.clone();
                other.weight_int[at] += by;
                if (problem.layers[0].grid.qmin()..=problem.layers[0].grid.qmax()).contains(&other.weight_int[at]) {
                    assert!(error(&problem, &other) > least * (1.0 - 1e-5), "weight {at}, {by}");
                }
            }
        }
    }

    #[test]
    fn settings_are_checked() {
        let message = rounder(r#"{"damping": -1}"#).create(None).unwrap_err().to_string();
        assert_eq!(message, "damping = -1, expected a number from 0 on");
    }
}
