//! What a library declares: read with suspicion, copied, and kept.

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::path::Path;

use taq_plugin::abi::{
    Decl, Item, KIND_OBSERVER, KIND_POLICY, KIND_ROUNDER, ObserverTable, PolicyTable, RounderTable, Str,
};
use taq_plugin::{INFO_FORMAT, PluginInfo};

use super::call::Speaker;
use super::memory::is_mapped;
use crate::registry::Kind;
use crate::wasm::shown;

/// Plugins of one library.
const ITEMS: usize = 256;
/// Bytes of a description.
const DESCRIPTION_BYTES: usize = 1 << 20;
/// Characters of a name, and of a version.
const NAME_CHARACTERS: usize = 64;

/// The functions of a plugin.
#[derive(Clone, Copy)]
pub(super) enum Table {
    Observer(ObserverTable),
    Rounder(RounderTable),
    Policy(PolicyTable),
}

/// A plugin of a library.
pub struct NativeItem {
    pub(super) name: String,
    pub(super) info: PluginInfo,
    pub(super) table: Table,
    pub(super) path: std::path::PathBuf,
    pub(super) speaker: Speaker,
}

impl NativeItem {
    /// Observer, rounder or policy.
    pub fn kind(&self) -> Kind {
        match self.table {
            Table::Observer(_) => Kind::Observer,
            Table::Rounder(_) => Kind::Rounder,
            Table::Policy(_) => Kind::Policy,
        }
    }

    /// Its name within its kind and library.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it says of itself.
    pub fn info(&self) -> &PluginInfo {
        &self.info
    }

    /// “rounder `x`”.
    pub(super) fn who(&self) -> String {
        format!("{} `{}`", self.kind(), self.name)
    }
}

/// A declaration, read.
pub(super) struct Declared {
    pub name: String,
    pub version: String,
    pub items: Vec<NativeItem>,
}

/// Reads what the entry returned. The error is a sentence for the user.
pub(super) fn read(decl: *const Decl, path: &Path) -> Result<Declared, String> {
    let decl: Decl = structure(decl, "declaration")?;
    let name = name(decl.name, "name", "")?;
    let version = self::name(decl.version, "version", "+")?;
    if decl.n_items == 0 || decl.n_items > ITEMS {
        return Err(format!("it declares {} plugins, expected 1 to {ITEMS}", decl.n_items));
    }
    if !is_mapped(decl.items.cast(), decl.n_items * size_of::<Item>()) || !decl.items.is_aligned() {
        return Err(format!("its list of {} plugins points nowhere", decl.n_items));
    }
    // SAFETY: there is aligned memory of that length, which the ABI says holds items.
    let listed = unsafe { std::slice::from_raw_parts(decl.items, decl.n_items) };
    let (mut items, mut names) = (Vec::new(), BTreeSet::new());
    for (at, listed) in listed.iter().enumerate() {
        let item =
            item(listed, path, &name).map_err(|reason| format!("plugin {at} of its list: {reason}"))?;
        if !names.insert((item.kind(), item.name.clone())) {
            return Err(format!("it declares two {}s named `{}`", item.kind(), item.name));
        }
        items.push(item);
    }
    Ok(Declared { name, version, items })
}

fn item(item: &Item, path: &Path, library: &str) -> Result<NativeItem, String> {
    let name = name(item.name, "name", "")?;
    let failed = |reason: String| format!("`{name}`: {reason}");
    let kind = item.kind;
    let describe = text(item.describe, "description", DESCRIPTION_BYTES).map_err(failed)?;
    let info: PluginInfo = serde_json::from_str(&describe)
        .map_err(|e| failed(format!("its description is not one: {}", shown(e.to_string().as_bytes()))))?;
    if info.format != INFO_FORMAT {
        let found = shown(info.format.as_bytes());
        let reason = format!("the format of its description is `{found}`, expected `{INFO_FORMAT}`");
        return Err(failed(reason));
    }
    let info = PluginInfo { summary: shown(info.summary.as_bytes()), ..info };
    let table = match kind {
        KIND_OBSERVER => Table::Observer(observer(item.table).map_err(failed)?),
        KIND_ROUNDER => Table::Rounder(rounder(item.table).map_err(failed)?),
        KIND_POLICY => Table::Policy(policy(item.table).map_err(failed)?),
        other => return Err(failed(format!("its kind is {other}, expected 1 to 3"))),
    };
    let speaker = Speaker::new(&format!("{library}::{name}"));
    Ok(NativeItem { name, info, table, path: path.to_owned(), speaker })
}

fn observer(table: *const c_void) -> Result<ObserverTable, String> {
    let table: ObserverTable = structure(table.cast(), "table of an observer")?;
    functions([
        ("create", table.create.map(|f| f as *const c_void)),
        ("observe", table.observe.map(|f| f as *const c_void)),
        ("finish", table.finish.map(|f| f as *const c_void)),
        ("destroy", table.destroy.map(|f| f as *const c_void)),
    ])?;
    Ok(table)
}

fn rounder(table: *const c_void) -> Result<RounderTable, String> {
    let table: RounderTable = structure(table.cast(), "table of a rounder")?;
    let layer = table.round_layer.map(|f| f as *const c_void);
    let block = table.round_block.map(|f| f as *const c_void);
    let (name, round) = match (layer, block) {
        (Some(f), None) => ("round_layer", Some(f)),
        (None, Some(f)) => ("round_block", Some(f)),
        (None, None) => return Err("it has neither `round_layer` nor `round_block`".into()),
        (Some(_), Some(_)) => return Err("it has both `round_layer` and `round_block`, expected one".into()),
    };
    functions([
        ("create", table.create.map(|f| f as *const c_void)),
        (name, round),
        ("destroy", table.destroy.map(|f| f as *const c_void)),
    ])?;
    Ok(table)
}

fn policy(table: *const c_void) -> Result<PolicyTable, String> {
    let table: PolicyTable = structure(table.cast(), "table of a policy")?;
    functions([
        ("create", table.create.map(|f| f as *const c_void)),
        ("assign", table.assign.map(|f| f as *const c_void)),
        ("destroy", table.destroy.map(|f| f as *const c_void)),
    ])?;
    Ok(table)
}

fn functions<const N: usize>(named: [(&str, Option<*const c_void>); N]) -> Result<(), String> {
    for (name, function) in named {
        match function {
            None => return Err(format!("its function `{name}` is null")),
            Some(address) if !is_mapped(address, 1) => {
                return Err(format!("its function `{name}` points nowhere ({address:?})"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// A copy of a structure that begins with its size.
fn structure<T: Copy>(pointer: *const T, what: &str) -> Result<T, String> {
    if pointer.is_null() {
        return Err(format!("its {what} is null"));
    }
    if !pointer.is_aligned() || !is_mapped(pointer.cast(), size_of::<u32>()) {
        return Err(format!("its {what} points nowhere ({pointer:?})"));
    }
    // SAFETY: there is memory, and every such structure begins with its size.
    let size = unsafe { *pointer.cast::<u32>() } as usize;
    let expected = size_of::<T>();
    // With a second minor version, a smaller one is filled up with zeros.
    if size != expected {
        return Err(format!("its {what} says that it has {size} bytes, expected {expected}"));
    }
    if !is_mapped(pointer.cast(), expected) {
        return Err(format!("its {what} points nowhere ({pointer:?})"));
    }
    // SAFETY: there is aligned memory of that length. The structures hold integers, and pointers that are options.
    Ok(unsafe { *pointer })
}

fn text(text: Str, what: &str, most: usize) -> Result<String, String> {
    if text.len > most {
        return Err(format!("its {what} has {} bytes, expected at most {most}", text.len));
    }
    if text.len == 0 {
        return Ok(String::new());
    }
    if text.ptr.is_null() {
        return Err(format!("its {what} is null"));
    }
    if !is_mapped(text.ptr.cast(), text.len) {
        return Err(format!("its {what} points nowhere ({:?})", text.ptr));
    }
    // SAFETY: there is memory of that length.
    let bytes = unsafe { std::slice::from_raw_parts(text.ptr, text.len) };
    String::from_utf8(bytes.to_vec())
        .map_err(|e| format!("its {what} is no UTF-8 (at byte {})", e.utf8_error().valid_up_to()))
}

fn name(name: Str, what: &str, also: &str) -> Result<String, String> {
    let name = text(name, what, 1 << 16)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') || also.contains(c);
    if name.is_empty() || name.len() > NAME_CHARACTERS || !name.chars().all(plain) {
        return Err(format!(
            "its {what} is `{}`, expected 1 to {NAME_CHARACTERS} letters, digits and -_.{also}",
            shown(name.as_bytes())
        ));
    }
    Ok(name)
}
