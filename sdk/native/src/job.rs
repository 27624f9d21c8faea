//! What a rounder is given.

use taq_policy::LayerSpec;

use crate::reconstruction::Reconstruction;
use crate::{RoundedLayer, abi};

/// A grid of integers: `weight ≈ (integer − zero point) · step size`, one of each for so many neighbours of the row-major
/// weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// 2 to 8.
    pub bits: u8,
    /// Whether every zero point is 0.
    pub symmetric: bool,
    /// Weights in a group.
    pub group_len: usize,
    /// Groups in all.
    pub groups: usize,
}

impl Grid {
    /// Smallest integer, −2^(bits − 1).
    pub fn qmin(&self) -> i8 {
        (-(1_i16 << (self.bits - 1))) as i8
    }

    /// Largest integer, 2^(bits − 1) − 1.
    pub fn qmax(&self) -> i8 {
        ((1_i16 << (self.bits - 1)) - 1) as i8
    }

    /// The nearest integer of one finite weight, ties to even, within the range.
    pub fn integer(&self, weight: f32, scale: f32, zero_point: f32) -> i8 {
        let (low, high) = (f32::from(self.qmin()), f32::from(self.qmax()));
        (weight / scale + zero_point).clamp(low, high).round_ties_even() as i8
    }

    /// As the ABI has it.
    pub fn to_abi(self) -> abi::Grid {
        abi::Grid {
            bits: u32::from(self.bits),
            symmetric: u32::from(self.symmetric),
            qmin: i32::from(self.qmin()),
            qmax: i32::from(self.qmax()),
            group_len: self.group_len as u64,
            groups: self.groups as u64,
        }
    }
}

/// One layer to be rounded.
#[derive(Debug, Clone)]
pub struct Layer<'a> {
    /// The layer.
    pub spec: LayerSpec,
    /// Its full-precision weight, row-major `[out_features, in_features]`, finite.
    pub weight: &'a [f32],
    /// The grid to round to.
    pub grid: Grid,
    /// Bits of its input at each planned timestep, `[steps]`.
    pub input_bits: &'a [u8],
    /// Step sizes of its input at each planned timestep, `[steps]`.
    pub input_scale: &'a [f32],
    /// Step sizes of the weight where rounding to nearest has the smallest squared error, `[groups]`.
    pub start_scale: &'a [f32],
    /// Their zero points, `[groups]`.
    pub start_zero_point: &'a [f32],
}

impl Layer<'_> {
    /// Every weight on the nearest point of the host's grid: where learning begins.
    pub fn nearest(&self) -> RoundedLayer {
        let group = |i: usize| i / self.grid.group_len.max(1);
        let integer = |(i, &w): (usize, &f32)| {
            self.grid.integer(w, self.start_scale[group(i)], self.start_zero_point[group(i)])
        };
        RoundedLayer {
            weight_int: self.weight.iter().enumerate().map(integer).collect(),
            scale: self.start_scale.to_vec(),
            zero_point: self.start_zero_point.to_vec(),
            input_scale: None,
        }
    }
}

/// One layer with its calibration data.
#[derive(Debug, Clone)]
pub struct LayerJob<'a> {
    /// The layer.
    pub layer: Layer<'a>,
    /// Its inputs, row-major `[rows, in_features]`: tokens from all images and timesteps.
    pub inputs: &'a [f32],
    /// What the full-precision weight makes of them, without bias, row-major `[rows, out_features]`.
    pub targets: &'a [f32],
    /// The planned timestep of each row.
    pub steps: &'a [u32],
}

/// One block with its calibration data.
#[derive(Debug)]
pub struct BlockJob<'a> {
    /// Its id.
    pub block: &'a str,
    /// Its layers, in the order of the forward pass.
    pub layers: Vec<Layer<'a>>,
    /// Its calibration data, behind functions of the host.
    pub reconstruction: Reconstruction<'a>,
}
