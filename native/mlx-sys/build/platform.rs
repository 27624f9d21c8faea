//! The targets for which published MLX libraries exist.

use std::env;

use crate::{error::Result, fail};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Platform {
    LinuxX86,
    LinuxArm,
    MacArm,
}

impl Platform {
    /// The target of this build; an error where MLX publishes no library.
    pub fn of_target() -> Result<Self> {
        let get = |name: &str| env::var(name).unwrap_or_default();
        let os = get("CARGO_CFG_TARGET_OS");
        let arch = get("CARGO_CFG_TARGET_ARCH");
        let abi = get("CARGO_CFG_TARGET_ENV");
        match (&*os, &*arch, &*abi) {
            ("linux", "x86_64", "gnu") => Ok(Self::LinuxX86),
            ("linux", "aarch64", "gnu") => Ok(Self::LinuxArm),
            ("macos", "aarch64", _) => Ok(Self::MacArm),
            _ => Err(fail!(
                "MLX publishes no library for {}; taq builds on x86_64 and aarch64 Linux with glibc \
                 and on Apple silicon macOS",
                get("TARGET")
            )),
        }
    }

    pub fn is_mac(self) -> bool {
        self == Self::MacArm
    }

    /// File name of the MLX library.
    pub fn mlx_file(self) -> &'static str {
        if self.is_mac() { "libmlx.dylib" } else { "libmlx.so" }
    }
}
