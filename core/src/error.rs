//! What can go wrong, one variant a kind, each with the thing it is about and what was expected.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of everything that can fail in taq.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One thing wrong with a weight file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightIssue {
    /// The model needs the tensor and no file has it.
    Missing {
        /// Name in the file's layout.
        key: String,
        /// Shape that the configuration asks for.
        shape: Vec<usize>,
    },
    /// A file has the tensor and the model has no place for it.
    Unexpected {
        /// Name in the file's layout.
        key: String,
    },
    /// The tensor has another shape than the configuration asks for.
    Shape {
        /// Name in the file's layout.
        key: String,
        /// Shape that the configuration asks for.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// The tensor holds NaN or infinity.
    NotFinite {
        /// Name in the file's layout.
        key: String,
        /// How many elements.
        count: usize,
    },
    /// The tensor holds numbers that are infinite in half precision.
    TooLarge {
        /// Name in the file's layout.
        key: String,
        /// How many elements.
        count: usize,
    },
}

impl fmt::Display for WeightIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { key, shape } => write!(f, "missing     {key} {shape:?}"),
            Self::Unexpected { key } => write!(f, "unexpected  {key}"),
            Self::Shape { key, expected, found } => {
                write!(f, "wrong shape {key}: expected {expected:?}, found {found:?}")
            }
            Self::NotFinite { key, count } => write!(f, "not finite  {key}: {count} NaN or infinite values"),
            Self::TooLarge { key, count } => {
                write!(f, "too large   {key}: {count} values that float16 does not reach; bfloat16 does")
            }
        }
    }
}

/// Every error of taq's libraries.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried: “read”, “write”, “create”, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not what its name or place says it is.
    #[error("`{}` is not a valid {kind}: {reason}", path.display())]
    Malformed {
        /// What it should be: “safetensors file”, “run manifest”, …
        kind: &'static str,
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// The tensors of a model do not fit its configuration.
    #[error("the weights in `{}` do not fit the model: {}", path.display(), list(issues))]
    Weights {
        /// File or folder.
        path: PathBuf,
        /// All of them, in the order of their names.
        issues: Vec<WeightIssue>,
    },
    /// No plugin of this name is registered.
    #[error("there is no {kind} named `{name}`{}", suggestion(near))]
    UnknownPlugin {
        /// “model”, “sampler”, …
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// Registered names that look like it, nearest first.
        near: Vec<String>,
        /// All registered names of the kind, sorted.
        known: Vec<String>,
    },
    /// Two plugins of one kind have the same name.
    #[error("two {kind}s are named `{name}`: {first} and {second}")]
    DuplicatePlugin {
        /// “model”, “sampler”, …
        kind: &'static str,
        /// The name.
        name: String,
        /// Crate that registered it first.
        first: &'static str,
        /// Crate that registered it again.
        second: &'static str,
    },
    /// A setting has a wrong name, type or value.
    #[error("{owner}: {reason}")]
    Settings {
        /// Whose settings: “rounder `adaround`”, “calibrate”, …
        owner: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A bit policy returned a plan that does not answer the request.
    #[error("the plan of policy `{policy}` is not usable: {reason}")]
    Plan {
        /// The policy.
        policy: String,
        /// Layer, field, and what was expected.
        reason: String,
    },
    /// A tensor has another shape than its place asks for.
    #[error("{what}: expected shape {expected}, found {found:?}")]
    Shape {
        /// Which tensor.
        what: String,
        /// The expected shape, with names for what may vary.
        expected: String,
        /// Its shape.
        found: Vec<i32>,
    },
    /// NaN or infinity where numbers are needed.
    #[error("{what} holds NaN or infinite values")]
    NotFinite {
        /// Which tensor: layer, step, file.
        what: String,
    },
    /// A stage needs what another stage leaves behind.
    #[error("{stage} needs {needs}, which `{}` does not have", run.display())]
    StageMissing {
        /// The stage that cannot start.
        stage: &'static str,
        /// What it needs.
        needs: String,
        /// The run folder.
        run: PathBuf,
        /// The stage to run first.
        first: &'static str,
    },
    /// A WASM policy that cannot be used.
    #[error("policy `{}`: {reason}", path.display())]
    Wasm {
        /// The module's file.
        path: PathBuf,
        /// A sentence about the module: “it …”.
        reason: String,
    },
    /// A native plugin that cannot be used.
    #[error("plugin `{}`: {reason}", path.display())]
    Native {
        /// The library's file.
        path: PathBuf,
        /// A sentence about the library or one of its plugins: “it …”.
        reason: String,
    },
    /// The run folder holds results of other inputs or settings.
    #[error("`{}` holds results of another run: {reason}", path.display())]
    Stale {
        /// The folder or file.
        path: PathBuf,
        /// Which input or setting differs, with both values.
        reason: String,
    },
    /// Something was asked that this build, machine or model cannot do.
    #[error("{what}")]
    Unsupported {
        /// What, and what would do instead.
        what: String,
    },
    /// The network or a service on it did not deliver.
    #[error("cannot fetch {what}: {reason}")]
    Download {
        /// Repository or file.
        what: String,
        /// The client's reason.
        reason: String,
    },
    /// The user asked to stop.
    #[error("stopped; the same command goes on from here")]
    Cancelled,
    /// MLX refused an operation.
    #[error("MLX: {}", without_place(.0.what()))]
    Mlx(#[from] mlx_rs::error::Exception),
}

impl Error {
    /// For `map_err` on a file operation.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// A file that is not what it should be.
    pub fn malformed(kind: &'static str, path: impl AsRef<Path>, reason: impl fmt::Display) -> Self {
        Self::Malformed { kind, path: path.as_ref().to_owned(), reason: reason.to_string() }
    }

    /// A wrong setting.
    pub fn settings(owner: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Settings { owner: owner.into(), reason: reason.to_string() }
    }

    /// A stable code to search the documentation for.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "taq::io",
            Self::Malformed { .. } => "taq::malformed",
            Self::Weights { .. } => "taq::weights",
            Self::UnknownPlugin { .. } => "taq::unknown_plugin",
            Self::DuplicatePlugin { .. } => "taq::duplicate_plugin",
            Self::Settings { .. } => "taq::settings",
            Self::Plan { .. } => "taq::plan",
            Self::Shape { .. } => "taq::shape",
            Self::NotFinite { .. } => "taq::not_finite",
            Self::StageMissing { .. } => "taq::stage_missing",
            Self::Wasm { .. } => "taq::wasm",
            Self::Native { .. } => "taq::native",
            Self::Stale { .. } => "taq::stale",
            Self::Unsupported { .. } => "taq::unsupported",
            Self::Download { .. } => "taq::download",
            Self::Cancelled => "taq::cancelled",
            Self::Mlx(_) => "taq::mlx",
        }
    }

    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Io { action: "read" | "open", source, .. }
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Some("check the path; relative paths start at the current folder".into())
            }
            Self::Io { source, .. }
                if matches!(
                    source.kind(),
                    std::io::ErrorKind::StorageFull
                        | std::io::ErrorKind::QuotaExceeded
                        | std::io::ErrorKind::FileTooLarge
                ) =>
            {
                Some("free some space and run the same command again: it resumes".into())
            }
            Self::Io { source, .. }
                if matches!(
                    source.kind(),
                    std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Some("choose a folder that you may write to".into())
            }
            Self::Weights { .. } => {
                Some("is the configuration that of these weights? a truncated download also looks so".into())
            }
            Self::UnknownPlugin { known, .. } if !known.is_empty() => {
                Some(format!("known: {}; `taq plugins` describes them", known.join(", ")))
            }
            Self::StageMissing { first, .. } => Some(format!("run `taq {first}` on this folder first")),
            Self::Stale { .. } => {
                Some("choose another folder, or pass --force to throw the old results away".into())
            }
            Self::Mlx(e) if is_out_of_memory(e.what()) => Some(
                "let less be computed at once: fewer rows in a step of `round` or images in a pass of `calibrate` \
                 (--batch-size), fewer images in a pass of `generate` (--batch), less in memory between blocks \
                 (--memory-gb of `round`); what is done is kept"
                    .into(),
            ),
            Self::Download { .. } => {
                Some("check the network and the name, or pass the path of a local copy".into())
            }
            _ => None,
        }
    }
}

/// MLX's message without the line of MLX's source on the machine where it was compiled.
fn without_place(message: &str) -> &str {
    match message.rsplit_once(" at ") {
        Some((text, place)) if place.starts_with('/') && place.contains(".cpp:") => text,
        _ => message,
    }
}

/// Whether one of MLX's allocators gave up: the CPU's, CUDA's or Metal's.
fn is_out_of_memory(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["unable to allocate", "out of memory", "maximum allowed buffer size", "cudamalloc"]
        .iter()
        .any(|sign| message.contains(sign))
}

fn suggestion(near: &[String]) -> String {
    match near.first() {
        Some(name) => format!("; did you mean `{name}`?"),
        None => String::new(),
    }
}

/// A few problems in full; of many, the first ones and a count.
fn list(issues: &[WeightIssue]) -> String {
    const SHOWN: usize = 20;
    let mut text = format!("{} problem{}", issues.len(), if issues.len() == 1 { "" } else { "s" });
    for issue in issues.iter().take(SHOWN) {
        text.push_str(&format!("\n  {issue}"));
    }
    if issues.len() > SHOWN {
        text.push_str(&format!("\n  … and {} more", issues.len() - SHOWN));
    }
    text
}
