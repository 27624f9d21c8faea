//! `taq policy bench`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use taq_core::artifacts::read_json;
use taq_core::registry::Registry;
use taq_core::wasm::PolicyRun;
use taq_core::{PolicyPlan, PolicyRequest, Result};

use super::Policy;
use crate::error::Failure;
use crate::output::{Table, bytes, print, terminal_width};

/// What was measured of one policy.
struct Measured {
    load: Duration,
    decide: Times,
    /// Linked in: the same with the documents that a module or a library gets, written and read.
    documents: Option<Times>,
    run: Option<PolicyRun>,
}

/// Median and best of several runs.
struct Times {
    median: Duration,
    best: Duration,
}

/// Prints how long loading and deciding take, one column a policy.
pub(super) fn bench(
    registry: &Registry,
    names: &[String],
    request: &Path,
    config: Option<&Map<String, Value>>,
    runs: usize,
) -> Result<(), Failure> {
    let request: PolicyRequest = read_json(request, "policy request")?;
    let settings = config.cloned().unwrap_or_default();
    let measured: Result<Vec<Measured>> =
        names.iter().map(|name| measure(registry, name, &settings, &request, runs)).collect();
    let measured = measured?;

    let heads: Vec<&str> = ["POLICY"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut table = Table::new(&heads);
    let mut row = |head: &str, cell: &dyn Fn(&Measured) -> String| {
        let cells: Vec<String> = [head.to_owned()].into_iter().chain(measured.iter().map(cell)).collect();
        table.row(cells.iter().map(String::as_str));
    };
    let of_run = |run: fn(&PolicyRun) -> String| {
        move |m: &Measured| m.run.as_ref().map_or_else(|| "-".to_owned(), run)
    };
    row("load", &|m| ms(m.load));
    row("decide, median", &|m| ms(m.decide.median));
    row("decide, best", &|m| ms(m.decide.best));
    row("with documents, median", &|m| ms(m.documents.as_ref().unwrap_or(&m.decide).median));
    row("with documents, best", &|m| ms(m.documents.as_ref().unwrap_or(&m.decide).best));
    row("fuel", &of_run(|run| format!("{:.1} million instructions", run.fuel as f64 / 1e6)));
    row("memory", &of_run(|run| bytes(run.memory as u64)));
    row("plan", &of_run(|run| bytes(run.response.len() as u64)));
    print(&format!(
        "{} layers × {} timesteps, {} of JSON, {runs} runs\n\n{}\nA built-in policy is handed the request as it is in \
         memory; \u{201c}with documents\u{201d} it is written and read as JSON, as a module has it, and so is the plan.\n",
        request.layers.len(),
        request.timesteps.len(),
        bytes(json(&request)?.len() as u64),
        table.render(terminal_width())
    ))
}

fn measure(
    registry: &Registry,
    name: &str,
    settings: &Map<String, Value>,
    request: &PolicyRequest,
    runs: usize,
) -> Result<Measured> {
    let start = Instant::now();
    let policy = Policy::load(registry, name, settings)?;
    let load = start.elapsed();
    let mut run = None;
    let decide = time(runs, || {
        run = policy.assign(name, request)?.1;
        Ok(())
    })?;
    let documents = match policy {
        Policy::Module(_) => None,
        Policy::Linked(_) => Some(time(runs, || {
            let request: PolicyRequest = read(&json(request)?)?;
            read::<PolicyPlan>(&json(&policy.assign(name, &request)?.0)?).map(drop)
        })?),
    };
    Ok(Measured { load, decide, documents, run })
}

fn time(runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<Times> {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(Times { median: times[runs / 2], best: times[0] })
}

fn json(document: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(unreadable)
}

fn read<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(unreadable)
}

/// Only a request with numbers that are not finite cannot be read again.
fn unreadable(error: serde_json::Error) -> taq_core::Error {
    taq_core::Error::settings("policy bench", format!("the documents cannot be written and read: {error}"))
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
