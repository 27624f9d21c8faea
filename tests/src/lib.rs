//! Helpers of the tests: where fixtures lie, reference tensors by name, how far two tensors are apart, the command
//! line as a process, pages in a browser.

pub mod activations;
pub mod chromium;
pub mod golden;
pub mod native;
pub mod paths;
pub mod planted;
pub mod python;
pub mod taq;
