//! The run folder: where everything lies. `docs` describe the layout; this file is the only one that spells it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::atomic::sweep;
use super::lock::FolderLock;
use crate::manifest::Variant;
use crate::{BlockId, Error, LayerId, Result};

/// A run's folder.
///
/// The methods name paths and touch nothing; folders come into being when the first file is written.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
    /// Held by the writer of the run and its clones.
    _lock: Option<Arc<FolderLock>>,
}

impl RunFolder {
    /// Opens a folder for writing and creates it if need be: locks it, and removes what a killed process left
    /// unfinished. The lock is held until the last clone is dropped.
    ///
    /// # Errors
    /// [`Error::Io`] if the path is a file, cannot be written to, or another process is writing to it.
    pub fn create(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).map_err(|e| {
            let e = match e.kind() {
                ErrorKind::AlreadyExists => std::io::Error::new(e.kind(), "it is a file, not a folder"),
                _ => e,
            };
            Error::io("create", root)(e)
        })?;
        let lock = FolderLock::take(root)?;
        let removed = sweep(root)?;
        if removed > 0 {
            tracing::info!("removed {removed} unfinished files from `{}`", root.display());
        }
        Ok(Self { root: root.to_owned(), _lock: Some(Arc::new(lock)) })
    }

    /// Opens a folder that exists, without the lock: to read, or as one of several processes of a group whose
    /// first has called [`Self::create`].
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such folder.
    pub fn open(root: &Path) -> Result<Self> {
        let kind = fs::metadata(root).map_err(Error::io("open", root))?;
        if !kind.is_dir() {
            let reason = std::io::Error::new(ErrorKind::NotADirectory, "it is a file, not a folder");
            return Err(Error::io("open", root)(reason));
        }
        Ok(Self { root: root.to_owned(), _lock: None })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Prompts, seeds, settings and what is done: the resume point of `calibrate`.
    pub fn manifest(&self) -> PathBuf {
        self.root.join("manifest.json")
    }

    /// Folder of calibration samples.
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples")
    }

    /// One image at one step; the final latent is step `num_steps`.
    pub fn sample(&self, image: usize, step: usize) -> PathBuf {
        self.samples().join(format!("{image:04}_{step:03}.npz"))
    }

    /// All calibration data in one file, as TaQ-DiT keeps it.
    pub fn cali_data(&self) -> PathBuf {
        self.root.join("DiT_cali_data.npz")
    }

    /// Folder of decoded images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// A decoded image.
    pub fn image(&self, image: usize) -> PathBuf {
        self.images().join(format!("{image:04}.png"))
    }

    /// Folder of final latents.
    pub fn latents(&self) -> PathBuf {
        self.root.join("latents")
    }

    /// A final latent.
    pub fn latent(&self, image: usize) -> PathBuf {
        self.latents().join(format!("{image:04}.npz"))
    }

    /// Folder of block inputs and outputs.
    pub fn adaround_cache(&self) -> PathBuf {
        self.root.join("adaround_cache")
    }

    /// What the cache holds.
    pub fn cache_metadata(&self) -> PathBuf {
        self.adaround_cache().join("metadata.json")
    }

    /// Block inputs and outputs of one image at one step.
    pub fn cache_sample(&self, image: usize, step: usize) -> PathBuf {
        self.adaround_cache().join("samples").join(format!("{image:04}_{step:03}.npz"))
    }

    /// Folder of statistics and plans.
    pub fn activations(&self) -> PathBuf {
        self.root.join("activations")
    }

    /// The statistics' index.
    pub fn layer_statistics(&self) -> PathBuf {
        self.activations().join("layer_statistics.json")
    }

    /// Folder of the statistics of each step, and its name in the index.
    pub fn timestep_stats(&self) -> PathBuf {
        self.activations().join("timestep_stats")
    }

    /// Vectors and histograms of one step.
    pub fn step_stats(&self, step: usize) -> PathBuf {
        self.timestep_stats().join(format!("step_{step}.npz"))
    }

    /// Scalars of one step.
    pub fn step_index(&self, step: usize) -> PathBuf {
        self.timestep_stats().join(format!("step_{step}_index.json"))
    }

    /// The quantization plan.
    pub fn quant_config(&self) -> PathBuf {
        self.activations().join("quant_config.json")
    }

    /// How much the model's output suffers from each layer.
    pub fn sensitivities(&self) -> PathBuf {
        self.activations().join("sensitivities.json")
    }

    /// Folder of what `sensitivity` has measured so far.
    pub fn sensitivity_parts(&self) -> PathBuf {
        self.activations().join("sensitivities")
    }

    /// What was measured of one layer. Separators in the id become `_`: the file is in the run's folder.
    pub fn layer_sensitivity(&self, layer: &LayerId) -> PathBuf {
        let name = layer.array_prefix().replace(['/', '\\'], "_");
        self.sensitivity_parts().join(format!("{name}.json"))
    }

    /// What comes out of GELU, all timesteps together.
    pub fn post_gelu_profile(&self) -> PathBuf {
        self.activations().join("post_gelu_profile.npz")
    }

    /// Folder of what `profile` has seen so far.
    pub fn post_gelu_parts(&self) -> PathBuf {
        self.activations().join("post_gelu")
    }

    /// What comes out of GELU at one timestep.
    pub fn post_gelu_part(&self, step: usize) -> PathBuf {
        self.post_gelu_parts().join(format!("step_{step}.npz"))
    }

    /// How layers change over time.
    pub fn temporal_analysis(&self) -> PathBuf {
        self.activations().join("layer_temporal_analysis.json")
    }

    /// Folder of plots.
    pub fn plots(&self) -> PathBuf {
        self.activations().join("plots")
    }

    /// Folder of rounded weights.
    pub fn quantized_weights(&self) -> PathBuf {
        self.root.join("quantized_weights")
    }

    /// How the weights were rounded.
    pub fn weights_config(&self) -> PathBuf {
        self.quantized_weights().join("config.json")
    }

    /// Rounded weights of one block. Separators in the id become `_`: a block's file is in the run's folder.
    pub fn block_weights(&self, block: &BlockId) -> PathBuf {
        let name = block.as_str().replace(['/', '\\'], "_");
        self.quantized_weights().join("weights").join(format!("{name}.npz"))
    }

    /// Time and memory that a stage took.
    pub fn stage_cost(&self, stage: &str) -> PathBuf {
        self.root.join("stages").join(format!("{stage}.cost.json"))
    }

    /// Rounded weights of layers whose input is not quantized.
    pub fn weight_only_weights(&self) -> PathBuf {
        self.quantized_weights().join("weights").join("weight_only.npz")
    }

    /// What rounding a block took.
    pub fn block_cost(&self, block: &BlockId) -> PathBuf {
        self.block_record(block).with_extension("cost.json")
    }

    /// How a block came out; it is there once the block is done.
    pub fn block_record(&self, block: &BlockId) -> PathBuf {
        self.block_weights(block).with_extension("json")
    }

    /// Rounded weights of one block after all blocks were looked at together, before they take [`Self::block_weights`]' place.
    pub fn tuned_weights(&self, block: &BlockId) -> PathBuf {
        self.block_weights(block).with_extension("tuned.npz")
    }

    /// How looking at all blocks together came out; it is there once that is done.
    pub fn tuned_record(&self) -> PathBuf {
        self.quantized_weights().join("end_to_end.json")
    }

    /// Images and final latents of `generate`.
    pub fn generated(&self) -> PathBuf {
        self.root.join("generated")
    }

    /// An image of one variant of `generate`.
    pub fn generated_image(&self, variant: Variant, image: usize) -> PathBuf {
        self.generated().join(variant.name()).join(format!("{image:04}.png"))
    }

    /// What `bench` found and painted.
    pub fn bench(&self) -> PathBuf {
        self.root.join("bench")
    }

    /// A path below the run folder as the documents write it, with `/`.
    pub fn relative(&self, path: &Path) -> String {
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        path.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
    }

    /// The report for programs.
    pub fn report_json(&self) -> PathBuf {
        self.root.join("report.json")
    }

    /// The report for people.
    pub fn report_html(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// What a stage depended on, and whether it is done.
    pub fn stage(&self, stage: &str) -> PathBuf {
        self.root.join("stages").join(format!("{stage}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_as_designed() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(&dir.path().join("deep/run")).unwrap();
        let root = run.root().to_owned();
        let relative = |path: PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
        assert_eq!(relative(run.manifest()), "manifest.json");
        assert_eq!(relative(run.sample(3, 28)), "samples/0003_028.npz");
        assert_eq!(relative(run.image(12)), "images/0012.png");
        assert_eq!(relative(run.latent(12)), "latents/0012.npz");
        assert_eq!(relative(run.cache_metadata()), "adaround_cache/metadata.json");
        assert_eq!(relative(run.cache_sample(0, 4)), "adaround_cache/samples/0000_004.npz");
        assert_eq!(relative(run.layer_statistics()), "activations/layer_statistics.json");
        assert_eq!(relative(run.step_stats(7)), "activations/timestep_stats/step_7.npz");
        assert_eq!(relative(run.step_index(7)), "activations/timestep_stats/step_7_index.json");
        assert_eq!(relative(run.quant_config()), "activations/quant_config.json");
        assert_eq!(relative(run.sensitivities()), "activations/sensitivities.json");
        assert_eq!(
            relative(run.layer_sensitivity(&"mm0/../x.q".into())),
            "activations/sensitivities/mm0____x_q.json"
        );
        assert_eq!(relative(run.post_gelu_profile()), "activations/post_gelu_profile.npz");
        assert_eq!(relative(run.post_gelu_part(7)), "activations/post_gelu/step_7.npz");
        assert_eq!(relative(run.temporal_analysis()), "activations/layer_temporal_analysis.json");
        assert_eq!(relative(run.plots()), "activations/plots");
        assert_eq!(relative(run.weights_config()), "quantized_weights/config.json");
        assert_eq!(relative(run.block_weights(&"mm3".into())), "quantized_weights/weights/mm3.npz");
        assert_eq!(relative(run.block_weights(&"../x".into())), "quantized_weights/weights/.._x.npz");
        assert_eq!(
            relative(run.generated_image(Variant::FullPrecision, 3)),
            "generated/full-precision/0003.png"
        );
        assert_eq!(relative(run.bench()), "bench");
        assert_eq!(relative(run.report_json()), "report.json");
        assert_eq!(relative(run.report_html()), "report.html");
        assert_eq!(relative(run.stage("calibrate")), "stages/calibrate.json");
    }

    #[test]
    fn a_file_is_no_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"").unwrap();
        let expected =
            |action: &str| format!("cannot {action} `{}`: it is a file, not a folder", path.display());
        assert_eq!(RunFolder::create(&path).unwrap_err().to_string(), expected("create"));
        assert_eq!(RunFolder::open(&path).unwrap_err().to_string(), expected("open"));
        assert!(RunFolder::create(&path.join("below")).is_err());
    }

    #[test]
    fn opening_does_not_create() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        match RunFolder::open(&path) {
            Err(Error::Io { action: "open", path: found, .. }) => assert_eq!(found, path),
            other => panic!("{other:?}"),
        }
        assert!(!path.exists());
    }

    #[test]
    fn one_process_writes_and_others_read() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(dir.path()).unwrap();
        let clone = run.clone();
        drop(run);
        assert!(RunFolder::create(dir.path()).unwrap_err().to_string().contains("is writing to it"));
        RunFolder::open(dir.path()).unwrap();
        drop(clone);
        RunFolder::create(dir.path()).unwrap();
    }

    #[test]
    fn creating_sweeps_and_opening_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("samples/.tmp-abc");
        fs::create_dir_all(left.parent().unwrap()).unwrap();
        fs::write(&left, b"half").unwrap();
        RunFolder::open(dir.path()).unwrap();
        assert!(left.exists());
        RunFolder::create(dir.path()).unwrap();
        assert!(!left.exists());
    }

    /// A folder that nobody may write to; root may write anywhere, so as root there is nothing to see.
    #[cfg(unix)]
    #[test]
    fn a_read_only_folder_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
        if fs::write(path.join("probe"), b"").is_ok() {
            eprintln!("skipped: this user may write to read-only folders");
            return;
        }
        match RunFolder::create(&path) {
            Err(Error::Io { path: found, source, .. }) => {
                assert_eq!(found, path);
                assert_eq!(source.kind(), ErrorKind::PermissionDenied);
            }
            other => panic!("{other:?}"),
        }
    }

    /// `/sys` refuses new files to everybody, root included.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_refuses_files_is_named_with_help() {
        let path = Path::new("/sys/kernel");
        match RunFolder::create(path) {
            Err(error @ Error::Io { action: "write", .. }) => {
                assert!(error.to_string().starts_with("cannot write `/sys/kernel`: "), "{error}");
                assert_eq!(error.help().as_deref(), Some("choose a folder that you may write to"));
            }
            other => panic!("{other:?}"),
        }
    }

    /// `/proc` refuses new folders to everybody, root included.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let path = Path::new("/proc/taq-run");
        match RunFolder::create(path) {
            Err(Error::Io { action: "create", path: found, .. }) => assert_eq!(found, path),
            other => panic!("{other:?}"),
        }
    }

    /// `/dev/full` is a disk without space.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_has_help() {
        use std::io::Write;
        let path = Path::new("/dev/full");
        let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
        let error = file.write_all(b"x").map_err(Error::io("write", path)).unwrap_err();
        assert!(error.help().unwrap().contains("resumes"), "{:?}", error.help());
    }
}
