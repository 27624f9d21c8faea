//! Which calibration rows a block is learned from, and what goes in and out of the blocks.

use std::path::Path;

use crate::manifest::RoundSettings;
use crate::noise::Rng;
use crate::pipeline::boundary::{Boundary, Storage};
use crate::pipeline::cache::{BlockCache, CacheSample};
use crate::pipeline::quantized::{ActivationPlan, QuantizedLayers};
use crate::pipeline::{SampleSet, Session};
use crate::{Error, ModelSpec, Result};

/// The calibration rows: learned ones first.
pub(super) struct Rows {
    source: Source,
    storage: Storage,
    /// Rows that are learned from.
    pub learn: usize,
    /// All rows, those that only judge included.
    pub count: usize,
    /// With guidance every row has two branches, side by side: with its prompt, and without.
    pub branches: usize,
}

enum Source {
    /// (image, step) of the run; boundaries are computed.
    Run(Vec<(usize, usize)>),
    /// Boundaries are read.
    Cache(Box<BlockCache>, Vec<CacheSample>),
}

impl Rows {
    /// Rows of the run's samples, or of a cache if the settings name one.
    ///
    /// Boundaries that do not stay in memory go to `folder`.
    pub fn choose(
        set: &SampleSet,
        settings: &RoundSettings,
        spec: &ModelSpec,
        seed: u64,
        folder: &Path,
    ) -> Result<Self> {
        let branches = 1 + usize::from(set.manifest.cfg_scale > 0.0);
        let (source, learn, count) = match &settings.cache {
            None => {
                let steps = &set.manifest.kept_steps;
                let all = (0..set.manifest.n_completed).flat_map(|i| steps.iter().map(move |&s| (i, s)));
                let (rows, learn) = split(all.collect(), |row| row.0, settings, seed)?;
                let count = rows.len();
                (Source::Run(rows), learn, count)
            }
            Some(folder) => {
                let cache = BlockCache::open(folder, spec)?;
                if cache.metadata.cfg_weight != set.manifest.cfg_scale {
                    let (found, expected) = (cache.metadata.cfg_weight, set.manifest.cfg_scale);
                    let reason = format!("its guidance weight is {found}, the run's is {expected}");
                    return Err(Error::Stale { path: folder.clone(), reason });
                }
                let (rows, learn) = split(cache.readable()?, |row| row.img_idx, settings, seed)?;
                let count = rows.len();
                (Source::Cache(Box::new(cache), rows), learn, count)
            }
        };
        let limit = (settings.memory_gb * 1e9) as usize;
        let storage = Storage { folder: folder.to_owned(), limit };
        Ok(Self { source, storage, learn, count, branches })
    }

    /// What the first block sees, or the first one that the cache holds, with its position.
    ///
    /// # Errors
    /// [`Error::Settings`] if one of the `chosen` blocks lies before it.
    pub fn first(&self, session: &Session, set: &SampleSet, chosen: &[bool]) -> Result<(usize, Boundary)> {
        let blocks = &session.model.spec().blocks;
        match &self.source {
            Source::Run(rows) => {
                let encoded = set.encode(session, set.manifest.n_completed)?;
                let parts = rows.chunks(32).map(|rows| set.embed(&*session.model, &encoded, rows));
                Ok((0, Boundary::collect(&self.storage, self.count * self.branches, parts)?))
            }
            Source::Cache(cache, rows) => {
                let first = blocks.iter().position(|b| cache.holds(&b.id)).unwrap_or(0);
                if let Some(missing) = (0..first).find(|&b| chosen[b]) {
                    let (missing, first) = (&blocks[missing].id, &blocks[first].id);
                    let reason = format!("the cache begins with block {first} and cannot round {missing}");
                    return Err(Error::settings("round", reason));
                }
                Ok((first, cache.boundary(&self.storage, rows, &blocks[first].id, false)?))
            }
        }
    }

    /// What full precision puts out of a block that sees `inputs`.
    pub fn targets(&self, session: &Session, block: usize, inputs: &Boundary) -> Result<Boundary> {
        let id = &session.model.spec().blocks[block].id;
        match &self.source {
            Source::Cache(cache, rows) if cache.holds(id) => cache.boundary(&self.storage, rows, id, true),
            _ => inputs.forward(&self.storage, &*session.model, block, None),
        }
    }

    /// What quantized layers put out of a block that sees `inputs`.
    pub fn quantized(
        &self,
        session: &Session,
        block: usize,
        inputs: &Boundary,
        layers: (&ActivationPlan, &QuantizedLayers),
    ) -> Result<Boundary> {
        inputs.forward(&self.storage, &*session.model, block, Some(layers))
    }
}

/// Shuffled rows, and how many of them are learned from. Those that only judge are of other images.
fn split<T: Clone>(
    all: Vec<T>,
    image: impl Fn(&T) -> usize,
    settings: &RoundSettings,
    seed: u64,
) -> Result<(Vec<T>, usize)> {
    for (name, n) in [("rows", settings.rows), ("held_out_rows", settings.held_out_rows)] {
        if n == 0 {
            return Err(Error::settings("round", format!("{name} must be at least 1, not 0")));
        }
    }
    let mut images: Vec<usize> = all.iter().map(&image).collect();
    images.sort_unstable();
    images.dedup();
    // With a single image there is nothing to hold out but other steps of it.
    let held_images = if images.len() > 1 { images.len().div_ceil(8) } else { 0 };
    let first_held = images.get(images.len() - held_images).copied().unwrap_or(usize::MAX);
    let mut rng = Rng::stream(seed, "rows");
    let (mut learn, mut held): (Vec<T>, Vec<T>) = all.into_iter().partition(|row| image(row) < first_held);
    rng.shuffle(&mut learn);
    if held_images > 0 {
        rng.shuffle(&mut held);
    } else {
        let n = settings.held_out_rows.min(learn.len() / 4).max(1).min(learn.len());
        held = learn.split_off(learn.len() - n);
    }
    if learn.is_empty() {
        return Err(Error::settings("round", "there are too few calibration samples to learn from"));
    }
    learn.truncate(settings.rows);
    held.truncate(settings.held_out_rows);
    let count = learn.len();
    learn.extend(held);
    Ok((learn, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_judge_are_of_other_images() {
        let all: Vec<(usize, usize)> = (0..16).flat_map(|i| (0..5).map(move |s| (i, s))).collect();
        let settings = RoundSettings { rows: 40, held_out_rows: 6, ..Default::default() };
        let (rows, learn) = split(all.clone(), |r| r.0, &settings, 3).unwrap();
        assert_eq!((rows.len(), learn), (46, 40));
        assert!(rows[..40].iter().all(|r| r.0 < 14) && rows[40..].iter().all(|r| r.0 >= 14));
        assert_eq!(split(all.clone(), |r| r.0, &settings, 3).unwrap().0, rows);
        assert_ne!(split(all, |r| r.0, &settings, 4).unwrap().0, rows);
        // A single image: other steps of it.
        let (rows, learn) =
            split((0..8).map(|s| (0, s)).collect(), |r: &(usize, usize)| r.0, &settings, 3).unwrap();
        assert_eq!((rows.len(), learn), (8, 6));
        assert!(split(vec![(0, 0)], |r| r.0, &settings, 3).is_err());
    }
}
