//! `taq plugins`: what is linked into this program, what it has loaded, and projects to begin with.

mod check;
mod new;

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Value, json};
use taq_core::Error;
use taq_core::registry::{Kind, Plugin, Registry, near};

use crate::args::{PluginsArgs, PluginsCommand};
use crate::error::Failure;
use crate::output::{Table, print, print_json, terminal_width};
use crate::settings_table::settings_table;

pub(crate) use new::examples as new_plugin_examples;

/// Digits of a hash that lists show.
const DIGITS: usize = 12;

/// Lists the plugins, or describes one.
pub(crate) fn plugins(registry: &Registry, args: &PluginsArgs) -> Result<(), Failure> {
    if let Some(command) = &args.command {
        refuse_flags_of_the_list(args, command)?;
        return match command {
            PluginsCommand::Show { name, json } => show(registry, name, *json || args.json),
            PluginsCommand::New { folder, kind, lang } => new::new(folder, *kind, *lang),
            PluginsCommand::Check { library, config, timeout } => {
                check::check(library, config.as_ref(), Duration::from_secs(*timeout))
            }
        };
    }
    let kind = args.kind.map(Kind::from);
    let chosen: Vec<_> = registry.iter().filter(|(k, _)| kind.is_none_or(|kind| kind == *k)).collect();
    if args.json {
        let all: Vec<Value> = chosen.iter().map(|(kind, plugin)| document(*kind, plugin)).collect();
        return print_json(&all);
    }
    let mut table = Table::new(&["KIND", "NAME", "FROM", "WHAT IT DOES"]);
    for (kind, plugin) in &chosen {
        table.row([kind.name(), plugin.name, &shortened(plugin.origin), plugin.summary]);
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

/// KIND and `--json` before a command are no part of it, but for `show`.
fn refuse_flags_of_the_list(args: &PluginsArgs, command: &PluginsCommand) -> Result<(), Error> {
    let wrong = match (args.kind, args.json, command) {
        (Some(_), _, _) => "a KIND chooses what is listed; leave it out before a command",
        (None, true, PluginsCommand::New { .. } | PluginsCommand::Check { .. }) => {
            "--json is for the list and for `show`"
        }
        _ => return Ok(()),
    };
    Err(Error::settings("taq plugins", wrong))
}

/// Where a plugin comes from, with the first digits of a library's hash.
fn shortened(origin: &str) -> Cow<'_, str> {
    match origin.split_once("blake3 ") {
        Some((before, hash)) if hash.len() > DIGITS && hash.is_ascii() => {
            Cow::Owned(format!("{before}blake3 {}", &hash[..DIGITS]))
        }
        _ => Cow::Borrowed(origin),
    }
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
