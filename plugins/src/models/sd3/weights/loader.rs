//! Taking tensors out of [`Weights`] by the model's names and shapes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use half::{bf16, f16};
use mlx_host::HostKernel;
use mlx_rs::{Array, Dtype, Stream};
use rayon::prelude::*;
use taq_core::{Error, Result, WeightIssue};

use super::decode::{Unfit, half_bits, oihw_to_ohwi, supported, to_f32, unfit};
use super::layout::{Layout, Part};
use super::store::{RawTensor, Weights};

/// Hands out a model's tensors, f32 unless told otherwise, and remembers what did not fit.
///
/// Nothing fails at the first wrong tensor: a place holder of zeros takes its place, and [`Loader::finish`]
/// reports all of them together with the tensors that nobody asked for. A model is usable only after `finish`.
///
/// ```text
/// let loader = Loader::with_layout(&weights, layout);
/// let block = loader.scope("transformer_blocks.0");
/// let w = block.tensor("attn.to_q.weight", &[width, width]);
/// loader.finish()?;
/// ```
#[derive(Clone)]
pub(crate) struct Loader<'w> {
    shared: Rc<Shared<'w>>,
    scope: String,
    dtype: Dtype,
}

struct Shared<'w> {
    weights: &'w Weights,
    layout: Layout,
    /// Names in the file that were asked for or are of no interest.
    seen: RefCell<BTreeSet<String>>,
    /// By name in the file, so that each is reported once.
    issues: RefCell<BTreeMap<String, WeightIssue>>,
    /// The first tensor of a type that cannot be read.
    unreadable: RefCell<Option<String>>,
}

impl<'w> Loader<'w> {
    /// For a file that uses the model's own names.
    #[cfg(test)]
    pub(crate) fn new(weights: &'w Weights) -> Self {
        Self::with_layout(weights, Layout::default())
    }

    /// For a file of another layout.
    pub(crate) fn with_layout(weights: &'w Weights, layout: Layout) -> Self {
        let shared = Shared {
            weights,
            layout,
            seen: RefCell::default(),
            issues: RefCell::default(),
            unreadable: RefCell::default(),
        };
        Self { shared: Rc::new(shared), scope: String::new(), dtype: Dtype::Float32 }
    }

    /// The same loader for tensors of another element type: `Float32`, `Float16` or `Bfloat16`.
    pub(crate) fn with_dtype(self, dtype: Dtype) -> Self {
        Self { dtype, ..self }
    }

    /// The same loader below a module: names given to it follow `name` and a dot.
    pub(crate) fn scope(&self, name: &str) -> Self {
        Self { shared: Rc::clone(&self.shared), scope: format!("{}{name}.", self.scope), ..*self }
    }

    /// Element type of the tensors.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The module that this loader is below.
    pub(crate) fn module(&self) -> &str {
        self.scope.trim_end_matches('.')
    }

    /// Whether the file has the tensor.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.shared.weights.shape(&self.locate(key).0).is_some()
    }

    /// The tensor `key`, which must have this shape.
    pub(crate) fn tensor(&self, key: &str, shape: &[usize]) -> Array {
        self.take(key, shape).map_or_else(|| zeros(shape), |data| array(&data, shape, self.dtype))
    }

    /// As [`Self::tensor`], but the values are checked now and read when something is first computed with them: a weight
    /// that a tap replaces takes no memory.
    pub(crate) fn deferred(&self, key: &str, shape: &[usize]) -> Array {
        let element = self.dtype;
        self.with(key, shape, |raw, part| {
            let unfit = unfit(bytes_of(raw.bytes, part), raw.dtype, element);
            let (stored, dtype) = (raw.stored(), raw.dtype);
            let read = HostKernel::new("weight", move |_, outputs| {
                let (values, _) = read(stored.bytes(), dtype, part);
                match element {
                    Dtype::Float32 => outputs[0].f32().copy_from_slice(&values),
                    _ => half_bits(&values, element, outputs[0].data()),
                }
            });
            // The host reads files, whatever device computes with them. Kernels have no half precision: its bits are looked
            // at as integers.
            let (cpu, whole) = (Stream::cpu(), element == Dtype::Float32);
            let bits = if whole { Dtype::Float32 } else { Dtype::Int16 };
            let node = read.call_on(&[], &[(&dims(shape), bits)], &cpu);
            let node = node.ok().and_then(|mut node| node.pop());
            (node.and_then(|n| if whole { Some(n) } else { n.view_dtype(element).ok() }), unfit)
        })
        .flatten()
        .unwrap_or_else(|| zeros(shape))
    }

    /// The tensor `key`, which must have this shape if it is there at all.
    pub(crate) fn optional(&self, key: &str, shape: &[usize]) -> Option<Array> {
        self.contains(key).then(|| self.tensor(key, shape))
    }

    /// The convolution weight `key`, `[out, in, h, w]` in the file, as MLX wants it: `[out, h, w, in]`.
    pub(crate) fn conv(&self, key: &str, shape: [usize; 4]) -> Array {
        let [o, i, h, w] = shape;
        let to = [o, h, w, i];
        self.take(key, &shape)
            .map_or_else(|| zeros(&to), |data| array(&oihw_to_ohwi(&data, shape), &to, self.dtype))
    }

    /// Tensors of the file that need not be asked for. Names are the file's, without the layout's prefix.
    pub(crate) fn ignore(&self, unneeded: impl Fn(&str) -> bool) {
        let mut seen = self.shared.seen.borrow_mut();
        let prefix = &*self.shared.layout.prefix;
        let keys = self.shared.weights.keys();
        seen.extend(keys.filter(|k| k.strip_prefix(prefix).is_some_and(&unneeded)).map(str::to_owned));
    }

    /// Everything that did not fit, in one error: missing, unexpected, misshapen and non-finite tensors.
    pub(crate) fn finish(&self) -> Result<()> {
        let Shared { weights, layout, seen, issues, unreadable } = &*self.shared;
        if let Some(reason) = unreadable.borrow().as_ref() {
            return Err(Error::malformed("weight file", weights.path(), reason));
        }
        let mut issues = issues.borrow().clone();
        let seen = seen.borrow();
        for key in weights.keys().filter(|k| k.starts_with(&*layout.prefix) && !seen.contains(*k)) {
            issues.insert(key.to_owned(), WeightIssue::Unexpected { key: key.to_owned() });
        }
        if issues.is_empty() {
            weights.forget();
            return Ok(());
        }
        Err(Error::Weights { path: weights.path().to_owned(), issues: issues.into_values().collect() })
    }

    fn locate(&self, key: &str) -> (String, Part) {
        self.shared.layout.locate(&format!("{}{key}", self.scope))
    }

    /// The values of a tensor, row-major; `None` if it cannot be had, which is then on record.
    fn take(&self, key: &str, shape: &[usize]) -> Option<Vec<f32>> {
        self.with(key, shape, |raw, part| {
            let (values, not_finite) = read(raw.bytes, raw.dtype, part);
            let unfit = Unfit::of(&values, not_finite, self.dtype);
            (values, unfit)
        })
    }

    /// What `then` makes of a tensor of the file, beside how many of its values do not fit.
    fn with<T>(
        &self,
        key: &str,
        shape: &[usize],
        then: impl FnOnce(RawTensor<'_>, Part) -> (T, Unfit),
    ) -> Option<T> {
        let (key, part) = self.locate(key);
        self.shared.seen.borrow_mut().insert(key.clone());
        let expected = shape_in_file(shape, part);
        let record = |issue| {
            self.shared.issues.borrow_mut().entry(key.clone()).or_insert(issue);
            None
        };
        let Some(raw) = self.shared.weights.raw(&key) else {
            return record(WeightIssue::Missing { key: key.clone(), shape: expected });
        };
        if raw.shape != expected {
            return record(WeightIssue::Shape { key: key.clone(), expected, found: raw.shape.to_vec() });
        }
        if !supported(raw.dtype) {
            let reason = format!("`{key}` is {:?}; F32, F16 and BF16 can be read", raw.dtype);
            self.shared.unreadable.borrow_mut().get_or_insert(reason);
            return None;
        }
        let (data, unfit) = then(raw, part);
        let add = |new: WeightIssue, bad: usize| {
            let mut issues = self.shared.issues.borrow_mut();
            if let WeightIssue::NotFinite { count, .. } | WeightIssue::TooLarge { count, .. } =
                issues.entry(key.clone()).or_insert(new)
            {
                *count += bad;
            }
        };
        match unfit {
            Unfit { not_finite: 0, too_large: 0 } => {}
            Unfit { not_finite: 0, too_large } => {
                add(WeightIssue::TooLarge { key: key.clone(), count: 0 }, too_large)
            }
            Unfit { not_finite, .. } => {
                add(WeightIssue::NotFinite { key: key.clone(), count: 0 }, not_finite)
            }
        }
        Some(data)
    }
}

/// The shape of the file's tensor of which a tensor of `shape` is a part.
fn shape_in_file(shape: &[usize], part: Part) -> Vec<usize> {
    let mut shape = shape.to_vec();
    match part {
        Part::Whole | Part::SwapHalves => {}
        Part::Rows { of, .. } => {
            if let Some(rows) = shape.first_mut() {
                *rows *= of;
            }
        }
        Part::Pointwise => shape.extend([1, 1]),
    }
    shape
}

/// Those of a tensor's bytes that a part is made of.
fn bytes_of(bytes: &[u8], part: Part) -> &[u8] {
    match part {
        Part::Whole | Part::Pointwise | Part::SwapHalves => bytes,
        Part::Rows { index, of } => {
            let size = bytes.len() / of;
            &bytes[index * size..][..size]
        }
    }
}

fn read(bytes: &[u8], dtype: safetensors::Dtype, part: Part) -> (Vec<f32>, usize) {
    match part {
        Part::Whole | Part::Pointwise => to_f32(bytes, dtype),
        Part::Rows { .. } => to_f32(bytes_of(bytes, part), dtype),
        Part::SwapHalves => {
            let (mut data, bad) = to_f32(bytes, dtype);
            let half = data.len() / 2;
            data.rotate_left(half);
            (data, bad)
        }
    }
}

fn array(data: &[f32], shape: &[usize], dtype: Dtype) -> Array {
    let shape = dims(shape);
    match dtype {
        Dtype::Float16 => Array::from_slice(&rounded(data, f16::from_f32), &shape),
        Dtype::Bfloat16 => Array::from_slice(&rounded(data, bf16::from_f32), &shape),
        _ => Array::from_slice(data, &shape),
    }
}

fn rounded<T: Send>(data: &[f32], round: fn(f32) -> T) -> Vec<T> {
    data.par_iter().map(|x| round(*x)).collect()
}

/// Stands in for a tensor that could not be had; lazy, so that a wrong configuration costs no memory.
fn zeros(shape: &[usize]) -> Array {
    let zero = Array::from_f32(0.0);
    mlx_rs::ops::broadcast_to(&zero, &dims(shape)).unwrap_or(zero)
}

fn dims(shape: &[usize]) -> Vec<i32> {
    shape.iter().map(|&d| i32::try_from(d).unwrap_or(i32::MAX)).collect()
}
