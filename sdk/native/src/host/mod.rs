//! The calling side, for taq itself and for [`conformance`](crate::conformance): layers with room for a plugin's answers.

mod guarded;
mod room;

pub use guarded::{Guarded, UNWRITTEN, Written};
pub use room::{LayerData, Room, Words};
