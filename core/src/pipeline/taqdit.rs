//! TaQ-DiT's calibration set (arXiv 2411.14172, section IV-A): some timesteps of each trajectory, chosen
//! uniformly, all shuffled into one `DiT_cali_data.npz`.

use mlx_rs::{Array, ops};

use super::Guidance;
use super::samples::{RunManifest, SampleSet};
use super::session::{Encoded, Session};
use crate::artifacts::write_npz;
use crate::noise::Rng;
use crate::{Error, Result};

/// `count` of `steps` steps at equal distances, the first among them.
pub(super) fn selected_steps(steps: usize, count: usize) -> Result<Vec<usize>> {
    if count > steps {
        let reason = format!("num_selected_steps ({count}) must not exceed num_steps ({steps})");
        return Err(Error::settings("calibrate", reason));
    }
    Ok((0..count).map(|i| i * steps / count).collect())
}

/// Gathers the samples into `DiT_cali_data.npz`: `xs` (rows, h, w, channels), `ts` (rows,) model timesteps,
/// `prompt_indices` (rows,), `cs` (prompts, 2, tokens, width) and `cs_pooled` (prompts, 2, width) with the
/// prompt's and the empty embedding, `prompts`, `cfg_scale`.
pub(super) fn write(
    session: &Session,
    manifest: &RunManifest,
    prompts: &[String],
    encoded: &Encoded,
) -> Result<()> {
    let set = SampleSet::open(&session.run, "calibrate", &*session.model)?;
    let mut rows: Vec<(usize, usize)> =
        (0..manifest.n_completed).flat_map(|i| manifest.kept_steps.iter().map(move |&s| (i, s))).collect();
    Rng::stream(session.cx.seed, "samples").shuffle(&mut rows);

    let both = Guidance::new(1.0)?;
    let (mut tokens, mut pooled) = (Vec::new(), Vec::new());
    for prompt in 0..prompts.len() {
        let pair = encoded.batch(both, &[prompt])?;
        tokens.push(pair.tokens);
        pooled.push(pair.pooled);
    }
    let ts: Vec<f32> = rows.iter().map(|&(_, step)| set.timestep(step)).collect();
    let indices: Vec<i32> = rows.iter().map(|&(image, _)| (image % prompts.len()) as i32).collect();
    let count = [rows.len() as i32];

    write_npz(&session.run.cali_data(), |npz| {
        npz.array("xs", &set.latents(&rows)?)?;
        npz.array("ts", &Array::from_slice(&ts, &count))?;
        npz.array("prompt_indices", &Array::from_slice(&indices, &count))?;
        npz.array("cs", &ops::stack(&tokens, 0)?)?;
        npz.array("cs_pooled", &ops::stack(&pooled, 0)?)?;
        npz.strings("prompts", prompts)?;
        npz.scalar("cfg_scale", manifest.cfg_scale)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_uniform() {
        assert_eq!(selected_steps(100, 25).unwrap()[..4], [0, 4, 8, 12]);
        assert_eq!(selected_steps(10, 3).unwrap(), [0, 3, 6]);
        assert!(selected_steps(10, 11).unwrap_err().to_string().contains("must not exceed num_steps (10)"));
    }
}
