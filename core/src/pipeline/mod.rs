//! The stages: each takes settings and a [`Session`], works into the session's run folder, and can be killed at
//! any moment and started again.

mod bench;
mod boundary;
mod cache;
mod calibrate;
mod decide;
mod execute;
mod export;
mod generate;
mod generation;
mod gradient;
mod guidance;
mod import;
mod importance;
mod integers;
mod meter;
mod observe;
mod packed;
mod picture;
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

pub use bench::{BenchEntry, BenchReport, BenchSettings, Latency, Memory, SetDistances, Subject, bench};
pub use cache::{CacheMetadata, CacheSample, cache};
pub use calibrate::{CalibrationSize, calibrate, calibration_size};
pub use decide::{
    LayerOverTime, OutlierChannels, ShiftEffect, SmoothQuantCandidate, Switcher, TemporalAnalysis,
    VariableLayer, check_plan, decide, policy_request,
};
pub use export::{ExportFormat, ExportSettings, Exported, FloatType, PackedLayer, PackedWeights, export};
pub use generate::generate;
pub use guidance::Guidance;
pub use import::{ImportSettings, import};
pub use integers::IntegerTap;
pub use observe::{Description, MakeObservers, ObserverTap, observe};
pub use packed::PackedTap;
pub use picture::{Picture, picture};
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
