//! What tests of a policy need: layers, requests with plausible statistics, and a harness that holds a policy to
//! what the host expects of it. Everything is deterministic; nothing here ends up in a module that does not use it.
//!
//! ```
//! use taq_policy::{LayerPlan, PolicyError, PolicyPlan, PolicyRequest, testing};
//!
//! fn assign(request: &PolicyRequest) -> Result<PolicyPlan, PolicyError> {
//!     let steps = request.timesteps.len();
//!     let layers = request.layers.iter().map(|l| LayerPlan::uniform(l.id.clone(), 4, 8, steps));
//!     Ok(PolicyPlan::new(layers.collect()))
//! }
//!
//! // As many layers and timesteps as Stable Diffusion 3 Medium has.
//! let request = testing::sd3_request(24, 1536, 50);
//! let plan = testing::run(&request, assign).unwrap();
//! assert_eq!(plan.layers.len(), 285);
//! ```

use std::path::Path;

use serde_json::Value;

use crate::{LayerColumns, LayerSpec, PolicyError, PolicyPlan, PolicyRequest, Role, Stream, Timestep, guest};

mod random;

pub use random::Random;

/// A layer. Block and stream are those that the id names (`mm0.txt.mlp.fc1`: block `mm0`, text); without `txt` it
/// is of the image stream. It is post-GELU if it is a [`Role::Fc2`].
pub fn layer(id: &str, role: Role, in_features: usize, out_features: usize) -> LayerSpec {
    let mut parts = id.split('.');
    let block = parts.next().unwrap_or_default();
    let stream = if parts.next() == Some("txt") { Stream::Text } else { Stream::Image };
    LayerSpec {
        id: id.into(),
        block: block.into(),
        stream,
        role,
        in_features,
        out_features,
        post_gelu: role == Role::Fc2,
    }
}

/// The layer table of a diffusion transformer of SD3's kind: two streams a block, of which the last block's text
/// stream has only q, k and v, so that there are 12 · `blocks` − 3 layers. SD3-Medium has 24 blocks of width 1536.
pub fn sd3_layers(blocks: usize, width: usize) -> Vec<LayerSpec> {
    let mut layers = Vec::new();
    for block in 0..blocks {
        for stream in ["img", "txt"] {
            for (role, name, inputs, outputs) in [
                (Role::Q, "attn.q_proj", width, width),
                (Role::K, "attn.k_proj", width, width),
                (Role::V, "attn.v_proj", width, width),
                (Role::O, "attn.o_proj", width, width),
                (Role::Fc1, "mlp.fc1", width, 4 * width),
                (Role::Fc2, "mlp.fc2", 4 * width, width),
            ] {
                let last_text = stream == "txt" && block + 1 == blocks;
                if !last_text || matches!(role, Role::Q | Role::K | Role::V) {
                    layers.push(layer(&format!("mm{block}.{stream}.{name}"), role, inputs, outputs));
                }
            }
        }
    }
    layers
}

/// Timesteps whose noise level falls evenly from 1.
pub fn timesteps(steps: usize) -> Vec<Timestep> {
    (0..steps).map(|step| Timestep { step, sigma: 1.0 - step as f32 / steps as f32 }).collect()
}

/// Statistics of normally distributed inputs without any outliers, the same at every timestep: the largest
/// magnitude is 4. Of a post-GELU layer, the smallest value is −0.17, and the shift halves the range.
pub fn calm_columns(layer: &LayerSpec, steps: usize) -> LayerColumns {
    let column = |value: f32| vec![value; steps];
    let shift = |value: f32| if layer.post_gelu { column(value) } else { Vec::new() };
    let low = |value: f32| column(if layer.post_gelu { value.max(-0.17) } else { value });
    LayerColumns {
        id: layer.id.clone(),
        absmax: column(4.0),
        min: low(-4.0),
        max: column(4.0),
        p001: low(-3.0),
        p01: low(-2.25),
        p50: column(0.6875),
        p99: column(2.5),
        p999: column(3.25),
        shift_magnitude: shift(2.0),
        shifted_absmax: shift(2.0),
        outlier_ratio: column(1.6),
        spike_fraction: column(0.0),
        channel_p50: column(3.0),
        channel_p99: column(3.75),
        channel_max: column(4.0),
        batches: vec![4; steps],
        channel_absmax: Vec::new(),
    }
}

/// A request about these layers: `steps` of [`timesteps`], and [`calm_columns`].
pub fn request(layers: Vec<LayerSpec>, steps: usize) -> PolicyRequest {
    let statistics = layers.iter().map(|layer| calm_columns(layer, steps)).collect();
    PolicyRequest { statistics, ..PolicyRequest::new("toy", layers, timesteps(steps)) }
}

/// A request about [`sd3_layers`] with statistics as they are found in such models: magnitudes differ by layer and
/// drift over the timesteps, and in some layers few channels stand out far. The same arguments give the same
/// request.
pub fn sd3_request(blocks: usize, width: usize, steps: usize) -> PolicyRequest {
    let layers = sd3_layers(blocks, width);
    let mut random = Random::new(7);
    let statistics = layers.iter().map(|layer| varied_columns(layer, steps, &mut random)).collect();
    PolicyRequest { statistics, ..PolicyRequest::new("sd3", layers, timesteps(steps)) }
}

/// [`calm_columns`] that are wider or narrower, drift, and may have a few channels that reach far.
fn varied_columns(layer: &LayerSpec, steps: usize, random: &mut Random) -> LayerColumns {
    let scale = random.between(0.3, 2.5);
    let drift = random.between(-0.5, 1.0);
    // One layer in four has channels that reach up to twelve times as far as the others.
    let reach = if random.below(4) == 0 { random.between(2.0, 12.0) } else { 1.0 };
    let mut columns = calm_columns(layer, steps);
    for at in 0..steps {
        let scale = scale * (1.0 + drift * at as f32 / steps as f32) * random.between(0.95, 1.05);
        let values = [
            &mut columns.p50,
            &mut columns.p99,
            &mut columns.p999,
            &mut columns.channel_p50,
            &mut columns.channel_p99,
        ];
        for column in values {
            column[at] *= scale;
        }
        for column in [&mut columns.absmax, &mut columns.max, &mut columns.channel_max] {
            column[at] *= scale * reach;
        }
        if layer.post_gelu {
            columns.shift_magnitude[at] *= scale * reach;
            columns.shifted_absmax[at] *= scale * reach;
        } else {
            for column in [&mut columns.min, &mut columns.p001, &mut columns.p01] {
                column[at] *= scale;
            }
        }
        columns.outlier_ratio[at] = columns.absmax[at] / columns.p99[at];
        columns.spike_fraction[at] = if reach > 5.0 { 0.01 } else { 0.0 };
    }
    columns
}

/// The request with these settings, a JSON object.
///
/// # Panics
/// If `settings` is no object.
pub fn with_settings(mut request: PolicyRequest, settings: &Value) -> PolicyRequest {
    request.settings = settings.as_object().expect("settings are a JSON object").clone();
    request
}

/// Reads a request, such as `taq policy request` prints.
///
/// # Errors
/// A file that cannot be read or is no request: its path, and what is wrong.
pub fn read_request(path: impl AsRef<Path>) -> Result<PolicyRequest, PolicyError> {
    let path = path.as_ref();
    let refuse = |reason: String| PolicyError::new(format!("`{}`: {reason}", path.display()));
    let text = std::fs::read(path).map_err(|e| refuse(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| refuse(e.to_string()))
}

/// Runs a policy as the host does, and holds it to what the host expects: the plan answers the request
/// ([`PolicyPlan::check`]), is the same the second time, and the same through the JSON of the module's boundary.
///
/// # Errors
/// What the policy says.
///
/// # Panics
/// With a reason, if the policy does not keep to its contract.
pub fn run(
    request: &PolicyRequest,
    assign: impl Fn(&PolicyRequest) -> Result<PolicyPlan, PolicyError>,
) -> Result<PolicyPlan, PolicyError> {
    let answer = assign(request);
    assert!(assign(request) == answer, "the policy answers otherwise the second time");
    let document = serde_json::to_vec(request).expect("a request can be written");
    let (bytes, fine) = guest::answer(&document, &assign);
    let expected = match &answer {
        Ok(plan) => serde_json::to_vec(plan),
        Err(error) => serde_json::to_vec(error),
    };
    assert!(
        fine == answer.is_ok() && bytes == expected.expect("an answer can be written"),
        "the policy answers otherwise through JSON: {}",
        String::from_utf8_lossy(&bytes)
    );
    if let Ok(plan) = &answer {
        plan.check(request).unwrap_or_else(|e| panic!("the plan does not answer the request: {e}"));
    }
    answer
}

#[cfg(test)]
mod tests;
