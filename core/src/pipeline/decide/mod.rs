//! `decide`: a bit policy turns statistics into a plan; the host checks the plan, fills in the numbers, and looks at how
//! layers change over time.

mod smoothquant;
mod temporal;

use std::collections::BTreeMap;
use std::path::Path;

use super::sensitivity::known as known_sensitivities;
use super::session::{measured, parts};
use super::{Outcome, Session};
use crate::artifacts::{Npz, StageState, read_document, read_json, write_json};
use crate::manifest::DecideSettings;
use crate::plan::{ActivationGrid, PlanSummary, QUANT_CONFIG_FORMAT, QuantConfig};
use crate::registry::{Kind, label};
use crate::stats::{LayerScalars, StatisticsIndex, StepIndex};
use crate::wasm::shown;
use crate::{
    Error, LayerColumns, LayerPlan, LayerSpec, ModelSpec, PolicyPlan, PolicyRequest, Result, ScaleSource,
    Timestep,
};

use smoothquant::smooth;
pub use temporal::{
    LayerOverTime, OutlierChannels, ShiftEffect, SmoothQuantCandidate, Switcher, TemporalAnalysis,
    VariableLayer,
};

/// Runs the stage.
pub fn decide(session: &Session, settings: &DecideSettings) -> Result<Outcome> {
    measured(session, "decide", || {
        let run = &session.run;
        let spec = session.model.spec();
        let index = statistics(session, "decide")?;
        let mut parts = parts([
            ("statistics", session.stage_identity("observe")?),
            ("policy", session.identity(Kind::Policy, &settings.policy)?),
        ]);
        if let Some((identity, _)) = known_sensitivities(session)? {
            parts.insert("sensitivities".to_owned(), identity);
        }
        let outputs = [run.quant_config(), run.temporal_analysis()];
        let state = run.begin_stage("decide", &parts, &outputs, session.force)?;
        if state == StageState::Complete && outputs.iter().all(|path| path.exists()) {
            let config: QuantConfig = read_document(&run.quant_config())?;
            return Ok((describe(&config.summary), true));
        }
        let steps = step_indexes(session, &index, "decide")?;
        let name = &settings.policy.name;
        let policy = session.registry.policy(name, &settings.policy.settings())?;
        let request = request(session, &index, &steps, policy.per_channel())?;
        let plan = policy.assign(&request)?;
        check_plan(name, &request, &plan)?;
        let mut config = fill_in(spec, name, &index, &steps, &plan)?;
        smooth(session, &plan, &mut config)?;
        write_json(&run.quant_config(), &config)?;
        write_json(&run.temporal_analysis(), &temporal::analyse(session, &steps, &config)?)?;
        run.finish_stage("decide")?;
        Ok((describe(&config.summary), false))
    })
}

fn describe(summary: &PlanSummary) -> String {
    format!(
        "W{} A{} on average, {} layers × {} steps",
        bits(summary.average_weight_bits),
        bits(summary.average_activation_bits),
        summary.total_layers,
        summary.total_timesteps
    )
}

/// `4` or `4.53`.
fn bits(average: f64) -> String {
    if average.fract() == 0.0 { format!("{average:.0}") } else { format!("{average:.2}") }
}

/// What a policy would be told of this run. With `per_channel`, every channel's statistics come too.
///
/// # Errors
/// [`Error::StageMissing`] before `observe`; [`Error::Stale`] if the statistics are of another model.
pub fn policy_request(session: &Session, per_channel: bool) -> Result<PolicyRequest> {
    let index = statistics(session, "decide")?;
    request(session, &index, &step_indexes(session, &index, "decide")?, per_channel)
}

/// The index of the run's statistics, which must be of the session's model.
pub(super) fn statistics(session: &Session, stage: &'static str) -> Result<StatisticsIndex> {
    let run = &session.run;
    let path = run.layer_statistics();
    if !path.exists() {
        return Err(Error::StageMissing {
            stage,
            needs: "statistics of the activations".into(),
            run: run.root().to_owned(),
            first: "observe",
        });
    }
    let index: StatisticsIndex = read_document(&path).map_err(older)?;
    if index.metadata.model != session.model.spec().fingerprint {
        return Err(Error::Stale { path, reason: "its statistics are of another model".into() });
    }
    Ok(index)
}

/// The scalars of every step.
///
/// # Errors
/// [`Error::StageMissing`] with the step whose files are not there.
pub(super) fn step_indexes(
    session: &Session,
    index: &StatisticsIndex,
    stage: &'static str,
) -> Result<BTreeMap<usize, StepIndex>> {
    let run = &session.run;
    let one = |&step: &usize| {
        if !run.step_index(step).exists() || !run.step_stats(step).exists() {
            return Err(Error::StageMissing {
                stage,
                needs: format!("the statistics of step {step}"),
                run: run.root().to_owned(),
                first: "observe",
            });
        }
        if !index.sigma_map.contains_key(&step) {
            let reason = format!("sigma_map lacks step {step}");
            return Err(Error::malformed("statistics index", run.layer_statistics(), reason));
        }
        Ok((step, step_index(&run.step_index(step))?))
    };
    index.step_keys.iter().map(one).collect()
}

/// One step's scalars.
fn step_index(path: &Path) -> Result<StepIndex> {
    read_json(path, "step index").map_err(older)
}

/// Says what to do about a file that only another version of taq writes: of another format, or with a field left out.
fn older(error: Error) -> Error {
    match error {
        Error::Malformed { path, reason, .. }
            if ["missing field", "expected format"].iter().any(|start| reason.starts_with(start)) =>
        {
            let what = format!("`{}` is of another version: {reason}", path.display());
            Error::settings("statistics", format!("{what}; run `taq observe --force`"))
        }
        other => other,
    }
}

/// The document that a policy reads.
fn request(
    session: &Session,
    index: &StatisticsIndex,
    steps: &BTreeMap<usize, StepIndex>,
    per_channel: bool,
) -> Result<PolicyRequest> {
    let spec = session.model.spec();
    let timesteps = index.sigma_map.iter().map(|(&step, &sigma)| Timestep { step, sigma }).collect();
    let mut request = PolicyRequest::new(&spec.name, spec.layers().cloned().collect(), timesteps);
    for layer in &request.layers {
        let seen = steps
            .iter()
            .map(|(step, index)| {
                index.0.get(&layer.id).ok_or_else(|| Error::Settings {
                    owner: "statistics".into(),
                    reason: format!(
                        "{} was not observed at step {step}; run `taq observe --force`",
                        layer.id
                    ),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if let Some(at) = seen.iter().position(|s| !(s.range_min.is_finite() && s.range_max.is_finite())) {
            let step = index.step_keys[at];
            return Err(Error::NotFinite { what: format!("the statistics of {} at step {step}", layer.id) });
        }
        request.statistics.push(columns(layer.id.clone(), &seen));
    }
    if let Some((_, sensitivities)) = known_sensitivities(session)? {
        request.sensitivities = sensitivities.for_policy();
    } else if session.run.sensitivities().exists() {
        let path = session.run.sensitivities();
        tracing::warn!(
            "{} is not used: no `taq sensitivity` that ended in this run folder wrote it",
            path.display()
        );
    }
    if per_channel {
        add_channels(session, &mut request)?;
    }
    Ok(request)
}

fn columns(id: crate::LayerId, seen: &[&LayerScalars]) -> LayerColumns {
    let column =
        |f: &dyn Fn(&LayerScalars) -> Option<f32>| -> Vec<f32> { seen.iter().filter_map(|s| f(s)).collect() };
    let p99 = |s: &LayerScalars| s.hist_p99.unwrap_or(s.range_absmax());
    LayerColumns {
        id,
        absmax: column(&|s| Some(s.range_absmax())),
        min: column(&|s| Some(s.range_min)),
        max: column(&|s| Some(s.range_max)),
        p001: column(&|s| s.hist_p001.or(Some(s.range_min))),
        p01: column(&|s| s.hist_p01.or(Some(s.range_min))),
        p50: column(&|s| s.hist_p50.or(Some(s.range_absmax()))),
        p99: column(&|s| Some(p99(s))),
        p999: column(&|s| s.hist_p999.or(Some(s.range_absmax()))),
        shift_magnitude: column(&|s| s.shift_absmax),
        shifted_absmax: column(&|s| s.shifted_absmax),
        outlier_ratio: column(&|s| Some(if p99(s) > 0.0 { s.range_absmax() / p99(s) } else { 1.0 })),
        spike_fraction: column(&|s| Some(s.spike_fraction)),
        channel_p50: column(&|s| Some(s.channel_p50)),
        channel_p99: column(&|s| Some(s.channel_p99)),
        channel_max: column(&|s| Some(s.channel_max)),
        batches: seen.iter().map(|s| s.n_batches).collect(),
        channel_absmax: Vec::new(),
    }
}

/// Fills in the statistics of every channel.
fn add_channels(session: &Session, request: &mut PolicyRequest) -> Result<()> {
    for timestep in &request.timesteps {
        let npz = Npz::open(&session.run.step_stats(timestep.step))?;
        for (layer, columns) in request.layers.iter().zip(&mut request.statistics) {
            columns.channel_absmax.push(channel_absmax(&npz, layer)?);
        }
    }
    Ok(())
}

/// How far each channel of a layer's input reaches, `[in_features]`, in the statistics of one step.
fn channel_absmax(npz: &Npz, layer: &LayerSpec) -> Result<Vec<f32>> {
    let bound = |field: &str| -> Result<Vec<f32>> {
        npz.vec(&format!("{}__{field}", layer.id.array_prefix()), &[layer.in_features])
    };
    let (low, high) = (bound("avg_min")?, bound("avg_max")?);
    Ok(low.iter().zip(&high).map(|(a, b)| a.abs().max(b.abs())).collect())
}

/// Refuses a plan that does not answer the request ([`PolicyPlan::check`]).
///
/// # Errors
/// [`Error::Plan`] names the layer and the field.
pub fn check_plan(policy: &str, request: &PolicyRequest, plan: &PolicyPlan) -> Result<()> {
    // A name in the plan may be anything.
    plan.check(request).map_err(|error| Error::Plan {
        policy: policy.to_owned(),
        reason: shown(error.to_string().as_bytes()),
    })
}

/// The plan with the numbers of the statistics.
pub(super) fn fill_in(
    spec: &ModelSpec,
    policy: &str,
    index: &StatisticsIndex,
    steps: &BTreeMap<usize, StepIndex>,
    plan: &PolicyPlan,
) -> Result<QuantConfig> {
    let mut per_timestep = BTreeMap::new();
    for (at, (&step, scalars)) in steps.iter().enumerate() {
        let grids = plan.layers.iter().map(|layer| {
            let grid = activation_grid(layer, at, &scalars.0[&layer.id]);
            match grid {
                Some(grid) => Ok((layer.id.clone(), grid)),
                None => {
                    Err(Error::NotFinite { what: format!("the statistics of {} at step {step}", layer.id) })
                }
            }
        });
        per_timestep.insert(step, grids.collect::<Result<BTreeMap<_, _>>>()?);
    }
    let weight_bits = plan.layers.iter().map(|l| (l.id.clone(), l.weight_bits)).collect();
    Ok(QuantConfig {
        format: QUANT_CONFIG_FORMAT.to_owned(),
        model: spec.fingerprint.clone(),
        policy: label(policy).to_owned(),
        summary: summarise(spec, plan, &weight_bits),
        weight_bits,
        per_timestep,
        smoothquant: BTreeMap::new(),
        sigma_map: index.sigma_map.clone(),
    })
}

/// `None` if the statistics are not finite.
fn activation_grid(layer: &LayerPlan, at: usize, scalars: &LayerScalars) -> Option<ActivationGrid> {
    let bits = layer.activation_bits[at];
    let shift = layer.shift && scalars.has_shift;
    let absmax = match (shift, layer.scale_source) {
        // Quantiles are taken before the shift and say nothing of what is left after it.
        (true, _) => scalars.shifted_absmax?,
        (false, ScaleSource::Absmax) => scalars.range_absmax(),
        (false, ScaleSource::P999) => scalars.hist_p999.unwrap_or(scalars.range_absmax()),
        (false, ScaleSource::P99) => scalars.hist_p99.unwrap_or(scalars.range_absmax()),
    };
    if !absmax.is_finite() {
        return None;
    }
    // A layer that saw only zeros: any step size will do, and this one keeps the arithmetic finite.
    let absmax = absmax.max(f32::MIN_POSITIVE * 1e6);
    let qmax = ((1u32 << (bits - 1)) - 1) as f32;
    Some(ActivationGrid { bits, absmax, scale: absmax / qmax, shift })
}

fn summarise(spec: &ModelSpec, plan: &PolicyPlan, weight_bits: &BTreeMap<crate::LayerId, u8>) -> PlanSummary {
    let parameters: usize = spec.layers().map(|l| l.parameters()).sum();
    let stored: usize = spec.layers().map(|l| l.parameters() * usize::from(weight_bits[&l.id])).sum();
    let total_timesteps = plan.layers.first().map_or(0, |l| l.activation_bits.len());
    let total_decisions = plan.layers.len() * total_timesteps;
    let decided: usize = plan.layers.iter().flat_map(|l| &l.activation_bits).map(|&b| usize::from(b)).sum();
    PlanSummary {
        total_timesteps,
        total_layers: plan.layers.len(),
        total_decisions,
        average_weight_bits: stored as f64 / parameters.max(1) as f64,
        average_activation_bits: decided as f64 / total_decisions.max(1) as f64,
        post_gelu_layers_with_shift: plan.layers.iter().filter(|l| l.shift).count(),
    }
}

#[cfg(test)]
mod tests {
    use taq_policy::{Role, testing};

    use super::*;

    fn request_of_one() -> PolicyRequest {
        testing::request(vec![testing::layer("mm0.img.attn.q_proj", Role::Q, 4, 4)], 1)
    }

    fn refusal(change: impl Fn(&mut LayerPlan)) -> String {
        let request = request_of_one();
        let mut layer = LayerPlan::uniform(request.layers[0].id.clone(), 4, 8, 1);
        change(&mut layer);
        check_plan("p", &request, &PolicyPlan::new(vec![layer])).unwrap_err().to_string()
    }

    #[test]
    fn a_refused_plan_names_layer_and_field() {
        let start = "the plan of policy `p` is not usable: ";
        type Change = fn(&mut LayerPlan);
        let cases: [(Change, &str); 5] = [
            (|l| l.id = "mm9".into(), "expected layer mm0.img.attn.q_proj in this place, found mm9"),
            (
                |l| l.weight_bits = 9,
                "mm0.img.attn.q_proj: weight_bits is 9, allowed are [2, 3, 4, 5, 6, 7, 8]",
            ),
            (
                |l| l.activation_bits.clear(),
                "mm0.img.attn.q_proj: activation_bits has 0 entries for 1 timesteps",
            ),
            (
                |l| l.activation_bits = vec![1],
                "mm0.img.attn.q_proj: activation_bits has 1, allowed are [2, 3, 4, 5, 6, 7, 8]",
            ),
            (|l| l.shift = true, "mm0.img.attn.q_proj: shift is for post-GELU layers"),
        ];
        for (change, message) in cases {
            assert_eq!(refusal(change), format!("{start}{message}"));
        }
    }

    #[test]
    fn scalars_of_an_older_version_name_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step_0_index.json");
        let mut index = serde_json::to_value(BTreeMap::from([("a", LayerScalars::default())])).unwrap();
        let read = |index: &serde_json::Value| {
            write_json(&path, index).unwrap();
            step_index(&path).map(|index| index.0.len()).map_err(|e| e.to_string())
        };
        assert_eq!(read(&index), Ok(1));
        index["a"].as_object_mut().unwrap().remove("channel_p50");
        let message = read(&index).unwrap_err();
        assert!(message.contains("missing field `channel_p50`"), "{message}");
        assert!(message.ends_with("run `taq observe --force`"), "{message}");
        index["a"]["more"] = 1.into();
        let message = read(&index).unwrap_err();
        assert!(message.contains("unknown field `more`") && !message.contains("--force"), "{message}");
    }

    #[test]
    fn step_size_is_absmax_over_qmax() {
        let scalars = LayerScalars { range_min: -2.54, range_max: 1.0, ..LayerScalars::default() };
        let layer = LayerPlan::uniform("a".into(), 4, 8, 1);
        let grid = activation_grid(&layer, 0, &scalars).unwrap();
        assert_eq!((grid.bits, grid.absmax, grid.shift), (8, 2.54, false));
        assert!((grid.scale - 0.02).abs() < 1e-7);
    }
}
