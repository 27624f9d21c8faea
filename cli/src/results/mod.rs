//! What a run folder holds, read for those who show it: figures (`plot`) and reports (`report`). No model is loaded.

pub(crate) mod integers;
pub(crate) mod layers;
pub(crate) mod moments;
pub(crate) mod plan;
pub(crate) mod rounding;
pub(crate) mod scores;
pub(crate) mod sources;
pub(crate) mod statistics;
