//! `taq sensitivity`.

use taq_core::manifest::SensitivitySettings;

use super::{SessionArgs, parse};

/// Flags of `taq sensitivity`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Measure how much the model's output suffers when one layer alone is quantized",
    long_about = "Measures how much the model's output suffers when one layer's weight or input alone is quantized, at \
                  every width: activations/sensitivities.json (docs/sensitivity.md). `taq decide` hands it to the \
                  policy, and `budget` spends bits by it. Beside each measured error stands an estimate from gradients, \
                  and how well it ranks the layers. A killed measurement goes on with the first layer that is not \
                  there. Needs `taq observe`.",
    after_help = "Examples:\n  \
                  taq sensitivity --run runs/a\n  \
                  taq sensitivity --run runs/a --num-images 8 --stride 2      more samples, smaller errors\n  \
                  taq sensitivity --run runs/a --bits-w 3,4 --bits-a 8        two widths of weights, one of inputs\n  \
                  taq decide --run runs/a --policy budget --policy-config '{\"average_weight_bits\": 4}'"
)]
pub(crate) struct SensitivityArgs {
    /// Images to measure on, from the first [default: 2]
    #[arg(long, visible_alias = "max-images", value_name = "N", value_parser = parse::count)]
    num_images: Option<usize>,

    /// Measure at every N-th timestep only [default: 3]
    #[arg(long, visible_alias = "step-stride", value_name = "N", value_parser = parse::count)]
    stride: Option<usize>,

    /// Widths of weights, 2 to 8 each, or `none` [default: 2,3,4,6,8]
    #[arg(long, value_name = "BITS", value_parser = parse::widths)]
    bits_w: Option<parse::Widths>,

    /// Widths of inputs, 2 to 8 each, or `none` [default: 4,6,8]
    #[arg(long, value_name = "BITS", value_parser = parse::widths)]
    bits_a: Option<parse::Widths>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

impl SensitivityArgs {
    /// The settings that the flags ask for.
    pub(crate) fn settings(&self) -> SensitivitySettings {
        let default = SensitivitySettings::default();
        let chosen = |flag: &Option<parse::Widths>, default| flag.as_ref().map_or(default, |w| w.0.clone());
        SensitivitySettings {
            num_images: self.num_images,
            stride: self.stride.unwrap_or(default.stride),
            weight_bits: chosen(&self.bits_w, default.weight_bits),
            activation_bits: chosen(&self.bits_a, default.activation_bits),
        }
    }
}
