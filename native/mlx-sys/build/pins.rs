//! Every file the build fetches from PyPI, with its version and SHA-256.
//!
//! All of them are wheels used as archives: Python is not linked.

use crate::platform::Platform::{self, LinuxArm, LinuxX86, MacArm};

/// The MLX version of all `mlx-*` wheels below, and the one mlx-c 0.7.0 is written for.
pub const MLX_VERSION: &str = "0.32.2";

/// A wheel: what `pip download` is asked for and what it must deliver.
pub struct Pin {
    pub package: &'static str,
    pub version: &'static str,
    pub target: Platform,
    /// The platform tag that selects this wheel.
    pub tag: &'static str,
    pub sha256: &'static str,
}

const fn pin(
    package: &'static str,
    version: &'static str,
    target: Platform,
    tag: &'static str,
    sha256: &'static str,
) -> Pin {
    Pin { package, version, target, tag, sha256 }
}

#[rustfmt::skip]
const PINS: &[Pin] = &[
    pin("mlx-cpu", MLX_VERSION, LinuxX86, "manylinux_2_35_x86_64",
        "fc5d31b90fc4f457b2f9614ed45651a567d22a6a11a03d114a90a4e10bdd8878"),
    pin("mlx-cpu", MLX_VERSION, LinuxArm, "manylinux_2_35_aarch64",
        "d0f94625588b51a878786dd51cec5617894ce586cf3c94645ce1b64e24c27c0b"),
    pin("mlx-cuda-12", MLX_VERSION, LinuxX86, "manylinux_2_35_x86_64",
        "35445ead9724855826f310b9085d57137d0a2c5381cc293cb6d86b03bb4feadf"),
    pin("mlx-cuda-12", MLX_VERSION, LinuxArm, "manylinux_2_35_aarch64",
        "c794c697dcd28e00a51ce8813189ece1a8c62559de7cc5e27803cc591f55df05"),
    pin("mlx-cuda-13", MLX_VERSION, LinuxX86, "manylinux_2_35_x86_64",
        "335094ccd1c0c6dc3e09c8caba207c8180602bacc0c38ba20c1d81e9456ab394"),
    pin("mlx-cuda-13", MLX_VERSION, LinuxArm, "manylinux_2_35_aarch64",
        "49b1a25df9021f3b519a534fd39a32a5cdbf93a1b265a31e59671c2d9fc9f4a2"),
    pin("mlx-metal", MLX_VERSION, MacArm, "macosx_14_0_arm64",
        "3825fff379dbc107dd3413e564a06caeaa24819910ec49c0439e454c06a1b9b8"),
    pin("scipy-openblas32", "0.3.34.481.3", LinuxX86, "manylinux_2_28_x86_64",
        "0595f94cd58c1f8a0d90c975621f4587337a003916b1979e834ebdf2cb5d9504"),
    pin("scipy-openblas32", "0.3.34.481.3", LinuxArm, "manylinux_2_28_aarch64",
        "e085dddbc5b9aa130f83def515d31c440e69f387a90c7e63b154a5575b4466bc"),
    pin("libclang", "18.1.1", LinuxX86, "manylinux2010_x86_64",
        "c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b"),
    pin("libclang", "18.1.1", LinuxArm, "manylinux2014_aarch64",
        "54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592"),
    pin("libclang", "18.1.1", MacArm, "macosx_11_0_arm64",
        "0b2e143f0fac830156feb56f9231ff8338c20aecfe72b4ffe96f19e5a1dbb69a"),
];

/// The pinned wheel of `package` for `target`, if there is one.
pub fn find(package: &str, target: Platform) -> Option<&'static Pin> {
    PINS.iter().find(|p| p.package == package && p.target == target)
}
