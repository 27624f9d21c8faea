//! Milliseconds of a product by rows and bits: `cargo run --release -p qgemm --example speed`.
#![allow(clippy::print_stdout)] // its output is what it is for

use std::time::Instant;

use qgemm::{PackedWeight, Rows, levels};

fn main() {
    let shape @ [outputs, inputs] = [6144, 1536];
    for bits in [2, 3, 4, 6, 8] {
        let middle = 1_i32 << (bits - 1);
        let q: Vec<i8> =
            (0..outputs * inputs).map(|i| (i as i32 * 31 % (2 * middle) - middle) as i8).collect();
        let params = vec![1.0; outputs];
        let Ok(weight) = PackedWeight::new(bits, shape, inputs, &q, &params, &params) else { return };
        for rows in [1, 512] {
            let integers: Vec<i8> = (0..rows * inputs).map(|i| (i % 251) as u8 as i8).collect();
            let (sums, scale) = (vec![1; rows], vec![1.0; rows]);
            let rows_of = Rows { integers: &integers, sums: &sums, scale: &scale, bias: &[], bias_of: &[] };
            let mut out = vec![0.0; rows * outputs];
            for &level in levels() {
                let mut best = f64::INFINITY;
                for _ in 0..if rows == 1 { 200 } else { 12 } {
                    let start = Instant::now();
                    weight.multiply_at(level, rows_of, &mut out);
                    best = best.min(start.elapsed().as_secs_f64());
                }
                let speed = 2.0 * (rows * outputs * inputs) as f64 / best / 1e9;
                println!("{bits} bits {rows:4} rows {level:?}: {:8.3} ms {speed:6.0} GOP/s", best * 1e3);
            }
        }
    }
}
