//! From planes back to one byte a value.

use crate::pack::{UNIT, planes, unit_bytes};

/// Unpacks units; `values` has [`UNIT`] bytes for each.
#[inline(always)]
pub(crate) fn unpack(bits: u8, bytes: &[u8], values: &mut [u8]) {
    match bits {
        2 => units::<2>(bytes, values),
        3 => units::<3>(bytes, values),
        4 => units::<4>(bytes, values),
        5 => units::<5>(bytes, values),
        6 => units::<6>(bytes, values),
        7 => units::<7>(bytes, values),
        _ => units::<8>(bytes, values),
    }
}

/// Unpacks units of 8-bit values into their lower and upper halves.
#[inline(always)]
pub(crate) fn unpack_halves(bytes: &[u8], low: &mut [u8], high: &mut [u8]) {
    let halves = low.chunks_exact_mut(UNIT).zip(high.chunks_exact_mut(UNIT));
    for (unit, (low, high)) in bytes.chunks_exact(unit_bytes(8)).zip(halves) {
        plane::<4>(&unit[..UNIT / 2], low, 0);
        plane::<4>(&unit[UNIT / 2..], high, 0);
    }
}

#[inline(always)]
fn units<const BITS: u8>(bytes: &[u8], values: &mut [u8]) {
    for (unit, values) in bytes.chunks_exact(unit_bytes(BITS)).zip(values.chunks_exact_mut(UNIT)) {
        let (mut rest, mut low) = (unit, 0);
        for width in const { planes(BITS) } {
            let (this, others) = rest.split_at(width * UNIT / 8);
            match width {
                4 => plane::<4>(this, values, low),
                2 => plane::<2>(this, values, low),
                1 => plane::<1>(this, values, low),
                _ => {}
            }
            rest = others;
            low += width;
        }
    }
}

/// Puts a plane's bits at `low` of the values: the first plane overwrites, the others add.
#[inline(always)]
fn plane<const P: usize>(bytes: &[u8], values: &mut [u8], low: usize) {
    let len = P * UNIT / 8;
    let mask = ((1_u16 << P) - 1) as u8;
    let bytes = &bytes[..len];
    for k in 0..8 / P {
        let values = &mut values[k * len..][..len];
        if low == 0 {
            for (value, byte) in values.iter_mut().zip(bytes) {
                *value = (byte >> (P * k)) & mask;
            }
        } else {
            for (value, byte) in values.iter_mut().zip(bytes) {
                *value |= ((byte >> (P * k)) & mask) << low;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::pack_unit;

    #[test]
    fn every_width_comes_back() {
        for bits in 2..=8_u8 {
            let values: [u8; UNIT] =
                std::array::from_fn(|i| ((i * 7919 + i / 3) % 251) as u8 & ((1_u16 << bits) - 1) as u8);
            let mut bytes = vec![0; unit_bytes(bits)];
            pack_unit(&values, bits, &mut bytes);
            let mut back = [255; UNIT];
            unpack(bits, &bytes, &mut back);
            assert_eq!(back, values, "{bits} bits");
        }
    }

    #[test]
    fn bytes_by_hand() {
        // 4 bits: value j in the low and value j + 128 in the high half of byte j.
        let mut values = [0_u8; UNIT];
        (values[0], values[128], values[127], values[255]) = (1, 2, 3, 15);
        let mut bytes = vec![0; 128];
        pack_unit(&values, 4, &mut bytes);
        assert_eq!((bytes[0], bytes[127]), (0x21, 0xf3));
        // 3 bits: 64 bytes of the two lower bits, then 32 bytes of the upper one.
        let mut values = [0_u8; UNIT];
        (values[0], values[64], values[32]) = (0b101, 0b011, 0b100);
        let mut bytes = vec![0; 96];
        pack_unit(&values, 3, &mut bytes);
        assert_eq!((bytes[0], bytes[64]), (0b1101, 0b11));
    }

    #[test]
    fn halves_are_the_value() {
        let values: [u8; UNIT] = std::array::from_fn(|i| i as u8);
        let mut bytes = vec![0; unit_bytes(8)];
        pack_unit(&values, 8, &mut bytes);
        let (mut low, mut high) = ([0; UNIT], [0; UNIT]);
        unpack_halves(&bytes, &mut low, &mut high);
        assert!((0..UNIT).all(|i| low[i] + 16 * high[i] == i as u8));
    }
}
