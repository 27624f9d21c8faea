//! Observers over values at hand.

use taq_core::stats::{ChannelExtremes, InputRange, LogHistogram};
use taq_core::{ObservationPoint, ObservedBatch, ObservedInput, Observer, Role, testing};

/// What an observer says of these batches of two channels.
pub(super) fn observed(mut observer: Box<dyn Observer>, batches: &[&[f32]]) -> InputRange {
    let layer = testing::layer("mm0.img.mlp.fc1", Role::Fc1, 2, 2);
    let point = ObservationPoint { layer: &layer, step: 3, sigma: 0.5 };
    let (mut extremes, mut distribution) = (ChannelExtremes::new(2), LogHistogram::default());
    for values in batches {
        let seen = ChannelExtremes::of(values, 2);
        let batch = ObservedBatch { values, channels: 2, min: &seen.min, max: &seen.max };
        observer.observe(&point, &batch).unwrap();
        distribution.add(values);
        extremes = extremes.merge(seen);
    }
    let distribution = observer.wants_distribution().then_some(&distribution);
    observer.finish(&ObservedInput { extremes: &extremes, distribution }).unwrap()
}

/// Two channels of bells, the second ten times as wide, some of its values far out.
pub(super) fn bells(tokens: usize) -> Vec<f32> {
    let mut rng = rand_mt::Mt::new(3);
    let mut next = || f64::from(rng.next_u32()) / 2_f64.powi(32);
    let mut bell = || next() + next() + next() + next() - 2.0;
    (0..2 * tokens)
        .map(|i| match i {
            i if i % 998 == 1 => 60.0 * bell() as f32,
            i if i % 2 == 1 => 10.0 * bell() as f32,
            _ => bell() as f32,
        })
        .collect()
}
