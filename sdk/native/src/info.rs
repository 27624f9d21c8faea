//! What a plugin says of itself.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The `format` of a [`PluginInfo`].
pub const INFO_FORMAT: &str = "taq.plugin_info.v1";

/// A plugin's description: [`Item::describe`](crate::abi::Item::describe).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginInfo {
    /// Always [`INFO_FORMAT`].
    pub format: String,
    /// One sentence for lists.
    pub summary: String,
    /// JSON Schema of the settings; empty for a plugin without settings.
    #[serde(default)]
    pub settings_schema: Map<String, Value>,
    /// Bit policies: whether the statistics of every channel are needed
    /// ([`taq_policy::LayerColumns::channel_absmax`]). They make the request many times larger.
    #[serde(default)]
    pub per_channel: bool,
}

impl PluginInfo {
    /// A description.
    pub fn new(summary: &str, settings_schema: Map<String, Value>, per_channel: bool) -> Self {
        Self { format: INFO_FORMAT.to_owned(), summary: summary.to_owned(), settings_schema, per_channel }
    }
}
