//! `taq policy new`: the SDK's templates, as they were when this program was built.

use std::fs;
use std::path::Path;

use taq_core::artifacts::atomic_write_bytes;
use taq_core::{Error, Result};

use crate::args::Language;
use crate::error::Failure;
use crate::output::print;

/// A file of a template: where it goes, and its text.
type File = (&'static str, &'static str);

macro_rules! template {
    ($folder:literal: $($file:literal),* $(,)?) => {
        &[$(($file, include_str!(concat!("../../../../sdk/templates/", $folder, "/", $file)))),*]
    };
}

const RUST: &[File] = template!("rust": ".gitignore", "Cargo.toml", "README.md", "src/lib.rs");
const C: &[File] = template!("c": ".gitignore", "README.md", "policy.c");
const ASSEMBLYSCRIPT: &[File] = template!(
    "assemblyscript": ".gitignore", "README.md", "asconfig.json", "assembly/index.ts", "assembly/json.ts",
    "assembly/taq.ts", "package.json",
);

/// Where the Rust template finds its SDK inside the repository.
const SDK_HERE: &str = "path = \"../../policy\"";

/// Writes a template to a folder that must not exist or be empty.
pub(super) fn new(folder: &Path, language: Language) -> Result<(), Failure> {
    let files = match language {
        Language::Rust => RUST,
        Language::C => C,
        Language::Assemblyscript => ASSEMBLYSCRIPT,
    };
    refuse_to_overwrite(folder)?;
    for (name, text) in files {
        let text = text.replace(SDK_HERE, &sdk());
        atomic_write_bytes(&folder.join(name), text.as_bytes())?;
    }
    print(&format!(
        "{} files in {}; README.md there tells how to build and try the policy\n",
        files.len(),
        folder.display()
    ))
}

fn refuse_to_overwrite(folder: &Path) -> Result<()> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => {
                let reason = format!("`{}` is not empty; choose a new folder", folder.display());
                Err(Error::settings("policy new", reason))
            }
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("read", folder)(e)),
    }
}

/// The SDK in the checkout that this program was built from.
fn sdk() -> String {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/policy");
    let sdk = sdk.canonicalize().unwrap_or(sdk);
    format!("path = {:?}", sdk.to_string_lossy())
}
