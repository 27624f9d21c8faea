//! `observe`: statistics of every layer's input at every timestep, through a tap.
//!
//! The unit of work is a timestep: all images of a step are shown in order, and the step's files are written. A
//! killed run goes on with the first step whose index is not there.

mod files;
mod input;
mod tap;

use std::collections::BTreeSet;

use serde_json::json;

use super::session::{Encoded, measured, parts};
use super::{Outcome, SampleSet, Session};
use crate::artifacts::{StageState, write_json};
use crate::manifest::{ObserveSettings, PluginChoice};
use crate::registry::{Kind, Registry};
use crate::stats::{ObserverRecord, STATISTICS_FORMAT, StatisticsIndex, StatisticsMetadata};
use crate::{Error, LayerId, Observer, Result, choose_layers};
pub use input::Description;
pub use tap::{MakeObservers, ObserverTap};
pub(super) use tap::{host_inputs, values_of};

/// The ancestor's names for parts of the schedule.
const BUCKETS: [(&str, [f32; 2]); 3] = [("early", [0.7, 1.0]), ("mid", [0.3, 0.7]), ("late", [0.0, 0.3])];

/// Counted up when the step files get other contents, so that a run folder never holds both kinds.
const SCALARS: u32 = 3;

/// Settings with every default filled in.
struct Job {
    observers: Vec<PluginChoice>,
    describe: Description,
    images: usize,
    steps: Vec<usize>,
    layers: BTreeSet<LayerId>,
    batch_size: usize,
}

impl Job {
    fn new(session: &Session, settings: &ObserveSettings, set: &SampleSet) -> Result<Self> {
        settings.check(&session.registry)?;
        let (images, steps) = set.chosen("observe", settings.num_images, settings.stride)?;
        let known: Vec<LayerId> = session.model.spec().layers().map(|l| l.id.clone()).collect();
        let layers = match &settings.layers {
            Some(words) => choose_layers(&known, words)?,
            None => known,
        };
        Ok(Self {
            observers: settings.observers().cloned().collect(),
            describe: settings.description(),
            images,
            steps,
            layers: layers.into_iter().collect(),
            batch_size: settings.batch_size,
        })
    }

    fn make(&self, registry: &Registry) -> Result<Vec<(String, Box<dyn Observer>)>> {
        let one = |c: &PluginChoice| Ok((c.name.clone(), registry.observer(&c.name, &c.settings())?));
        self.observers.iter().map(one).collect()
    }
}

impl ObserveSettings {
    /// All observers; the ranges of the first are what plans are made from.
    pub fn observers(&self) -> impl Iterator<Item = &PluginChoice> {
        [&self.observer].into_iter().chain(&self.beside)
    }

    fn description(&self) -> Description {
        Description { hist_bins: self.hist_bins, shift_momentum: self.shift_momentum }
    }

    /// Checks what can be checked without a run: the observers by making one of each, and numbers that are out of range.
    ///
    /// # Errors
    /// [`Error::Settings`] and [`Error::UnknownPlugin`] with what was expected.
    pub fn check(&self, registry: &Registry) -> Result<()> {
        let refuse = |reason: String| Err(Error::settings("observe", reason));
        let mut names = BTreeSet::new();
        for choice in self.observers() {
            registry.observer(&choice.name, &choice.settings())?;
            if !names.insert(&choice.name) {
                return refuse(format!("observer `{}` is chosen twice, expected once", choice.name));
            }
        }
        if self.batch_size == 0 {
            return refuse("batch_size must be at least 1, not 0".into());
        }
        if !(0.0..=1.0).contains(&self.shift_momentum) {
            return refuse(format!("shift_momentum must be between 0 and 1, not {}", self.shift_momentum));
        }
        const MOST: usize = 1 << 16;
        if self.hist_bins > MOST {
            return refuse(format!("hist_bins must be at most {MOST}, not {}", self.hist_bins));
        }
        Ok(())
    }
}

/// Runs the stage.
pub fn observe(session: &Session, settings: &ObserveSettings) -> Result<Outcome> {
    measured(session, "observe", || {
        let run = &session.run;
        let set = SampleSet::open(run, "observe", &*session.model)?;
        let job = Job::new(session, settings, &set)?;
        let identities: Vec<_> =
            job.observers.iter().map(|c| session.identity(Kind::Observer, c)).collect::<Result<_>>()?;
        let parts = parts([
            ("samples", set.identity(session)?),
            ("observers", json!(identities)),
            ("images", json!(job.images)),
            ("steps", json!(job.steps)),
            ("layers", json!(job.layers)),
            ("batch_size", json!(job.batch_size)),
            ("hist_bins", json!(settings.hist_bins)),
            ("shift_momentum", json!(settings.shift_momentum)),
            ("scalars", json!(SCALARS)),
        ]);
        let outputs = [run.layer_statistics(), run.timestep_stats()];
        let state = run.begin_stage("observe", &parts, &outputs, session.force)?;
        let summary =
            format!("{} layers × {} steps, {} images", job.layers.len(), job.steps.len(), job.images);
        let missing = |step: &&usize| !(run.step_index(**step).exists() && run.step_stats(**step).exists());
        if state == StageState::Complete
            && run.layer_statistics().exists()
            && job.steps.iter().find(missing).is_none()
        {
            return Ok((summary, true));
        }
        let encoded = set.encode(session, job.images)?;
        session.cx.progress.begin("observe", job.steps.len() as u64);
        for step in &job.steps {
            session.cx.check()?;
            if missing(&step) {
                observe_step(session, &job, &set, &encoded, *step)?;
            }
            session.cx.progress.advance(1, "");
        }
        session.cx.progress.end();
        write_json(&run.layer_statistics(), &index(session, settings, &job, &set))?;
        run.finish_stage("observe")?;
        Ok((summary, false))
    })
}

fn observe_step(session: &Session, job: &Job, set: &SampleSet, encoded: &Encoded, step: usize) -> Result<()> {
    let make = || job.make(&session.registry);
    let wanted = |id: &LayerId| job.layers.contains(id);
    let mut tap = ObserverTap::new(&make, job.describe, &wanted, step, set.manifest.sigmas[step]);
    let ids: Vec<usize> = (0..job.images).collect();
    set.show(session, encoded, step, ids.chunks(job.batch_size), &mut tap, ObserverTap::flush)?;
    let stats = tap.finish()?;
    if let Some(id) = job.layers.iter().find(|id| !stats.contains_key(*id)) {
        return Err(Error::Unsupported { what: format!("the model did not call its layer {id}") });
    }
    files::write_step(&session.run, step, stats)
}

fn index(session: &Session, settings: &ObserveSettings, job: &Job, set: &SampleSet) -> StatisticsIndex {
    let record = |choice: &PluginChoice| ObserverRecord {
        name: choice.name.clone(),
        settings: choice.settings.clone(),
    };
    StatisticsIndex {
        format: STATISTICS_FORMAT.to_owned(),
        hist_bins: settings.hist_bins,
        timestep_dir: "timestep_stats".to_owned(),
        sigma_map: job.steps.iter().map(|&s| (s, set.manifest.sigmas[s])).collect(),
        bucket_definitions: BUCKETS.iter().map(|(name, range)| ((*name).to_owned(), *range)).collect(),
        shift_momentum: settings.shift_momentum,
        post_gelu_suffix: ".mlp.fc2".to_owned(),
        step_keys: job.steps.clone(),
        metadata: StatisticsMetadata {
            num_images: job.images,
            num_timesteps: job.steps.len(),
            total_processed: job.images * job.steps.len(),
            selected_image_ids: (0..job.images).collect(),
            model: session.model.spec().fingerprint.clone(),
            observer: record(&settings.observer),
            beside: settings.beside.iter().map(record).collect(),
            batch_size: job.batch_size,
        },
    }
}
