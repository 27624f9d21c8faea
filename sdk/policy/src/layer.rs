//! Names and shapes of the linear layers that can be quantized.

use serde::{Deserialize, Serialize};

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps the text as it is.
            pub fn new(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(id.to_owned())
            }
        }
    };
}

string_id! {
    /// A transformer block, such as `mm0`.
    BlockId
}

string_id! {
    /// A linear layer, such as `mm0.img.attn.q_proj` (block, stream, module, projection).
    LayerId
}

impl LayerId {
    /// The id with dots as underscores: the prefix of the layer's arrays in npz files.
    pub fn array_prefix(&self) -> String {
        self.0.replace('.', "_")
    }
}

/// The token stream that a layer works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Image (latent patch) tokens.
    Image,
    /// Text (prompt) tokens.
    Text,
}

/// What a layer does inside its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Output projection of attention.
    O,
    /// First linear of the MLP.
    Fc1,
    /// Second linear of the MLP; its input comes out of GELU.
    Fc2,
}

/// A quantizable linear layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// Unique id.
    pub id: LayerId,
    /// The block it belongs to.
    pub block: BlockId,
    /// The stream it works on.
    pub stream: Stream,
    /// Its role.
    pub role: Role,
    /// Columns of the weight, channels of the input.
    pub in_features: usize,
    /// Rows of the weight, channels of the output.
    pub out_features: usize,
    /// Whether the input comes out of GELU (asymmetric: its minimum is about -0.17).
    pub post_gelu: bool,
}

impl LayerSpec {
    /// Elements of the weight.
    pub fn parameters(&self) -> usize {
        self.in_features * self.out_features
    }
}
