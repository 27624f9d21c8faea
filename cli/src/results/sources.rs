//! The documents of a run folder, as far as they are there.

use std::path::Path;

use taq_core::artifacts::{RunFolder, read_document};
use taq_core::pipeline::WeightsConfig;
use taq_core::plan::QuantConfig;
use taq_core::{Error, Result};

use super::statistics::Statistics;

/// A run's results, as far as they are there.
pub(crate) struct Sources {
    pub(crate) run: RunFolder,
    /// Who reads, for errors.
    stage: &'static str,
    statistics: Option<Statistics>,
    plan: Option<QuantConfig>,
    weights: Option<WeightsConfig>,
}

impl Sources {
    /// Reads what there is, on behalf of the command `stage`. `plan` names a plan in place of the run's.
    pub(crate) fn open(run: RunFolder, stage: &'static str, plan: Option<&Path>) -> Result<Self> {
        let statistics =
            run.layer_statistics().exists().then(|| Statistics::open(&run, stage)).transpose()?;
        let own = run.quant_config();
        let path = plan.or_else(|| own.exists().then_some(own.as_path()));
        let plan: Option<QuantConfig> = path.map(read_document).transpose()?;
        if let (Some(path), Some(plan), Some(statistics)) = (path, &plan, &statistics)
            && plan.model != statistics.index.metadata.model
        {
            let reason = "the plan is for another model than the statistics".into();
            return Err(Error::Stale { path: path.to_owned(), reason });
        }
        let weights = WeightsConfig::of(&run)?;
        Ok(Self { run, stage, statistics, plan, weights })
    }

    /// Only what rounding left behind.
    pub(crate) fn rounding(run: RunFolder, stage: &'static str) -> Result<Self> {
        let weights = Some(read_document(&run.weights_config())?);
        Ok(Self { run, stage, statistics: None, plan: None, weights })
    }

    /// # Errors
    /// [`Error::StageMissing`] before `observe`.
    pub(crate) fn statistics(&self) -> Result<&Statistics> {
        self.statistics.as_ref().ok_or_else(|| self.missing("statistics of the activations", "observe"))
    }

    /// # Errors
    /// [`Error::StageMissing`] before `decide`.
    pub(crate) fn plan(&self) -> Result<&QuantConfig> {
        self.plan.as_ref().ok_or_else(|| self.missing("a quantization plan", "decide"))
    }

    /// # Errors
    /// [`Error::StageMissing`] before `round`.
    pub(crate) fn weights(&self) -> Result<&WeightsConfig> {
        self.weights.as_ref().ok_or_else(|| self.missing("rounded weights", "round"))
    }

    pub(crate) fn missing(&self, needs: &str, first: &'static str) -> Error {
        Error::StageMissing { stage: self.stage, needs: needs.into(), run: self.run.root().to_owned(), first }
    }
}
