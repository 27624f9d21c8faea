//! `sensitivity`: how much the model's output suffers when one layer alone is quantized, its weight or its input, at every
//! width.
//!
//! It is measured by substitution (`measure`), on calibration samples, against the full-precision output at the same latent.
//! What lies before the layer's block does not change, so that the model is run from that block on. Beside it stands a
//! second-order estimate (`estimate`), which takes a few backward passes in all, and how well it ranks the layers.
//!
//! The unit of work is a layer, whose `sensitivities/{layer}.json` says that it is done. The estimate is a unit of its own.
//! `decide` hands what was measured to the policy.

mod document;
mod estimate;
mod measure;
mod rows;
mod substitute;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use document::correlations;
pub use document::{OutputError, OutputErrors, RankCorrelation, Sensitivities, SensitivityEntry};
use estimate::{PROBES, estimate};
use measure::Measure;
use rows::{Rows, Squares, bucket};
use substitute::{Widths, describe};

use super::boundary::{Boundary, Storage};
use super::decide::statistics;
use super::session::{measured, parts};
use super::{Outcome, SampleSet, Session};
use crate::artifacts::{Document, StageState, read_document, read_json, write_json};
use crate::manifest::SensitivitySettings;
use crate::quant::BITS;
use crate::{Error, LayerId, Result};

/// Images that are measured on unless another number is asked for.
const IMAGES: usize = 2;
/// Bytes of what goes between two blocks that stay in memory.
const MEMORY: usize = 2_000_000_000;

/// One width of one layer, measured or estimated.
#[derive(Serialize, Deserialize)]
struct Part {
    id: LayerId,
    weight: bool,
    bits: u8,
    errors: OutputErrors,
}

/// Runs the stage.
pub fn sensitivity(session: &Session, settings: &SensitivitySettings) -> Result<Outcome> {
    measured(session, "sensitivity", || {
        let (run, spec) = (&session.run, session.model.spec());
        let set = SampleSet::open(run, "sensitivity", &*session.model)?;
        let index = statistics(session, "sensitivity")?;
        let images = settings.num_images.unwrap_or(IMAGES.min(set.manifest.n_completed));
        let (images, steps) = set.chosen("sensitivity", Some(images), settings.stride)?;
        let weight_bits = widths("weight_bits", &settings.weight_bits)?;
        let activation_bits = widths("activation_bits", &settings.activation_bits)?;
        if weight_bits.is_empty() && activation_bits.is_empty() {
            let reason = "weight_bits and activation_bits are both empty, expected at least one width";
            return Err(Error::settings("sensitivity", reason));
        }
        let parts = parts([
            ("samples", set.identity(session)?),
            ("statistics", session.stage_identity("observe")?),
            ("images", json!(images)),
            ("steps", json!(steps)),
            ("weight_bits", json!(weight_bits)),
            ("activation_bits", json!(activation_bits)),
            ("seed", json!(session.cx.seed)),
        ]);
        let outputs = [run.sensitivities(), run.sensitivity_parts()];
        let state = run.begin_stage("sensitivity", &parts, &outputs, session.force)?;
        if state == StageState::Complete && run.sensitivities().exists() {
            return Ok((summary(&read_document(&run.sensitivities())?), true));
        }
        let rows = Rows::new(&set, images, steps);
        let widths = Widths::new(session, &index, weight_bits, &activation_bits)?;
        let sigma_map: BTreeMap<_, _> = rows.steps.iter().map(|&s| (s, set.manifest.sigmas[s])).collect();
        let buckets = sigma_map.values().map(|&sigma| bucket(&index.bucket_definitions, sigma)).collect();
        let entries = entries(session, (&set, images), &rows, widths, buckets)?;
        let document = Sensitivities {
            format: Sensitivities::FORMAT.to_owned(),
            model: spec.fingerprint.clone(),
            num_images: images,
            sigma_map,
            bucket_definitions: index.bucket_definitions,
            cfg_weight: set.manifest.cfg_scale,
            probes: PROBES,
            rank_correlation: correlations(&entries),
            entries,
        };
        write_json(&run.sensitivities(), &document)?;
        run.finish_stage("sensitivity")?;
        Ok((summary(&document), false))
    })
}

/// Rising, each once.
fn widths(name: &str, bits: &[u8]) -> Result<Vec<u8>> {
    let mut bits = bits.to_vec();
    bits.sort_unstable();
    bits.dedup();
    match bits.iter().find(|bits| !BITS.contains(bits)) {
        Some(wrong) => {
            let (low, high) = (BITS.start(), BITS.end());
            Err(Error::settings("sensitivity", format!("{name} has {wrong}, expected {low} to {high} each")))
        }
        None => Ok(bits),
    }
}

fn summary(document: &Sensitivities) -> String {
    let layers = document.entries.chunk_by(|a, b| a.id == b.id).count();
    let samples = document.num_images * document.sigma_map.len();
    format!("{layers} layers × {} widths, {samples} samples", document.rank_correlation.len())
}

/// Estimates and measures every layer at every width, or takes from the run folder what is done.
fn entries(
    session: &Session,
    (set, images): (&SampleSet, usize),
    rows: &Rows,
    mut widths: Widths,
    buckets: Vec<String>,
) -> Result<Vec<SensitivityEntry>> {
    let (run, model) = (&session.run, &*session.model);
    let encoded = set.encode(session, images)?;
    let storage = Storage { folder: run.root().to_owned(), limit: MEMORY };
    let embedded = rows.samples.chunks(32).map(|samples| set.embed(model, &encoded, samples));
    let mut boundary = Boundary::collect(&storage, rows.len(), embedded)?;
    let measure = Measure::new(model, rows, &boundary)?;
    let signal = measure.signal()?;
    let part = |id: &LayerId, weight: bool, bits: u8, sums: &Squares| -> Result<Part> {
        let errors = sums.over(&signal, &buckets, &describe(id, weight, bits))?;
        Ok(Part { id: id.clone(), weight, bits, errors })
    };

    let estimated = done_or(&run.sensitivity_parts().join("estimate.json"), || {
        let sums = estimate(model, &session.cx, rows, &boundary, &mut widths)?;
        let mut parts = Vec::new();
        for layer in model.spec().layers() {
            let substitutes = widths.of(model, &layer.id)?;
            let both = substitutes.iter().zip(sums.get(&layer.id).into_iter().flatten());
            for (substitute, sums) in both {
                parts.push(part(&layer.id, substitute.weight, substitute.bits, sums)?);
            }
        }
        Ok(parts)
    })?;

    let blocks = &model.spec().blocks;
    session.cx.progress.begin("sensitivity", model.spec().layers().count() as u64);
    let mut measured = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        for layer in &block.layers {
            session.cx.check()?;
            measured.extend(done_or(&run.layer_sensitivity(&layer.id), || {
                let mut parts = Vec::new();
                for substitute in widths.of(model, &layer.id)? {
                    session.cx.check()?;
                    let sums = measure.errors(index, &boundary, &layer.id, &substitute)?;
                    parts.push(part(&layer.id, substitute.weight, substitute.bits, &sums)?);
                }
                Ok(parts)
            })?);
            session.cx.progress.advance(1, "");
        }
        if index + 1 < blocks.len() {
            boundary = boundary.forward(&storage, model, index, None)?;
        }
    }
    session.cx.progress.end();
    let entry = |(measured, estimated): (Part, Part)| SensitivityEntry {
        id: measured.id,
        weight: measured.weight,
        bits: measured.bits,
        measured: measured.errors,
        estimated: estimated.errors,
    };
    Ok(measured.into_iter().zip(estimated).map(entry).collect())
}

/// What this file holds if it is there; else does the work and writes it.
fn done_or(path: &Path, work: impl FnOnce() -> Result<Vec<Part>>) -> Result<Vec<Part>> {
    if path.exists() {
        return read_json(path, "part of the sensitivities");
    }
    let parts = work()?;
    write_json(path, &parts)?;
    Ok(parts)
}

/// What the run knows of sensitivities, with their fingerprint; `None` if they were never measured to the end.
///
/// # Errors
/// [`Error::Stale`] if they are of another model, or of samples or statistics that are there no longer.
pub(super) fn known(session: &Session) -> Result<Option<(Value, Sensitivities)>> {
    let path = session.run.sensitivities();
    let Some(record) = session.run.stage_record("sensitivity")?.filter(|r| r.complete && path.exists())
    else {
        return Ok(None);
    };
    let stale = |reason: String| Err(Error::Stale { path: path.clone(), reason });
    let document: Sensitivities = read_document(&path)?;
    if document.model != session.model.spec().fingerprint {
        return stale("the sensitivities are of another model".into());
    }
    for (part, stage) in [("samples", "calibrate"), ("statistics", "observe")] {
        let now = session.stage_identity(stage)?;
        // Samples of the ancestor's have no record.
        if !now.is_null() && record.parts.get(part) != Some(&now) {
            return stale(format!("since `taq {stage}` ran again, `taq sensitivity --force` has to"));
        }
    }
    Ok(Some((json!(record.fingerprint().as_str()), document)))
}
