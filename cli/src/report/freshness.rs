//! Results that were made from others than those that the folder holds now: a report must not show them as one.

use taq_core::Result;
use taq_core::artifacts::{Parts, RunFolder};
use taq_core::pipeline::STAGES;

/// Under which name a stage's record has the fingerprint of which other stage.
const BUILT_ON: [(&str, &str); 5] = [
    ("samples", "calibrate"),
    ("statistics", "observe"),
    ("sensitivities", "sensitivity"),
    ("plan", "decide"),
    ("weights", "round"),
];

/// A line for each stage that is behind another.
pub(super) fn outdated(run: &RunFolder) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for stage in STAGES {
        let Some(record) = run.stage_record(stage)? else { continue };
        if !record.complete {
            lines.push(format!("`{stage}` was stopped before its end."));
        }
        for (name, other) in BUILT_ON {
            let Some(source) = run.stage_record(other)? else { continue };
            if differs(&record.parts, name, source.fingerprint().as_str()) {
                lines.push(format!("`{stage}` has not been run since `{other}` gave other results."));
            }
        }
    }
    Ok(lines)
}

/// Whether the record names another result than this.
fn differs(parts: &Parts, name: &str, fingerprint: &str) -> bool {
    parts.get(name).and_then(|v| v.as_str()).is_some_and(|built_on| built_on != fingerprint)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_stage_behind_another_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path()).unwrap();
        let parts = |value: Value| -> Parts { serde_json::from_value(value).unwrap() };
        let begin = |stage: &str, value: Value, finish: bool| {
            run.begin_stage(stage, &parts(value), &[], true).unwrap();
            if finish {
                run.finish_stage(stage).unwrap();
            }
            run.stage_record(stage).unwrap().unwrap().fingerprint().to_string()
        };
        let plan = begin("decide", json!({"policy": "a"}), true);
        begin("round", json!({"plan": plan}), true);
        assert!(outdated(&run).unwrap().is_empty());
        begin("decide", json!({"policy": "b"}), true);
        assert_eq!(outdated(&run).unwrap(), ["`round` has not been run since `decide` gave other results."]);
        begin("round", json!({"plan": "x"}), false);
        assert_eq!(outdated(&run).unwrap()[0], "`round` was stopped before its end.");
    }
}
