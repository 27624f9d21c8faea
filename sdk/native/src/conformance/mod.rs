//! What the host expects of every plugin, as tests: for authors, and for `taq plugins check`.
//!
//! ```
//! # use taq_plugin::{Context, LayerJob, LayerRounder, Plugin, Result, RoundedLayer};
//! # struct Mine;
//! # #[derive(serde::Deserialize, schemars::JsonSchema)]
//! # #[serde(deny_unknown_fields)]
//! # struct Settings {}
//! # impl Plugin for Mine {
//! #     type Settings = Settings;
//! #     const NAME: &'static str = "mine";
//! #     const SUMMARY: &'static str = "Mine.";
//! #     fn new(_: Settings) -> Result<Self> { Ok(Self) }
//! # }
//! # impl LayerRounder for Mine {
//! #     fn round(&self, job: &LayerJob<'_>, cx: &Context<'_>) -> Result<RoundedLayer> {
//! #         cx.check()?;
//! #         Ok(job.layer.nearest())
//! #     }
//! # }
//! use taq_plugin::conformance::{RounderUnderTest, assert_rounder_conforms};
//!
//! assert_rounder_conforms(&RounderUnderTest::of_layers::<Mine>("{}"));
//! ```

mod driver;
mod observer;
mod policy;
mod problem;
mod rounder;

use std::fmt::{self, Write as _};

pub use driver::{Host, ObserverUnderTest, PolicyUnderTest, RounderUnderTest};
pub use observer::{Observes, assert_observer_conforms, check_observer};
pub use policy::{Plans, assert_policy_conforms, check_policy};
pub use problem::{Gradients, Problem};
pub use rounder::{Rounds, assert_rounder_conforms, check_rounder};

/// Is told the name of every check before it is made: one whose plugin never returns is the last.
pub type Begins<'a> = &'a mut dyn FnMut(&'static str);

/// A suite at work.
struct Suite<'a> {
    report: Report,
    begins: Begins<'a>,
}

impl<'a> Suite<'a> {
    fn new(begins: Begins<'a>) -> Self {
        Self { report: Report::default(), begins }
    }

    fn check(&mut self, name: &'static str, check: impl FnOnce() -> Result<(), String>) {
        (self.begins)(name);
        self.report.checks.push((name, check()));
    }
}

/// What a suite found: one line for each check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Checks in their order, with what was wrong.
    pub checks: Vec<(&'static str, Result<(), String>)>,
}

impl Report {
    /// Whether nothing was wrong.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|(_, result)| result.is_ok())
    }

    #[track_caller]
    fn assert(&self) {
        assert!(self.passed(), "the plugin does not conform:\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for (name, result) in &self.checks {
            match result {
                Ok(()) => writeln!(text, "ok      {name}")?,
                Err(reason) => writeln!(text, "failed  {name}: {reason}")?,
            }
        }
        f.write_str(text.trim_end())
    }
}
