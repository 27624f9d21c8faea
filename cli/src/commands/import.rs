//! `taq import`.

use taq_core::pipeline;

use super::Host;
use super::stages::{no_traces, stage};
use crate::args::ImportArgs;
use crate::error::Failure;

/// `taq import`.
pub(crate) fn import(host: Host, args: &ImportArgs) -> Result<(), Failure> {
    let settings = args.settings();
    let root = &args.session.run;
    no_traces(root, || stage(host, &args.session, |session| pipeline::import(session, &settings)))
}
