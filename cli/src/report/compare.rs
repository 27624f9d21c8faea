//! Several runs side by side: their scores, and the settings that differ.

use std::collections::BTreeMap;

use super::run::RunView;

/// A setting that is not the same in all runs.
pub(super) struct Difference {
    pub(super) name: String,
    /// One value a run; empty where a run has none.
    pub(super) values: Vec<String>,
}

/// The section.
pub(super) struct Comparison {
    pub(super) differences: Vec<Difference>,
}

impl Comparison {
    pub(super) fn of(runs: &[RunView]) -> Self {
        let settings: Vec<BTreeMap<String, String>> = runs.iter().map(settings).collect();
        Self { differences: differences(&settings) }
    }
}

/// Every setting of a run by stage and name. Fingerprints of other stages' results differ with what they are made of,
/// and say no more.
fn settings(run: &RunView) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for stage in &run.settings {
        for setting in &stage.settings {
            let built_on = ["samples", "statistics", "sensitivities", "plan", "weights"];
            if !built_on.contains(&setting.name.as_str()) {
                let list = setting.list.join("\n");
                let hash = if list.is_empty() { String::new() } else { format!("\n{list}") };
                all.insert(format!("{}: {}", stage.stage, setting.name), format!("{}{hash}", setting.value));
            }
        }
    }
    all
}

fn differences(runs: &[BTreeMap<String, String>]) -> Vec<Difference> {
    let mut names: Vec<&String> = runs.iter().flat_map(BTreeMap::keys).collect();
    names.sort();
    names.dedup();
    let values = |name: &String| runs.iter().map(|run| run.get(name)).collect::<Vec<_>>();
    let differing = names.into_iter().filter(|name| values(name).windows(2).any(|w| w[0] != w[1]));
    // Of a list, only how many values it has.
    let line = |value: Option<&String>| value.and_then(|v| v.lines().next()).unwrap_or_default().to_owned();
    differing
        .map(|name| Difference { name: name.clone(), values: values(name).into_iter().map(line).collect() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown() {
        let run = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let found = differences(&[
            run(&[("round: seed", "0"), ("round: iters", "300"), ("p", "2 values\na\nb")]),
            run(&[("round: seed", "0"), ("round: iters", "500"), ("p", "2 values\na\nc"), ("new", "1")]),
        ]);
        let found: Vec<_> = found.iter().map(|d| (d.name.as_str(), d.values.join("|"))).collect();
        let expected = [("new", "|1"), ("p", "2 values|2 values"), ("round: iters", "300|500")];
        assert_eq!(found, expected.map(|(name, values)| (name, values.to_owned())));
    }
}
