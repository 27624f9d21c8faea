//! Built-in observers.

mod avg_minmax;

pub use avg_minmax::{AvgMinMax, AvgMinMaxSettings};
