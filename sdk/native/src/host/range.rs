//! Room for an observer's range.

use super::{Guarded, UNWRITTEN};
use crate::InputRange;
use crate::abi::RangeArgs;
use crate::view::Shape;

/// Room for the range of one layer's input.
pub struct RangeRoom {
    channels: Shape,
    min: Guarded<f32>,
    max: Guarded<f32>,
    /// `low` and `high`.
    ends: Guarded<f32>,
}

impl RangeRoom {
    /// Room for an input of so many channels.
    pub fn new(channels: usize) -> Self {
        let room = |length| Guarded::filled(UNWRITTEN, length);
        Self { channels: Shape::vector(channels), min: room(channels), max: room(channels), ends: room(2) }
    }

    /// As the ABI has it; valid while the room stays where it is.
    pub fn args(&mut self) -> RangeArgs {
        let low = self.ends.room().as_mut_ptr();
        RangeArgs {
            size: size_of::<RangeArgs>() as u32,
            reserved: 0,
            min: self.channels.room(self.min.room()),
            max: self.channels.room(self.max.room()),
            low,
            high: low.wrapping_add(1),
        }
    }

    /// What was written.
    ///
    /// # Errors
    /// A sentence with what was written beyond its room, or is not finite (as what was not written is not).
    pub fn range(&self) -> Result<InputRange, String> {
        for (what, room) in [("min", &self.min), ("max", &self.max), ("low and high", &self.ends)] {
            if !room.is_intact() {
                return Err(format!("`finish` wrote beyond the room of `{what}`"));
            }
            if let Some(at) = room.values().iter().position(|v| !v.is_finite()) {
                let found = room.values()[at];
                return Err(format!("`finish` left {found} in `{what}` at {at}, expected a finite number"));
            }
        }
        let [low, high] = [0, 1].map(|end| self.ends.values()[end]);
        Ok(InputRange { min: self.min.values().to_vec(), max: self.max.values().to_vec(), low, high })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_was_written() {
        let mut room = RangeRoom::new(2);
        room.min.room().copy_from_slice(&[-1.0, -2.0]);
        room.max.room().copy_from_slice(&[1.0, 2.0]);
        let unwritten = room.range().unwrap_err();
        assert_eq!(unwritten, "`finish` left NaN in `low and high` at 0, expected a finite number");
        room.ends.room().copy_from_slice(&[-2.0, 2.0]);
        let range = room.range().unwrap();
        assert_eq!((range.min, range.low, range.high), (vec![-1.0, -2.0], -2.0, 2.0));
        room.max.room()[1] = f32::INFINITY;
        let wrong = room.range().unwrap_err();
        assert_eq!(wrong, "`finish` left inf in `max` at 1, expected a finite number");
    }
}
