//! Built-in rounders.

mod adaround;
mod compensate;
mod gptq;
mod nearest;
mod reconstruct;
mod taq_dit;

pub use adaround::{AdaRound, AdaRoundSettings};
pub use gptq::{Gptq, GptqSettings};
pub use nearest::{Nearest, NearestSettings};
pub use reconstruct::{BetaSchedule, Inputs, Start};
pub use taq_dit::{TaqDit, TaqDitSettings};
