//! The stages: each takes settings and a [`Session`], works into the session's run folder, and can be killed at
//! any moment and started again.

mod boundary;
mod cache;
mod calibrate;
mod decide;
mod generate;
mod gradient;
mod guidance;
mod importance;
mod integers;
mod meter;
mod observe;
mod profile;
mod prompts;
mod quantized;
mod reconstruction;
mod report;
mod round;
mod run;
mod samples;
mod scores;
mod sensitivity;
mod session;
mod taqdit;
mod trajectory;

pub use cache::{CacheMetadata, CacheSample, cache};
pub use calibrate::{CalibrationSize, calibrate, calibration_size};
pub use decide::{check_plan, decide, policy_request};
pub use generate::generate;
pub use guidance::Guidance;
pub use integers::IntegerTap;
pub use observe::observe;
pub use profile::{ProfileSummary, profile, profile_summary};
pub use prompts::load_prompts;
pub use quantized::{ActivationPlan, QuantizedLayers, QuantizedTap};
pub use report::{EvaluatorReport, ImageScore, Intervals, PromptAccuracy, Report, VariantReport};
pub use round::{BlockCost, BlockMetrics, WeightsConfig, round};
pub use run::{STAGES, run};
pub use samples::{ImageRecord, RunManifest, Sample, SampleSet};
pub use sensitivity::{
    OutputError, OutputErrors, RankCorrelation, Sensitivities, SensitivityEntry, sensitivity,
};
pub use session::{Encoded, Outcome, Session};
pub use trajectory::Trajectory;
