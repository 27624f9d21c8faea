//! The product against its formula in plain loops.

use qgemm::{PackedWeight, Rows, levels};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn between(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    fn real(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.next() as f32 / (1_u64 << 31) as f32)
    }
}

/// A weight and rows, with what the formula makes of them.
struct Case {
    weight: PackedWeight,
    integers: Vec<i8>,
    sums: Vec<i32>,
    scale: Vec<f32>,
    bias: Vec<f64>,
    bias_of: Vec<usize>,
    expected: Vec<f64>,
    /// Σ |terms|, what rounding is relative to.
    magnitude: Vec<f64>,
}

impl Case {
    fn new(
        bits: u8,
        [outputs, inputs]: [usize; 2],
        group: usize,
        rows: usize,
        extreme: bool,
        seed: u64,
    ) -> Self {
        let mut random = Random(seed);
        let middle = 1_i64 << (bits - 1);
        let groups = inputs / group;
        let q: Vec<i8> = (0..outputs * inputs)
            .map(|_| if extreme { middle - 1 } else { random.between(-middle, middle - 1) } as i8)
            .collect();
        let s: Vec<f32> = (0..outputs * groups).map(|_| random.real(0.001, 0.1)).collect();
        let z: Vec<f32> = (0..outputs * groups).map(|_| random.real(-9.0, 9.0)).collect();
        let weight = PackedWeight::new(bits, [outputs, inputs], group, &q, &s, &z).unwrap();
        let a: Vec<i8> = (0..rows * inputs)
            .map(|i| if extreme { [-128, 127][i % 7 / 6] } else { random.between(-128, 127) as i8 })
            .collect();
        let scale: Vec<f32> = (0..rows).map(|_| random.real(0.01, 1.0)).collect();
        let bias: Vec<f64> = (0..3 * outputs).map(|_| f64::from(random.real(-5.0, 5.0))).collect();
        let bias_of: Vec<usize> = (0..rows).map(|r| r * 2 % 3).collect();
        // What is between the groups must not matter.
        let mut integers = vec![77_i8; rows * weight.depth()];
        let mut sums = vec![0; rows * groups];
        let (mut expected, mut magnitude) = (Vec::new(), Vec::new());
        for row in 0..rows {
            for i in 0..inputs {
                integers[row * weight.depth() + weight.position(i)] = a[row * inputs + i];
                sums[row * groups + i / group] += i32::from(a[row * inputs + i]);
            }
            for o in 0..outputs {
                let (mut y, mut m) = (0.0, 0.0);
                for i in 0..inputs {
                    let p = o * groups + i / group;
                    let term = f64::from(s[p])
                        * (f64::from(q[o * inputs + i]) - f64::from(z[p]))
                        * f64::from(a[row * inputs + i])
                        * f64::from(scale[row]);
                    y += term;
                    m += term.abs();
                }
                let b = bias[bias_of[row] * outputs + o];
                expected.push(y + b);
                magnitude.push(m + b.abs());
            }
        }
        Self { weight, integers, sums, scale, bias, bias_of, expected, magnitude }
    }

    fn check(&self, name: &str) {
        let rows = Rows {
            integers: &self.integers,
            sums: &self.sums,
            scale: &self.scale,
            bias: &self.bias,
            bias_of: &self.bias_of,
        };
        let mut first: Option<Vec<f32>> = None;
        for &level in levels() {
            let mut out = vec![f32::NAN; self.expected.len()];
            self.weight.multiply_at(level, rows, &mut out);
            for (i, (y, (e, m))) in out.iter().zip(self.expected.iter().zip(&self.magnitude)).enumerate() {
                let off = (f64::from(*y) - e).abs();
                // Half a unit in the last place of the result, and what f64 loses.
                assert!(off <= e.abs() * 6e-8 + m * 1e-12, "{name}, {level:?}, {i}: {y} {e}");
            }
            let first = first.get_or_insert_with(|| out.clone());
            assert!(first.iter().zip(&out).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}, {level:?}");
        }
    }
}

#[test]
fn all_widths_shapes_and_groups() {
    for bits in 2..=8 {
        for (shape, group, rows) in [
            ([16, 16], 16, 6),
            ([5, 7], 7, 1),
            ([33, 64], 64, 13),
            ([48, 1540], 1540, 7),
            ([20, 96], 32, 5),
            ([17, 30], 6, 29),
            ([1, 2], 1, 2),
        ] {
            let case = Case::new(bits, shape, group, rows, false, 7 + u64::from(bits));
            case.check(&format!("{bits} bits, {shape:?}, groups of {group}, {rows} rows"));
        }
    }
}

#[test]
fn nothing_saturates() {
    for bits in 2..=8 {
        Case::new(bits, [16, 512], 512, 7, true, 3).check(&format!("{bits} bits"));
    }
}

#[test]
fn without_a_bias() {
    let case = Case::new(4, [3, 8], 8, 2, false, 1);
    let rows =
        Rows { integers: &case.integers, sums: &case.sums, scale: &case.scale, bias: &[], bias_of: &[] };
    let mut out = vec![0.0; 6];
    case.weight.multiply(rows, &mut out);
    for (i, y) in out.iter().enumerate() {
        let bias = case.bias[case.bias_of[i / 3] * 3 + i % 3];
        assert!((f64::from(*y) + bias - case.expected[i]).abs() < 1e-4);
    }
}

#[test]
fn the_exact_product_is_the_formula() {
    let (bits, outputs, inputs, group) = (5, 18, 36, 12);
    let mut random = Random(9);
    let q: Vec<i8> = (0..outputs * inputs).map(|_| random.between(-16, 15) as i8).collect();
    let s: Vec<f32> = (0..outputs * 3).map(|_| random.real(0.1, 1.0)).collect();
    let z: Vec<f32> = (0..outputs * 3).map(|_| (random.real(-4.0, 4.0) * 4.0).round() / 4.0).collect();
    let x: Vec<f32> = (0..inputs).map(|_| random.real(-3.0, 3.0)).collect();
    let weight = PackedWeight::new(bits, [outputs, inputs], group, &q, &s, &z).unwrap();
    let found = weight.multiply_exact(&x);
    assert_eq!(found.len(), outputs);
    for (o, found) in found.iter().enumerate() {
        let term = |i: usize| {
            let p = o * 3 + i / group;
            f64::from(s[p]) * (f64::from(q[o * inputs + i]) - f64::from(z[p])) * f64::from(x[i])
        };
        assert!((found - (0..inputs).map(term).sum::<f64>()).abs() < 1e-11);
    }
}

#[test]
fn it_takes_the_bits_it_has() {
    for bits in 2..=8_u8 {
        let weight = PackedWeight::new(bits, [64, 128], 128, &[0; 64 * 128], &[1.0; 64], &[0.0; 64]).unwrap();
        assert_eq!(weight.size(), 64 * 128 * usize::from(bits) / 8 + 64 * 8);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let new = |bits, shape, group, q: &[i8]| PackedWeight::new(bits, shape, group, q, &[1.0], &[0.0]);
    assert!(new(9, [1, 2], 2, &[0; 2]).unwrap_err().contains("9 bits"));
    assert!(new(4, [1, 2], 3, &[0; 2]).unwrap_err().contains("groups of 3"));
    assert!(new(4, [1, 2], 2, &[0; 3]).unwrap_err().contains("expected [2, 1, 1]"));
    assert!(new(4, [1, 2], 2, &[0, 8]).unwrap_err().contains("integer 1 is 8"));
    assert!(new(4, [1, 2], 2, &[0, -8]).is_ok());
}

#[test]
fn the_weight_comes_back_as_the_formula_says() {
    let mut random = Random(5);
    for bits in 2..=8_u8 {
        for (outputs, inputs, group) in [(16, 64, 64), (5, 12, 3), (37, 40, 20), (1, 1, 1), (33, 192, 64)] {
            let middle = 1_i64 << (bits - 1);
            let groups = inputs / group;
            let q: Vec<i8> =
                (0..outputs * inputs).map(|_| random.between(-middle, middle - 1) as i8).collect();
            let s: Vec<f32> = (0..outputs * groups).map(|_| random.real(0.001, 0.1)).collect();
            let z: Vec<f32> = (0..outputs * groups).map(|_| random.real(-9.0, 9.0)).collect();
            let weight = PackedWeight::new(bits, [outputs, inputs], group, &q, &s, &z).unwrap();
            let mut found = vec![f32::NAN; outputs * inputs];
            weight.dequantize(&mut found);
            for (at, found) in found.into_iter().enumerate() {
                let expected = (f32::from(q[at]) - z[at / group]) * s[at / group];
                assert_eq!(found, expected, "{bits} bits, [{outputs}, {inputs}] by {group}, at {at}");
            }
        }
    }
}
