//! The run folder: where everything lies, how it is written, and what may be reused.
//!
//! Every file is written under a temporary name and renamed, so a process that is killed loses at most the item
//! in work. Arrays are npz files for `numpy.load`, documents are JSON with a `format` field.

mod atomic;
mod choice;
mod fingerprint;
mod finite;
mod json;
mod lock;
mod npz;
mod run;
mod schemas;
mod stage;

pub use atomic::{TEMPORARY_PREFIX, atomic_write, atomic_write_bytes, sweep};
pub use choice::SessionChoice;
pub use fingerprint::{Fingerprint, Parts, differences, file_hash};
pub use json::{Document, read_document, read_json, write_json};
pub use lock::{FolderLock, LOCK_FILE};
pub(crate) use npz::host_values;
pub use npz::{Element, Npz, NpzWriter, Stored, write_npz};
pub use run::RunFolder;
pub use schemas::schemas;
pub use stage::{STAGE_RECORD_FORMAT, StageRecord, StageState};
