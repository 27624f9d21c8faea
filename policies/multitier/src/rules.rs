//! The rules for one layer. They only compare and multiply: the same bits natively and in WASM.

use taq_policy::{LayerColumns, LayerSpec, ScaleSource};

use crate::Settings;

/// What is decided for one timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Index into the tiers.
    pub(crate) tier: usize,
    /// Whether the guard raised it.
    pub(crate) raised: bool,
    /// Whether SmoothQuant lowered it.
    pub(crate) lowered: bool,
}

/// The rules as they apply to one layer.
pub(crate) struct Rules<'a> {
    settings: &'a Settings,
    columns: &'a LayerColumns,
    /// What the thresholds are for.
    magnitudes: &'a [f32],
    /// Below the first: tier 0; below the second: tier 1.
    thresholds: [f32; 2],
    post_gelu: bool,
    shifted: bool,
    smooth: bool,
}

impl<'a> Rules<'a> {
    pub(crate) fn new(settings: &'a Settings, layer: &LayerSpec, columns: &'a LayerColumns) -> Self {
        let post_gelu = layer.post_gelu;
        let shifted = post_gelu && settings.shift_post_gelu && !columns.shifted_absmax.is_empty();
        let magnitudes = match (shifted, settings.scale_source) {
            // The quantiles are of the values before the shift.
            (true, _) => &columns.shifted_absmax,
            (false, ScaleSource::Absmax) => &columns.absmax,
            (false, ScaleSource::P999) => &columns.p999,
            (false, ScaleSource::P99) => &columns.p99,
        };
        let thresholds = if shifted {
            [settings.shifted_a4_threshold, settings.shifted_a6_threshold]
        } else {
            [settings.a4_threshold, settings.a6_threshold]
        };
        let mut rules = Self { settings, columns, magnitudes, thresholds, post_gelu, shifted, smooth: false };
        rules.smooth = settings.smoothquant && !magnitudes.is_empty() && rules.spiky(0);
        rules
    }

    /// Whether the layer is shifted.
    pub(crate) fn shifted(&self) -> bool {
        self.shifted
    }

    /// Whether the layer is smoothed: one decision for all timesteps, since the weights change with it.
    pub(crate) fn smooth(&self) -> bool {
        self.smooth
    }

    /// The tier at one timestep.
    pub(crate) fn decide(&self, at: usize) -> Decision {
        let [low, high] = self.thresholds;
        let magnitude = self.magnitudes[at];
        let base = if magnitude < low {
            0
        } else if magnitude < high {
            1
        } else {
            2
        };
        let raised = base < 2 && self.uneven(at);
        let guarded = base + usize::from(raised);
        let lowered = guarded > 0 && self.smooth && self.spiky(at);
        Decision { tier: guarded - usize::from(lowered), raised, lowered }
    }

    /// The guard. A layer whose median channel is 0 says nothing.
    fn uneven(&self, at: usize) -> bool {
        let (p50, p99) = (self.columns.channel_p50[at], self.columns.channel_p99[at]);
        !self.post_gelu && p50 > 0.0 && p99 > self.settings.outlier_ratio * p50
    }

    /// Few channels that reach far. Post-GELU layers have their shift instead.
    fn spiky(&self, at: usize) -> bool {
        let (p99, max) = (self.columns.channel_p99[at], self.columns.channel_max[at]);
        !self.post_gelu
            && self.columns.spike_fraction[at] < self.settings.smoothquant_fraction
            && p99 > 0.0
            && max > self.settings.smoothquant_spike * p99
    }
}
