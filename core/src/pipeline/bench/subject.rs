//! What can be benched, by name, and how it is made.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::artifacts::RunFolder;
use crate::manifest::Variant;
use crate::pipeline::Session;
use crate::pipeline::execute::QuantizedModel;
use crate::pipeline::generate::quantized_model;
use crate::pipeline::quantized::ActivationPlan;
use crate::pipeline::round::{WeightsConfig, effective_plan, load_plan};
use crate::quant::{BITS, Grid, packed_len};
use crate::{LayerId, Result};

/// A model to bench.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    /// Full precision.
    FullPrecision,
    /// The run's plan, every weight rounded to nearest.
    Nearest,
    /// The run's plan and rounded weights.
    Quantized,
    /// Weights rounded to nearest at one width, and all inputs at another, over the ranges of the run's plan.
    Widths {
        /// Bits of weights.
        weights: u8,
        /// Bits of inputs.
        activations: u8,
    },
    /// Plan and rounded weights of another run of the same model; without rounded weights, rounded to nearest.
    Run(PathBuf),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "fp" | "full-precision" => Self::FullPrecision,
            "nearest" => Self::Nearest,
            "quantized" => Self::Quantized,
            _ => match widths(text) {
                Some((weights, activations)) => Self::Widths { weights, activations },
                None if PathBuf::from(text).is_dir() => Self::Run(text.into()),
                None => {
                    return Err(format!(
                        "`{text}` is no run folder; expected fp, nearest, quantized, widths of 2 to 8 bits as w4a8, or the \
                         path of a run folder"
                    ));
                }
            },
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FullPrecision => f.write_str("fp"),
            Self::Nearest => f.write_str("nearest"),
            Self::Quantized => f.write_str("quantized"),
            Self::Widths { weights, activations } => write!(f, "w{weights}a{activations}"),
            Self::Run(path) => write!(f, "{}", path.display()),
        }
    }
}

/// `w4a8`.
fn widths(text: &str) -> Option<(u8, u8)> {
    let (weights, activations) = text.strip_prefix('w')?.split_once('a')?;
    let bits = |text: &str| text.parse().ok().filter(|bits| BITS.contains(bits));
    Some((bits(weights)?, bits(activations)?))
}

/// A quantized model, ready to run.
pub(super) struct Made {
    pub(super) model: QuantizedModel,
    pub(super) variant: Variant,
    pub(super) weight_bits: f64,
    pub(super) activation_bits: f64,
    pub(super) weight_bytes: u64,
}

/// `None` of full precision.
pub(super) fn make(session: &Session, subject: &Subject, dynamic: bool) -> Result<Option<Made>> {
    let (run, variant) = match subject {
        Subject::FullPrecision => return Ok(None),
        Subject::Nearest => (session.run.clone(), Variant::Nearest),
        Subject::Quantized => (session.run.clone(), Variant::Quantized),
        Subject::Widths { weights, activations } => {
            return widened(session, *weights, *activations, dynamic).map(Some);
        }
        Subject::Run(path) => {
            let run = RunFolder::open(path)?;
            let rounded = run.weights_config().exists();
            (run, if rounded { Variant::Quantized } else { Variant::Nearest })
        }
    };
    let spec = session.model.spec();
    let plan = effective_plan(&run, "bench", spec)?;
    let activations = ActivationPlan::load(&run, spec, &plan)?.with_dynamic(dynamic);
    let model = quantized_model(session, &run, &plan, activations, variant)?;
    let config = WeightsConfig::of(&run)?;
    let grid = |layer: &LayerId| -> Result<Option<Grid>> {
        match &config {
            Some(config) => Ok(config.grid(layer)),
            None => plan.weight_bits.get(layer).map(|&bits| Grid::channel(bits)).transpose(),
        }
    };
    let (weight_bits, weight_bytes) = sizes(session, grid)?;
    let activation_bits = plan.summary.average_activation_bits;
    Ok(Some(Made { model, variant, weight_bits, activation_bits, weight_bytes }))
}

fn widened(session: &Session, weights: u8, activations: u8, dynamic: bool) -> Result<Made> {
    let spec = session.model.spec();
    let plan = load_plan(&session.run, "bench", spec)?.with_activation_bits(activations)?;
    let inputs = ActivationPlan::load(&session.run, spec, &plan)?.with_dynamic(dynamic);
    let grid = Grid::channel(weights)?;
    let mut model = QuantizedModel::new(inputs, session.model.dtype());
    for layer in spec.layers() {
        model.insert_nearest(&*session.model, &layer.id, &grid)?;
    }
    let planned = |id: &LayerId| Ok(spec.layer(id).map(|_| grid));
    let (weight_bits, weight_bytes) = sizes(session, planned)?;
    Ok(Made {
        model,
        variant: Variant::Nearest,
        weight_bits,
        activation_bits: f64::from(activations),
        weight_bytes,
    })
}

/// Average bits of the plan's weights (16 where a layer has no grid), and the bytes of all linear layers with step sizes and
/// zero points in f32.
fn sizes(session: &Session, grid: impl Fn(&LayerId) -> Result<Option<Grid>>) -> Result<(f64, u64)> {
    let spec = session.model.spec();
    let (mut bits, mut bytes, mut all) = (0_u64, 0_u64, 0_u64);
    for (id, shape) in spec.weights() {
        let (weights, grid) = (shape.iter().product::<usize>(), grid(id)?);
        bytes += match grid {
            Some(grid) => {
                let groups = grid.layout(shape)?.groups;
                let parts = if grid.symmetric { 4 } else { 8 };
                (packed_len(weights, grid.bits) + parts * groups) as u64
            }
            None => 2 * weights as u64,
        };
        if spec.layer(id).is_some() {
            all += weights as u64;
            bits += weights as u64 * grid.map_or(16, |grid| u64::from(grid.bits));
        }
    }
    Ok((bits as f64 / all.max(1) as f64, bytes))
}

/// Bytes of full precision, 16 bits a weight.
pub(super) fn full_bytes(session: &Session) -> u64 {
    session.model.spec().weights().map(|(_, shape)| 2 * shape.iter().product::<usize>() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for name in ["fp", "nearest", "quantized", "w4a8", "w2a6"] {
            assert_eq!(name.parse::<Subject>().unwrap().to_string(), name);
        }
        assert_eq!("full-precision".parse(), Ok(Subject::FullPrecision));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(path.parse(), Ok(Subject::Run(path.into())));
        for wrong in ["w1a8", "w4a9", "w4", "no/such/folder", ""] {
            let message = wrong.parse::<Subject>().unwrap_err();
            assert!(message.contains("is no run folder"), "{message}");
        }
    }
}
