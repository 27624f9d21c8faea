//! Names of one layout in terms of another, as data.

use std::borrow::Cow;
use std::collections::BTreeMap;

use taq_core::Original;

/// Which part of a file's tensor a model's tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// The `index`-th of `of` equal blocks of rows (q, k and v stacked in one matrix).
    Rows {
        /// From 0.
        index: usize,
        /// How many.
        of: usize,
    },
    /// All of it, its two halves of rows exchanged.
    SwapHalves,
    /// All of it, without the `[1, 1]` at the end of its shape (a 1×1 convolution used as a linear layer).
    Pointwise,
}

/// One line of a table: where a module's tensors lie in the file.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// The model's name for the module. A segment `*` matches a number; `.weight`, `.bias` and any further
    /// segments follow unchanged.
    pub(crate) model: Cow<'static, str>,
    /// The file's name; each `*` is replaced by what the one in `model` matched.
    pub(crate) file: Cow<'static, str>,
    /// Which part of the file's tensor. [`Part::Pointwise`] concerns weights only.
    pub(crate) part: Part,
}

impl Rule {
    /// A rule.
    pub(crate) fn new(
        model: impl Into<Cow<'static, str>>,
        file: impl Into<Cow<'static, str>>,
        part: Part,
    ) -> Self {
        Self { model: model.into(), file: file.into(), part }
    }

    /// The file's name of `name`, if this rule is about it.
    fn apply(&self, name: &str) -> Option<String> {
        rename(&self.model, &self.file, name)
    }
}

/// `name`, which begins as the pattern `from` says, with `to` in the place of that.
fn rename(from: &str, to: &str, name: &str) -> Option<String> {
    let mut rest = name.split('.');
    let mut numbers = Vec::new();
    for pattern in from.split('.') {
        let segment = rest.next()?;
        if pattern == "*" && segment.bytes().all(|b| b.is_ascii_digit()) {
            numbers.push(segment);
        } else if pattern != segment {
            return None;
        }
    }
    let mut numbers = numbers.into_iter();
    let head = to.split('.').map(|s| if s == "*" { numbers.next().unwrap_or(s) } else { s });
    Some(head.chain(rest).collect::<Vec<_>>().join("."))
}

/// How a file names a model's tensors. The default is the model's own names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout {
    /// What all names in the file begin with; tensors without it belong to somebody else.
    pub(crate) prefix: Cow<'static, str>,
    /// The first rule that matches counts; a name that none matches is the same in the file.
    pub(crate) rules: Vec<Rule>,
}

impl Layout {
    /// The model's own names behind a prefix.
    pub(crate) fn prefixed(prefix: impl Into<Cow<'static, str>>) -> Self {
        Self { prefix: prefix.into(), rules: vec![] }
    }

    /// The name in the file, and which part of that tensor.
    pub(crate) fn locate(&self, name: &str) -> (String, Part) {
        let found = self.rules.iter().find_map(|r| Some((r.apply(name)?, r.part)));
        let (file, part) = found.unwrap_or_else(|| (name.to_owned(), Part::Whole));
        let part = if part == Part::Pointwise && !name.ends_with(".weight") { Part::Whole } else { part };
        (format!("{}{file}", self.prefix), part)
    }

    /// The model's names of what lies in the file's tensor `key`: none if it belongs to somebody else, several if they are stacked.
    pub(crate) fn model_names(&self, key: &str) -> Vec<String> {
        let Some(key) = key.strip_prefix(&*self.prefix) else { return Vec::new() };
        let Some(first) = self.rules.iter().find(|r| rename(&r.file, &r.model, key).is_some()) else {
            return vec![key.to_owned()];
        };
        let same = self.rules.iter().filter(|r| r.file == first.file);
        let mut names: Vec<String> = same.filter_map(|r| rename(&r.file, &r.model, key)).collect();
        names.dedup();
        names
    }

    /// The file's tensors, and what they are made of, given the model's names.
    pub(crate) fn originals<'a>(
        &self,
        model: impl IntoIterator<Item = &'a String>,
    ) -> BTreeMap<String, Original> {
        let mut tensors = BTreeMap::new();
        for name in model {
            let (file, part) = self.locate(name);
            let original = match part {
                Part::Whole => Original::Whole(name.clone()),
                Part::Pointwise => Original::Pointwise(name.clone()),
                Part::SwapHalves => Original::Swapped(name.clone()),
                Part::Rows { index, of } => {
                    let entry =
                        tensors.entry(file).or_insert_with(|| Original::Stacked(vec![String::new(); of]));
                    if let Original::Stacked(parts) = entry {
                        parts[index].clone_from(name);
                    }
                    continue;
                }
            };
            tensors.insert(file, original);
        }
        tensors
    }
}
