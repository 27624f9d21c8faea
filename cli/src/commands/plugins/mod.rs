//! `taq plugins`: what is linked into this program, what it has loaded, and projects to begin with.

mod new;

use std::path::Path;

use serde_json::{Map, Value, json};
use taq_core::Error;
use taq_core::native::{Library, NativeItem};
use taq_core::registry::{Kind, Plugin, Registry, near};
use taq_core::wasm::shown;

use crate::args::{PluginsArgs, PluginsCommand};
use crate::error::Failure;
use crate::output::{Table, print, print_json, terminal_width};
use crate::settings_table::settings_table;

/// Lists the plugins, or describes one.
pub(crate) fn plugins(registry: &Registry, args: &PluginsArgs) -> Result<(), Failure> {
    match &args.command {
        Some(PluginsCommand::Show { name, json }) => return show(registry, name, *json),
        Some(PluginsCommand::New { folder, kind, lang }) => return new::new(folder, *kind, *lang),
        Some(PluginsCommand::Check { library, config }) => return check(library, config.as_ref()),
        None => {}
    }
    let kind = args.kind.map(Kind::from);
    let chosen: Vec<_> = registry.iter().filter(|(k, _)| kind.is_none_or(|kind| kind == *k)).collect();
    if args.json {
        let all: Vec<Value> = chosen.iter().map(|(kind, plugin)| document(*kind, plugin)).collect();
        return print_json(&all);
    }
    let mut table = Table::new(&["KIND", "NAME", "FROM", "WHAT IT DOES"]);
    for (kind, plugin) in &chosen {
        table.row([kind.name(), plugin.name, plugin.origin, plugin.summary]);
    }
    print(&table.render(terminal_width()))
}

fn show(registry: &Registry, name: &str, json: bool) -> Result<(), Failure> {
    let found = find(registry, name)?;
    if json {
        let documents: Vec<Value> = found.iter().map(|(_, p)| p.settings().to_value()).collect();
        return match documents.as_slice() {
            [one] => print_json(one),
            many => print_json(&many),
        };
    }
    let parts: Vec<String> = found.iter().map(|(kind, plugin)| describe(*kind, plugin)).collect();
    print(&parts.join("\n"))
}

/// Loads a library and holds its plugins to what is expected of them.
fn check(path: &Path, config: Option<&Map<String, Value>>) -> Result<(), Failure> {
    let library = Library::load(path)?;
    let facts = library.facts();
    let on_target = if facts.target.is_empty() { String::new() } else { format!(", {}", facts.target) };
    print(&format!(
        "`{}`\n{} {}, plugin ABI {}, built with {}, {}{on_target}\nblake3 {}\n",
        library.path().display(),
        library.name(),
        library.version(),
        facts.abi,
        facts.sdk,
        facts.compiler,
        library.hash()
    ))?;
    let named = |name: &str| library.items().iter().any(|item| item.name() == name);
    if let Some(name) = config.and_then(|c| c.keys().find(|name| !named(name))) {
        let known: Vec<&str> = library.items().iter().map(NativeItem::name).collect();
        let reason = format!("the library has no plugin `{name}`; it has {}", known.join(", "));
        return Err(Error::settings("--config", reason).into());
    }
    let (mut failed, mut of) = (0, 0);
    for item in library.items() {
        let settings = config.and_then(|c| c.get(item.name())).map_or_else(|| "{}".into(), Value::to_string);
        let mut table = Table::new(&["", "CHECK"]);
        for (name, result) in item.check(&settings).checks {
            of += 1;
            match result {
                Ok(()) => table.row(["ok", name]),
                Err(reason) => {
                    failed += 1;
                    table.row(["FAILED", &format!("{name}: {}", shown(reason.as_bytes()))]);
                }
            }
        }
        let head = format!("\n{} `{}`: {}\n", item.kind(), item.name(), item.info().summary);
        print(&(head + &table.render(terminal_width())))?;
    }
    print(&format!("\n{} of {of} checks passed\n", of - failed))?;
    if failed == 0 { Ok(()) } else { Err(Failure::Checks { failed, of, what: "checks" }) }
}

fn document(kind: Kind, plugin: &Plugin) -> Value {
    json!({
        "kind": kind,
        "name": plugin.name,
        "summary": plugin.summary,
        "origin": plugin.origin,
        "settings": plugin.settings(),
    })
}

fn describe(kind: Kind, plugin: &Plugin) -> String {
    let mut text = format!("{kind} `{}`, from {}\n{}\n\n", plugin.name, plugin.origin, plugin.summary);
    match settings_table(&plugin.settings().to_value(), terminal_width()) {
        Some(table) => text.push_str(&table),
        None => text.push_str("It has no settings.\n"),
    }
    text
}

/// The plugins of this name, of every kind that has one; `kind/name` asks for one kind.
fn find(registry: &Registry, name: &str) -> Result<Vec<(Kind, &'static Plugin)>, Error> {
    if let Some((kind, name)) = name.split_once('/')
        && let Some(kind) = Kind::ALL.into_iter().find(|k| k.name() == kind)
    {
        return Ok(vec![(kind, registry.find(kind, name)?)]);
    }
    let found: Vec<_> = registry.iter().filter(|(_, p)| p.name == name).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let mut known: Vec<String> = registry.iter().map(|(_, p)| p.name.to_owned()).collect();
    known.sort();
    known.dedup();
    Err(Error::UnknownPlugin { kind: "plugin", name: name.to_owned(), near: near(name, &known), known })
}
