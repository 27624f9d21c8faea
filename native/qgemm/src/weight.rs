//! A packed weight and what it is multiplied by.
#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use crate::kernel::{self, Group, Level};
use crate::pack::{LANE, UNIT, UNIT_INPUTS, WIDTH, pack_unit, unit_bytes};
use crate::unpack::unpack;

/// Rows whose sums are held at a time.
const ROWS: usize = 12;

/// A weight `[outputs, inputs]` of integers of 2 to 8 bits, with a step size and a zero point for each group of
/// neighbouring inputs of an output.
#[derive(Debug, Clone)]
pub struct PackedWeight {
    bits: u8,
    outputs: usize,
    inputs: usize,
    group_len: usize,
    /// Panels of units; see `pack.rs`.
    bytes: Vec<u8>,
    /// By panel and group: the 16 step sizes of the outputs, then their 16 zero points.
    params: Vec<f32>,
}

/// Rows of integers, one for each row of the result.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// `[rows, depth]`, each laid out by [`PackedWeight::position`]; what is between the groups does not matter.
    pub integers: &'a [i8],
    /// Sums of each row's integers by group, `[rows, groups]`.
    pub sums: &'a [i32],
    /// Step size of each row.
    pub scale: &'a [f32],
    /// `[biases, outputs]`; empty: 0.
    pub bias: &'a [f64],
    /// Which bias each row gets; empty if there are none.
    pub bias_of: &'a [usize],
}

impl PackedWeight {
    /// Packs a row-major weight of `[outputs, inputs]` integers of `bits` bits, from −2^(bits − 1) to 2^(bits − 1) − 1, whose
    /// groups have `group_len` inputs; `scale` and `zero_point` are `[outputs, inputs / group_len]`.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn new(
        bits: u8,
        [outputs, inputs]: [usize; 2],
        group_len: usize,
        integers: &[i8],
        scale: &[f32],
        zero_point: &[f32],
    ) -> Result<Self, String> {
        if !(2..=8).contains(&bits) {
            return Err(format!("integers of {bits} bits, expected 2 to 8"));
        }
        if outputs == 0 || inputs == 0 || group_len == 0 || !inputs.is_multiple_of(group_len) {
            return Err(format!("groups of {group_len} in a weight of shape [{outputs}, {inputs}]"));
        }
        let groups = inputs / group_len;
        let found = [integers.len(), scale.len(), zero_point.len()];
        let expected = [outputs * inputs, outputs * groups, outputs * groups];
        if found != expected {
            return Err(format!("{found:?} integers, step sizes and zero points, expected {expected:?}"));
        }
        // The largest sum that a 32-bit accumulator must hold.
        if group_len.saturating_mul(255 * 128) > i32::MAX as usize {
            return Err(format!(
                "groups of {group_len} inputs, at most {} can be summed",
                i32::MAX / (255 * 128)
            ));
        }
        let middle = 1_i16 << (bits - 1);
        if let Some(at) = integers.iter().position(|&q| i16::from(q) < -middle || i16::from(q) >= middle) {
            return Err(format!("integer {at} is {}, which is not of {bits} bits", integers[at]));
        }
        let mut weight = Self { bits, outputs, inputs, group_len, bytes: Vec::new(), params: Vec::new() };
        let panels = outputs.div_ceil(WIDTH);
        weight.bytes = vec![0; panels * weight.panel_bytes()];
        weight.params = vec![0.0; panels * weight.panel_params()];
        let position: Vec<usize> = (0..inputs).map(|i| weight.position(i)).collect();
        let (depth, panel_bytes, panel_params) =
            (weight.depth(), weight.panel_bytes(), weight.panel_params());
        let parts = weight.bytes.par_chunks_mut(panel_bytes).zip(weight.params.par_chunks_mut(panel_params));
        parts.enumerate().for_each(|(panel, (bytes, params))| {
            let mut values = vec![0_u8; depth * WIDTH];
            for lane in 0..WIDTH.min(outputs - panel * WIDTH) {
                let output = panel * WIDTH + lane;
                for (&at, &q) in position.iter().zip(&integers[output * inputs..][..inputs]) {
                    values[at / LANE * LANE * WIDTH + lane * LANE + at % LANE] =
                        (i16::from(q) + middle) as u8;
                }
                for group in 0..groups {
                    params[group * 2 * WIDTH + lane] = scale[output * groups + group];
                    params[(group * 2 + 1) * WIDTH + lane] = zero_point[output * groups + group];
                }
            }
            let (units, _) = values.as_chunks::<UNIT>();
            for (unit, bytes) in units.iter().zip(bytes.chunks_exact_mut(unit_bytes(bits))) {
                pack_unit(unit, bits, bytes);
            }
        });
        Ok(weight)
    }

    /// `[outputs, inputs]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.outputs, self.inputs]
    }

    /// Bits of an integer.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Groups of an output.
    pub fn groups(&self) -> usize {
        self.inputs / self.group_len
    }

    /// Inputs of a group.
    pub fn group_len(&self) -> usize {
        self.group_len
    }

    /// Bytes that the weight occupies.
    pub fn size(&self) -> usize {
        self.bytes.len() + size_of_val(self.params.as_slice())
    }

    /// Length of a row of integers: its inputs, every group padded to a multiple of 4 and the whole to one of 16.
    pub fn depth(&self) -> usize {
        (self.groups() * self.group_len.next_multiple_of(LANE)).next_multiple_of(UNIT_INPUTS)
    }

    /// Where an input stands in a row of integers.
    pub fn position(&self, input: usize) -> usize {
        input / self.group_len * self.group_len.next_multiple_of(LANE) + input % self.group_len
    }

    /// What integers are stored with added to them.
    fn middle(&self) -> f64 {
        f64::from(1_u32 << (self.bits - 1))
    }

    fn panel_bytes(&self) -> usize {
        self.depth() / UNIT_INPUTS * unit_bytes(self.bits)
    }

    fn panel_params(&self) -> usize {
        self.groups() * 2 * WIDTH
    }

    /// The product with rows of integers, `[rows, outputs]`, on rayon's threads.
    ///
    /// # Panics
    /// If a part of `rows` or the result has another length than its shape asks for.
    pub fn multiply(&self, rows: Rows<'_>, out: &mut [f32]) {
        self.multiply_at(kernel::best(), rows, out);
    }

    /// [`Self::multiply`] with one of the instruction sets of [`crate::levels`]; the result is the same.
    ///
    /// # Panics
    /// As [`Self::multiply`]; also if this machine has not that instruction set.
    pub fn multiply_at(&self, level: Level, rows: Rows<'_>, out: &mut [f32]) {
        assert!(kernel::levels().contains(&level), "this machine has not {level:?}");
        let (count, depth, groups) = (rows.scale.len(), self.depth(), self.groups());
        assert_eq!(rows.integers.len(), count * depth, "integers of {count} rows");
        assert_eq!(rows.sums.len(), count * groups, "sums of {count} rows");
        assert_eq!(out.len(), count * self.outputs, "results of {count} rows");
        assert!(rows.bias.is_empty() || rows.bias_of.len() == count, "biases of {count} rows");
        let biases = rows.bias.len() / self.outputs;
        assert!(rows.bias.is_empty() || rows.bias_of.iter().all(|&b| b < biases), "{biases} biases");
        let out = Columns { data: out.as_mut_ptr(), row: self.outputs };
        let panels =
            self.bytes.par_chunks(self.panel_bytes()).zip(self.params.par_chunks(self.panel_params()));
        panels.enumerate().for_each_init(Scratch::default, |scratch, (panel, (bytes, params))| {
            let halves = self.bits == 8 && !level.multiplies_bytes();
            scratch.values.resize(depth * WIDTH * (1 + usize::from(halves)), 0);
            kernel::unpack_panel(level, self.bits, halves, bytes, &mut scratch.values);
            scratch.groups.clear();
            scratch.groups.extend(params.as_chunks::<WIDTH>().0.chunks_exact(2).map(|of| Group {
                scale: of[0].map(f64::from),
                zero: of[1].map(|z| f64::from(z) + self.middle()),
            }));
            let first = panel * WIDTH;
            let width = WIDTH.min(self.outputs - first);
            for row in (0..count).step_by(ROWS) {
                let range = row..count.min(row + ROWS);
                let result = self.block(level, scratch, rows, range.clone());
                for (row, result) in range.zip(&result) {
                    // SAFETY: `row` is below `count`, and `first + width` is within a row: the columns of this panel,
                    // which no other task writes.
                    let out = unsafe { out.part(row, first, width) };
                    let bias = match rows.bias.is_empty() {
                        true => &[][..],
                        false => &rows.bias[rows.bias_of[row] * self.outputs + first..][..width],
                    };
                    kernel::store(level, result, rows.scale[row], bias, out);
                }
            }
        });
    }

    /// Σ_g s · (Σ u·a − (z + 2^(bits − 1)) · Σ a) of some rows with an unpacked panel.
    fn block(
        &self,
        level: Level,
        panel: &Scratch,
        rows: Rows<'_>,
        range: Range<usize>,
    ) -> [[f64; WIDTH]; ROWS] {
        let (depth, groups) = (self.depth(), self.groups());
        let padded = self.group_len.next_multiple_of(LANE);
        let integers = &rows.integers[range.start * depth..range.end * depth];
        let totals = &rows.sums[range.start * groups..range.end * groups];
        let mut result = [[0.0; WIDTH]; ROWS];
        for (index, group) in panel.groups.iter().enumerate() {
            let mut sums = [[0_i32; WIDTH]; ROWS];
            let sums = &mut sums[..range.len()];
            // One group may extend over what pads the row to whole units: there, all weights are 0.
            let inputs = if groups == 1 { 0..depth } else { index * padded..(index + 1) * padded };
            kernel::accumulate(level, self.bits, &panel.values, depth, integers, inputs, sums);
            kernel::dequantize(level, sums, &totals[index..], groups, group, &mut result);
        }
        result
    }

    /// The weight itself, `(q − z) · s` in f32, row-major `[outputs, inputs]`.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn dequantize(&self, out: &mut [f32]) {
        let (inputs, depth, middle) = (self.inputs, self.depth(), self.middle() as f32);
        assert_eq!(out.len(), self.outputs * inputs, "values of the weight");
        let panels =
            self.bytes.par_chunks(self.panel_bytes()).zip(self.params.par_chunks(self.panel_params()));
        let panels = panels.zip(out.par_chunks_mut(WIDTH * inputs));
        panels.for_each_init(Vec::new, |values, ((bytes, params), out)| {
            values.resize(depth * WIDTH, 0);
            kernel::unpack_panel(kernel::best(), self.bits, false, bytes, values);
            for (lane, out) in out.chunks_exact_mut(inputs).enumerate() {
                for (group, out) in out.chunks_exact_mut(self.group_len).enumerate() {
                    let (scale, zero) = params[group * 2 * WIDTH..][..2 * WIDTH].split_at(WIDTH);
                    let (scale, zero) = (scale[lane], zero[lane]);
                    let first = self.position(group * self.group_len);
                    for (i, out) in out.iter_mut().enumerate() {
                        let at = first + i;
                        let u = values[at / LANE * LANE * WIDTH + lane * LANE + at % LANE];
                        *out = (f32::from(u) - middle - zero) * scale;
                    }
                }
            }
        });
    }

    /// The product with one row of floating-point numbers `[inputs]`, in f64.
    ///
    /// # Panics
    /// If `x` has not `inputs` numbers.
    pub fn multiply_exact(&self, x: &[f32]) -> Vec<f64> {
        assert_eq!(x.len(), self.inputs, "inputs");
        let (depth, groups) = (self.depth(), self.groups());
        let mut padded = vec![0.0; depth];
        let mut totals = vec![0.0; groups];
        for (input, &x) in x.iter().enumerate() {
            padded[self.position(input)] = f64::from(x);
            totals[input / self.group_len] += f64::from(x);
        }
        let middle = self.middle();
        let group_depth = if groups == 1 { depth } else { self.group_len.next_multiple_of(LANE) };
        let panels =
            self.bytes.par_chunks(self.panel_bytes()).zip(self.params.par_chunks(self.panel_params()));
        let products = panels.map_init(Vec::new, |values, (bytes, params)| {
            values.resize(depth * WIDTH, 0);
            unpack(self.bits, bytes, values);
            let mut result = [0.0; WIDTH];
            for (group, total) in totals.iter().enumerate() {
                let mut sums = [0.0; WIDTH];
                let inputs = group * group_depth..(group + 1) * group_depth;
                let weights = values[inputs.start * WIDTH..inputs.end * WIDTH].chunks_exact(LANE * WIDTH);
                for (x, weights) in padded[inputs].chunks_exact(LANE).zip(weights) {
                    for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact(LANE)) {
                        *sum += weights.iter().zip(x).map(|(&u, x)| f64::from(u) * x).sum::<f64>();
                    }
                }
                let (scale, zero) = params[group * 2 * WIDTH..][..2 * WIDTH].split_at(WIDTH);
                for lane in 0..WIDTH {
                    let zero = f64::from(zero[lane]) + middle;
                    result[lane] += f64::from(scale[lane]) * (sums[lane] - zero * total);
                }
            }
            result
        });
        let mut result: Vec<f64> = products.collect::<Vec<_>>().into_flattened();
        result.truncate(self.outputs);
        result
    }
}

/// A panel, ready to be multiplied.
#[derive(Default)]
struct Scratch {
    values: Vec<u8>,
    groups: Vec<Group>,
}

/// The result, of which every task writes columns of its own.
#[derive(Clone, Copy)]
struct Columns {
    data: *mut f32,
    row: usize,
}

// SAFETY: tasks write disjoint parts (see `multiply_at`), and the borrow of the whole outlives them.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    /// # Safety
    /// The part must lie within the result, and nobody else may refer to it meanwhile.
    #[inline(always)]
    unsafe fn part<'a>(self, row: usize, first: usize, width: usize) -> &'a mut [f32] {
        // SAFETY: the caller vouches for it.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row + first), width) }
    }
}
