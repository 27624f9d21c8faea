//! What the tests of the model's parts share: reference tensors, and how far two tensors are apart.

use std::path::{Path, PathBuf};

use mlx_rs::Array;
use taq_core::metrics::relative_l2_arrays;

use super::weights::{Loader, Weights};

/// A path of the repository.
pub(super) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A file of reference tensors (tests/golden/README.md).
pub(super) struct Golden(Weights);

impl Golden {
    pub(super) fn open(path: &str) -> Self {
        Self(Weights::open(&repository("tests/golden").join(path)).unwrap())
    }

    /// As it is in the file.
    pub(super) fn get(&self, key: &str) -> Array {
        Loader::new(&self.0).tensor(key, self.0.shape(key).unwrap_or_else(|| panic!("no `{key}`")))
    }

    /// `[batch, channels, h, w]` in the file.
    pub(super) fn nhwc(&self, key: &str) -> Array {
        self.get(key).transpose_axes(&[0, 2, 3, 1]).unwrap()
    }
}

/// ‖found − expected‖ / ‖expected‖.
pub(super) fn relative_error(found: &Array, expected: &Array) -> f64 {
    relative_l2_arrays(found, expected).unwrap()
}

/// Fails unless the relative error is below `limit`.
#[track_caller]
pub(super) fn assert_close(found: &Array, expected: &Array, limit: f64, what: &str) {
    let error = relative_error(found, expected);
    assert!(error < limit, "{what}: relative error {error:.2e}, at most {limit:.0e} was expected");
}
