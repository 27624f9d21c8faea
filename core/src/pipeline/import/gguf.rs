//! GGUF: ggml's blocks of 32 weights, as [`crate::pipeline::ExportFormat::Gguf`] writes them.
//!
//! `Q4_1` and `Q5_1` (`w = d · q + m`) are grids of 4 and 5 bits with a real zero point, `Q8_0` (`w = d · q`, q from −127 to
//! 127) a symmetric one of 8. Other types are refused: they have step sizes of several levels, or negative ones.

mod file;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::f16;
use safetensors::Dtype;

use self::file::Gguf;
use super::grids::{Affine, on_grid};
use super::{Imported, refusal};
use crate::pipeline::Session;
use crate::pipeline::export::gguf::{BLOCK, Kind, Tensor, plain};
use crate::{Checkpoint, Error, LayerId, Original, Result, RoundedLayer};

/// Reads the file.
pub(super) fn read(session: &Session, path: &Path) -> Result<Imported> {
    let file = Gguf::open(path)?;
    let spec = session.model.spec();
    let checkpoint = session.model.checkpoint()?;
    if let Some(stranger) = file.tensors.keys().find(|name| !checkpoint.original.contains_key(*name)) {
        return Err(refusal(format!(
            "`{}` is not of this model: it has a tensor `{stranger}`",
            path.display()
        )));
    }
    let shapes: HashMap<&LayerId, [usize; 2]> = spec.weights().collect();
    let by_weight: HashMap<String, &LayerId> =
        checkpoint.modules.iter().map(|(id, module)| (format!("{module}.weight"), id)).collect();
    let mut found: BTreeMap<&LayerId, RoundedLayer> = BTreeMap::new();
    for (name, original) in &checkpoint.original {
        let malformed = |reason: String| Error::malformed("export", path, format!("`{name}`: {reason}"));
        let tensor = file.tensors.get(name).ok_or_else(|| malformed("it is not there".into()))?;
        if matches!(tensor.kind, Kind::F32 | Kind::F16 | Kind::Bf16) {
            same(&checkpoint, name, original, tensor)?;
            continue;
        }
        let ids: Option<Vec<_>> = original.parts().iter().map(|part| by_weight.get(part).copied()).collect();
        let layers = ids.and_then(|ids| {
            ids.into_iter().map(|id| Some((id, *shapes.get(id)?))).collect::<Option<Vec<_>>>()
        });
        let layers =
            layers.ok_or_else(|| malformed("it is quantized, and taq quantizes no such layer".into()))?;
        let columns = layers.first().map_or(0, |(_, [_, inputs])| *inputs);
        let rows: usize = layers.iter().map(|(_, [outputs, _])| outputs).sum();
        if tensor.shape != [rows, columns] || !columns.is_multiple_of(BLOCK) {
            return Err(malformed(format!("expected shape {:?}, found {:?}", [rows, columns], tensor.shape)));
        }
        let mut bytes = tensor.bytes.as_slice();
        for (id, shape) in layers {
            // Of what is left, for all tensors have the whole number of bytes that their rows need.
            let (own, rest) = bytes.split_at(tensor.bytes.len() / rows * shape[0]);
            bytes = rest;
            found.insert(id, decode(own, tensor.kind, shape).map_err(|e| malformed(e.to_string()))?);
        }
    }
    let layers = spec.weights().filter_map(|(id, _)| Some((id.clone(), found.remove(id)?))).collect();
    Ok(Imported { layers, origin: None })
}

/// Whether a tensor that is not quantized is the model's own.
fn same(checkpoint: &Checkpoint, name: &str, original: &Original, found: &Tensor) -> Result<()> {
    let matrices = match found.kind {
        Kind::F32 => Dtype::F32,
        Kind::Bf16 => Dtype::BF16,
        _ => Dtype::F16,
    };
    let own = plain(checkpoint, name, original, matrices, &HashMap::new())?;
    // ggml may have dropped sides of 1 in front.
    let sides = |shape: &[usize]| shape.iter().copied().skip_while(|&side| side == 1).collect::<Vec<_>>();
    if sides(&own.shape) == sides(&found.shape) && own.kind == found.kind && own.bytes == found.bytes {
        return Ok(());
    }
    let of_layers = |suffix: &str| {
        let module = |part: &String| part.strip_suffix(suffix).map(str::to_owned);
        let modules: Vec<String> = original.parts().iter().filter_map(module).collect();
        checkpoint.modules.values().any(|m| modules.contains(m))
    };
    let why = match (of_layers(".weight"), of_layers(".bias")) {
        (true, _) => "its weights are not packed, and are not the model's: the export holds them dequantized",
        (_, true) => "it is not the model's: learned biases were folded in, and cannot be told apart",
        _ => "it is not the model's: this is no export of it",
    };
    let what = format!(
        "import of tensor `{name}`: {why}. A packed folder (taq export --format packed) keeps everything"
    );
    Err(Error::Unsupported { what })
}

/// The integers of blocks, row by row.
fn decode(bytes: &[u8], kind: Kind, shape: [usize; 2]) -> Result<RoundedLayer> {
    let (mut integers, mut steps, mut minima) = (Vec::<u8>::new(), Vec::new(), Vec::new());
    for block in bytes.chunks_exact(kind.block_bytes()) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        steps.push(half(0));
        match kind {
            Kind::Q8_0 => integers.extend(&block[2..]),
            _ => {
                minima.push(half(2));
                let fifth = match kind {
                    Kind::Q5_1 => u32::from_le_bytes([block[4], block[5], block[6], block[7]]),
                    _ => 0,
                };
                let nibbles = &block[block.len() - BLOCK / 2..];
                let lower = nibbles.iter().map(|b| b & 15);
                let all = lower.chain(nibbles.iter().map(|b| b >> 4)).enumerate();
                integers.extend(all.map(|(i, q)| q | ((fifth >> i & 1) as u8) << 4));
            }
        }
    }
    if !steps.iter().chain(&minima).all(|v| v.is_finite()) {
        return Err(Error::NotFinite { what: "a block".into() });
    }
    match kind {
        Kind::Q8_0 => {
            let integers: Vec<i8> = integers.into_iter().map(|q| q as i8).collect();
            for (step, block) in steps.iter_mut().zip(integers.chunks(BLOCK)) {
                // ggml's way to write 32 zeros; on any other step they are the same.
                if *step == 0.0 && block.iter().all(|q| *q == 0) {
                    *step = 1.0;
                }
            }
            positive(&steps)?;
            let zeros = vec![0.0; steps.len()];
            on_grid(8, shape, BLOCK, integers, steps, zeros, true)
        }
        _ => {
            positive(&steps)?;
            let bits = if kind == Kind::Q5_1 { 5 } else { 4 };
            Affine { bits, shape, group: BLOCK, integers, steps, minima }.rounded(true)
        }
    }
}

fn positive(steps: &[f32]) -> Result<()> {
    match steps.iter().find(|s| **s <= 0.0) {
        Some(step) => {
            Err(refusal(format!("a block has step size {step}, and taq's grids have only positive ones")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::Array;

    use super::*;
    use crate::pipeline::export::gguf::{encode, kind};
    use crate::quant::{Clipping, Granularity, Grid, nearest};

    #[test]
    fn blocks_come_back_and_encode_to_the_same_bytes() {
        let (rows, columns) = (4, 128);
        let value = |i: i32| if i < 32 { 0.0 } else { ((i * i % 97) as f32 - 40.0) / 300.0 };
        let values: Vec<f32> = (0..rows * columns).map(value).collect();
        let weight = Array::from_slice(&values, &[rows, columns]);
        let shape = [rows as usize, columns as usize];
        for bits in 2..=8 {
            for granularity in [Granularity::Channel, Granularity::Tensor, Granularity::Group(64)] {
                for symmetric in [false, true] {
                    let grid = Grid::new(bits, granularity, symmetric).unwrap();
                    let layer = nearest(&weight, &grid, Clipping::Mse).unwrap();
                    let kind = kind(&layer);
                    let bytes = encode(&layer, kind);
                    let back = decode(&bytes, kind, shape).unwrap();
                    back.check(&"l".into(), shape, 1).unwrap();
                    let expected = match bits {
                        ..=4 => 4,
                        5 => 5,
                        _ => 8,
                    };
                    assert_eq!(back.grid.bits, expected);
                    // Step sizes of 16 bits.
                    let largest = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                    for (a, b) in back.values().iter().zip(layer.values()) {
                        assert!((a - b).abs() < 6e-3 * largest, "{grid:?}: {a} {b}");
                    }
                    assert!(encode(&back, kind) == bytes, "{grid:?}");
                }
            }
        }
    }

    #[test]
    fn steps_that_no_grid_has_are_refused() {
        let shape = [1, 32];
        for (kind, size) in [(Kind::Q4_1, 20), (Kind::Q5_1, 24), (Kind::Q8_0, 34)] {
            let mut block = vec![0x11; size];
            let decoded = |step: f32, block: &mut Vec<u8>| {
                block[..2].copy_from_slice(&f16::from_f32(step).to_le_bytes());
                decode(block, kind, shape)
            };
            assert!(decoded(0.5, &mut block).is_ok());
            assert!(decoded(-0.5, &mut block).unwrap_err().to_string().contains("-0.5"));
            assert!(decoded(0.0, &mut block).is_err());
            assert!(matches!(decoded(f32::NAN, &mut block), Err(Error::NotFinite { .. })));
        }
    }
}
