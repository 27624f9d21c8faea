//! Stages: whether a result is reused, taken up again, or refused with a reason.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fingerprint::{Fingerprint, Parts, differences};
use super::json::{Document, read_document, write_json};
use super::run::RunFolder;
use crate::{Error, Result};

/// The `format` of a [`StageRecord`].
pub const STAGE_RECORD_FORMAT: &str = "taq.stage_record.v1";

/// `stages/{stage}.json`: what a stage's results depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// Always [`STAGE_RECORD_FORMAT`].
    pub format: String,
    /// The stage.
    pub stage: String,
    /// Inputs and settings by name.
    pub parts: Parts,
    /// Whether the stage came to its end.
    pub complete: bool,
}

impl Document for StageRecord {
    const FORMAT: &'static str = STAGE_RECORD_FORMAT;
    const KIND: &'static str = "stage record";
}

impl StageRecord {
    /// Hash of the parts: what later stages name among theirs.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.parts)
    }
}

/// What a stage finds when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageState {
    /// Nothing is there.
    Fresh,
    /// A part of the results is there, made with the same inputs and settings.
    Resume,
    /// All of the results are there.
    Complete,
}

impl RunFolder {
    /// Begins a stage whose results depend on `parts` and lie under `outputs` (files or folders of this run).
    ///
    /// With `force`, results of other inputs or settings are removed, and results without a record, which something else
    /// left there; results of the same inputs and settings are kept.
    ///
    /// # Errors
    /// [`Error::Stale`] if there are results of other inputs or settings, with each part that differs and both
    /// values, or results without a record; [`Error::Malformed`] if the record cannot be understood; [`Error::Io`].
    pub fn begin_stage(
        &self,
        stage: &str,
        parts: &Parts,
        outputs: &[PathBuf],
        force: bool,
    ) -> Result<StageState> {
        let old = match self.stage_record(stage) {
            Err(Error::Malformed { .. }) if force => Some(self.record(stage, Parts::new(), false)),
            other => other?,
        };
        if let Some(old) = old {
            let differing = differences(&old.parts, parts);
            if differing.is_empty() {
                return Ok(if old.complete { StageState::Complete } else { StageState::Resume });
            }
            if !force {
                return Err(Error::Stale {
                    path: self.root().to_owned(),
                    reason: format!("{stage}: {}", list(&differing)),
                });
            }
            // If we are stopped amid the removal, the old record must not call what is left complete.
            self.write_record(&StageRecord { complete: false, ..old })?;
            outputs.iter().try_for_each(|path| self.remove(path))?;
        } else if let Some(unknown) = outputs.iter().find(|path| path.symlink_metadata().is_ok()) {
            if !force {
                let reason = format!("{stage}: nothing says how `{}` was made", self.relative(unknown));
                return Err(Error::Stale { path: self.root().to_owned(), reason });
            }
            outputs.iter().try_for_each(|path| self.remove(path))?;
        }
        self.write_record(&self.record(stage, parts.clone(), false))?;
        Ok(StageState::Fresh)
    }

    /// Marks a stage as complete.
    ///
    /// # Errors
    /// [`Error::Io`] if it never began or its record cannot be written, [`Error::Malformed`] if it cannot be
    /// understood.
    pub fn finish_stage(&self, stage: &str) -> Result<()> {
        let record: StageRecord = read_document(&self.stage(stage))?;
        self.write_record(&StageRecord { complete: true, ..record })
    }

    /// A stage's record; `None` if it never began.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it cannot be understood, [`Error::Io`] if it cannot be read.
    pub fn stage_record(&self, stage: &str) -> Result<Option<StageRecord>> {
        match read_document(&self.stage(stage)) {
            Ok(record) => Ok(Some(record)),
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(other) => Err(other),
        }
    }

    fn record(&self, stage: &str, parts: Parts, complete: bool) -> StageRecord {
        StageRecord { format: STAGE_RECORD_FORMAT.to_owned(), stage: stage.to_owned(), parts, complete }
    }

    fn write_record(&self, record: &StageRecord) -> Result<()> {
        write_json(&self.stage(&record.stage), record)
    }

    /// Removes a file or folder of this run, and nothing outside it; links are removed, not followed.
    fn remove(&self, path: &Path) -> Result<()> {
        let inside = path.strip_prefix(self.root()).is_ok_and(|rest| {
            rest.components().next().is_some()
                && rest.components().all(|c| matches!(c, std::path::Component::Normal(_)))
        });
        if !inside {
            let reason = std::io::Error::new(ErrorKind::InvalidInput, "it is not inside the run folder");
            return Err(Error::io("remove", path)(reason));
        }
        let result = match fs::symlink_metadata(path) {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(e) => Err(e),
        };
        match result {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other.map_err(Error::io("remove", path)),
        }
    }
}

fn list(differing: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = differing.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if differing.len() > SHOWN {
        text.push_str(&format!("; and {} more", differing.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::artifacts::atomic::atomic_write_bytes;

    fn parts(value: Value) -> Parts {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn fresh_then_resume_then_complete() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(dir.path()).unwrap();
        let parts = parts(json!({"seed": 7, "cfg_weight": 1.5f32, "third": 1.0 / 3.0}));
        assert_eq!(run.stage_record("calibrate").unwrap(), None);
        let begin = || run.begin_stage("calibrate", &parts, &[], false).unwrap();
        assert_eq!(begin(), StageState::Fresh);
        assert_eq!(begin(), StageState::Resume);
        run.finish_stage("calibrate").unwrap();
        assert_eq!(begin(), StageState::Complete);
        let record = run.stage_record("calibrate").unwrap().unwrap();
        assert_eq!(record.fingerprint(), Fingerprint::of(&parts));
        assert!(record.complete);
    }

    #[test]
    fn other_settings_are_refused_with_both_values() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(dir.path()).unwrap();
        let old = parts(json!({"model": "ab12", "settings": {"num_steps": 28, "prompts": ["a cat"]}}));
        let new =
            parts(json!({"model": "ab12", "seed": 1, "settings": {"num_steps": 50, "prompts": ["a cat"]}}));
        run.begin_stage("calibrate", &old, &[], false).unwrap();
        let error = run.begin_stage("calibrate", &new, &[], false).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "`{}` holds results of another run: calibrate: `seed` was absent, is 1; \
                 `settings.num_steps` was 28, is 50",
                dir.path().display()
            )
        );
        assert!(error.help().unwrap().contains("--force"));
        // Refusing changes nothing.
        assert_eq!(run.begin_stage("calibrate", &old, &[], false).unwrap(), StageState::Resume);
    }

    #[test]
    fn force_removes_the_results_of_that_stage_only() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(dir.path()).unwrap();
        let (old, new) = (parts(json!({"seed": 1})), parts(json!({"seed": 2})));
        let outputs = [run.samples(), run.manifest(), run.latents()];
        run.begin_stage("calibrate", &old, &outputs, true).unwrap();
        atomic_write_bytes(&run.sample(0, 0), b"x").unwrap();
        atomic_write_bytes(&run.manifest(), b"x").unwrap();
        atomic_write_bytes(&run.layer_statistics(), b"x").unwrap();
        run.finish_stage("calibrate").unwrap();
        // The same parts are not stale, force or not.
        assert_eq!(run.begin_stage("calibrate", &old, &outputs, true).unwrap(), StageState::Complete);
        assert!(run.sample(0, 0).exists());
        assert_eq!(run.begin_stage("calibrate", &new, &outputs, true).unwrap(), StageState::Fresh);
        assert!(!run.samples().exists() && !run.manifest().exists());
        assert!(run.layer_statistics().exists());
        assert_eq!(run.begin_stage("calibrate", &new, &outputs, false).unwrap(), StageState::Resume);
    }

    #[test]
    fn a_removal_that_fails_leaves_no_complete_record() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(&dir.path().join("run")).unwrap();
        let (old, new) = (parts(json!({"seed": 1})), parts(json!({"seed": 2})));
        run.begin_stage("observe", &old, &[], false).unwrap();
        run.finish_stage("observe").unwrap();
        let outside = dir.path().join("precious");
        fs::write(&outside, b"x").unwrap();
        for path in [outside.clone(), run.root().join("../precious"), run.root().to_owned()] {
            let error = run.begin_stage("observe", &new, &[path], true).unwrap_err();
            assert!(error.to_string().contains("not inside the run folder"), "{error}");
        }
        assert!(outside.exists() && run.root().exists());
        assert_eq!(run.begin_stage("observe", &old, &[], false).unwrap(), StageState::Resume);
    }

    #[test]
    fn a_damaged_record_is_named_and_force_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(dir.path()).unwrap();
        let parts = parts(json!({"seed": 1}));
        atomic_write_bytes(&run.stage("observe"), b"{").unwrap();
        atomic_write_bytes(&run.layer_statistics(), b"x").unwrap();
        let error = run.begin_stage("observe", &parts, &[], false).unwrap_err();
        assert!(matches!(&error, Error::Malformed { path, .. } if *path == run.stage("observe")));
        let outputs = [run.activations()];
        assert_eq!(run.begin_stage("observe", &parts, &outputs, true).unwrap(), StageState::Fresh);
        assert!(!run.activations().exists());
    }

    #[test]
    fn results_without_a_record_are_refused_and_force_removes_them() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(dir.path()).unwrap();
        let parts = parts(json!({"seed": 1}));
        atomic_write_bytes(&run.layer_statistics(), b"x").unwrap();
        let outputs = [run.layer_statistics(), run.timestep_stats()];
        let message = run.begin_stage("observe", &parts, &outputs, false).unwrap_err().to_string();
        assert!(message.contains("nothing says how `activations/layer_statistics.json`"), "{message}");
        assert!(run.layer_statistics().exists() && run.stage_record("observe").unwrap().is_none());
        assert_eq!(run.begin_stage("observe", &parts, &outputs, true).unwrap(), StageState::Fresh);
        assert!(!run.layer_statistics().exists());
    }

    #[test]
    fn finishing_what_never_began_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(dir.path()).unwrap();
        assert!(matches!(run.finish_stage("round"), Err(Error::Io { .. })));
    }
}
