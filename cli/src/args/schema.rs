//! `taq schema`.

use std::path::PathBuf;

/// Flags of `taq schema`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Print or write the JSON schemas of all documents",
    after_help = "Examples:\n  \
                  taq schema                         the names\n  \
                  taq schema pipeline                one schema, on stdout\n  \
                  taq schema --out sdk/schemas       all of them, a file each"
)]
pub(crate) struct SchemaArgs {
    /// Print this schema; without it, list the names
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Write NAME.schema.json here, for one schema or all
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}
