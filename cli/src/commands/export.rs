//! `taq export`.

use taq_core::pipeline;

use super::Host;
use super::stages::{needs_run, reading};
use crate::args::ExportArgs;
use crate::error::Failure;
use crate::output::{bytes, print};

/// `taq export`.
pub(crate) fn export(host: Host, args: &ExportArgs) -> Result<(), Failure> {
    needs_run(&args.session, "export", "rounded weights")?;
    let (session, _nowhere) = reading(host, &args.session)?;
    let exported = pipeline::export(&session, &args.settings(), &args.out)?;
    let layers = |count: usize, what: &str| match count {
        0 => String::new(),
        1 => format!(", 1 layer {what}"),
        n => format!(", {n} layers {what}"),
    };
    print(&format!(
        "{}: {} (the model's own: {}){}{}\n",
        exported.weights.display(),
        bytes(exported.bytes),
        bytes(exported.bytes_before),
        layers(exported.packed, "packed"),
        layers(exported.dequantized.len(), "dequantized or rounded again"),
    ))
}
