//! Where the graph runs.

use mlx_rs::{Device, DeviceType};
use taq_core::Result;

/// Whether host kernels may take part.
pub(super) fn on_cpu() -> Result<bool> {
    Ok(matches!(Device::try_default()?.get_type()?, DeviceType::Cpu))
}
