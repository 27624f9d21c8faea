//! What a library wrote, checked, as a rounded layer.

use taq_plugin::host::Room;

use super::instance::Instance;
use crate::quant::to_vec;
use crate::{LayerJob, LearnedInput, Result, RoundedLayer};

/// The integers in a layer's room.
///
/// # Errors
/// [`crate::Error::Native`] if something was left unwritten, written beyond its room, or cannot be the layer's weight.
pub(super) fn rounded(instance: &Instance, job: &LayerJob, room: &Room) -> Result<RoundedLayer> {
    let written =
        room.rounded().map_err(|reason| instance.failed(format!("layer `{}`: {reason}", job.spec.id)))?;
    let kept = |part: &Option<mlx_rs::Array>| part.as_ref().map(to_vec).transpose();
    let learned = match written.input_scale {
        None => None,
        // Only step sizes are learned: the rest is the plan's.
        Some(scale) => Some(LearnedInput {
            scale,
            shift: kept(&job.input.shift)?.unwrap_or_default(),
            multiplier: kept(&job.input.multiplier)?.unwrap_or_default(),
            bias: Vec::new(),
        }),
    };
    let rounded = RoundedLayer {
        grid: job.grid,
        shape: [job.spec.out_features, job.spec.in_features],
        weight_int: written.weight_int,
        scale: written.scale,
        zero_point: written.zero_point,
        learned,
    };
    rounded.validate(&job.spec, job.input.steps()).map_err(|e| instance.failed(e))?;
    Ok(rounded)
}
