//! The calling side, for taq itself and for [`conformance`](crate::conformance): layers with room for a plugin's answers,
//! and the functions by which it asks about a block.

mod block;
mod guarded;
mod range;
mod room;

pub use block::{BlockCall, BlockData};
pub use guarded::{Guarded, UNWRITTEN, Written};
pub use range::RangeRoom;
pub use room::{LayerData, Room, Words};
