//! What a result depends on, as named parts: compared part by part, and hashed for those who build on it.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// Everything that a stage's result depends on: settings, seed, plugin and its version, fingerprints of inputs.
pub type Parts = BTreeMap<String, Value>;

/// A BLAKE3 hash of [`Parts`], as 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of these parts: a hash of their JSON with sorted keys and no spaces.
    pub fn of(parts: &Parts) -> Self {
        let mut text = String::from("{");
        for (i, (name, value)) in parts.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            entry(name, value, &mut text);
        }
        text.push('}');
        Self(blake3::hash(text.as_bytes()).to_hex().to_string())
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// BLAKE3 of a file's contents, as 64 hexadecimal digits.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub fn file_hash(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

/// JSON with the keys of every object sorted, whatever map serde_json was built with.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                entry(key, &map[key], out);
            }
            out.push('}');
        }
        Value::Array(values) => {
            out.push('[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(value, out);
            }
            out.push(']');
        }
        leaf => out.push_str(&leaf.to_string()),
    }
}

fn entry(name: &str, value: &Value, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = write!(out, "{}:", Value::from(name));
    canonical(value, out);
}

/// How two sets of parts differ, such as “`num_steps` was 28, is 50”; empty if they do not. Objects are
/// compared field by field.
pub fn differences(old: &Parts, new: &Parts) -> Vec<String> {
    let (old, new) = (leaves(old), leaves(new));
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter_map(|name| match (old.get(name), new.get(name)) {
            (Some(a), Some(b)) if a == b => None,
            (Some(a), Some(b)) => Some(format!("`{name}` was {}, is {}", short(a), short(b))),
            (Some(a), None) => Some(format!("`{name}` was {}, is absent", short(a))),
            (None, Some(b)) => Some(format!("`{name}` was absent, is {}", short(b))),
            (None, None) => None,
        })
        .collect()
}

/// Values by dotted path. An empty object is a value, so that it differs from an absent one.
fn leaves(parts: &Parts) -> BTreeMap<String, &Value> {
    fn visit<'a>(path: &str, value: &'a Value, out: &mut BTreeMap<String, &'a Value>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    visit(&format!("{path}.{key}"), value, out);
                }
            }
            leaf => {
                out.insert(path.to_owned(), leaf);
            }
        }
    }
    let mut out = BTreeMap::new();
    for (name, value) in parts {
        visit(name, value, &mut out);
    }
    out
}

/// A value in at most 60 characters; long ones end in a piece of their hash, so that two that begin alike do not
/// look alike.
fn short(value: &Value) -> String {
    const WHOLE: usize = 60;
    const KEPT: usize = 40;
    let mut text = String::new();
    canonical(value, &mut text);
    if text.chars().count() <= WHOLE {
        return text;
    }
    let kept: String = text.chars().take(KEPT).collect();
    let hash = blake3::hash(text.as_bytes()).to_hex();
    format!("{kept}… (hash {})", &hash[..8])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parts(value: Value) -> Parts {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn equal_parts_have_equal_fingerprints_in_any_order() {
        let a = parts(json!({"seed": 1, "settings": {"b": [1, {"y": 0, "x": null}], "a": "é\n"}}));
        let b = parts(
            serde_json::from_str(r#"{"settings":{"a":"é\n","b":[1,{"x":null,"y":0}]},"seed":1}"#).unwrap(),
        );
        assert_eq!(Fingerprint::of(&a), Fingerprint::of(&b));
        // Fixed for ever: old runs must stay resumable. BLAKE3 of {"seed":1,"settings":{"a":"é\n","b":[1,{"x":null,"y":0}]}}.
        let text = r#"{"seed":1,"settings":{"a":"é\n","b":[1,{"x":null,"y":0}]}}"#;
        assert_eq!(Fingerprint::of(&a).as_str(), blake3::hash(text.as_bytes()).to_hex().as_str());
    }

    #[test]
    fn other_parts_have_other_fingerprints() {
        let all = [
            json!({}),
            json!({"a": 1}),
            json!({"a": 1.0}),
            json!({"a": "1"}),
            json!({"a": [1]}),
            json!({"a": {"b": 1}}),
            json!({"a.b": 1}),
            json!({"a": null}),
        ];
        let mut seen: Vec<Fingerprint> = all.into_iter().map(|v| Fingerprint::of(&parts(v))).collect();
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }

    #[test]
    fn differences_name_part_and_both_values() {
        let old = parts(json!({"seed": 1, "steps": 28, "gone": true,
            "settings": {"rounder": {"name": "adaround", "iters": 500}, "rows": 64}}));
        let new = parts(json!({"seed": 1, "steps": 50, "added": [1, 2],
            "settings": {"rounder": {"name": "adaround", "iters": 20000}, "rows": 64}}));
        assert_eq!(
            differences(&old, &new),
            [
                "`added` was absent, is [1,2]",
                "`gone` was true, is absent",
                "`settings.rounder.iters` was 500, is 20000",
                "`steps` was 28, is 50",
            ]
        );
        assert!(differences(&old, &old).is_empty());
        assert_eq!(
            differences(&parts(json!({"s": {}})), &parts(json!({"s": {"a": 1}}))),
            ["`s` was {}, is absent", "`s.a` was absent, is 1"]
        );
    }

    #[test]
    fn long_values_are_cut_and_stay_distinct() {
        let prompts = |last: &str| {
            let text = ["a cat on a mat"; 9].join("; ") + last;
            parts(json!({ "prompts": text }))
        };
        let text = differences(&prompts("a"), &prompts("b"));
        assert_eq!(text.len(), 1);
        let (was, is) = text[0].split_once(", is ").unwrap();
        assert!(was.starts_with("`prompts` was \"a cat on a mat; a cat on a mat; a cat o… (hash "), "{was}");
        assert_ne!(was.strip_prefix("`prompts` was "), Some(is));
        assert!(is.chars().count() <= 60);
    }
}
