//! `taq profile`.

use super::{SessionArgs, parse};

/// Flags of `taq profile`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Look at what comes out of GELU, channel by channel and timestep by timestep",
    long_about = "Looks at the inputs of the post-GELU layers on the calibration samples: for every timestep, count, \
                  mean, standard deviation, minimum and maximum of each channel, and a histogram of each layer: \
                  activations/post_gelu_profile.npz (docs/profile.md). What comes out of GELU is lopsided, with a floor \
                  at -0.17: this tells whether a shift or a grid with a zero point would help. Needs `taq calibrate`, or \
                  samples in a layout of taq's Python ancestor (docs/samples.md).",
    after_help = "Examples:\n  \
                  taq profile --run runs/a\n  \
                  taq profile --run runs/a --num-samples 56    two images at each of 28 timesteps\n  \
                  taq profile --calib-dir calibration_data     samples of taq's Python ancestor"
)]
pub(crate) struct ProfileArgs {
    /// Samples (an image at a timestep) to look at, spread evenly over the timesteps [default: all that are calibrated]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    pub(crate) num_samples: Option<usize>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,
}
