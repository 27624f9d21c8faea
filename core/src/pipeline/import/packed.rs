//! Packed folders: see [`crate::pipeline::PackedWeights`].

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::tensors::Tensors;
use super::{Imported, Origin, Planned, refusal};
use crate::artifacts::{Document, read_document, read_json};
use crate::pipeline::Session;
use crate::pipeline::export::packed::{
    CONFIG, CONFIG_FIELD, INPUTS, PLAN, PackedLayer, PackedWeights, ROUNDING, WEIGHTS, part,
};
use crate::plan::QuantConfig;
use crate::quant::{packed_len, unpack};
use crate::{Error, LearnedInput, Result, RoundedLayer};

/// Reads the transformer's folder.
pub(super) fn read(session: &Session, folder: &Path) -> Result<Imported> {
    let spec = session.model.spec();
    let described = described(&folder.join(CONFIG))?;
    if described.model_fingerprint != spec.fingerprint {
        return Err(refusal(format!(
            "`{}` was exported of the model `{}`, and this is another one: `{}`; choose it with --model",
            folder.display(),
            described.model,
            spec.name
        )));
    }
    let weights = Tensors::read(&folder.join(WEIGHTS))?;
    let inputs = Tensors::read(&folder.join(INPUTS))?;
    let plan: QuantConfig = read_document(&folder.join(PLAN))?;
    let steps = plan.sigma_map.len();
    let (mut layers, mut shifts) = (Vec::new(), BTreeMap::new());
    let by_id: BTreeMap<_, _> = described.layers.iter().map(|(module, l)| (&l.layer, (module, l))).collect();
    for (id, _) in spec.weights() {
        let Some((module, packed)) = by_id.get(id) else { continue };
        layers.push((id.clone(), rounded(&weights, &inputs, module, packed, steps)?));
    }
    if layers.len() != described.layers.len() {
        return Err(weights.malformed(format!("{CONFIG} names layers twice, or such that the model has not")));
    }
    for (name, module) in inputs.names().filter_map(|n| Some((n, n.strip_suffix(part::PLAN_SHIFT)?))) {
        let module = module.trim_end_matches('.');
        let id = described.layers.get(module).map(|l| &l.layer);
        let layer = id.and_then(|id| spec.layer(id));
        let layer = layer.ok_or_else(|| inputs.malformed(format!("`{name}` is of no packed layer")))?;
        shifts.insert(layer.id.clone(), inputs.floats(name, &[steps, layer.in_features])?);
    }
    let rounding = read_document(&folder.join(ROUNDING))?;
    Ok(Imported { layers, origin: Some(Origin { planned: Planned { plan, shifts }, rounding }) })
}

fn described(path: &Path) -> Result<PackedWeights> {
    let mut config: Map<String, Value> = read_json(path, "configuration of the transformer")?;
    let malformed = |reason: String| Error::malformed(PackedWeights::KIND, path, reason);
    let value =
        config.remove(CONFIG_FIELD).ok_or_else(|| malformed(format!("it has no `{CONFIG_FIELD}`")))?;
    let found = value.get("format").cloned().unwrap_or_default();
    if found != PackedWeights::FORMAT {
        return Err(malformed(format!("expected format \"{}\", found {found}", PackedWeights::FORMAT)));
    }
    serde_json::from_value(value).map_err(|e| malformed(e.to_string()))
}

fn rounded(
    weights: &Tensors,
    inputs: &Tensors,
    module: &str,
    packed: &PackedLayer,
    steps: usize,
) -> Result<RoundedLayer> {
    let name = |part: &str| format!("{module}.{part}");
    let ([rows, columns], grid) = (packed.shape, packed.grid);
    let layout = grid.layout(packed.shape).map_err(|e| weights.malformed(e))?;
    let groups = [layout.groups / layout.groups_per_row, layout.groups_per_row];
    let row = packed_len(columns, grid.bits);
    let bytes = weights.bytes(&name(part::PACKED), Dtype::U8, &[rows, row])?;
    let mut weight_int = Vec::with_capacity(bytes.len());
    for row in bytes.chunks(row.max(1)) {
        weight_int.extend(
            unpack(row, grid.bits, columns).map_err(|e| weights.malformed(format!("`{module}`: {e}")))?,
        );
    }
    let learned = LearnedInput {
        scale: inputs.optional(&name(part::INPUT_SCALE), &[steps])?,
        shift: inputs.optional(&name(part::INPUT_SHIFT), &[steps, columns])?,
        multiplier: weights.optional(&name(part::MULTIPLIER), &[columns])?,
        bias: inputs.optional(&name(part::OUTPUT_BIAS), &[steps, rows])?,
    };
    Ok(RoundedLayer {
        grid,
        shape: packed.shape,
        weight_int,
        scale: weights.floats(&name(part::SCALE), &groups)?,
        zero_point: match grid.symmetric {
            true => vec![0.0; layout.groups],
            false => weights.floats(&name(part::ZERO_POINT), &groups)?,
        },
        learned: (!learned.scale.is_empty()).then_some(learned),
    })
}
