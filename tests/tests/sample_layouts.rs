//! Samples in the layouts of taq's Python ancestor give the statistics of taq's own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mlx_rs::Array;
use serde_json::{Value, json};
use taq_core::artifacts::{Npz, NpzWriter, RunFolder, write_npz};
use taq_core::registry::Registry;
use taq_plugins as _;
use taq_tests::taq::{fail, folded, succeed};
use tempfile::TempDir;

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

/// Taq's own samples, and what is known of them.
struct Own {
    folder: TempDir,
    manifest: Value,
    paths: RunFolder,
}

const IMAGES: usize = 2;
const STEPS: usize = 3;

impl Own {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("own");
        let run = root.to_str().unwrap();
        succeed(HOST, &["calibrate", "--num-images", "2", "--num-steps", "3", "--calib-dir", run]);
        succeed(HOST, &["observe", "--run", run, "--observer", "minmax,percentile"]);
        let paths = RunFolder::open(&root).unwrap();
        let manifest = serde_json::from_slice(&fs::read(paths.manifest()).unwrap()).unwrap();
        Self { folder, manifest, paths }
    }

    fn root(&self, name: &str) -> PathBuf {
        let root = self.folder.path().join(name);
        fs::create_dir_all(&root).unwrap();
        root
    }

    /// Latent and σ of a sample.
    fn sample(&self, image: usize, step: usize) -> (Array, f32) {
        let npz = Npz::open(&self.paths.sample(image, step)).unwrap();
        (npz.array("x").unwrap(), npz.scalar("sigma").unwrap())
    }

    fn prompts(&self) -> Vec<String> {
        (0..IMAGES).map(|i| self.manifest["images"][i]["prompt"].as_str().unwrap().to_owned()).collect()
    }

    /// Every sample by a writer of its own, the final latents too.
    fn write(
        &self,
        path: impl Fn(usize, usize) -> PathBuf,
        fill: impl Fn(&mut NpzWriter<'_>, usize, usize, Array, f32) -> taq_core::Result<()>,
    ) {
        for image in 0..IMAGES {
            for step in 0..=STEPS {
                let (x, sigma) = self.sample(image, step);
                let path = path(image, step);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                write_npz(&path, |npz| fill(npz, image, step, x, sigma)).unwrap();
            }
        }
    }

    /// The ancestor's manifest, which has no format.
    fn ancestors(&self, more: Value) -> Vec<u8> {
        let mut manifest = json!({
            "n_completed": IMAGES, "num_steps": STEPS, "cfg_scale": self.manifest["cfg_scale"],
            "latent_size": self.manifest["latent_size"], "prompt_path": "prompts.csv", "use_t5": true,
            "images": self.prompts().iter().enumerate().map(|(i, p)| json!({"image_id": i, "prompt": p, "seed": i}))
                .collect::<Vec<_>>(),
        });
        manifest.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::to_vec(&manifest).unwrap()
    }

    fn same_statistics(&self, root: &Path) {
        let run = root.to_str().unwrap();
        succeed(HOST, &["observe", "--run", run, "--observer", "minmax,percentile"]);
        let found = RunFolder::open(root).unwrap();
        for step in 0..STEPS {
            let of = |paths: &RunFolder| fs::read(paths.step_stats(step)).unwrap();
            assert!(of(&found) == of(&self.paths), "{run}: step {step} differs");
        }
    }
}

fn refused(root: &Path, expected: &[&str]) {
    let (code, said) = fail(HOST, &["observe", "--run", root.to_str().unwrap()]);
    assert_eq!(code, 2, "{said}");
    for part in expected {
        assert!(folded(&said).contains(part), "it should say “{part}”: {said}");
    }
}

#[test]
fn the_ancestors_layouts_give_the_same_statistics() {
    let own = Own::new();

    // The manifest names the files; a leading axis; numbers of other types.
    let listed = own.root("listed");
    own.write(
        |image, step| listed.join(format!("caps/cap_{image:04}_{step:03}.npz")),
        |npz, image, step, x, sigma| {
            npz.array("latent", &x.expand_dims(0)?)?;
            npz.add("timestep", &[1], &[1000.0 * f64::from(sigma)])?;
            npz.scalar("sigma", f64::from(sigma))?;
            npz.scalar("step_index", step as i64)?;
            npz.scalar("image_id", image as i32)?;
            npz.scalar("is_final", step == STEPS)
        },
    );
    let name = |i: usize, k: usize| format!("caps/cap_{i:04}_{k:03}.npz");
    let files: Vec<String> = (0..IMAGES).flat_map(|i| (0..=STEPS).map(move |k| name(i, k))).collect();
    fs::write(listed.join("manifest.json"), own.ancestors(json!({"sample_files": files}))).unwrap();
    own.same_statistics(&listed);
    // It goes on from there like a run of taq's own.
    let run = listed.to_str().unwrap();
    succeed(HOST, &["decide", "--run", run]);
    succeed(HOST, &["profile", "--run", run, "--num-samples", "3"]);
    let few = ["--num-images", "1", "--stride", "2", "--bits-w", "4", "--bits-a", "none"];
    succeed(HOST, &[&["sensitivity", "--run", run][..], &few].concat());
    succeed(HOST, &["decide", "--run", run, "--policy", "baseline-a8", "--force"]);
    // Other samples are other results.
    let (x, sigma) = own.sample(0, 1);
    write_npz(&listed.join(name(0, 1)), |npz| {
        npz.array("latent", &x.multiply(Array::from_f32(1.01))?)?;
        npz.scalar("sigma", sigma)
    })
    .unwrap();
    refused(&listed, &["observe: `observers", "`samples.files.(0, 1)`"]);

    // samples/, saved without names.
    let unnamed = own.root("unnamed");
    own.write(
        |image, step| unnamed.join(format!("samples/{image:04}_{step:03}.npz")),
        |npz, image, step, x, sigma| {
            npz.array("arr_0", &x)?;
            npz.scalar("arr_1", 1000.0 * sigma)?;
            npz.scalar("arr_2", sigma)?;
            npz.scalar("arr_3", step as i32)?;
            npz.scalar("arr_4", image as i32)?;
            npz.scalar("arr_5", step == STEPS)
        },
    );
    fs::write(unnamed.join("manifest.json"), own.ancestors(json!({}))).unwrap();
    own.same_statistics(&unnamed);

    // Only files, whose names say what they are, with the prompts' embeddings.
    let model = Registry::linked().unwrap().model("sd3", &json!({})).unwrap();
    let prompts = model.condition(&own.prompts()).unwrap();
    let bare = own.root("bare");
    own.write(
        |image, step| bare.join(format!("{image:04}_{step:03}.npz")),
        |npz, image, step, x, sigma| {
            npz.array("x", &x)?;
            npz.scalar("sigma", sigma)?;
            npz.scalar("is_final", step == STEPS)?;
            let row = prompts.rows(&[image])?;
            npz.array("conditioning", &row.tokens)?;
            npz.array("pooled_conditioning", &row.pooled)
        },
    );
    own.same_statistics(&bare);

    // What is missing is named.
    fs::remove_file(bare.join("0001_001.npz")).unwrap();
    refused(&bare, &["image 1 has no sample of step 1, which other images have"]);
    let lost = own.root("lost");
    own.write(
        |image, step| lost.join(format!("{image:04}_{step:03}.npz")),
        |npz, _, step, x, sigma| {
            npz.array("x", &x)?;
            npz.scalar("is_final", step == STEPS)?;
            npz.scalar("sigma", sigma)
        },
    );
    refused(&lost, &["0000_000.npz", "its prompt is not known", "pooled_conditioning"]);
    fs::write(lost.join("manifest.json"), own.ancestors(json!({"sample_files": ["../x.npz"]}))).unwrap();
    refused(&lost, &["manifest.json", "expected a list of file names below the folder"]);
    let empty = own.root("empty");
    refused(&empty, &["observe needs calibration samples", "taq calibrate"]);
    write_npz(&empty.join("a.npz"), |npz| npz.scalar("sigma", 1.0f32)).unwrap();
    refused(&empty, &["a.npz", "says its image"]);
    write_npz(&empty.join("a.npz"), |npz| npz.scalar("image_id", 1)).unwrap();
    refused(&empty, &["a.npz", "`sigma` or `arr_2`"]);
}

#[test]
fn calibration_data_in_one_file_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("own");
    let run = root.to_str().unwrap();
    let recipe =
        ["--recipe", "taq-dit", "--num-steps", "6", "--num-selected-steps", "3", "--num-images", "2"];
    succeed(HOST, &[&["calibrate", "--calib-dir", run][..], &recipe].concat());
    let one = folder.path().join("one");
    fs::create_dir(&one).unwrap();
    fs::copy(root.join("DiT_cali_data.npz"), one.join("DiT_cali_data.npz")).unwrap();
    let mut found = Vec::new();
    for root in [&root, &one] {
        let run = root.to_str().unwrap();
        succeed(HOST, &["observe", "--run", run, "--observer", "minmax"]);
        succeed(HOST, &["profile", "--run", run]);
        let paths = RunFolder::open(root).unwrap();
        let profile = Npz::open(&paths.post_gelu_profile()).unwrap();
        let sigmas = profile.read::<f32>("sigmas").unwrap().data;
        let values: BTreeMap<String, Vec<f32>> = profile
            .names()
            .into_iter()
            .filter(|name| name.ends_with("__mean") || name.ends_with("__max"))
            .map(|name| (name.clone(), profile.read(&name).unwrap().data))
            .collect();
        assert!(values.len() > 10);
        found.push((sigmas, values));
    }
    let (own, other) = (&found[0], &found[1]);
    // Timesteps are kept, not noise levels: σ is as exact as a division by 1000.
    assert!(own.0.iter().zip(&other.0).all(|(a, b)| (a - b).abs() < 1e-6), "{:?} {:?}", own.0, other.0);
    for (name, values) in &own.1 {
        for (a, b) in values.iter().zip(&other.1[name]) {
            assert!((a - b).abs() <= 1e-4 * a.abs().max(0.1), "{name}: {a} {b}");
        }
    }
    // A file that lacks something.
    write_npz(&one.join("DiT_cali_data.npz"), |npz| npz.scalar("cfg_scale", 1.5f32)).unwrap();
    refused(&one, &["DiT_cali_data.npz", "no array `xs`"]);
}
