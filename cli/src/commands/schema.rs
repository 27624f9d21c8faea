//! `taq schema`: the published schemas of all documents.

use std::path::Path;

use taq_core::artifacts::{atomic_write_bytes, schemas};
use taq_core::registry::near;
use taq_core::{Error, Result};

use crate::args::SchemaArgs;
use crate::error::Failure;
use crate::output::{print, print_json};

/// Lists, prints or writes the schemas.
pub(crate) fn schema(args: &SchemaArgs) -> Result<(), Failure> {
    let mut chosen = schemas();
    if let Some(name) = &args.name {
        let known: Vec<String> = chosen.iter().map(|(n, _)| (*n).to_owned()).collect();
        chosen.retain(|(n, _)| n == name);
        if chosen.is_empty() {
            return Err(unknown(name, &known).into());
        }
    }
    if let Some(folder) = &args.out {
        for (name, schema) in &chosen {
            write(folder, name, schema)?;
        }
        let count = chosen.len();
        return print(&format!(
            "{count} schema{} in {}\n",
            if count == 1 { "" } else { "s" },
            folder.display()
        ));
    }
    match (&args.name, chosen.as_slice()) {
        (Some(_), [(_, schema)]) => print_json(schema),
        _ => print(&chosen.iter().map(|(name, _)| format!("{name}\n")).collect::<String>()),
    }
}

fn write(folder: &Path, name: &str, schema: &taq_core::schemars::Schema) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let path = folder.join(format!("{name}.schema.json"));
    let mut text =
        serde_json::to_string_pretty(schema).map_err(|e| Error::malformed("JSON schema", &path, e))?;
    text.push('\n');
    atomic_write_bytes(&path, text.as_bytes())
}

fn unknown(name: &str, known: &[String]) -> Error {
    let meant = near(name, known).first().map_or_else(String::new, |n| format!("; did you mean `{n}`?"));
    Error::settings(
        "schema",
        format!("there is no document named `{name}`{meant} Known: {}", known.join(", ")),
    )
}
