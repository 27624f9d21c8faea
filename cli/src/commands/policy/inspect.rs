//! `taq policy inspect`.

use std::path::Path;

use serde_json::Value;
use taq_core::wasm::{WasmPolicy, limits};

use crate::error::Failure;
use crate::output::{Table, bytes, print, terminal_width};
use crate::settings_table::settings_table;

/// Prints what a module says of itself, and its limits.
pub(super) fn inspect(path: &Path) -> Result<(), Failure> {
    let policy = WasmPolicy::open(path)?;
    let (info, facts) = (policy.info(), policy.facts());
    let mut text =
        format!("policy `{}` {}, from {}\n{}\n\n", info.name, info.version, path.display(), info.summary);
    let memory = format!(
        "{} at the start, at most {}",
        bytes(facts.memory_pages * 65536),
        bytes(limits::MEMORY_BYTES as u64)
    );
    let mut table = Table::new(&[if facts.component { "COMPONENT" } else { "MODULE" }, ""]);
    table.row(["size", &format!("{}, {} functions", bytes(facts.bytes as u64), facts.functions)]);
    table.row(["blake3", policy.hash()]);
    table.row(["imports", &facts.imports.join(", ")]);
    table.row(["exports", &facts.exports.join(", ")]);
    table.row(["memory", &memory]);
    table.row(["fuel", &format!("at most {} million instructions a call", limits::FUEL / 1_000_000)]);
    table.row(["response", &format!("at most {}", bytes(limits::RESPONSE_BYTES as u64))]);
    table.row([
        "channels",
        if info.per_channel { "asks for every channel's statistics" } else { "not asked for" },
    ]);
    text.push_str(&table.render(terminal_width()));
    text.push('\n');
    match settings_table(&Value::Object(info.settings_schema.clone()), terminal_width()) {
        Some(settings) => text.push_str(&settings),
        None => text.push_str("It describes no settings.\n"),
    }
    print(&text)
}
