//! A JSON schema of settings as a table: name, type, default, description.

use serde_json::{Map, Value};

use crate::output::Table;

/// The table, or `None` if there are no settings.
pub(crate) fn settings_table(schema: &Value, width: Option<usize>) -> Option<String> {
    let properties = schema.get("properties")?.as_object().filter(|p| !p.is_empty())?;
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut table = Table::new(&["SETTING", "TYPE", "DEFAULT", "WHAT IT IS"]);
    for (name, property) in properties {
        let default = match property.get("default") {
            Some(Value::Null) | None if required.contains(&name.as_str()) => "required".to_owned(),
            Some(Value::Null) | None => "none".to_owned(),
            Some(value) => literal(value),
        };
        let about = property
            .get("description")
            .or_else(|| resolve(schema, property).and_then(|p| p.get("description")))
            .and_then(Value::as_str)
            .unwrap_or("");
        table.row([name.clone(), type_name(schema, property), default, about.to_owned()]);
    }
    Some(table.render(width))
}

/// A default as one would write it: `0.1`, although the schema holds an f32 in the digits of an f64.
fn literal(value: &Value) -> String {
    match value {
        Value::Number(n) if n.is_f64() => match n.as_f64() {
            Some(wide) if f64::from(wide as f32) == wide => format!("{}", wide as f32),
            _ => n.to_string(),
        },
        Value::Array(all) => format!("[{}]", all.iter().map(literal).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// What a `$ref` points at, or the value itself.
fn resolve<'a>(root: &'a Value, value: &'a Value) -> Option<&'a Value> {
    match value.get("$ref").and_then(Value::as_str) {
        Some(path) => root.pointer(path.strip_prefix('#')?),
        None => Some(value),
    }
}

/// The type in words: `integer (2 to 8)`, `"a" or "b"`, `list of number`.
fn type_name(root: &Value, value: &Value) -> String {
    let Some(value) = resolve(root, value) else { return "?".into() };
    if let Some(constant) = value.get("const") {
        return constant.to_string();
    }
    if let Some(values) = value.get("enum").and_then(Value::as_array) {
        return alternatives(values.iter().filter(|v| !v.is_null()).map(Value::to_string));
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        if let Some(parts) = value.get(key).and_then(Value::as_array) {
            let parts = parts.iter().filter(|p| p.get("type").and_then(Value::as_str) != Some("null"));
            return alternatives(parts.map(|p| type_name(root, p)));
        }
    }
    let Some(object) = value.as_object() else { return "any".into() };
    match object.get("type") {
        Some(Value::String(name)) => single(root, name, object),
        Some(Value::Array(names)) => {
            let names = names.iter().filter_map(Value::as_str).filter(|n| *n != "null");
            alternatives(names.map(|n| single(root, n, object)))
        }
        _ => "any".into(),
    }
}

fn single(root: &Value, name: &str, object: &Map<String, Value>) -> String {
    match name {
        "array" => match object.get("items") {
            Some(items) => format!("list of {}", type_name(root, items)),
            None => match object.get("prefixItems").and_then(Value::as_array) {
                Some(items) => {
                    format!("[{}]", items.iter().map(|i| type_name(root, i)).collect::<Vec<_>>().join(", "))
                }
                None => "list".into(),
            },
        },
        "object" => match object.get("properties").and_then(Value::as_object) {
            Some(fields) => {
                format!("{{ {} }}", fields.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
            }
            None => "table".into(),
        },
        name => format!("{name}{}", bounds(object)),
    }
}

fn bounds(object: &Map<String, Value>) -> String {
    let get = |key: &str| object.get(key).and_then(Value::as_f64);
    match (get("minimum"), get("exclusiveMinimum"), get("maximum")) {
        (Some(low), _, Some(high)) => format!(" ({low} to {high})"),
        (_, Some(low), Some(high)) => format!(" (over {low}, to {high})"),
        (Some(low), _, None) if low != 0.0 => format!(" (from {low})"),
        (_, Some(low), None) => format!(" (over {low})"),
        (None, None, Some(high)) => format!(" (to {high})"),
        _ => String::new(),
    }
}

fn alternatives(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<String> = parts.collect();
    parts.dedup();
    parts.join(" or ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_are_words() {
        let root = json!({ "$defs": { "Mode": { "oneOf": [{ "const": "fast" }, { "const": "exact" }] } } });
        let name = |v| type_name(&root, &v);
        assert_eq!(name(json!({ "type": "integer", "minimum": 2, "maximum": 8 })), "integer (2 to 8)");
        assert_eq!(name(json!({ "type": "integer", "format": "uint", "minimum": 0 })), "integer");
        assert_eq!(name(json!({ "type": ["number", "null"] })), "number");
        assert_eq!(
            name(json!({ "anyOf": [{ "$ref": "#/$defs/Mode" }, { "type": "null" }] })),
            r#""fast" or "exact""#
        );
        assert_eq!(name(json!({ "type": "array", "items": { "type": "number" } })), "list of number");
        assert_eq!(name(json!({ "$ref": "#/$defs/None" })), "?");
        assert_eq!(name(json!(true)), "any");
    }

    #[test]
    fn defaults_are_short() {
        assert_eq!(literal(&json!(0.1_f32)), "0.1");
        assert_eq!(literal(&json!(0.1_f64)), "0.1");
        assert_eq!(literal(&json!([20.0_f32, 2.5_f32])), "[20, 2.5]");
        assert_eq!(literal(&json!("mse")), "\"mse\"");
    }

    #[test]
    fn one_row_a_setting() {
        let schema = json!({
            "properties": {
                "iters": { "type": "integer", "minimum": 1, "default": 500, "description": "How often." },
                "path": { "type": "string", "description": "Where." },
            },
            "required": ["path"],
        });
        let table = settings_table(&schema, None).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "iters    integer (from 1)  500       How often.");
        assert_eq!(lines[2], "path     string            required  Where.");
        assert_eq!(settings_table(&json!({ "type": "object" }), None), None);
    }
}
