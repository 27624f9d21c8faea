//! What a grid is, before it has met any numbers.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::round_small;
use crate::{Error, LayerSpec, Result};

/// Widths that a grid may have.
pub const BITS: RangeInclusive<u8> = 2..=8;

/// How many weights share a step size.
///
/// In TOML: `granularity = "tensor"`, `"channel"` or `{ group = 64 }`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// The whole weight.
    Tensor,
    /// One output channel, that is a row.
    #[default]
    Channel,
    /// So many neighbouring inputs of a row; must divide the number of inputs.
    Group(usize),
}

/// A uniform grid for a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Width of an integer, 2 to 8.
    #[schemars(range(min = 2, max = 8))]
    pub bits: u8,
    /// How many weights share a step size.
    #[serde(default)]
    pub granularity: Granularity,
    /// Whether the zero point is 0, so that both ends lie about equally far from it.
    #[serde(default)]
    pub symmetric: bool,
}

/// How a grid divides a weight. Every group is one contiguous run of the row-major weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Groups in all.
    pub groups: usize,
    /// Groups in a row; 1 on a per-tensor grid, whose only group is the whole weight.
    pub groups_per_row: usize,
    /// Weights in a group.
    pub group_len: usize,
}

impl Grid {
    /// A grid; `bits` outside 2 to 8 or groups of 0 are an [`Error::Settings`].
    pub fn new(bits: u8, granularity: Granularity, symmetric: bool) -> Result<Self> {
        let grid = Self { bits, granularity, symmetric };
        grid.check("grid")?;
        Ok(grid)
    }

    /// What is used where nothing else is asked for: a step size and a zero point for each output channel.
    pub fn channel(bits: u8) -> Result<Self> {
        Self::new(bits, Granularity::Channel, false)
    }

    /// Smallest integer, −2^(bits − 1).
    pub fn qmin(&self) -> i8 {
        (-(1_i16 << (self.bits - 1))) as i8
    }

    /// Largest integer, 2^(bits − 1) − 1.
    pub fn qmax(&self) -> i8 {
        ((1_i16 << (self.bits - 1)) - 1) as i8
    }

    /// The integer of one finite weight on this grid: the nearest, within the range.
    pub fn integer(&self, weight: f32, scale: f32, zero_point: f32) -> i8 {
        // Clamped to whole numbers first, which changes nothing and keeps the rounding exact.
        let (low, high) = (f32::from(self.qmin()), f32::from(self.qmax()));
        round_small((weight / scale + zero_point).clamp(low, high)) as i8
    }

    /// Whether the grid is sound and fits the layer; the error names the layer and its shape.
    pub fn validate(&self, layer: &LayerSpec) -> Result<()> {
        let shape = [layer.out_features, layer.in_features];
        self.layout_of(&format!("grid of layer `{}`", layer.id), shape).map(|_| ())
    }

    /// How the grid divides a weight of shape `[out_features, in_features]`.
    pub fn layout(&self, shape: [usize; 2]) -> Result<Layout> {
        self.layout_of("grid", shape)
    }

    fn layout_of(&self, owner: &str, shape @ [rows, columns]: [usize; 2]) -> Result<Layout> {
        self.check(owner)?;
        if rows == 0 || columns == 0 {
            return Err(Error::settings(
                owner,
                format!("a weight of shape {shape:?} has nothing to quantize"),
            ));
        }
        match self.granularity {
            Granularity::Tensor => Ok(Layout { groups: 1, groups_per_row: 1, group_len: rows * columns }),
            Granularity::Channel => Ok(Layout { groups: rows, groups_per_row: 1, group_len: columns }),
            Granularity::Group(size) if columns.is_multiple_of(size) => {
                let groups_per_row = columns / size;
                Ok(Layout { groups: rows * groups_per_row, groups_per_row, group_len: size })
            }
            Granularity::Group(size) => Err(Error::settings(
                owner,
                format!(
                    "groups of {size} do not divide the {columns} inputs of a weight of shape {shape:?}; {}",
                    suggestion(size, columns)
                ),
            )),
        }
    }

    fn check(&self, owner: &str) -> Result<()> {
        if !BITS.contains(&self.bits) {
            let (low, high) = (BITS.start(), BITS.end());
            return Err(Error::settings(owner, format!("bits = {}, expected {low} to {high}", self.bits)));
        }
        if self.granularity == Granularity::Group(0) {
            return Err(Error::settings(owner, "groups of 0 weights, expected 1 or more"));
        }
        Ok(())
    }
}

/// Largest integer of a symmetric activation grid of `bits` bits, 2^(bits − 1) − 1; the smallest is one below
/// its negative.
pub fn activation_qmax(bits: u8) -> Result<f32> {
    Grid::new(bits, Granularity::Tensor, true).map(|grid| f32::from(grid.qmax()))
}

/// The divisors next to what was asked for.
fn suggestion(size: usize, columns: usize) -> String {
    let below = (1..=size.min(columns)).rev().find(|d| columns.is_multiple_of(*d));
    let above = (size..=columns).find(|d| columns.is_multiple_of(*d));
    match (below, above) {
        (Some(b), Some(a)) => format!("{b} and {a} do"),
        (Some(d), None) | (None, Some(d)) => format!("{d} does"),
        (None, None) => "use granularity = \"channel\"".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Role, Stream};

    #[test]
    fn ranges_of_all_widths() {
        let ranges =
            [(2, -2, 1), (3, -4, 3), (4, -8, 7), (5, -16, 15), (6, -32, 31), (7, -64, 63), (8, -128, 127)];
        for (bits, low, high) in ranges {
            let grid = Grid::new(bits, Granularity::Channel, true).unwrap();
            assert_eq!((grid.qmin(), grid.qmax()), (low, high));
            assert_eq!(activation_qmax(bits).unwrap(), f32::from(high));
        }
        for bits in [0, 1, 9, 255] {
            let error = Grid::new(bits, Granularity::Channel, true).unwrap_err();
            assert_eq!(error.to_string(), format!("grid: bits = {bits}, expected 2 to 8"));
        }
    }

    #[test]
    fn layouts() {
        let layout = |g| {
            let l = Grid::new(4, g, true).unwrap().layout([6, 8]).unwrap();
            (l.groups, l.groups_per_row, l.group_len)
        };
        assert_eq!(layout(Granularity::Tensor), (1, 1, 48));
        assert_eq!(layout(Granularity::Channel), (6, 1, 8));
        assert_eq!(layout(Granularity::Group(4)), (12, 2, 4));
        assert_eq!(layout(Granularity::Group(8)), (6, 1, 8));
        assert!(Grid::new(4, Granularity::Channel, true).unwrap().layout([0, 8]).is_err());
        assert!(Grid::new(4, Granularity::Group(0), true).is_err());
    }

    #[test]
    fn a_group_that_does_not_divide_names_layer_and_shape() {
        let spec = LayerSpec {
            id: "mm0.img.mlp.fc1".into(),
            block: "mm0".into(),
            stream: Stream::Image,
            role: Role::Fc1,
            in_features: 192,
            out_features: 768,
            post_gelu: false,
        };
        let grid = Grid::new(4, Granularity::Group(50), true).unwrap();
        assert_eq!(
            grid.validate(&spec).unwrap_err().to_string(),
            "grid of layer `mm0.img.mlp.fc1`: groups of 50 do not divide the 192 inputs of a weight of shape \
             [768, 192]; 48 and 64 do"
        );
        let grid = Grid::new(4, Granularity::Group(500), true).unwrap();
        assert!(grid.validate(&spec).unwrap_err().to_string().ends_with("; 192 does"));
    }

    #[test]
    fn documents() {
        let grid = |text: &str| toml::from_str::<Grid>(text);
        assert_eq!(grid("bits = 4").unwrap(), Grid::channel(4).unwrap());
        assert_eq!(
            grid("bits = 3\ngranularity = { group = 64 }\nsymmetric = true").unwrap(),
            Grid::new(3, Granularity::Group(64), true).unwrap()
        );
        assert_eq!(grid("bits = 8\ngranularity = \"tensor\"").unwrap().granularity, Granularity::Tensor);
        assert!(grid("bits = 8\ngranulrity = \"tensor\"").is_err());
        let json = serde_json::to_string(&Grid::new(4, Granularity::Group(32), true).unwrap()).unwrap();
        assert_eq!(json, r#"{"bits":4,"granularity":{"group":32},"symmetric":true}"#);
    }
}
