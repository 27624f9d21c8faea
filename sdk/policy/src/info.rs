//! What a policy says of itself, and how it says no.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The `format` of a [`PolicyInfo`].
pub const INFO_FORMAT: &str = "taq.policy_info.v1";

/// A policy's description of itself: what `describe` of a WASM module answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyInfo {
    /// Always [`INFO_FORMAT`].
    pub format: String,
    /// Short name in lower case with hyphens, such as `multitier`.
    pub name: String,
    /// The policy's own version.
    pub version: String,
    /// One sentence for lists.
    pub summary: String,
    /// JSON Schema of the policy's settings; empty for a policy without settings.
    #[serde(default)]
    pub settings_schema: Map<String, Value>,
    /// Whether the statistics of every channel are needed ([`LayerColumns::channel_absmax`]). They make the request
    /// many times larger.
    ///
    /// [`LayerColumns::channel_absmax`]: crate::LayerColumns::channel_absmax
    #[serde(default)]
    pub per_channel: bool,
}

impl PolicyInfo {
    /// A policy without settings.
    pub fn new(name: impl Into<String>, version: impl Into<String>, summary: impl Into<String>) -> Self {
        Self {
            format: INFO_FORMAT.to_owned(),
            name: name.into(),
            version: version.into(),
            summary: summary.into(),
            settings_schema: Map::new(),
            per_channel: false,
        }
    }

    /// The same with the JSON Schema of its settings, as text; text that is no JSON object leaves it out.
    pub fn with_settings_schema(mut self, schema: &str) -> Self {
        self.settings_schema = serde_json::from_str(schema).unwrap_or_default();
        self
    }
}

/// Why a policy has no plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyError {
    /// For the user: what is wrong with the settings or the request, and what was expected.
    pub error: String,
}

impl PolicyError {
    /// An error with this text.
    pub fn new(error: impl Into<String>) -> Self {
        Self { error: error.into() }
    }
}

impl std::fmt::Display for PolicyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for PolicyError {}
