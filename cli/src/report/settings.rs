//! What each stage's results depend on, as its record says.

use serde_json::Value;
use taq_core::Result;
use taq_core::artifacts::{Parts, RunFolder, StageRecord};
use taq_core::pipeline::STAGES;

/// Values of a list that stand in one line.
const IN_LINE: usize = 8;

/// One setting or input.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting {
    /// Dotted path.
    pub(super) name: String,
    pub(super) value: String,
    /// The values of a long list; `value` counts them.
    pub(super) list: Vec<String>,
}

/// One stage.
pub(super) struct StageSettings {
    pub(super) stage: String,
    /// Hash of all settings and inputs.
    pub(super) fingerprint: String,
    pub(super) complete: bool,
    pub(super) settings: Vec<Setting>,
}

impl StageSettings {
    /// The stages that left a record.
    pub(super) fn read(run: &RunFolder) -> Result<Vec<Self>> {
        let stages = STAGES.into_iter().chain(["profile"]);
        let records = stages.filter_map(|stage| run.stage_record(stage).transpose());
        records.map(|record| Ok(Self::of(&record?))).collect()
    }

    fn of(record: &StageRecord) -> Self {
        Self {
            stage: record.stage.clone(),
            fingerprint: record.fingerprint().to_string(),
            complete: record.complete,
            settings: settings(&record.parts),
        }
    }
}

fn settings(parts: &Parts) -> Vec<Setting> {
    let mut all = Vec::new();
    parts.iter().for_each(|(name, value)| flatten(name, value, &mut all));
    all
}

/// Objects field by field under dotted names; what is not set is left out.
fn flatten(name: &str, value: &Value, all: &mut Vec<Setting>) {
    let mut push =
        |value: String, list: Vec<String>| all.push(Setting { name: name.to_owned(), value, list });
    match value {
        Value::Null => {}
        Value::Object(map) if map.is_empty() => push("defaults".into(), Vec::new()),
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| flatten(&format!("{name}.{key}"), value, all));
        }
        Value::Array(values) => {
            let texts: Vec<String> = values.iter().map(text).collect();
            let words = values.iter().any(Value::is_string);
            if texts.len() > IN_LINE || (words && texts.len() > 1) {
                push(format!("{} values", texts.len()), texts);
            } else {
                push(texts.join(", "), Vec::new());
            }
        }
        leaf => push(text(leaf), Vec::new()),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_flat_and_long_lists_are_counted() {
        let parts: Parts = serde_json::from_value(json!({
            "rounder": {"name": "adaround", "settings": {"iters": 300}},
            "policy": {"settings": {}},
            "seed": null,
            "image_size": [64, 64],
            "kept_steps": (0..28).collect::<Vec<_>>(),
            "prompts": ["a <b>", "c"],
        }))
        .unwrap();
        let found = settings(&parts);
        let lines: Vec<_> = found.iter().map(|s| format!("{} = {}", s.name, s.value)).collect();
        let expected = [
            "image_size = 64, 64",
            "kept_steps = 28 values",
            "policy.settings = defaults",
            "prompts = 2 values",
            "rounder.name = adaround",
            "rounder.settings.iters = 300",
        ];
        assert_eq!(lines, expected);
        assert_eq!(found[3].list, ["a <b>", "c"]);
        assert_eq!(found[1].list.len(), 28);
    }
}
