//! What goes between two blocks, of all rows: in memory, or in a file where it is too large for that.

use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use mlx_rs::{Array, Dtype, ops, transforms};
use taq_mapped::Mapped;

use super::quantized::{ActivationPlan, QuantizedLayers, QuantizedTap};
use crate::quant::{is_finite, to_vec};
use crate::rows::take_rows;
use crate::{BlockIo, Error, Identity, Model, Result, Tap};

/// Rows in one forward pass over all rows; even, so that no pair is torn apart.
pub(super) const CHUNK: usize = 32;

/// Where boundaries are kept.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    /// Folder for those that do not stay in memory.
    pub folder: PathBuf,
    /// Bytes of one boundary that stay in memory.
    pub limit: usize,
}

/// See the module's head.
#[derive(Clone)]
pub(super) struct Boundary {
    hidden: Tokens,
    context: Option<Tokens>,
    temb: Array,
    /// Timesteps (1000 σ) of the rows.
    pub timesteps: Vec<f32>,
    /// The first rows that came in together and hold NaN or infinity.
    pub not_finite: Option<Range<usize>>,
}

/// One stream of tokens, `[rows, tokens, width]`.
#[derive(Clone)]
enum Tokens {
    Memory(Array),
    /// f32 in a file without a name, which the system removes when nobody has it open, come what may.
    File {
        bytes: Arc<Mapped>,
        row: [usize; 2],
        dtype: Dtype,
    },
}

impl Tokens {
    fn rows(&self, rows: &[usize]) -> Result<Array> {
        match self {
            Self::Memory(array) => Ok(take_rows(array, rows)?),
            Self::File { bytes, row: [tokens, width], dtype } => {
                let len = tokens * width * size_of::<f32>();
                let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                let row = |&row: &usize| bytes[row * len..][..len].chunks_exact(4).map(number);
                let values: Vec<f32> = rows.iter().flat_map(row).collect();
                let shape = [rows.len() as i32, *tokens as i32, *width as i32];
                Ok(Array::from_slice(&values, &shape).as_dtype(*dtype)?)
            }
        }
    }
}

/// One stream while it comes in.
enum Writer {
    Memory(Vec<Array>),
    File { out: BufWriter<std::fs::File>, row: [usize; 2], dtype: Dtype },
}

impl Writer {
    fn new(storage: &Storage, spill: bool, first: &Array) -> Result<Self> {
        if !spill {
            return Ok(Self::Memory(Vec::new()));
        }
        let file =
            tempfile::tempfile_in(&storage.folder).map_err(Error::io("create a file in", &storage.folder))?;
        let row = [first.dim(1) as usize, first.dim(2) as usize];
        Ok(Self::File { out: BufWriter::new(file), row, dtype: first.dtype() })
    }

    fn add(&mut self, storage: &Storage, part: &Array) -> Result<()> {
        match self {
            Self::Memory(parts) => parts.push(part.clone()),
            Self::File { out, .. } => {
                let bytes: Vec<u8> = to_vec(part)?.iter().flat_map(|x| x.to_le_bytes()).collect();
                out.write_all(&bytes).map_err(Error::io("write a file in", &storage.folder))?;
            }
        }
        Ok(())
    }

    fn finish(self, storage: &Storage) -> Result<Tokens> {
        match self {
            Self::Memory(parts) => {
                let whole = ops::concatenate(&parts, 0)?;
                whole.eval()?;
                Ok(Tokens::Memory(whole))
            }
            Self::File { out, row, dtype } => {
                let file = out
                    .into_inner()
                    .map_err(|e| Error::io("write a file in", &storage.folder)(e.into_error()))?;
                let bytes = Mapped::of(&file).map_err(Error::io("map a file in", &storage.folder))?;
                Ok(Tokens::File { bytes: Arc::new(bytes), row, dtype })
            }
        }
    }
}

impl Boundary {
    /// Collects so many rows that come in parts, each of one row or more.
    pub fn collect(
        storage: &Storage,
        rows: usize,
        parts: impl Iterator<Item = Result<BlockIo>>,
    ) -> Result<Self> {
        let mut writers: Option<[Option<Writer>; 2]> = None;
        let (mut temb, mut timesteps, mut not_finite) = (Vec::new(), Vec::new(), None);
        for part in parts {
            let part = part?;
            transforms::eval([&part.hidden, &part.temb].into_iter().chain(&part.context))?;
            let streams = [Some(&part.hidden), part.context.as_ref()];
            if writers.is_none() {
                let bytes: usize = streams.iter().flatten().map(|s| s.size() / s.dim(0) as usize * 4).sum();
                let spill = bytes.saturating_mul(rows) > storage.limit;
                let [hidden, context] =
                    streams.map(|s| s.map(|s| Writer::new(storage, spill, s)).transpose());
                writers = Some([hidden?, context?]);
            }
            for (writer, stream) in writers.iter_mut().flatten().zip(streams) {
                if let (Some(writer), Some(stream)) = (writer, stream) {
                    writer.add(storage, stream)?;
                }
            }
            if not_finite.is_none() && !io_is_finite(&part)? {
                not_finite = Some(timesteps.len()..timesteps.len() + part.timesteps.len());
            }
            temb.push(part.temb);
            timesteps.extend(part.timesteps);
        }
        let Some([Some(hidden), context]) = writers else {
            return Err(Error::settings("round", "there are no calibration rows"));
        };
        Ok(Self {
            hidden: hidden.finish(storage)?,
            context: context.map(|c| c.finish(storage)).transpose()?,
            temb: ops::concatenate(&temb, 0)?,
            timesteps,
            not_finite,
        })
    }

    /// The given rows.
    pub fn rows(&self, rows: &[usize]) -> Result<BlockIo> {
        Ok(BlockIo {
            hidden: self.hidden.rows(rows)?,
            context: self.context.as_ref().map(|c| c.rows(rows)).transpose()?,
            temb: take_rows(&self.temb, rows)?,
            timesteps: rows.iter().map(|&r| self.timesteps[r]).collect(),
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.timesteps.len()
    }

    /// The boundary after a block, in full precision or with quantized layers.
    pub fn forward(
        &self,
        storage: &Storage,
        model: &dyn Model,
        block: usize,
        quantized: Option<(&ActivationPlan, &QuantizedLayers)>,
    ) -> Result<Self> {
        let all: Vec<usize> = (0..self.len()).collect();
        let parts = all.chunks(CHUNK).map(|rows| {
            let io = self.rows(rows)?;
            match quantized {
                Some((plan, layers)) => {
                    block_forward(model, block, &io, &mut QuantizedTap::new(plan, layers))
                }
                None => block_forward(model, block, &io, &mut Identity),
            }
        });
        Self::collect(storage, self.len(), parts)
    }
}

/// Whether nothing in it is NaN or infinite.
pub(super) fn io_is_finite(io: &BlockIo) -> Result<bool> {
    Ok(is_finite(&io.hidden)? && io.context.as_ref().map_or(Ok(true), is_finite)? && is_finite(&io.temb)?)
}

/// One block, from the tap's beginning.
pub(super) fn block_forward(
    model: &dyn Model,
    block: usize,
    io: &BlockIo,
    tap: &mut dyn Tap,
) -> Result<BlockIo> {
    tap.begin(&io.timesteps)?;
    model.block_forward(block, io, tap)
}

/// Several blocks, one after the other.
pub(super) fn blocks_forward(
    model: &dyn Model,
    blocks: Range<usize>,
    io: &BlockIo,
    tap: &mut dyn Tap,
) -> Result<BlockIo> {
    blocks.into_iter().try_fold(io.clone(), |io, block| block_forward(model, block, &io, tap))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(first: f32, rows: i32, context: bool) -> BlockIo {
        let array = |shape: [i32; 3], start: f32| {
            let n: i32 = shape.iter().product();
            Array::from_iter((0..n).map(|i| start + i as f32), &shape)
        };
        BlockIo {
            hidden: array([rows, 3, 4], first),
            context: context.then(|| array([rows, 2, 4], -first)),
            temb: ops::zeros::<f32>(&[rows, 5]).unwrap(),
            timesteps: (0..rows).map(|i| first + i as f32).collect(),
        }
    }

    #[test]
    fn files_give_back_what_memory_does() {
        let folder = tempfile::tempdir().unwrap();
        for context in [true, false] {
            let kept = |limit| {
                let storage = Storage { folder: folder.path().to_owned(), limit };
                let parts = [part(1.0, 2, context), part(100.0, 3, context)].into_iter().map(Ok);
                Boundary::collect(&storage, 5, parts).unwrap()
            };
            // 5 rows of 20 or 12 numbers.
            let bytes = if context { 400 } else { 240 };
            let (memory, file) = (kept(bytes), kept(bytes - 1));
            assert!(matches!(memory.hidden, Tokens::Memory(_)) && matches!(file.hidden, Tokens::File { .. }));
            assert_eq!((memory.len(), &memory.timesteps), (5, &file.timesteps));
            let rows = [4, 0, 0, 2];
            let (a, b) = (memory.rows(&rows).unwrap(), file.rows(&rows).unwrap());
            assert_eq!(a.hidden.shape(), [4, 3, 4]);
            assert_eq!(a.hidden.as_slice::<f32>()[..2], [124.0, 125.0]);
            assert_eq!(a.hidden.as_slice::<f32>(), b.hidden.as_slice::<f32>());
            assert_eq!(a.timesteps, [102.0, 1.0, 1.0, 100.0]);
            assert_eq!(a.timesteps, b.timesteps);
            assert_eq!((a.context.is_some(), b.context.is_some()), (context, context));
            if let (Some(a), Some(b)) = (a.context, b.context) {
                assert_eq!((a.shape(), b.as_slice::<f32>()), ([4, 2, 4].as_slice(), a.as_slice::<f32>()));
            }
        }
        // Nothing is left behind, not even while the files are open.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let missing = Storage { folder: folder.path().join("missing"), limit: 0 };
        let error = Boundary::collect(&missing, 2, [Ok(part(1.0, 2, true))].into_iter()).err().unwrap();
        assert!(error.to_string().starts_with("cannot create a file in `"), "{error}");
    }
}
