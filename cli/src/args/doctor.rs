//! `taq doctor`.

/// Flags of `taq doctor`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Check this machine and this build",
    long_about = "Checks this machine and this build: device, MLX, BLAS, threads, memory, the speed of a matrix \
                  product, and whether the default model loads. Nothing is written.",
    after_help = "Examples:\n  \
                  taq doctor\n  \
                  taq doctor --json | jq .matmul"
)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Do not measure: no matrix product, no model
    #[arg(long)]
    pub(crate) quick: bool,
}
