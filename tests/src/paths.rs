//! Where things lie in the repository.

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn repository() -> &'static Path {
    // The package lies one folder below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".."))
}

/// Reference tensors; the README in the folder says how they were made.
pub fn golden() -> PathBuf {
    repository().join("tests/golden")
}

/// The model that comes with taq.
pub fn emoji_sd3() -> PathBuf {
    repository().join("models/emoji-sd3")
}

/// The published schemas.
pub fn schemas() -> PathBuf {
    repository().join("sdk/schemas")
}
