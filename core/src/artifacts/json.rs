//! JSON documents: pretty, atomic, with a `format` field that is checked before anything else.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use taq_policy::{PLAN_FORMAT, PolicyPlan, PolicyRequest, REQUEST_FORMAT};

use super::atomic::atomic_write_bytes;
use super::finite::first_non_finite;
use crate::plan::{QUANT_CONFIG_FORMAT, QuantConfig};
use crate::stats::{STATISTICS_FORMAT, StatisticsIndex};
use crate::{Error, Result};

/// A JSON document that says what it is in a field `format`.
pub trait Document: Serialize + DeserializeOwned {
    /// The value of the field.
    const FORMAT: &'static str;
    /// What people call it: “quantization plan”.
    const KIND: &'static str;
}

impl Document for StatisticsIndex {
    const FORMAT: &'static str = STATISTICS_FORMAT;
    const KIND: &'static str = "statistics index";
}

impl Document for QuantConfig {
    const FORMAT: &'static str = QUANT_CONFIG_FORMAT;
    const KIND: &'static str = "quantization plan";
}

impl Document for PolicyRequest {
    const FORMAT: &'static str = REQUEST_FORMAT;
    const KIND: &'static str = "policy request";
}

impl Document for PolicyPlan {
    const FORMAT: &'static str = PLAN_FORMAT;
    const KIND: &'static str = "policy plan";
}

/// Reads a JSON file. `kind` says what it should be, for the error.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Malformed`] with line and column if it is not what it should be.
pub fn read_json<T: DeserializeOwned>(path: &Path, kind: &'static str) -> Result<T> {
    let text = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|e| Error::malformed(kind, path, e))
}

/// Reads a document after checking its `format`.
///
/// # Errors
/// As [`read_json`]; also [`Error::Malformed`] with the expected and the found format if they differ.
pub fn read_document<T: Document>(path: &Path) -> Result<T> {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(default)]
        format: Option<serde_json::Value>,
    }
    let malformed = |reason: String| Error::malformed(T::KIND, path, reason);
    let text = fs::read(path).map_err(Error::io("read", path))?;
    let probe: Probe = serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))?;
    match probe.format {
        Some(serde_json::Value::String(found)) if found == T::FORMAT => {}
        Some(found) => {
            let found = found.to_string();
            return Err(malformed(format!("expected format \"{}\", found {found}", T::FORMAT)));
        }
        None => return Err(malformed(format!("expected format \"{}\", found no field `format`", T::FORMAT))),
    }
    serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))
}

/// Writes a JSON file atomically: indented, with a newline at the end.
///
/// # Errors
/// [`Error::NotFinite`] with the path inside the value if it holds NaN or infinity, which JSON cannot say;
/// [`Error::Io`] if the file cannot be written.
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    if let Some(place) = first_non_finite(value) {
        return Err(Error::NotFinite { what: format!("`{place}` of `{}`", path.display()) });
    }
    let mut text =
        serde_json::to_vec_pretty(value).map_err(|e| Error::malformed("JSON document", path, e))?;
    text.push(b'\n');
    atomic_write_bytes(path, &text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn plan() -> PolicyPlan {
        PolicyPlan::new(vec![taq_policy::LayerPlan::uniform("mm0.img.attn.q_proj".into(), 4, 8, 2)])
    }

    #[test]
    fn a_document_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        write_json(&path, &plan()).unwrap();
        assert_eq!(read_document::<PolicyPlan>(&path).unwrap(), plan());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\n  \"format\": \"taq.policy_plan.v1\","), "{text}");
        assert!(text.ends_with("}\n") && !text.ends_with("\n\n"));
    }

    #[test]
    fn another_format_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        let reason = |text: &str| {
            fs::write(&path, text).unwrap();
            match read_document::<PolicyPlan>(&path) {
                Err(Error::Malformed { kind: "policy plan", reason, .. }) => reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            reason(r#"{"format": "v0", "layers": []}"#),
            r#"expected format "taq.policy_plan.v1", found "v0""#
        );
        assert_eq!(
            reason(r#"{"layers": []}"#),
            r#"expected format "taq.policy_plan.v1", found no field `format`"#
        );
        assert_eq!(reason(r#"{"format": 3}"#), r#"expected format "taq.policy_plan.v1", found 3"#);
        let typo = reason("{\n\"format\": \"taq.policy_plan.v1\",\n\"layer\": []}");
        assert!(typo.contains("unknown field `layer`") && typo.contains("line 3"), "{typo}");
        let cut = reason(r#"{"format": "taq.policy"#);
        assert!(cut.contains("EOF"), "{cut}");
    }

    #[test]
    fn numbers_that_json_lacks_are_refused_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let value = BTreeMap::from([("sigma_map", BTreeMap::from([(3, f32::NAN)]))]);
        let error = write_json(&path, &value).unwrap_err();
        let expected = format!("`sigma_map.3` of `{}` holds NaN or infinite values", path.display());
        assert_eq!(error.to_string(), expected);
        assert!(!path.exists());
    }

    #[test]
    fn a_missing_file_is_named() {
        let path = Path::new("no/such/file.json");
        match read_json::<serde_json::Value>(path, "thing") {
            Err(Error::Io { action: "read", path: found, .. }) => assert_eq!(found, path),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn floats_keep_every_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let values: Vec<f32> = vec![0.1, 1.0 / 3.0, f32::MIN_POSITIVE, f32::MAX, -0.0, 16_777_217.0];
        write_json(&path, &values).unwrap();
        let back: Vec<f32> = read_json(&path, "list").unwrap();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&values));
    }
}
