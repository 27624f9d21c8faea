//! Integers of 2 to 8 bits as bytes.
//!
//! The integers form one stream of bits in two's complement, the least significant bit first: integer i takes
//! the bits i·b to (i + 1)·b − 1, and bit k of the stream is bit k mod 8 of byte k / 8. So two 4-bit integers
//! share a byte, the first in the low nibble; four 2-bit integers share one likewise; 3-, 5-, 6- and 7-bit
//! integers may straddle two bytes. What remains of the last byte is 0.

use super::grid::{BITS, Granularity, Grid};
use crate::{Error, Result};

/// Bytes that `count` integers of `bits` bits take.
pub fn packed_len(count: usize, bits: u8) -> usize {
    count.saturating_mul(usize::from(bits)).div_ceil(8)
}

/// Packs integers, each within −2^(bits − 1) … 2^(bits − 1) − 1.
///
/// ```
/// use taq_core::quant::{pack, unpack};
///
/// let bytes = pack(&[1, -8, 7], 4)?;
/// assert_eq!(bytes, [0x81, 0x07]);
/// assert_eq!(unpack(&bytes, 4, 3)?, [1, -8, 7]);
/// # Ok::<(), taq_core::Error>(())
/// ```
pub fn pack(integers: &[i8], bits: u8) -> Result<Vec<u8>> {
    let grid = Grid::new(bits, Granularity::Tensor, true)?;
    if let Some(i) = integers.iter().position(|q| *q < grid.qmin() || *q > grid.qmax()) {
        let (low, high) = (grid.qmin(), grid.qmax());
        let reason = format!("integer {i} is {}, {bits} bits hold {low} to {high}", integers[i]);
        return Err(Error::settings("packing", reason));
    }
    let mut bytes = Vec::with_capacity(packed_len(integers.len(), bits));
    let (mut waiting, mut held) = (0_u32, 0);
    for &q in integers {
        waiting |= (u32::from(q as u8) & mask(bits)) << held;
        held += u32::from(bits);
        while held >= 8 {
            bytes.push(waiting as u8);
            waiting >>= 8;
            held -= 8;
        }
    }
    if held > 0 {
        bytes.push(waiting as u8);
    }
    Ok(bytes)
}

/// The `count` integers that [`pack`] packed. There must be exactly as many bytes as they take, and what remains
/// of the last one must be 0.
pub fn unpack(bytes: &[u8], bits: u8, count: usize) -> Result<Vec<i8>> {
    if !BITS.contains(&bits) {
        return Err(Error::settings("unpacking", format!("bits = {bits}, expected 2 to 8")));
    }
    if bytes.len() != packed_len(count, bits) {
        return Err(Error::Shape {
            what: format!("bytes of {count} integers of {bits} bits"),
            expected: format!("[{}]", packed_len(count, bits)),
            found: vec![bytes.len() as i32],
        });
    }
    let mut integers = Vec::with_capacity(count);
    let (mut waiting, mut held) = (0_u32, 0);
    let mut bytes = bytes.iter();
    for _ in 0..count {
        while held < u32::from(bits) {
            waiting |= u32::from(bytes.next().copied().unwrap_or(0)) << held;
            held += 8;
        }
        // To the top of the byte and back: the shift to the right spreads the sign.
        integers.push((((waiting & mask(bits)) << (8 - bits)) as u8 as i8) >> (8 - bits));
        waiting >>= bits;
        held -= u32::from(bits);
    }
    if waiting != 0 {
        return Err(Error::settings("unpacking", "the unused bits of the last byte are not 0"));
    }
    Ok(integers)
}

fn mask(bits: u8) -> u32 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_by_hand() {
        // numpy: (lo & 15) | (hi << 4)
        assert_eq!(pack(&[-1, 2, 3], 4).unwrap(), [0x2f, 0x03]);
        assert_eq!(pack(&[1, -2, 0, -1], 2).unwrap(), [0b11_00_10_01]);
        // 3 bits: 011 first, then 100, 111: byte 0 = 11 100 011, byte 1 = 1.
        assert_eq!(pack(&[3, -4, -1], 3).unwrap(), [0b1110_0011, 0b1]);
        assert_eq!(pack(&[-128, 127], 8).unwrap(), [0x80, 0x7f]);
        assert!(pack(&[], 5).unwrap().is_empty());
    }

    #[test]
    fn every_integer_of_every_width_comes_back() {
        for bits in BITS {
            let grid = Grid::new(bits, Granularity::Tensor, true).unwrap();
            for shift in 0..9 {
                // All values, at all positions within a byte.
                let mut q: Vec<i8> = vec![grid.qmin(); shift];
                q.extend(grid.qmin()..=grid.qmax());
                let bytes = pack(&q, bits).unwrap();
                assert_eq!(bytes.len(), packed_len(q.len(), bits));
                assert_eq!(unpack(&bytes, bits, q.len()).unwrap(), q, "{bits} bits after {shift}");
            }
        }
    }

    #[test]
    fn bad_input_is_named() {
        assert_eq!(pack(&[0, 8], 4).unwrap_err().to_string(), "packing: integer 1 is 8, 4 bits hold -8 to 7");
        assert!(pack(&[0], 1).is_err());
        assert!(unpack(&[0, 0], 9, 1).is_err());
        assert_eq!(
            unpack(&[0, 0], 4, 5).unwrap_err().to_string(),
            "bytes of 5 integers of 4 bits: expected shape [3], found [2]"
        );
        assert!(unpack(&[0xff], 4, 1).unwrap_err().to_string().contains("not 0"));
    }
}
