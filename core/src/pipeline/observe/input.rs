//! One input under observation: what describes it, and what the observers say of it.

use crate::stats::{ChannelExtremes, Histogram, LayerStats, LogHistogram};
use crate::{Error, ObservationPoint, ObservedBatch, ObservedInput, Observer, Result};

/// What is gathered of every input, whoever observes.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// Bins of the histogram; 0 for none.
    pub hist_bins: usize,
    /// Weight of the past in the shift of post-GELU inputs.
    pub shift_momentum: f32,
}

/// Observers by name, the first among them the one that plans are made from; and what they do not need to know.
pub(super) struct Input {
    observers: Vec<(String, Box<dyn Observer>)>,
    describe: Description,
    stats: LayerStats,
    /// Over all batches.
    extremes: Option<ChannelExtremes>,
    /// If an observer wants it.
    distribution: Option<LogHistogram>,
}

impl Input {
    pub(super) fn new(observers: Vec<(String, Box<dyn Observer>)>, describe: Description) -> Self {
        let wanted = observers.iter().any(|(_, observer)| observer.wants_distribution());
        let distribution = wanted.then(LogHistogram::default);
        Self { observers, describe, stats: LayerStats::default(), extremes: None, distribution }
    }

    /// Takes in one batch, row-major `[tokens, channels]`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with layer and step.
    pub(super) fn observe(
        &mut self,
        point: &ObservationPoint<'_>,
        values: &[f32],
        channels: usize,
    ) -> Result<()> {
        let what = || format!("the input of {} at step {}", point.layer.id, point.step);
        if channels == 0 || values.is_empty() || !values.len().is_multiple_of(channels) {
            return Err(Error::Unsupported {
                what: format!("{} has {} values for {channels} channels; observing it", what(), values.len()),
            });
        }
        let extremes = ChannelExtremes::of(values, channels);
        if !extremes.finite {
            return Err(Error::NotFinite { what: what() });
        }
        self.describe(point, values, &extremes);
        if let Some(distribution) = &mut self.distribution {
            distribution.add(values);
        }
        let batch = ObservedBatch { values, channels, min: &extremes.min, max: &extremes.max };
        self.observers.iter_mut().try_for_each(|(_, observer)| observer.observe(point, &batch))?;
        self.extremes = Some(match self.extremes.take() {
            Some(before) => before.merge(extremes),
            None => extremes,
        });
        Ok(())
    }

    fn describe(&mut self, point: &ObservationPoint<'_>, values: &[f32], extremes: &ChannelExtremes) {
        let (stats, bins) = (&mut self.stats, self.describe.hist_bins);
        stats.batches += 1;
        if point.layer.post_gelu {
            let middle = extremes.min.iter().zip(&extremes.max).map(|(a, b)| a / 2.0 + b / 2.0);
            match &mut stats.shift {
                None => stats.shift = Some(middle.collect()),
                Some(shift) => {
                    let keep = self.describe.shift_momentum;
                    shift.iter_mut().zip(middle).for_each(|(s, m)| *s = keep * *s + (1.0 - keep) * m);
                }
            }
        }
        if bins > 0 {
            let (low, high) = extremes.overall();
            stats.histogram.get_or_insert_with(|| Histogram::between(low, high, bins)).add(values);
        }
    }

    /// # Errors
    /// [`Error::Settings`] with the observer whose answer is no range of this input, and what the observers give.
    pub(super) fn finish(mut self, channels: usize) -> Result<LayerStats> {
        let extremes = self.extremes.unwrap_or_else(|| ChannelExtremes::new(channels));
        (self.stats.tensor_min, self.stats.tensor_max) = extremes.overall();
        for (place, (name, observer)) in self.observers.into_iter().enumerate() {
            let distribution = self.distribution.as_ref().filter(|_| observer.wants_distribution());
            let range = observer.finish(&ObservedInput { extremes: &extremes, distribution })?;
            let finite = range.min.iter().chain(&range.max).all(|v| v.is_finite());
            let ordered = range.low <= range.high && range.low.is_finite() && range.high.is_finite();
            if range.min.len() != channels || range.max.len() != channels || !finite || !ordered {
                let reason = format!(
                    "it gave {} lower and {} upper ends from {} to {}, expected {channels} finite ones of each",
                    range.min.len(),
                    range.max.len(),
                    range.low,
                    range.high
                );
                return Err(Error::settings(format!("observer `{name}`"), reason));
            }
            match place {
                0 => self.stats.range = range,
                _ => drop(self.stats.beside.insert(name, range)),
            }
        }
        Ok(self.stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::InputRange;
    use crate::{Role, testing};

    /// Says that everything lies between these ends.
    struct Says(InputRange);

    impl Observer for Says {
        fn finish(self: Box<Self>, _: &ObservedInput<'_>) -> Result<InputRange> {
            Ok(self.0)
        }
    }

    fn says(low: f32, high: f32) -> Box<dyn Observer> {
        Box::new(Says(InputRange { min: vec![low; 2], max: vec![high; 2], low, high }))
    }

    fn observed(batches: &[&[f32]], post_gelu: bool) -> Result<Input> {
        let layer = testing::layer("mm0.img.mlp.fc2", if post_gelu { Role::Fc2 } else { Role::Fc1 }, 2, 2);
        let point = ObservationPoint { layer: &layer, step: 3, sigma: 0.5 };
        let describe = Description { hist_bins: 256, shift_momentum: 0.95 };
        let mut input =
            Input::new(vec![("a".into(), says(-1.0, 2.0)), ("b".into(), says(-3.0, 0.0))], describe);
        batches.iter().try_for_each(|batch| input.observe(&point, batch, 2))?;
        Ok(input)
    }

    #[test]
    fn the_first_observer_gives_the_range_and_the_others_lie_beside() {
        let stats = observed(&[&[1.0, -1.0]], false).unwrap().finish(2).unwrap();
        assert_eq!((stats.range.low, stats.range.high), (-1.0, 2.0));
        assert_eq!(stats.beside.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(stats.beside["b"].low, -3.0);
        assert!(stats.shift.is_none());
    }

    #[test]
    fn extremes_and_shift_follow_the_batches() {
        let batches: [&[f32]; 2] = [&[1.0, -1.0, 3.0, 5.0], &[2.0, 0.0, -1.0, 1.0]];
        let stats = observed(&batches, true).unwrap().finish(2).unwrap();
        assert_eq!((stats.tensor_min, stats.tensor_max, stats.batches), (-1.0, 5.0, 2));
        // Middles are (2, 2), then (0.5, 0.5): 0.95 · 2 + 0.05 · 0.5.
        for s in stats.shift.unwrap() {
            assert!((s - 1.925).abs() < 1e-6);
        }
    }

    #[test]
    fn the_first_batch_has_the_edges_and_later_values_count_at_the_ends() {
        let batches: [&[f32]; 2] = [&[0.0, 1.0, 0.5, 0.25], &[-9.0, 9.0, 0.5, 0.5]];
        let histogram = observed(&batches, false).unwrap().finish(2).unwrap().histogram.unwrap();
        assert_eq!(histogram.counts.iter().sum::<u64>(), 8);
        assert_eq!((histogram.edges[0], histogram.edges[256]), (0.0, 1.0));
        assert_eq!((histogram.counts[0], histogram.counts[255], histogram.counts[128]), (2, 2, 3));
    }

    #[test]
    fn what_is_no_number_is_named_by_layer_and_step() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = observed(&[&[0.0, 1.0], &[0.0, wrong]], false).err().unwrap().to_string();
            assert_eq!(error, "the input of mm0.img.mlp.fc2 at step 3 holds NaN or infinite values");
        }
    }

    #[test]
    fn an_answer_that_is_no_range_is_refused() {
        let message = observed(&[&[0.0, 1.0]], false).unwrap().finish(3).unwrap_err().to_string();
        assert!(message.contains("observer `a`") && message.contains("expected 3 finite ones"), "{message}");
    }
}
