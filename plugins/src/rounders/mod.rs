//! Built-in rounders.

mod adaround;
mod nearest;
mod reconstruct;
mod taq_dit;

pub use adaround::{AdaRound, AdaRoundSettings};
pub use nearest::{Nearest, NearestSettings};
pub use reconstruct::{BetaSchedule, Inputs};
pub use taq_dit::{TaqDit, TaqDitSettings};
