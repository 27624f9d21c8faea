//! `taq plugin new`: the SDK's templates, as they were when this program was built.
//!
//! A template is a project that works where it lies in taq's repository, so that it is tested as what it is. On its way
//! into a new folder the paths to the repository's crates become absolute, and the project takes the folder's name.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use taq_core::artifacts::atomic_write_bytes;
use taq_core::{Error, Result};

use crate::args::{Language, ProjectKind};
use crate::error::Failure;
use crate::output::print;

/// A file of a template: where it goes, and its text.
type File = (&'static str, &'static str);

struct Template {
    kind: ProjectKind,
    language: Language,
    files: &'static [&'static [File]],
    /// What the project and what it builds are called in the template.
    name: &'static str,
    /// How `path = "…"` and others begin that lead to the repository's root.
    root: &'static str,
    /// A text that is another one in this template, in what it shares with others.
    instead: Option<(&'static str, &'static str)>,
    /// Whether it is built with the versions of the repository's `Cargo.lock`.
    locked: bool,
    /// What to do first.
    first: &'static str,
}

macro_rules! template {
    ($folder:literal: $($file:literal),* $(,)?) => {
        &[$(($file, include_str!(concat!("../../../../sdk/templates/", $folder, "/", $file)))),*]
    };
}

/// Every kind and language that there is a template for.
const TEMPLATES: &[Template] = &[
    Template {
        locked: true,
        ..policy(
            Language::Rust,
            &[template!("policy/rust": ".gitignore", "Cargo.toml", "README.md", "src/lib.rs"), POLICY],
            "cargo test",
        )
    },
    policy(
        Language::C,
        &[template!("policy/c": ".gitignore", "README.md", "policy.c"), POLICY],
        "clang (README.md has the command)",
    ),
    policy(
        Language::Assemblyscript,
        &[
            template!(
                "policy/assemblyscript": ".gitignore", "README.md", "asconfig.json", "assembly/index.ts",
                "assembly/json.ts", "assembly/taq.ts", "package.json",
            ),
            POLICY,
        ],
        "npm install && npm run build",
    ),
    Template {
        instead: Some(("./policy.wasm", "./policy.wat")),
        ..policy(
            Language::Wat,
            &[template!("policy/wat": ".gitignore", "README.md", "policy.wat"), POLICY],
            "taq run pipeline.toml",
        )
    },
    Template {
        locked: true,
        ..rounder(
            Language::Rust,
            &[template!("rounder/rust": ".gitignore", "Cargo.toml", "README.md", "src/lib.rs"), ROUNDER],
            "cargo test --release",
        )
    },
    rounder(
        Language::C,
        &[template!("rounder/c": ".gitignore", "README.md", "rounder.c", "test.c"), HEADER, ROUNDER],
        "cc (README.md has the commands)",
    ),
    rounder(
        Language::Zig,
        &[template!("rounder/zig": ".gitignore", "README.md", "build.zig", "rounder.zig"), HEADER, ROUNDER],
        "zig build test",
    ),
    Template {
        locked: true,
        ..observer(
            Language::Rust,
            &[template!("observer/rust": ".gitignore", "Cargo.toml", "README.md", "src/lib.rs"), OBSERVER],
            "cargo test --release",
        )
    },
    observer(
        Language::C,
        &[template!("observer/c": ".gitignore", "README.md", "observer.c", "test.c"), HEADER, OBSERVER],
        "cc (README.md has the commands)",
    ),
    Template {
        kind: ProjectKind::Host,
        language: Language::Rust,
        files: &[template!(
            "host": ".cargo/config.toml", ".gitignore", "Cargo.toml", "README.md", "pipeline.toml",
            "src/clipping.rs", "src/main.rs",
        )],
        name: "my-host",
        root: "../../../",
        instead: None,
        locked: true,
        first: "cargo test --release",
    },
];

/// What policies in all languages have.
const POLICY: &[File] =
    template!("policy/common": "cases/small.plan.json", "cases/small.request.json", "pipeline.toml");

/// What rounders have.
const ROUNDER: &[File] = template!("rounder/common": "pipeline.toml");

/// What observers have.
const OBSERVER: &[File] = template!("observer/common": "pipeline.toml");

/// What is needed to compile a native plugin in another language than Rust.
const HEADER: &[File] = &[("taq_plugin.h", include_str!("../../../../sdk/native/include/taq_plugin.h"))];

const fn policy(language: Language, files: &'static [&'static [File]], first: &'static str) -> Template {
    Template {
        kind: ProjectKind::Policy,
        language,
        files,
        name: "my-policy",
        root: "../../../../",
        instead: None,
        locked: false,
        first,
    }
}

const fn rounder(language: Language, files: &'static [&'static [File]], first: &'static str) -> Template {
    Template { kind: ProjectKind::Rounder, name: "my-rounder", ..policy(language, files, first) }
}

const fn observer(language: Language, files: &'static [&'static [File]], first: &'static str) -> Template {
    Template { kind: ProjectKind::Observer, name: "my-observer", ..policy(language, files, first) }
}

/// Every kind with its languages, the first of which is the default.
fn pairs() -> Vec<(String, Vec<String>)> {
    let kinds = ProjectKind::value_variants().iter();
    let languages =
        |kind: ProjectKind| TEMPLATES.iter().filter(move |t| t.kind == kind).map(|t| word(t.language));
    kinds.map(|&kind| (word(kind), languages(kind).collect())).collect()
}

/// What `taq plugin new --help` ends with.
pub(crate) fn examples() -> String {
    let mut text = String::from("Kinds, and the languages that each can be written in:\n");
    for (kind, languages) in pairs() {
        text.push_str(&format!("  --kind {kind:<10} --lang {}\n", languages.join(", ")));
    }
    text.push_str(
        "\nExamples:\n  \
         taq plugin new mine --kind rounder --lang c       a native library; rust and zig as well\n  \
         taq plugin new mine --kind policy --lang wat      one text file, no compiler needed\n  \
         taq plugin new mine --kind policy --lang rust\n  \
         taq plugin new mine --kind host                   a taq of one's own, with a rounder\n\n\
         The README.md in the new folder tells how to build, test and measure it.",
    );
    text
}

/// Writes a template to a folder that must not exist or be empty.
pub(super) fn new(folder: &Path, kind: ProjectKind, language: Option<Language>) -> Result<(), Failure> {
    let language = language.unwrap_or(Language::Rust);
    let template = find(kind, language)?;
    let name = project_name(folder)?;
    refuse_to_overwrite(folder)?;
    let checkout = checkout();
    for (file, text) in template.files.iter().copied().flatten() {
        let text = fill_in(template, text, &name, &checkout);
        atomic_write_bytes(&folder.join(file), text.as_bytes())?;
    }
    let lock = checkout.join("Cargo.lock");
    if template.locked && lock.is_file() {
        fs::copy(&lock, folder.join("Cargo.lock")).map_err(Error::io("copy", lock))?;
    }
    let mut said = format!(
        "{} is ready; its README.md tells how to build and measure it. First:\n  cd {} && {}\n",
        folder.display(),
        folder.display(),
        template.first
    );
    if !checkout.is_dir() {
        said.push_str(&format!(
            "taq's checkout is not at {} any more: mend the paths in Cargo.toml, if there is one\n",
            checkout.display()
        ));
    }
    print(&said)
}

fn find(kind: ProjectKind, language: Language) -> Result<&'static Template> {
    TEMPLATES.iter().find(|t| t.kind == kind && t.language == language).ok_or_else(|| {
        let there =
            pairs().into_iter().map(|(kind, languages)| format!("{kind} in {}", languages.join(", ")));
        let reason = format!(
            "no template for --kind {} --lang {}; there are: {}",
            word(kind),
            word(language),
            there.collect::<Vec<_>>().join("; ")
        );
        Error::settings("plugin new", reason)
    })
}

/// How a choice is written on the command line.
fn word(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

/// The name of a crate: the folder's, in small letters, digits, `-` and `_`.
fn project_name(folder: &Path) -> Result<String> {
    let found = folder.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let name: String = found.chars().map(plain).collect();
    if name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Ok(name);
    }
    let reason = format!("a project cannot be named after `{}`: begin with a letter", folder.display());
    Err(Error::settings("plugin new", reason))
}

fn fill_in(template: &Template, text: &str, name: &str, checkout: &Path) -> String {
    // As in a TOML string; nothing else than TOML names the root.
    let root = checkout.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    let mut text = text
        .replace(&format!("\"{}", template.root), &format!("\"{root}/"))
        .replace(template.name, name)
        .replace(&template.name.replace('-', "_"), &name.replace('-', "_"));
    if let Some((common, own)) = template.instead {
        text = text.replace(common, own);
    }
    text
}

fn refuse_to_overwrite(folder: &Path) -> Result<()> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => {
                let reason = format!("`{}` is not empty; choose a new folder", folder.display());
                Err(Error::settings("plugin new", reason))
            }
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("read", folder)(e)),
    }
}

/// The checkout that this program was built from.
fn checkout() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().unwrap_or(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_are_filled_in() {
        for template in TEMPLATES {
            for (file, text) in template.files.iter().copied().flatten() {
                let text = fill_in(template, text, "late-night", Path::new("/a \"b\""));
                assert!(!text.contains("\"../"), "{file} leads out of the project:\n{text}");
                assert!(!text.contains(template.name), "{file} is still called {}", template.name);
            }
        }
    }

    #[test]
    fn every_kind_has_a_default_and_no_pair_appears_twice() {
        let pairs = pairs();
        assert_eq!(pairs.iter().map(|(_, languages)| languages.len()).sum::<usize>(), TEMPLATES.len());
        for (kind, languages) in &pairs {
            assert_eq!(languages[0], "rust", "{kind}");
            let unique: std::collections::BTreeSet<&String> = languages.iter().collect();
            assert_eq!(unique.len(), languages.len(), "{kind}: {languages:?}");
        }
    }

    #[test]
    fn a_project_is_named_after_its_folder() {
        assert_eq!(project_name(Path::new("a/Late Night")).unwrap(), "late-night");
        assert_eq!(project_name(Path::new("x_1/")).unwrap(), "x_1");
        for odd in ["8-bits", "..", "/", "é"] {
            assert!(project_name(Path::new(odd)).unwrap_err().to_string().contains("begin with a letter"));
        }
    }
}
