//! What a component must be. The types of what it imports and exports are looked at once it is compiled
//! ([`crate::wasm::component::check`]); everything else here.

use wasmparser::{ComponentTypeRef, Encoding, Parser, Payload};

use super::sizes::Sizes;
use super::{ModuleFacts, malformed};
use crate::wasm::component::{EXPORT, IMPORT, PACKAGE};
use crate::wasm::text::shown;

/// As [`super::check`].
pub(super) fn check(bytes: &[u8]) -> Result<ModuleFacts, String> {
    let mut sizes = Sizes::default();
    let mut facts = ModuleFacts { component: true, bytes: bytes.len(), ..ModuleFacts::default() };
    let mut exports = Vec::new();
    // The components and modules that are open here, the whole file first.
    let mut open = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(malformed)?;
        sizes.take(&payload)?;
        if open.iter().filter(|e| **e == Encoding::Component).count() > 1 {
            check_inner(&payload)?;
        }
        match payload {
            Payload::Version { encoding, .. } => open.push(encoding),
            Payload::End(_) => drop(open.pop()),
            Payload::ComponentImportSection(section) if open.len() == 1 => {
                for import in section {
                    let import = import.map_err(malformed)?;
                    check_import(import.name.name, import.ty)?;
                    facts.imports.push(IMPORT.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if open.len() == 1 => {
                for export in section {
                    exports.push(export.map_err(malformed)?.name.name);
                }
            }
            _ => {}
        }
    }
    check_exports(&exports)?;
    facts.exports = exports.iter().map(|name| shown(name.as_bytes())).collect();
    Ok(ModuleFacts { functions: sizes.functions, memory_pages: sizes.memory_pages, ..facts })
}

/// A component inside may only give names to what it is handed, as the tools have it do for an exported interface.
/// More is refused: strings that components hand to each other are copied without using fuel, and components that
/// instantiate each other twice, level by level, take for ever to compile.
fn check_inner(payload: &Payload<'_>) -> Result<(), String> {
    match payload {
        Payload::ModuleSection { .. }
        | Payload::InstanceSection(_)
        | Payload::ComponentSection { .. }
        | Payload::ComponentInstanceSection(_)
        | Payload::ComponentCanonicalSection(_) => {
            Err("it is composed of several components; a policy is a single one".into())
        }
        _ => Ok(()),
    }
}

fn check_import(name: &str, ty: ComponentTypeRef) -> Result<(), String> {
    let full = shown(name.as_bytes());
    if name.starts_with("wasi:") {
        return Err(format!(
            "it imports `{full}`: policies have no WASI; build it without (jco: `--disable all`; componentize-py: \
             `--stub-wasi`)"
        ));
    }
    if name != IMPORT {
        return Err(format!("it imports `{full}`; offered is `{IMPORT}`"));
    }
    match ty {
        ComponentTypeRef::Instance(_) => Ok(()),
        _ => Err(format!("it imports `{full}`, which is an interface, as another kind")),
    }
}

fn check_exports(exports: &[&str]) -> Result<(), String> {
    if exports.contains(&EXPORT) {
        return Ok(());
    }
    let (interface, spoken) = EXPORT.split_once('@').unwrap_or((EXPORT, ""));
    let other = exports.iter().find_map(|e| e.strip_prefix(interface)?.strip_prefix('@'));
    Err(match other {
        Some(version) => format!(
            "it speaks version {} of `{PACKAGE}`; this version of taq speaks {spoken}",
            shown(version.as_bytes())
        ),
        None => format!("it is no policy of taq: the export `{EXPORT}` is missing"),
    })
}
