//! `taq policy bench`.

use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value};
use taq_core::PolicyRequest;
use taq_core::artifacts::read_json;
use taq_core::registry::Registry;

use super::Policy;
use crate::error::Failure;
use crate::output::{Table, bytes, print, terminal_width};

/// Prints how long loading and deciding take.
pub(super) fn bench(
    registry: &Registry,
    name: &str,
    request: &Path,
    config: Option<&Map<String, Value>>,
    runs: usize,
) -> Result<(), Failure> {
    let request: PolicyRequest = read_json(request, "policy request")?;
    let start = Instant::now();
    let policy = Policy::load(registry, name, &config.cloned().unwrap_or_default())?;
    let load = start.elapsed();
    let mut times = Vec::with_capacity(runs);
    let mut last = None;
    for _ in 0..runs {
        let start = Instant::now();
        last = policy.assign(name, &request)?.1;
        times.push(start.elapsed());
    }
    times.sort();
    let ms = |t: std::time::Duration| format!("{:.2} ms", t.as_secs_f64() * 1e3);
    let mut table = Table::new(&["POLICY", name]);
    table.row([
        "request",
        &format!("{} layers × {} timesteps", request.layers.len(), request.timesteps.len()),
    ]);
    table.row(["load", &ms(load)]);
    table.row(["decide", &format!("{} (median of {runs}; best {})", ms(times[runs / 2]), ms(times[0]))]);
    if let Some(run) = last {
        table.row(["fuel", &format!("{:.1} million instructions", run.fuel as f64 / 1e6)]);
        table.row(["memory", &bytes(run.memory as u64)]);
        table.row(["plan", &bytes(run.response.len() as u64)]);
    }
    print(&table.render(terminal_width()))
}
