//! The bit policy: how many bits each layer gets, and when.

use crate::Result;

pub use taq_policy::{
    LayerColumns, LayerPlan, PolicyError, PolicyInfo, PolicyPlan, PolicyRequest, ScaleSource, Sensitivity,
    Timestep,
};

/// A pure function from what was measured to a plan.
///
/// ```
/// use taq_core::{BitPolicy, LayerPlan, PolicyPlan, PolicyRequest, Result};
///
/// /// Four-bit weights, and eight bits for what goes in.
/// struct Fixed;
///
/// impl BitPolicy for Fixed {
///     fn assign(&self, request: &PolicyRequest) -> Result<PolicyPlan> {
///         let steps = request.timesteps.len();
///         let plan = |l: &taq_core::LayerSpec| LayerPlan::uniform(l.id.clone(), 4, 8, steps);
///         Ok(PolicyPlan::new(request.layers.iter().map(plan).collect()))
///     }
/// }
/// ```
pub trait BitPolicy {
    /// The plan: one entry for each layer of the request, in its order. The host checks it before use.
    fn assign(&self, request: &PolicyRequest) -> Result<PolicyPlan>;

    /// Whether the request must hold the statistics of every channel ([`LayerColumns::channel_absmax`]).
    fn per_channel(&self) -> bool {
        false
    }
}
