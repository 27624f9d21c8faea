//! JSON Schemas of every document that taq reads or writes, as published in `sdk/schemas`.

use schemars::{Schema, schema_for};
use taq_plugin::PluginInfo;
use taq_policy::{PolicyError, PolicyInfo, PolicyPlan, PolicyRequest};

use super::choice::SessionChoice;
use super::stage::StageRecord;
use crate::evaluator::Labels;
use crate::manifest::Pipeline;
use crate::pipeline::{
    BenchReport, BlockCost, BlockMetrics, CacheMetadata, Outcome, PackedWeights, Report, RunManifest,
    Sensitivities, TemporalAnalysis, WeightsConfig,
};
use crate::plan::QuantConfig;
use crate::stats::{StatisticsIndex, StepIndex};

/// Name and schema of every document, sorted by name.
pub fn schemas() -> Vec<(&'static str, Schema)> {
    let mut all = vec![
        ("bench", schema_for!(BenchReport)),
        ("block_cost", schema_for!(BlockCost)),
        ("block_record", schema_for!(BlockMetrics)),
        ("cache_metadata", schema_for!(CacheMetadata)),
        ("evaluator_labels", schema_for!(Labels)),
        ("layer_statistics", schema_for!(StatisticsIndex)),
        ("layer_temporal_analysis", schema_for!(TemporalAnalysis)),
        ("packed_weights", schema_for!(PackedWeights)),
        ("pipeline", schema_for!(Pipeline)),
        ("plugin_info", schema_for!(PluginInfo)),
        ("policy_error", schema_for!(PolicyError)),
        ("policy_info", schema_for!(PolicyInfo)),
        ("policy_plan", schema_for!(PolicyPlan)),
        ("policy_request", schema_for!(PolicyRequest)),
        ("quant_config", schema_for!(QuantConfig)),
        ("quantized_weights", schema_for!(WeightsConfig)),
        ("report", schema_for!(Report)),
        ("run_manifest", schema_for!(RunManifest)),
        ("sensitivities", schema_for!(Sensitivities)),
        ("session", schema_for!(SessionChoice)),
        ("stage_cost", schema_for!(Outcome)),
        ("stage_record", schema_for!(StageRecord)),
        ("step_index", schema_for!(StepIndex)),
    ];
    all.sort_by_key(|(name, _)| *name);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_unique() {
        let names: Vec<&str> = schemas().into_iter().map(|(name, _)| name).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    }
}
