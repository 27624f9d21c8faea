//! A folder of diffusers' layout whose transformer is stored as the integers that were learned.
//!
//! Nothing is rounded anew: step sizes and zero points are f32, and what was learned of inputs and the plan of their grids come
//! along, so that an import gives back the run's quantized model. In `transformer/`:
//!
//! - `config.json`: diffusers' own with a [`PackedWeights`] in `quantization_config`, whose method diffusers does not know and
//!   therefore refuses, rather than loading half a model;
//! - `quantized.safetensors`: all tensors, but of a packed layer `M` in the place of `M.weight`
//!   `M.weight_packed` (u8, `[out, ⌈in · bits / 8⌉]`: each row a stream of bits as of [`pack`], filled up to whole bytes),
//!   `M.weight_scale` and, on asymmetric grids, `M.weight_zero_point` (f32, `[out, groups]`; `[1, 1]` on a per-tensor grid), and where
//!   columns have multipliers `M.column_multiplier` (f32, `[in]`);
//! - `inputs.safetensors`: what [`crate::LearnedInput`] holds, by timestep (`M.input_scale`, `M.input_shift`, `M.output_bias`), and
//!   the shifts that the plan speaks of (`M.plan_shift`);
//! - `plan.json` and `rounding.json`: the run's [`crate::plan::QuantConfig`] and [`WeightsConfig`].
//!
//! `load.py` beside it is the format's documentation as a program of numpy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files::{write_companions, write_tensors};
use crate::artifacts::{Document, RunFolder, atomic_write_bytes, read_document, write_json};
use crate::pipeline::Session;
use crate::pipeline::quantized::ActivationPlan;
use crate::pipeline::round::{WeightsConfig, load_plan};
use crate::quant::{Grid, pack, to_vec};
use crate::{Checkpoint, Companions, Error, LayerId, Result, RoundedLayer, StoredTensor};

/// The loader that goes with every export.
const LOADER: &str = include_str!("load_packed.py");

/// Where things lie below the transformer's folder.
pub(in crate::pipeline) const CONFIG: &str = "config.json";
pub(in crate::pipeline) const CONFIG_FIELD: &str = "quantization_config";
pub(in crate::pipeline) const WEIGHTS: &str = "quantized.safetensors";
pub(in crate::pipeline) const INPUTS: &str = "inputs.safetensors";
pub(in crate::pipeline) const PLAN: &str = "plan.json";
pub(in crate::pipeline) const ROUNDING: &str = "rounding.json";

/// What a tensor of a layer is called, after the module's name and a dot.
pub(in crate::pipeline) mod part {
    pub(in crate::pipeline) const PACKED: &str = "weight_packed";
    pub(in crate::pipeline) const SCALE: &str = "weight_scale";
    pub(in crate::pipeline) const ZERO_POINT: &str = "weight_zero_point";
    pub(in crate::pipeline) const MULTIPLIER: &str = "column_multiplier";
    pub(in crate::pipeline) const INPUT_SCALE: &str = "input_scale";
    pub(in crate::pipeline) const INPUT_SHIFT: &str = "input_shift";
    pub(in crate::pipeline) const OUTPUT_BIAS: &str = "output_bias";
    pub(in crate::pipeline) const PLAN_SHIFT: &str = "plan_shift";
}

/// `quantization_config` in the `config.json` of a packed transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackedWeights {
    /// Always `taq`: what diffusers would look a loader up by.
    pub quant_method: String,
    /// Always [`PackedWeights::FORMAT`].
    pub format: String,
    /// Name of the model.
    pub model: String,
    /// Fingerprint of the model.
    pub model_fingerprint: String,
    /// The packed layers by their module in diffusers.
    pub layers: BTreeMap<String, PackedLayer>,
}

/// One packed layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackedLayer {
    /// taq's id of the layer.
    pub layer: LayerId,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// The grid of its weight.
    pub grid: Grid,
}

impl Document for PackedWeights {
    const FORMAT: &'static str = "taq.packed_weights.v1";
    const KIND: &'static str = "description of packed weights";
}

/// Writes the folder. Returns the path of the weights.
pub(super) fn write(
    session: &Session,
    mut checkpoint: Checkpoint,
    layers: &[(LayerId, RoundedLayer)],
    companions: &Companions,
    out: &Path,
) -> Result<PathBuf> {
    let (run, spec) = (&session.run, session.model.spec());
    let mut described = PackedWeights {
        quant_method: "taq".into(),
        format: PackedWeights::FORMAT.into(),
        model: spec.name.clone(),
        model_fingerprint: spec.fingerprint.clone(),
        layers: BTreeMap::new(),
    };
    let mut inputs = BTreeMap::new();
    for (id, layer) in layers {
        let module = checkpoint.module(id)?.to_owned();
        if checkpoint.tensors.remove(&format!("{module}.weight")).is_none() {
            let what = format!("export: the model's files have no tensor `{module}.weight`");
            return Err(Error::Unsupported { what });
        }
        for (part, tensor) in weight_tensors(layer)? {
            checkpoint.tensors.insert(format!("{module}.{part}"), tensor);
        }
        for (part, tensor) in learned_tensors(layer)? {
            inputs.insert(format!("{module}.{part}"), tensor);
        }
        described
            .layers
            .insert(module, PackedLayer { layer: id.clone(), shape: layer.shape, grid: layer.grid });
    }
    plan_shifts(session, &checkpoint, &mut inputs)?;
    let folder = out.join(checkpoint.component);
    write_companions(companions, out)?;
    let mut config = checkpoint.config;
    let described = serde_json::to_value(&described)
        .map_err(|e| Error::malformed(PackedWeights::KIND, folder.join(CONFIG), e))?;
    config.insert(CONFIG_FIELD.into(), described);
    write_json(&folder.join(CONFIG), &Value::Object(config))?;
    write_tensors(&folder.join(INPUTS), &inputs, "np")?;
    documents(run, &folder)?;
    atomic_write_bytes(&out.join("load.py"), LOADER.as_bytes())?;
    let weights = folder.join(WEIGHTS);
    write_tensors(&weights, &checkpoint.tensors, "np")?;
    Ok(weights)
}

/// Plan and rounding as they are in the run.
fn documents(run: &RunFolder, folder: &Path) -> Result<()> {
    let rounding: WeightsConfig = read_document(&run.weights_config())?;
    write_json(&folder.join(ROUNDING), &rounding)?;
    let plan: crate::plan::QuantConfig = read_document(&run.quant_config())?;
    write_json(&folder.join(PLAN), &plan)
}

/// The integers and what they mean.
fn weight_tensors(layer: &RoundedLayer) -> Result<Vec<(&'static str, StoredTensor)>> {
    let [rows, columns] = layer.shape;
    let layout = layer.grid.layout(layer.shape)?;
    let groups = [layout.groups / layout.groups_per_row, layout.groups_per_row];
    let mut bytes = Vec::new();
    for row in layer.weight_int.chunks(columns) {
        bytes.extend(pack(row, layer.grid.bits)?);
    }
    let packed = StoredTensor { dtype: Dtype::U8, shape: vec![rows, bytes.len() / rows.max(1)], bytes };
    let float = |values: &[f32], shape: &[usize]| StoredTensor::of_floats(values, shape, Dtype::F32);
    let mut tensors = vec![(part::PACKED, packed), (part::SCALE, float(&layer.scale, &groups)?)];
    if !layer.grid.symmetric {
        tensors.push((part::ZERO_POINT, float(&layer.zero_point, &groups)?));
    }
    if let Some(learned) = layer.learned.as_ref().filter(|l| !l.multiplier.is_empty()) {
        tensors.push((part::MULTIPLIER, float(&learned.multiplier, &[columns])?));
    }
    Ok(tensors)
}

/// What was learned of the layer's input, its multipliers apart.
fn learned_tensors(layer: &RoundedLayer) -> Result<Vec<(&'static str, StoredTensor)>> {
    let Some(learned) = &layer.learned else { return Ok(Vec::new()) };
    let ([outputs, inputs], steps) = (layer.shape, learned.scale.len());
    let all = [
        (part::INPUT_SCALE, &learned.scale, vec![steps]),
        (part::INPUT_SHIFT, &learned.shift, vec![steps, inputs]),
        (part::OUTPUT_BIAS, &learned.bias, vec![steps, outputs]),
    ];
    let there = all.into_iter().filter(|(_, values, _)| !values.is_empty());
    there
        .map(|(part, values, shape)| Ok((part, StoredTensor::of_floats(values, &shape, Dtype::F32)?)))
        .collect()
}

/// The shifts that the run's plan refers to, `[steps, in_features]`, of all layers that have one.
fn plan_shifts(
    session: &Session,
    checkpoint: &Checkpoint,
    inputs: &mut BTreeMap<String, StoredTensor>,
) -> Result<()> {
    let (run, spec) = (&session.run, session.model.spec());
    let plan = ActivationPlan::load(run, spec, &load_plan(run, "export", spec)?)?;
    for layer in spec.layers() {
        if let Some(shift) = &plan.input(&layer.id)?.shift {
            let shape = [plan.timesteps.len(), layer.in_features];
            let tensor = StoredTensor::of_floats(&to_vec(shift)?, &shape, Dtype::F32)?;
            inputs.insert(format!("{}.{}", checkpoint.module(&layer.id)?, part::PLAN_SHIFT), tensor);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Granularity, unpack};

    #[test]
    fn rows_begin_at_whole_bytes() {
        let layer = RoundedLayer {
            grid: Grid::new(3, Granularity::Tensor, true).unwrap(),
            shape: [2, 3],
            weight_int: vec![-4, 3, 0, 1, -1, 2],
            scale: vec![0.5],
            zero_point: vec![0.0],
            learned: None,
        };
        let tensors = weight_tensors(&layer).unwrap();
        let names: Vec<&str> = tensors.iter().map(|(part, _)| *part).collect();
        assert_eq!(names, ["weight_packed", "weight_scale"]);
        let packed = &tensors[0].1;
        // 100, 011, 000 and 001, 111, 010, the first integer in the lowest bits.
        assert_eq!(
            (packed.shape.as_slice(), packed.bytes.as_slice()),
            (&[2, 2][..], &[0b0001_1100, 0, 0b1011_1001, 0][..])
        );
        assert_eq!(unpack(&packed.bytes[2..], 3, 3).unwrap(), [1, -1, 2]);
        assert_eq!(tensors[1].1.shape, [1, 1]);
    }
}
