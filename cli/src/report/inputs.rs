//! What the layers' inputs looked like: quantiles and histograms at every timestep, ranges of the channels.
//!
//! Queries, keys and values of one attention have the same input; it is kept once.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use taq_core::stats::{Histogram, LayerScalars};
use taq_core::{LayerId, Result};

use super::layers::Axes;
use super::numbers::short;
use crate::results::statistics::{Channels, Statistics};

/// Bins of a histogram, and columns of channels, at most: a chart is not more pixels wide.
const COLUMNS: usize = 128;
const CHANNELS: usize = 800;
/// Channels that are named.
const NAMED: usize = 5;
/// Decades between a byte of 255, which means all of the values, and one of 1.
const DECADES: f64 = 9.0;

/// Quantiles of the values that are kept, by name, from smallest to largest.
type Quantile = (&'static str, fn(&LayerScalars) -> Option<f32>);
const QUANTILES: [Quantile; 7] = [
    ("min", |s| Some(s.tensor_min)),
    ("p001", |s| s.hist_p001),
    ("p01", |s| s.hist_p01),
    ("p50", |s| s.hist_p50),
    ("p99", |s| s.hist_p99),
    ("p999", |s| s.hist_p999),
    ("max", |s| Some(s.tensor_max)),
];

/// Counts as shares of all values, each a byte on a logarithmic scale: 0 none, b > 0 about 10^(9 (b − 1)/254 − 9).
#[derive(Debug, Serialize, PartialEq)]
pub(super) struct Shares {
    low: f64,
    high: f64,
    /// Base64, a byte a bin.
    bytes: String,
}

/// Ranges of the channels at the timestep where the layer is largest.
#[derive(Debug, Serialize, PartialEq)]
pub(super) struct ChannelRanges {
    /// Position of the timestep.
    at: usize,
    /// Channels.
    pub(super) count: usize,
    /// Channels in one column, which shows the smallest low and the largest high of them.
    per: usize,
    low: Vec<f64>,
    high: Vec<f64>,
    /// Columns with a channel whose range is over 2.5 times the median.
    far: Vec<usize>,
    /// How many such channels there are.
    pub(super) outliers: usize,
    /// Those with the largest range: channel, low, high.
    most: Vec<(usize, f64, f64)>,
}

/// One input.
#[derive(Debug, Serialize)]
pub(super) struct Input {
    /// By timestep, in the order of [`QUANTILES`].
    quantiles: Vec<Vec<Option<f64>>>,
    /// Mean shift by timestep; empty without.
    shift: Vec<f64>,
    histograms: Vec<Option<Shares>>,
    pub(super) channels: ChannelRanges,
}

/// All of them.
#[derive(Debug, Serialize)]
pub(super) struct Inputs {
    all: Vec<Input>,
    /// Each layer's.
    of: Vec<usize>,
}

impl Inputs {
    /// Reads the statistics' arrays.
    pub(super) fn read(statistics: &Statistics, axes: &Axes) -> Result<Self> {
        let (mut keys, mut all, mut of) = (Vec::new(), Vec::new(), Vec::new());
        for id in &axes.ids {
            let quantiles = quantiles(statistics, id);
            // Whether two layers have one input shows in more digits than are kept.
            let key = [
                statistics.row(id, |s| s.tensor_min.into()),
                statistics.row(id, |s| s.tensor_max.into()),
                statistics.row(id, |s| s.channel_p50.into()),
                statistics.row(id, |s| s.channel_p99.into()),
                statistics.row(id, |s| f64::from(u8::from(s.has_shift))),
            ];
            let found = keys.iter().position(|k| *k == key);
            if found.is_none() {
                all.push(input(statistics, id, quantiles)?);
                keys.push(key);
            }
            of.push(found.unwrap_or(all.len() - 1));
        }
        Ok(Self { all, of })
    }

    pub(super) fn of_layer(&self, index: usize) -> &Input {
        &self.all[self.of[index]]
    }
}

fn quantiles(statistics: &Statistics, id: &LayerId) -> Vec<Vec<Option<f64>>> {
    let row = |(_, value): &Quantile| {
        let row = statistics.row(id, |s| value(s).map_or(f64::NAN, f64::from));
        row.into_iter().map(|v| v.is_finite().then(|| short(v))).collect()
    };
    QUANTILES.iter().map(row).collect()
}

fn input(statistics: &Statistics, id: &LayerId, quantiles: Vec<Vec<Option<f64>>>) -> Result<Input> {
    let absmax = statistics.row(id, |s| s.tensor_absmax.into());
    let largest = |best: usize, at: usize| if absmax[at] > absmax[best] { at } else { best };
    let largest = (0..absmax.len()).fold(0, largest);
    let (mut shift, mut histograms) = (Vec::new(), Vec::new());
    let mut ranges = None;
    for at in 0..statistics.steps.len() {
        let channels = statistics.channels(at, id)?;
        if let Some(values) = channels.shift.as_ref().filter(|s| !s.is_empty()) {
            shift.push(short(values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64));
        }
        histograms.push(statistics.histogram(at, id)?.as_ref().and_then(Shares::of));
        if at == largest {
            ranges = Some(ChannelRanges::of(&channels, at));
        }
    }
    let empty = || ChannelRanges::of(&Channels { low: Vec::new(), high: Vec::new(), shift: None }, 0);
    if shift.len() != statistics.steps.len() {
        shift.clear();
    }
    Ok(Input { quantiles, shift, histograms, channels: ranges.unwrap_or_else(empty) })
}

impl Shares {
    /// `None` of an empty histogram.
    fn of(histogram: &Histogram) -> Option<Self> {
        let total: u64 = histogram.counts.iter().sum();
        let (low, high) = (histogram.edges.first()?, histogram.edges.last()?);
        if total == 0 {
            return None;
        }
        let per = histogram.counts.len().div_ceil(COLUMNS);
        let share = |bins: &[u64]| byte(bins.iter().sum::<u64>() as f64 / total as f64);
        let bytes: Vec<u8> = histogram.counts.chunks(per).map(share).collect();
        // A last chunk that is not full reaches beyond the histogram.
        let width = (f64::from(*high) - f64::from(*low)) / histogram.counts.len() as f64;
        let high = f64::from(*low) + width * (per * bytes.len()) as f64;
        Some(Self { low: short(f64::from(*low)), high: short(high), bytes: BASE64_STANDARD.encode(bytes) })
    }
}

fn byte(share: f64) -> u8 {
    if share > 0.0 {
        (1.0 + 254.0 * (1.0 + share.log10() / DECADES)).round().clamp(1.0, 255.0) as u8
    } else {
        0
    }
}

impl ChannelRanges {
    fn of(channels: &Channels, at: usize) -> Self {
        let count = channels.low.len();
        let per = count.div_ceil(CHANNELS).max(1);
        let far = channels.outliers();
        let fold = |values: &[f32], pick: fn(f32, f32) -> f32| -> Vec<f64> {
            let column = |chunk: &[f32]| chunk.iter().copied().reduce(pick).unwrap_or(0.0);
            values.chunks(per).map(|chunk| short(column(chunk).into())).collect()
        };
        let mut ranked: Vec<usize> = (0..count).collect();
        let range = |c: usize| channels.high[c] - channels.low[c];
        ranked.sort_by(|&a, &b| range(b).total_cmp(&range(a)));
        let named = |&c: &usize| (c, short(channels.low[c].into()), short(channels.high[c].into()));
        Self {
            at,
            count,
            per,
            low: fold(&channels.low, f32::min),
            high: fold(&channels.high, f32::max),
            far: far.chunks(per).enumerate().filter(|(_, c)| c.contains(&true)).map(|(i, _)| i).collect(),
            outliers: far.iter().filter(|f| **f).count(),
            most: ranked.iter().take(NAMED).map(named).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the script makes of a byte.
    fn share(byte: u8) -> f64 {
        if byte == 0 { 0.0 } else { 10f64.powf(DECADES * (f64::from(byte) - 1.0) / 254.0 - DECADES) }
    }

    #[test]
    fn bytes_keep_shares_within_five_percent() {
        assert_eq!((byte(0.0), byte(1.0), byte(1e-12)), (0, 255, 1));
        for exponent in 0..90 {
            let value = 10f64.powf(-f64::from(exponent) / 10.0);
            assert!((share(byte(value)) / value - 1.0).abs() < 0.05, "{value}");
        }
    }

    #[test]
    fn bins_are_joined_and_keep_their_place() {
        // 300 bins of width 0.01 from −1, three to a column: 100 columns to 2.
        let edges = (0..=300).map(|i| -1.0 + 0.01 * i as f32).collect();
        let mut counts = vec![0; 300];
        (counts[0], counts[2], counts[299]) = (1, 1, 2);
        let shares = Shares::of(&Histogram { counts, edges }).unwrap();
        let bytes = BASE64_STANDARD.decode(&shares.bytes).unwrap();
        assert_eq!((shares.low, shares.high, bytes.len()), (-1.0, 2.0, 100));
        assert_eq!((bytes[0], bytes[99]), (byte(0.5), byte(0.5)));
        assert!(bytes[1..99].iter().all(|b| *b == 0));
        assert_eq!(Shares::of(&Histogram { counts: vec![0], edges: vec![0.0, 1.0] }), None);
        // 129 bins are 65 columns of two, and the last one is half empty.
        let edges = (0..=129).map(|i| i as f32).collect();
        let shares = Shares::of(&Histogram { counts: vec![1; 129], edges }).unwrap();
        assert_eq!((shares.low, shares.high), (0.0, 130.0));
    }

    #[test]
    fn columns_of_channels_keep_what_sticks_out() {
        let mut high = vec![1.0; 1500];
        (high[301], high[1499]) = (9.0, 7.0);
        let ranges = ChannelRanges::of(&Channels { low: vec![-1.0; 1500], high, shift: None }, 3);
        assert_eq!((ranges.at, ranges.count, ranges.per, ranges.high.len()), (3, 1500, 2, 750));
        assert_eq!((ranges.far.clone(), ranges.outliers), (vec![150, 749], 2));
        assert_eq!((ranges.high[150], ranges.high[149], ranges.high[749]), (9.0, 1.0, 7.0));
        assert_eq!(ranges.most[..2], [(301, -1.0, 9.0), (1499, -1.0, 7.0)]);
        assert_eq!(ranges.most.len(), NAMED);
    }
}
