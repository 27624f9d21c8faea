//! Built-in rounders.

mod adaround;
mod nearest;

pub use adaround::{AdaRound, AdaRoundSettings, BetaSchedule};
pub use nearest::{Nearest, NearestSettings};
