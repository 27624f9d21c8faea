//! The plugins linked into this program or loaded by it, by kind and name.
//!
//! A plugin registers itself with [`register!`](crate::register) through `inventory`, which promises no order:
//! the registry sorts, refuses duplicates, and answers an unknown name with near ones.
//!
//! A plugin of a native library has its own name as long as no other plugin of its kind has it, and `library::name` in any
//! case: what is linked in keeps its name, and two libraries that use the same one both have to be named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use schemars::{JsonSchema, Schema, schema_for};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::artifacts::file_hash;
use crate::native::{Library, NativeItem};
use crate::wasm::WasmPolicy;
use crate::{BitPolicy, Error, Model, ModelDefaults, Observer, Result, Rounder, Sampler, native};

/// What a plugin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A diffusion transformer.
    Model,
    /// A sampler.
    Sampler,
    /// An observer of activations.
    Observer,
    /// A bit policy.
    Policy,
    /// A rounder of weights.
    Rounder,
}

impl Kind {
    /// All kinds, in the order of a pipeline.
    pub const ALL: [Self; 5] = [Self::Model, Self::Sampler, Self::Observer, Self::Policy, Self::Rounder];

    /// The word for people and manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Sampler => "sampler",
            Self::Observer => "observer",
            Self::Policy => "policy",
            Self::Rounder => "rounder",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How to make a plugin from its settings (a JSON object).
#[derive(Clone, Copy)]
pub enum Make {
    /// Makes a model.
    Model(fn(&Value) -> Result<Box<dyn Model>>),
    /// Makes a sampler for a model with these defaults.
    Sampler(fn(&Value, &ModelDefaults) -> Result<Box<dyn Sampler>>),
    /// Makes one observer of one layer at one timestep.
    Observer(fn(&Value) -> Result<Box<dyn Observer>>),
    /// Makes a bit policy.
    Policy(fn(&Value) -> Result<Box<dyn BitPolicy>>),
    /// Makes a rounder.
    Rounder(fn(&Value) -> Result<Box<dyn Rounder>>),
    /// Makes what a native library has: an observer, a bit policy or a rounder.
    Native(&'static NativeItem),
}

impl Make {
    /// The kind of plugin that this makes.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Model(_) => Kind::Model,
            Self::Sampler(_) => Kind::Sampler,
            Self::Observer(_) => Kind::Observer,
            Self::Policy(_) => Kind::Policy,
            Self::Rounder(_) => Kind::Rounder,
            Self::Native(item) => item.kind(),
        }
    }
}

/// Where the JSON Schema of a plugin's settings comes from.
#[derive(Clone, Copy)]
pub enum SettingsSchema {
    /// A type.
    Of(fn() -> Schema),
    /// A native library.
    Native(&'static NativeItem),
}

/// A plugin, described.
pub struct Plugin {
    /// Name within its kind.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Crate or library that it comes from, with version, and of a library the hash of its file: part of every fingerprint.
    pub origin: &'static str,
    /// JSON Schema of its settings.
    pub schema: SettingsSchema,
    /// Makes one.
    pub make: Make,
}

impl Plugin {
    /// The JSON Schema of its settings.
    pub fn settings(&self) -> Schema {
        match self.schema {
            SettingsSchema::Of(schema) => schema(),
            SettingsSchema::Native(item) => item.info().settings_schema.clone().into(),
        }
    }

    /// The plugin of a library under a name. It is there as long as the process, as the library is.
    fn native(library: &Library, item: &'static NativeItem, name: &str) -> &'static Self {
        let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
        let (hash, version) = (library.hash(), library.version());
        Box::leak(Box::new(Self {
            name: leak(name.to_owned()),
            summary: &item.info().summary,
            origin: leak(format!("{} {version}, blake3 {hash}", library.name())),
            schema: SettingsSchema::Native(item),
            make: Make::Native(item),
        }))
    }
}

inventory::collect!(Plugin);

/// Registers a plugin: kind, name, settings type, constructor, one sentence.
///
/// The settings type is `Deserialize + JsonSchema` with defaults for everything; the constructor takes it by
/// value (a sampler's also takes the model's defaults) and returns `Result<impl Trait>`.
///
/// ```
/// use taq_core::{BitPolicy, PolicyPlan, PolicyRequest, Result, register, registry::Registry};
///
/// #[derive(Default, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(default, deny_unknown_fields)]
/// struct Settings {}
///
/// struct Empty;
///
/// impl BitPolicy for Empty {
///     fn assign(&self, _: &PolicyRequest) -> Result<PolicyPlan> { Ok(PolicyPlan::new(vec![])) }
/// }
///
/// register!(Policy, "empty", Settings, |_| Ok(Empty), "Decides nothing.");
///
/// let registry = Registry::linked().unwrap();
/// assert!(registry.policy("empty", &serde_json::json!({})).is_ok());
/// ```
#[macro_export]
macro_rules! register {
    (Sampler, $name:literal, $settings:ty, $make:expr, $summary:literal) => {
        $crate::register!(@submit Sampler, $name, $settings, $summary, |value, defaults| {
            let make: fn($settings, &$crate::ModelDefaults) -> $crate::Result<_> = $make;
            Ok(Box::new(make($crate::registry::parse_settings(concat!("sampler `", $name, "`"), value)?, defaults)?))
        });
    };
    ($kind:ident, $name:literal, $settings:ty, $make:expr, $summary:literal) => {
        $crate::register!(@submit $kind, $name, $settings, $summary, |value| {
            let make: fn($settings) -> $crate::Result<_> = $make;
            let owner = format!("{} `{}`", $crate::registry::Kind::$kind, $name);
            Ok(Box::new(make($crate::registry::parse_settings(&owner, value)?)?))
        });
    };
    (@submit $kind:ident, $name:literal, $settings:ty, $summary:literal, $make:expr) => {
        $crate::inventory::submit! {
            $crate::registry::Plugin {
                name: $name,
                summary: $summary,
                origin: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
                schema: $crate::registry::SettingsSchema::Of($crate::registry::settings_schema::<$settings>),
                make: $crate::registry::Make::$kind($make),
            }
        }
    };
}

/// Reads a plugin's settings; `null` means defaults. For [`register!`](crate::register).
pub fn parse_settings<T: DeserializeOwned>(owner: &str, value: &Value) -> Result<T> {
    let empty = Value::Object(serde_json::Map::new());
    let value = if value.is_null() { &empty } else { value };
    // serde would also read a structure from a list.
    if !value.is_object() {
        return Err(Error::settings(owner, format!("expected a table of settings, found {value}")));
    }
    T::deserialize(value).map_err(|e| Error::settings(owner, e))
}

/// The schema of a settings type. For [`register!`](crate::register).
pub fn settings_schema<T: JsonSchema>() -> Schema {
    schema_for!(T)
}

/// All plugins of a program, sorted by kind and name.
pub struct Registry {
    plugins: BTreeMap<(Kind, &'static str), &'static Plugin>,
    /// The plugins of libraries by `library::name`, whatever they are called above.
    qualified: BTreeMap<(Kind, &'static str), &'static Plugin>,
    /// Names that several libraries have, and nothing that is linked in.
    shared: BTreeSet<(Kind, &'static str)>,
    libraries: Vec<&'static Library>,
}

impl Registry {
    /// The plugins linked into this program. Two of one kind and name are an error.
    pub fn linked() -> Result<Self> {
        Self::new(inventory::iter::<Plugin>)
    }

    /// The given plugins.
    pub fn new(plugins: impl IntoIterator<Item = &'static Plugin>) -> Result<Self> {
        let mut map = BTreeMap::new();
        for plugin in plugins {
            let kind = plugin.make.kind();
            if let Some(first) = map.insert((kind, plugin.name), plugin) {
                let (mut first, mut second) = (first.origin, plugin.origin);
                if first > second {
                    std::mem::swap(&mut first, &mut second);
                }
                return Err(Error::DuplicatePlugin {
                    kind: kind.name(),
                    name: plugin.name.to_owned(),
                    first,
                    second,
                });
            }
        }
        Ok(Self { plugins: map, qualified: BTreeMap::new(), shared: BTreeSet::new(), libraries: Vec::new() })
    }

    /// Loads a native library and adds its plugins. The same file a second time is the same library.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Native`] says what is wrong with it, or which library has the same name
    /// and plugin.
    pub fn load(&mut self, path: &Path) -> Result<&'static Library> {
        let file = native::inspect(path)?;
        if let Some(&known) = self.libraries.iter().find(|l| l.hash() == file.hash) {
            return Ok(known);
        }
        let library = Library::of(file)?;
        let name_of = |item: &NativeItem| format!("{}::{}", library.name(), item.name());
        for item in library.items() {
            let (kind, name) = (item.kind(), name_of(item));
            if self.qualified.keys().any(|key| *key == (kind, name.as_str())) {
                let other = self.libraries.iter().find(|l| l.name() == library.name());
                let other = other.map_or_else(String::new, |l| format!(", `{}`", l.path().display()));
                let reason =
                    format!("another library of this name{other}, has a {kind} `{}` too", item.name());
                return Err(Error::Native { path: library.path().to_owned(), reason });
            }
        }
        for item in library.items() {
            let kind = item.kind();
            let full = Plugin::native(library, item, &name_of(item));
            self.qualified.insert((kind, full.name), full);
            let short = (kind, item.name());
            match self.plugins.get(&short).copied() {
                None if !self.shared.contains(&short) => {
                    let plugin = Plugin::native(library, item, item.name());
                    self.plugins.insert((kind, plugin.name), plugin);
                    continue;
                }
                Some(Plugin { make: Make::Native(other), .. }) => {
                    // The first of two libraries gives up the name.
                    self.plugins.remove(&short);
                    self.shared.insert(short);
                    let same = |p: &&Plugin| matches!(p.make, Make::Native(i) if std::ptr::eq(i, *other));
                    if let Some(&first) = self.qualified.values().find(|p| same(p)) {
                        self.plugins.insert((kind, first.name), first);
                    }
                }
                _ => {}
            }
            tracing::warn!("{kind} `{}` is `{}`: another one has that name", item.name(), full.name);
            self.plugins.insert((kind, full.name), full);
        }
        self.libraries.push(library);
        Ok(library)
    }

    /// The native libraries that were loaded, in that order.
    pub fn libraries(&self) -> &[&'static Library] {
        &self.libraries
    }

    /// All of them, sorted by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &'static Plugin)> + '_ {
        self.plugins.iter().map(|(&(kind, _), &plugin)| (kind, plugin))
    }

    /// The plugin of this kind and name.
    pub fn find(&self, kind: Kind, name: &str) -> Result<&'static Plugin> {
        let named = |p: &&Plugin| p.make.kind() == kind && p.name == name;
        if let Some(&plugin) =
            self.plugins.values().find(|p| named(p)).or_else(|| self.qualified.values().find(|p| named(p)))
        {
            return Ok(plugin);
        }
        let known: Vec<String> =
            self.iter().filter(|(k, _)| *k == kind).map(|(_, p)| p.name.to_owned()).collect();
        let same: Vec<String> = known.iter().filter(|k| label(k) == name).cloned().collect();
        Err(Error::UnknownPlugin {
            kind: kind.name(),
            name: name.to_owned(),
            near: if same.is_empty() { near(name, &known) } else { same },
            known,
        })
    }

    /// Where a plugin comes from, for fingerprints: the crate with its version, the library with its version and hash, or the
    /// hash of a WASM module.
    pub fn origin(&self, kind: Kind, name: &str) -> Result<String> {
        if kind == Kind::Policy && is_path(name) {
            return Ok(format!("blake3 {}", file_hash(Path::new(name))?));
        }
        Ok(self.find(kind, name)?.origin.to_owned())
    }

    /// Makes a model.
    pub fn model(&self, name: &str, settings: &Value) -> Result<Box<dyn Model>> {
        match self.find(Kind::Model, name)?.make {
            Make::Model(make) => make(settings),
            _ => unreachable!("found by kind"),
        }
    }

    /// Makes a sampler for a model with these defaults.
    pub fn sampler(
        &self,
        name: &str,
        settings: &Value,
        defaults: &ModelDefaults,
    ) -> Result<Box<dyn Sampler>> {
        match self.find(Kind::Sampler, name)?.make {
            Make::Sampler(make) => make(settings, defaults),
            _ => unreachable!("found by kind"),
        }
    }

    /// Makes an observer.
    pub fn observer(&self, name: &str, settings: &Value) -> Result<Box<dyn Observer>> {
        match self.find(Kind::Observer, name)?.make {
            Make::Observer(make) => make(settings),
            Make::Native(item) => item.observer(settings),
            _ => unreachable!("found by kind"),
        }
    }

    /// Makes a bit policy: a built-in by its name, or a WASM module by its path.
    pub fn policy(&self, name: &str, settings: &Value) -> Result<Box<dyn BitPolicy>> {
        if is_path(name) {
            return Ok(Box::new(WasmPolicy::load(Path::new(name), settings)?));
        }
        match self.find(Kind::Policy, name)?.make {
            Make::Policy(make) => make(settings),
            Make::Native(item) => item.policy(settings),
            _ => unreachable!("found by kind"),
        }
    }

    /// Makes a rounder.
    pub fn rounder(&self, name: &str, settings: &Value) -> Result<Box<dyn Rounder>> {
        match self.find(Kind::Rounder, name)?.make {
            Make::Rounder(make) => make(settings),
            Make::Native(item) => item.rounder(settings),
            _ => unreachable!("found by kind"),
        }
    }
}

/// Whether a plugin's name is the path of a file: it has a slash, or ends in `.wasm` or `.wat`.
///
/// ```
/// use taq_core::registry::is_path;
///
/// assert!(is_path("./mine.wasm") && is_path("mine.wasm") && is_path("mine.wat") && is_path("policies/mine"));
/// assert!(!is_path("multitier"));
/// ```
pub fn is_path(name: &str) -> bool {
    name.contains(['/', '\\']) || name.ends_with(".wasm") || name.ends_with(".wat")
}

/// A plugin's name as documents keep it: of a path the file's name, since the same module elsewhere is the same plugin; of a
/// library's plugin its own name.
///
/// ```
/// use taq_core::registry::label;
///
/// assert_eq!((label("policies/mine.wasm"), label("multitier")), ("mine.wasm", "multitier"));
/// assert_eq!(label("signround::sign-round"), "sign-round");
/// ```
pub fn label(name: &str) -> &str {
    let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
    if is_path(name) { file } else { file.rsplit("::").next().unwrap_or(file) }
}

/// Names that a typo may have meant, nearest first: at most three edits and a third of the longer name away,
/// or one a prefix of the other.
pub fn near(name: &str, known: &[String]) -> Vec<String> {
    let mut scored: Vec<(usize, &String)> = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(&name.to_lowercase(), &k.to_lowercase()), k))
        .filter(|(d, k)| {
            *d <= 3.min(k.len().max(name.len()).div_ceil(3))
                || (!name.is_empty() && (k.starts_with(name) || name.starts_with(k.as_str())))
        })
        .collect();
    scored.sort();
    scored.into_iter().map(|(_, k)| k.clone()).collect()
}
