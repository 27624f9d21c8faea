//! Built-in observers.

mod avg_minmax;
mod minmax;
mod mse;
mod percentile;
#[cfg(test)]
mod testing;

pub use avg_minmax::{AvgMinMax, AvgMinMaxSettings};
pub use minmax::{MinMax, MinMaxSettings};
pub use mse::{Mse, MseSettings};
pub use percentile::{Percentile, PercentileSettings};
