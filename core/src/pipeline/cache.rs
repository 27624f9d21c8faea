//! `cache`: what goes into every block and what comes out of it, for every calibration sample, on disk.
//!
//! `round` computes these boundaries as it goes and needs no cache. A cache is for tools that read the Python ancestor's
//! format, and for learning a few blocks of a large model again and again (`round --cache`). Each sample's npz has, for
//! every block `b` (arrays begin with the branch of guidance: with the prompt, without):
//!
//! | key | shape | |
//! |---|---|---|
//! | `{b}__arg0`, `{b}__out0` | branches, image tokens, width | image stream in and out |
//! | `{b}__arg1`, `{b}__out1` | branches, text tokens, width | text stream; the last block has no `__out1` |
//! | `{b}__arg2` | branches | timestep (1000 σ) |
//! | `{b}__kw_temb` | branches, width | embedding of timestep and pooled text, which the ancestor forgot |
//!
//! The unit of work is a sample; a killed run goes on with the first one that is not there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::boundary::{Boundary, Storage, block_forward};
use super::session::{Encoded, measured, parts};
use super::{Outcome, SampleSet, Session};
use crate::artifacts::{Document, Npz, StageState, read_document, write_json, write_npz};
use crate::manifest::CacheSettings;
use crate::{BlockId, BlockIo, Error, Identity, ModelSpec, Result};

/// One sample of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheSample {
    /// Image.
    pub img_idx: usize,
    /// Step of the schedule.
    pub step_idx: usize,
    /// npz below the cache's folder.
    pub file: String,
}

/// `adaround_cache/metadata.json`, with the ancestor's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheMetadata {
    /// Always [`CacheMetadata::FORMAT`].
    pub format: String,
    /// Fingerprint of the model.
    pub model: String,
    /// Blocks whose boundaries are kept, in the order of the forward pass.
    pub block_names: Vec<BlockId>,
    /// Joint blocks among them.
    pub n_mm_blocks: usize,
    /// Blocks of a single stream among them.
    pub n_uni_blocks: usize,
    /// Samples.
    pub n_samples: usize,
    /// The samples.
    pub samples: Vec<CacheSample>,
    /// Run folder that they come from.
    pub calib_dir: String,
    /// Images among them.
    pub selected_image_ids: Vec<usize>,
    /// Steps among them.
    pub key_timesteps: Vec<usize>,
    /// Every so many of the kept steps.
    pub stride: usize,
    /// Classifier-free guidance weight.
    pub cfg_weight: f32,
    /// Steps of the sampler.
    pub num_steps: usize,
    /// Bytes of all samples, in GB.
    pub cache_size_gb: f64,
}

impl Document for CacheMetadata {
    const FORMAT: &'static str = "adaround_cache_v1";
    const KIND: &'static str = "cache of block boundaries";
}

/// Runs the stage.
pub fn cache(session: &Session, settings: &CacheSettings) -> Result<Outcome> {
    measured(session, "cache", || {
        let (run, spec) = (&session.run, session.model.spec());
        let set = SampleSet::open(run, "cache", &*session.model)?;
        let (images, steps) = set.chosen("cache", settings.num_images, settings.stride)?;
        let blocks = match &settings.blocks {
            Some(blocks) => chosen(spec, blocks)?,
            None => (0..spec.blocks.len()).collect(),
        };
        let parts = parts([
            ("samples", set.identity(session)?),
            ("settings", json!(settings)),
            ("images", json!(images)),
        ]);
        let state = run.begin_stage("cache", &parts, &[run.adaround_cache()], session.force)?;
        let pairs: Vec<(usize, usize)> =
            (0..images).flat_map(|image| steps.iter().map(move |&step| (image, step))).collect();
        let summary = format!("{} blocks × {} samples", blocks.len(), pairs.len());
        if state == StageState::Complete && run.cache_metadata().exists() {
            return Ok((summary, true));
        }
        let encoded = set.encode(session, set.manifest.n_completed)?;
        session.cx.progress.begin("cache", pairs.len() as u64);
        for &(image, step) in &pairs {
            session.cx.check()?;
            if !run.cache_sample(image, step).exists() {
                write_sample(session, &set, &encoded, &blocks, (image, step))?;
            }
            session.cx.progress.advance(1, "");
        }
        session.cx.progress.end();
        let file = |&(image, step): &(usize, usize)| {
            let path = run.cache_sample(image, step);
            let bytes = path.metadata().map_err(Error::io("read", &path))?.len();
            let file = path.strip_prefix(run.adaround_cache()).unwrap_or(&path).display().to_string();
            Ok((CacheSample { img_idx: image, step_idx: step, file }, bytes))
        };
        let samples = pairs.iter().map(file).collect::<Result<Vec<_>>>()?;
        let bytes: u64 = samples.iter().map(|(_, bytes)| bytes).sum();
        let metadata = CacheMetadata {
            format: CacheMetadata::FORMAT.to_owned(),
            model: spec.fingerprint.clone(),
            block_names: blocks.iter().map(|&b| spec.blocks[b].id.clone()).collect(),
            n_mm_blocks: blocks.len(),
            n_uni_blocks: 0,
            n_samples: samples.len(),
            samples: samples.into_iter().map(|(sample, _)| sample).collect(),
            calib_dir: "..".to_owned(),
            selected_image_ids: (0..images).collect(),
            key_timesteps: steps,
            stride: settings.stride,
            cfg_weight: set.manifest.cfg_scale,
            num_steps: set.manifest.num_steps,
            cache_size_gb: bytes as f64 / 1e9,
        };
        write_json(&run.cache_metadata(), &metadata)?;
        run.finish_stage("cache")?;
        Ok((summary, false))
    })
}

/// Positions of these blocks, rising; [`Error::Settings`] names one that the model does not have.
pub(super) fn chosen(spec: &ModelSpec, blocks: &[BlockId]) -> Result<Vec<usize>> {
    let find = |block: &BlockId| {
        spec.block_index(block).ok_or_else(|| {
            let known: Vec<&str> = spec.blocks.iter().map(|b| b.id.as_str()).collect();
            let reason = format!("the model has no block `{block}`; its blocks are {}", known.join(", "));
            Error::settings("blocks", reason)
        })
    };
    let mut chosen = blocks.iter().map(find).collect::<Result<Vec<_>>>()?;
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

fn write_sample(
    session: &Session,
    set: &SampleSet,
    encoded: &Encoded,
    blocks: &[usize],
    sample: (usize, usize),
) -> Result<()> {
    let model = &*session.model;
    let mut io = set.embed(model, encoded, &[sample])?;
    let mut kept = Vec::new();
    for block in 0..=blocks.last().copied().unwrap_or(0) {
        let out = block_forward(model, block, &io, &mut Identity)?;
        if blocks.contains(&block) {
            kept.push((block, io, out.clone()));
        }
        io = out;
    }
    write_npz(&session.run.cache_sample(sample.0, sample.1), |npz| {
        for (block, io, out) in &kept {
            let name = |field: &str| format!("{}__{field}", model.spec().blocks[*block].id);
            npz.array(&name("arg0"), &io.hidden)?;
            npz.array(&name("out0"), &out.hidden)?;
            for (field, context) in [("arg1", &io.context), ("out1", &out.context)] {
                if let Some(context) = context {
                    npz.array(&name(field), context)?;
                }
            }
            npz.add(&name("arg2"), &[io.timesteps.len()], &io.timesteps)?;
            npz.array(&name("kw_temb"), &io.temb)?;
        }
        Ok(())
    })
}

/// A cache, opened for reading.
pub(super) struct BlockCache {
    folder: PathBuf,
    /// What it holds.
    pub metadata: CacheMetadata,
}

impl BlockCache {
    /// Opens a cache and checks that this model made it.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Malformed`] if there is none; [`Error::Stale`] if it is another model's;
    /// [`Error::Settings`] if it holds nothing.
    pub fn open(folder: &Path, spec: &ModelSpec) -> Result<Self> {
        let metadata: CacheMetadata = read_document(&folder.join("metadata.json"))?;
        if metadata.model != spec.fingerprint {
            let reason = format!(
                "its blocks are of model {:.12}, the model at hand is {:.12}",
                metadata.model, spec.fingerprint
            );
            return Err(Error::Stale { path: folder.to_owned(), reason });
        }
        if metadata.samples.is_empty() || metadata.block_names.is_empty() {
            let reason = format!("`{}` holds no samples; run `taq cache --force`", folder.display());
            return Err(Error::settings("cache", reason));
        }
        Ok(Self { folder: folder.to_owned(), metadata })
    }

    /// Whether the boundaries of this block are there.
    pub fn holds(&self, block: &BlockId) -> bool {
        self.metadata.block_names.contains(block)
    }

    /// The samples that can be read. Those that cannot are named in a warning and left out.
    ///
    /// # Errors
    /// [`Error::Malformed`] if there is none left.
    pub fn readable(&self) -> Result<Vec<CacheSample>> {
        let mut failures = BTreeMap::new();
        let mut readable = Vec::new();
        for sample in &self.metadata.samples {
            let path = self.folder.join(&sample.file);
            let read = Npz::open(&path).and_then(|npz| {
                let inputs = self.metadata.block_names.iter().map(|b| npz.array(&format!("{b}__arg0")));
                inputs.collect::<Result<Vec<_>>>()
            });
            match read {
                Ok(_) => readable.push(sample.clone()),
                Err(e) => _ = failures.insert(path, e),
            }
        }
        for (path, e) in &failures {
            tracing::warn!("left out of the cache: `{}`: {e}", path.display());
        }
        match (readable.is_empty(), failures.into_values().next()) {
            (true, Some(e)) => Err(e),
            _ => Ok(readable),
        }
    }

    /// What goes into a block, or what comes out of it, over these samples.
    pub fn boundary(
        &self,
        storage: &Storage,
        samples: &[CacheSample],
        block: &BlockId,
        output: bool,
    ) -> Result<Boundary> {
        let side = if output { "out" } else { "arg" };
        let read = |sample: &CacheSample| {
            let npz = Npz::open(&self.folder.join(&sample.file))?;
            let name = |field: &str| format!("{block}__{field}");
            let context = name(&format!("{side}1"));
            let temb = npz.array(&name("kw_temb"))?;
            let branches = temb.dim(0) as usize;
            Ok(BlockIo {
                hidden: npz.array(&name(&format!("{side}0")))?,
                context: if npz.contains(&context) { Some(npz.array(&context)?) } else { None },
                temb,
                timesteps: npz.vec(&name("arg2"), &[branches])?,
            })
        };
        let branches = 1 + usize::from(self.metadata.cfg_weight > 0.0);
        Boundary::collect(storage, samples.len() * branches, samples.iter().map(read))
    }
}
