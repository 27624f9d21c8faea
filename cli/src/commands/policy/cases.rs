//! `taq policy test`: a folder of cases.
//!
//! A case is `NAME.request.json` with `NAME.plan.json` (the plan, exactly) or `NAME.error.txt` (a text that the
//! message contains). Settings stand in the request.

use std::fs;
use std::path::{Path, PathBuf};

use taq_core::artifacts::{atomic_write_bytes, read_json};
use taq_core::registry::Registry;
use taq_core::{Error, PolicyPlan, PolicyRequest, Result};

use super::Policy;
use crate::error::Failure;
use crate::output::{Table, print, terminal_width};

const REQUEST: &str = ".request.json";

/// Runs the cases and prints how each went; with `bless`, writes what came out as what is expected.
pub(super) fn test(registry: &Registry, policy: &str, folder: &Path, bless: bool) -> Result<(), Failure> {
    let cases = find(folder)?;
    let mut table = Table::new(&["CASE", "", "WHAT"]);
    let mut failed = 0;
    for case in &cases {
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match judge(registry, policy, case, bless)? {
            Ok(what) => table.row([name.as_str(), "ok", &what]),
            Err(why) => {
                failed += 1;
                table.row([name.as_str(), "FAILED", &why]);
            }
        }
    }
    print(&format!(
        "{}\n{} of {} cases passed\n",
        table.render(terminal_width()),
        cases.len() - failed,
        cases.len()
    ))?;
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::Checks { failed, of: cases.len(), what: "cases" })
}

/// Paths of the cases without their endings, sorted.
fn find(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let name = entry.map_err(Error::io("read", folder))?.file_name();
        if let Some(case) = name.to_string_lossy().strip_suffix(REQUEST) {
            cases.push(folder.join(case));
        }
    }
    cases.sort();
    if cases.is_empty() {
        let reason = format!("`{}` has no case: no file that ends in `{REQUEST}`", folder.display());
        return Err(Error::settings("policy test", reason));
    }
    Ok(cases)
}

fn with(case: &Path, ending: &str) -> PathBuf {
    let mut path = case.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// What was expected and came, or how they differ.
fn judge(registry: &Registry, policy: &str, case: &Path, bless: bool) -> Result<Result<String, String>> {
    let request: PolicyRequest = read_json(&with(case, REQUEST), "policy request")?;
    let outcome = Policy::load(registry, policy, &request.settings).and_then(|p| p.assign(policy, &request));
    let (plan_path, error_path) = (with(case, ".plan.json"), with(case, ".error.txt"));
    if bless {
        let (path, text) = match &outcome {
            Ok((plan, _)) => (&plan_path, serde_json::to_string_pretty(plan).unwrap_or_default()),
            Err(error) => (&error_path, error.to_string()),
        };
        atomic_write_bytes(path, format!("{text}\n").as_bytes())?;
        return Ok(Ok(format!("written: {}", path.display())));
    }
    Ok(match (outcome, plan_path.exists(), error_path.exists()) {
        (Ok((plan, _)), true, _) => {
            let expected: PolicyPlan = read_json(&plan_path, "policy plan")?;
            let differs = plan.layers.iter().zip(&expected.layers).find(|(a, b)| a != b);
            match differs {
                _ if plan == expected => Ok("the plan is the expected one".into()),
                Some((layer, _)) => Err(format!("layer {} is decided otherwise", layer.id)),
                None => Err(format!("{} layers instead of {}", plan.layers.len(), expected.layers.len())),
            }
        }
        (Ok(_), false, true) => Err("there is a plan; an error was expected".into()),
        (Err(error), _, true) => {
            let expected = fs::read_to_string(&error_path).map_err(Error::io("read", &error_path))?;
            match error.to_string() {
                text if text.contains(expected.trim()) => Ok("the error is the expected one".into()),
                text => Err(format!("another error: {text}")),
            }
        }
        (Err(error), _, false) => Err(error.to_string()),
        (Ok(_), false, false) => {
            Err("nothing is expected: no .plan.json and no .error.txt; --bless writes one".into())
        }
    })
}
