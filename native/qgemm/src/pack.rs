//! The order in which integers are stored.
//!
//! 16 outputs form a panel. A panel is a sequence of units of 16 inputs × 16 outputs; within a unit, value
//! `(i / 4) · 64 + o · 4 + i % 4` is input i of output o, so that four inputs of an output are neighbours: what one
//! 32-bit lane of a kernel multiplies. A unit's 256 values of b bits are stored as planes of 4, 2 and 1 bits, as many as
//! b needs (3 = 2 + 1, 6 = 4 + 2, 8 = 4 + 4), the least significant bits in the first plane. Byte j of a plane of p bits
//! holds the values j + k · 32 p for k = 0 … 8 / p − 1, the first in the lowest bits: a plane is unpacked by shifting and
//! masking whole vectors.

/// Outputs of a panel.
pub(crate) const WIDTH: usize = 16;

/// Inputs of a unit.
pub(crate) const UNIT_INPUTS: usize = 16;

/// Values of a unit.
pub(crate) const UNIT: usize = WIDTH * UNIT_INPUTS;

/// Inputs that one lane of a kernel multiplies at a time.
pub(crate) const LANE: usize = 4;

/// Bytes of a unit.
pub(crate) const fn unit_bytes(bits: u8) -> usize {
    bits as usize * UNIT / 8
}

/// The widths of the planes of values of `bits` bits, from the least significant; 0 where there is no further one.
pub(crate) const fn planes(bits: u8) -> [usize; 3] {
    match bits {
        1 => [1, 0, 0],
        2 => [2, 0, 0],
        3 => [2, 1, 0],
        4 => [4, 0, 0],
        5 => [4, 1, 0],
        6 => [4, 2, 0],
        7 => [4, 2, 1],
        _ => [4, 4, 0],
    }
}

/// Stores a unit; `bytes` has [`unit_bytes`] zeros.
pub(crate) fn pack_unit(values: &[u8; UNIT], bits: u8, bytes: &mut [u8]) {
    let (mut start, mut low) = (0, 0);
    for plane in planes(bits).into_iter().filter(|p| *p > 0) {
        let len = plane * UNIT / 8;
        let mask = ((1_u16 << plane) - 1) as u8;
        for (index, value) in values.iter().enumerate() {
            bytes[start + index % len] |= ((value >> low) & mask) << (plane * (index / len));
        }
        start += len;
        low += plane;
    }
}
