//! `taq policy diff`.

use std::path::Path;

use taq_core::artifacts::read_json;
use taq_core::{Error, LayerPlan, PolicyPlan};

use crate::error::Failure;
use crate::output::{Table, print, terminal_width};

/// Prints where two plans differ.
pub(super) fn diff(first: &Path, second: &Path) -> Result<(), Failure> {
    let (a, b): (PolicyPlan, PolicyPlan) =
        (read_json(first, "policy plan")?, read_json(second, "policy plan")?);
    let ids = |plan: &PolicyPlan| plan.layers.iter().map(|l| l.id.clone()).collect::<Vec<_>>();
    if ids(&a) != ids(&b) {
        let reason =
            format!("its layers are not those of `{}`: the plans are of different models", first.display());
        return Err(Error::malformed("policy plan", second, reason).into());
    }
    let differing: Vec<_> = a.layers.iter().zip(&b.layers).filter(|(a, b)| a != b).collect();
    let mut text = format!("{} of {} layers differ\n\n", differing.len(), a.layers.len());
    let mut table = Table::new(&["LAYER", "WEIGHT", "ACTIVATIONS", "WHAT ELSE DIFFERS"]);
    table.row([
        "average",
        &change(&mean(&a, weight), &mean(&b, weight)),
        &change(&mean(&a, activations), &mean(&b, activations)),
        "",
    ]);
    for (a, b) in differing {
        table.row([
            a.id.as_str(),
            &change(&weight(a).to_string(), &weight(b).to_string()),
            &change(&format!("{:.2}", activations(a)), &format!("{:.2}", activations(b))),
            &others(a, b),
        ]);
    }
    text.push_str(&table.render(terminal_width()));
    print(&text)
}

fn weight(layer: &LayerPlan) -> f64 {
    f64::from(layer.weight_bits)
}

/// Mean over the timesteps.
fn activations(layer: &LayerPlan) -> f64 {
    let sum: f64 = layer.activation_bits.iter().map(|&b| f64::from(b)).sum();
    sum / layer.activation_bits.len().max(1) as f64
}

/// Mean over the layers, each counted once.
fn mean(plan: &PolicyPlan, bits: fn(&LayerPlan) -> f64) -> String {
    format!("{:.2}", plan.layers.iter().map(bits).sum::<f64>() / plan.layers.len().max(1) as f64)
}

fn change(a: &str, b: &str) -> String {
    if a == b { a.to_owned() } else { format!("{a} → {b}") }
}

/// Fields other than bits.
fn others(a: &LayerPlan, b: &LayerPlan) -> String {
    let mut parts = Vec::new();
    if a.scale_source != b.scale_source {
        parts.push(format!("scale {:?} → {:?}", a.scale_source, b.scale_source).to_lowercase());
    }
    if a.shift != b.shift {
        parts.push(if b.shift { "shift added" } else { "shift dropped" }.to_owned());
    }
    if a.smoothquant_alpha != b.smoothquant_alpha {
        parts.push("SmoothQuant".to_owned());
    }
    let steps = a.activation_bits.iter().zip(&b.activation_bits).filter(|(a, b)| a != b).count();
    if steps > 0 {
        parts.push(format!("{steps} of {} timesteps", a.activation_bits.len()));
    }
    if a.reason != b.reason {
        parts.push("reason".to_owned());
    }
    parts.join(", ")
}
