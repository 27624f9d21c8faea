//! Why a plugin could not do what it was asked.

use crate::abi;

/// The result of a plugin's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a plugin could not do what it was asked. Text becomes [`Error::Failed`], so that `?` and `.into()` do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The settings, or what was asked, are wrong: what was found and what was expected.
    Invalid(String),
    /// This plugin cannot do that, and what would do instead.
    Unsupported(String),
    /// The user asked to stop; [`Context::check`](crate::Context::check) says so.
    Cancelled,
    /// The plugin panicked. Only what calls plugins makes this one.
    Panicked(String),
    /// Anything else.
    Failed(String),
}

impl Error {
    /// Wrong settings or a wrong question.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }

    /// Something that this plugin cannot do.
    pub fn unsupported(reason: impl Into<String>) -> Self {
        Self::Unsupported(reason.into())
    }

    /// The status of the C ABI.
    pub fn status(&self) -> i32 {
        match self {
            Self::Invalid(_) => abi::INVALID,
            Self::Unsupported(_) => abi::UNSUPPORTED,
            Self::Cancelled => abi::CANCELLED,
            Self::Panicked(_) => abi::PANICKED,
            Self::Failed(_) => abi::FAILED,
        }
    }

    /// The error of a status other than [`abi::OK`], with its text.
    pub fn of_status(status: i32, text: String) -> Self {
        match status {
            abi::INVALID => Self::Invalid(text),
            abi::UNSUPPORTED => Self::Unsupported(text),
            abi::CANCELLED => Self::Cancelled,
            abi::PANICKED => Self::Panicked(text),
            _ => Self::Failed(text),
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Invalid(text) | Self::Unsupported(text) | Self::Panicked(text) | Self::Failed(text) => text,
            Self::Cancelled => "stopped",
        })
    }
}

impl std::error::Error for Error {}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self::Failed(text)
    }
}

impl From<&str> for Error {
    fn from(text: &str) -> Self {
        Self::Failed(text.to_owned())
    }
}

impl From<taq_policy::PolicyError> for Error {
    fn from(error: taq_policy::PolicyError) -> Self {
        Self::Failed(error.error)
    }
}
