//! Room for a library's answers, with something around it that tells when it wrote beyond.

/// Numbers before and after the room.
const MARGIN: usize = 64;

/// A number that a library may write.
pub trait Written: Copy + PartialEq {
    /// What stands around the room.
    const MARGIN: Self;

    /// Whether the two are the same bits.
    fn same(self, other: Self) -> bool;
}

impl Written for i8 {
    const MARGIN: Self = 0x5a;

    fn same(self, other: Self) -> bool {
        self == other
    }
}

impl Written for f32 {
    const MARGIN: Self = UNWRITTEN;

    fn same(self, other: Self) -> bool {
        self.to_bits() == other.to_bits()
    }
}

/// A NaN that nothing computes.
pub const UNWRITTEN: f32 = f32::from_bits(0x7fc0_7a71);

/// So many numbers, between margins.
#[derive(Debug)]
pub struct Guarded<T> {
    all: Vec<T>,
}

impl<T: Written> Guarded<T> {
    /// Room that holds these numbers.
    pub fn holding(values: &[T]) -> Self {
        let margin = [T::MARGIN; MARGIN];
        Self { all: [&margin, values, &margin].concat() }
    }

    /// Room for so many numbers, all the same.
    pub fn filled(value: T, length: usize) -> Self {
        Self::holding(&vec![value; length])
    }

    /// To be written.
    pub fn room(&mut self) -> &mut [T] {
        let end = self.all.len() - MARGIN;
        &mut self.all[MARGIN..end]
    }

    /// What is there.
    pub fn values(&self) -> &[T] {
        &self.all[MARGIN..self.all.len() - MARGIN]
    }

    /// Whether nothing was written around it.
    pub fn is_intact(&self) -> bool {
        let (front, back) = (&self.all[..MARGIN], &self.all[self.all.len() - MARGIN..]);
        front.iter().chain(back).all(|v| v.same(T::MARGIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_beyond_either_end_is_seen() {
        let mut room = Guarded::filled(0_i8, 3);
        room.room().copy_from_slice(&[1, 2, 3]);
        assert!(room.is_intact() && room.values() == [1, 2, 3]);
        for at in [MARGIN - 1, MARGIN + 3] {
            let mut room = Guarded::filled(UNWRITTEN, 3);
            room.all[at] = 0.0;
            assert!(!room.is_intact());
        }
        assert!(Guarded::<f32>::holding(&[]).is_intact());
    }
}
