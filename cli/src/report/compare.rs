//! Several runs side by side: their scores, and the settings that differ.

use std::collections::BTreeMap;

use super::run::RunView;
use super::settings::Setting;
use crate::results::scores::Score;

/// Characters of a list that is shown whole.
const SHORT: usize = 60;

/// A setting that is not the same in all runs.
pub(super) struct Difference {
    pub(super) name: String,
    /// One value a run; empty where a run has none.
    pub(super) values: Vec<String>,
}

/// A variant of a run.
pub(super) struct ScoreRow {
    pub(super) run: String,
    pub(super) variant: &'static str,
    pub(super) images: usize,
    pub(super) scores: Vec<Score>,
}

/// The section.
pub(super) struct Comparison {
    /// Names of the scores.
    pub(super) headings: Vec<&'static str>,
    pub(super) rows: Vec<ScoreRow>,
    pub(super) differences: Vec<Difference>,
}

impl Comparison {
    pub(super) fn of(runs: &[RunView]) -> Self {
        let scores = || runs.iter().filter_map(|run| Some((&run.name, run.scores.as_ref()?)));
        // Runs without an evaluator have one score less, the last.
        let headings = scores().map(|(_, s)| s.headings.clone()).max_by_key(Vec::len).unwrap_or_default();
        let mut rows = Vec::new();
        for (name, row) in scores().flat_map(|(name, s)| s.rows.iter().map(move |row| (name, row))) {
            let mut scores = row.scores.clone();
            scores.resize(headings.len(), Score::default());
            rows.push(ScoreRow { run: name.clone(), variant: row.variant, images: row.images, scores });
        }
        let settings: Vec<BTreeMap<String, &Setting>> = runs.iter().map(settings).collect();
        Self { headings, rows, differences: differences(&settings) }
    }
}

/// Every setting of a run by stage and name. Fingerprints of other stages' results differ with what they are made of,
/// and say no more.
fn settings(run: &RunView) -> BTreeMap<String, &Setting> {
    let built_on = ["samples", "statistics", "sensitivities", "plan", "weights"];
    let all = run.settings.iter().flat_map(|s| s.settings.iter().map(move |setting| (&s.stage, setting)));
    let all = all.filter(|(_, setting)| !built_on.contains(&setting.name.as_str()));
    all.map(|(stage, setting)| (format!("{stage}: {}", setting.name), setting)).collect()
}

fn differences(runs: &[BTreeMap<String, &Setting>]) -> Vec<Difference> {
    let mut names: Vec<&String> = runs.iter().flat_map(BTreeMap::keys).collect();
    names.sort();
    names.dedup();
    let difference = |name: &String| {
        let values: Vec<Option<&Setting>> = runs.iter().map(|run| run.get(name).copied()).collect();
        let differ = values.windows(2).any(|w| w[0] != w[1]);
        // The first place where lists differ.
        let item = |setting: Option<&Setting>, i: usize| setting.and_then(|s| s.list.get(i)).cloned();
        let same = |i: usize| values.windows(2).all(|w| item(w[0], i) == item(w[1], i));
        let longest = values.iter().flatten().map(|s| s.list.len()).max().unwrap_or(0);
        // The first place where lists differ.
        let at = (0..longest).find(|&i| !same(i)).unwrap_or(0);
        let shown = |s: &Option<&Setting>| s.map(|s| line(s, at)).unwrap_or_default();
        differ.then(|| Difference { name: name.clone(), values: values.iter().map(shown).collect() })
    };
    names.into_iter().filter_map(difference).collect()
}

/// A setting in one line; of a long list, how long it is and the value at this place.
fn line(setting: &Setting, at: usize) -> String {
    let whole = setting.list.join(", ");
    match setting.list.get(at) {
        _ if setting.list.is_empty() => setting.value.clone(),
        _ if whole.chars().count() <= SHORT => whole,
        Some(value) => format!("{}; number {at}: {value}", setting.value),
        None => setting.value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown() {
        let setting = |name: &str, value: &str, list: &[&str]| {
            let list = list.iter().map(|v| (*v).to_owned()).collect();
            Setting { name: name.into(), value: value.into(), list }
        };
        let long = "a lighthouse in a storm, oil painting, with many waves in it";
        let first = [
            setting("seed", "0", &[]),
            setting("iters", "300", &[]),
            setting("prompts", "2 values", &[long, "b"]),
            setting("variants", "2 values", &["nearest", "quantized"]),
        ];
        let second = [
            setting("seed", "0", &[]),
            setting("iters", "500", &[]),
            setting("prompts", "3 values", &[long, "c", "d"]),
            setting("variants", "1 values", &["quantized"]),
            setting("new", "1", &[]),
        ];
        fn run(all: &[Setting]) -> BTreeMap<String, &Setting> {
            all.iter().map(|s| (s.name.clone(), s)).collect()
        }
        let found = differences(&[run(&first), run(&second)]);
        let found: Vec<_> = found.iter().map(|d| (d.name.as_str(), d.values.join(" | "))).collect();
        let expected = [
            ("iters", "300 | 500"),
            ("new", " | 1"),
            ("prompts", "2 values; number 1: b | 3 values; number 1: c"),
            ("variants", "nearest, quantized | quantized"),
        ];
        assert_eq!(found, expected.map(|(name, values)| (name, values.to_owned())));
    }
}
