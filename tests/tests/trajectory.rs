//! The whole sampling loop against diffusers: schedule, guidance, and where 28 steps lead.

use mlx_rs::{Array, ops};
use serde_json::json;
use taq_core::pipeline::{Guidance, Trajectory};
use taq_core::registry::Registry;
use taq_core::{Conditioning, Context, Identity, Model, Sampler};
use taq_plugins as _;
use taq_tests::golden::{Golden, assert_near};

fn emoji() -> (Box<dyn Model>, Box<dyn Sampler>) {
    let registry = Registry::linked().unwrap();
    let model = registry.model("sd3", &json!({})).unwrap();
    let sampler = registry.sampler("euler", &json!({}), &model.defaults()).unwrap();
    (model, sampler)
}

fn floats(x: &Array) -> Vec<f32> {
    x.to_vec_exact::<f32>().unwrap()
}

#[test]
fn the_schedule_is_that_of_diffusers() {
    let (golden, (_, sampler)) = (Golden::open("emoji_sd3.safetensors"), emoji());
    for steps in [4, 10, 28, 50, 100] {
        let schedule = sampler.schedule(steps).unwrap();
        let expected = floats(&golden.tensor(&format!("sigmas_shift3_{steps}")));
        assert_eq!(schedule.sigmas.len(), expected.len());
        for (found, expected) in schedule.sigmas.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6, "{steps} steps: {found} instead of {expected}");
        }
    }
    let timesteps = floats(&golden.tensor("timesteps_28"));
    for (found, expected) in sampler.schedule(28).unwrap().timesteps.iter().zip(&timesteps) {
        assert!((found - expected).abs() < 1e-3, "{found} instead of {expected}");
    }
}

/// From the prompts' text to the last latent, nothing taken from the reference but the noise.
#[test]
fn the_guided_trajectory_is_that_of_diffusers() {
    let (golden, (model, sampler)) = (Golden::open("emoji_sd3.safetensors"), emoji());
    let encode = |prompts: &[&str]| -> Conditioning {
        model.condition(&prompts.iter().map(|&p| p.to_owned()).collect::<Vec<_>>()).unwrap()
    };
    let guidance = Guidance::new(4.0).unwrap();
    let conditioning = guidance.conditioning(&encode(&["cat face", "red heart"]), &encode(&[""])).unwrap();
    let schedule = sampler.schedule(28).unwrap();
    let trajectory = Trajectory {
        model: &*model,
        sampler: &*sampler,
        schedule: &schedule,
        guidance,
        conditioning: &conditioning,
    };
    let mut latents = Vec::new();
    let noise = golden.nhwc("noise_nchw");
    let last = trajectory
        .run(noise, &mut Identity, &Context::quiet(0), |x, step| {
            if step % 7 == 0 && step > 0 {
                latents.push(x.clone());
            }
            Ok(())
        })
        .unwrap();
    latents.push(last);

    // [0, 7, 14, 21 and 28 steps done; images; channels; h; w]
    let reference = golden.tensor("trajectory_cfg4_28").transpose_axes(&[0, 1, 3, 4, 2]).unwrap();
    let reference: Vec<Array> =
        reference.split_equal(5, 0).unwrap().iter().map(|x| x.squeeze_axes(&[0]).unwrap()).collect();
    assert_near("start", &golden.nhwc("noise_nchw"), &reference[0], 0.0);
    for (i, (found, expected)) in latents.iter().zip(&reference[1..]).enumerate() {
        assert_near(&format!("after step {}", 7 * (i + 1)), found, expected, 1e-3);
    }
    let half = |x: &Array| x.multiply(Array::from_f32(0.5))?.add(Array::from_f32(0.5));
    let image = ops::clip(half(&golden.nhwc("image_cfg4_28_nchw")).unwrap(), (0.0, 1.0)).unwrap();
    assert_near("image", &model.decode(&latents[3]).unwrap(), &image, 1e-3);
}
