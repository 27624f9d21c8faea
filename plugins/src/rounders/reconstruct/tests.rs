//! The learned rounders as a whole.

use std::sync::{Arc, Mutex};

use mlx_rs::Array;
use taq_core::quant::{Clipping, Granularity, Grid, QuantizedLayer};
use taq_core::{
    Batch, BlockJob, BlockSpec, Cancel, Context, Error, LayerGradients, LayerJob, Progress, Reconstruction,
    Result, RoundedBlock, RoundedLayer, Rounder,
};

use super::testing::{Planted, job};
use crate::rounders::{
    AdaRound, AdaRoundSettings, BetaSchedule, Inputs, Nearest, NearestSettings, Start, TaqDit, TaqDitSettings,
};

fn adaround(settings: AdaRoundSettings) -> AdaRound {
    AdaRound::new(settings).unwrap()
}

fn quantized(block: &RoundedBlock, layers: &[LayerJob]) -> Vec<QuantizedLayer> {
    block.layers.iter().zip(layers).map(|(l, job)| l.quantized(&job.input).unwrap()).collect()
}

fn held_out(planted: &Planted, layers: &[LayerJob], block: &RoundedBlock) -> f32 {
    planted.held_out_loss(&quantized(block, layers)).unwrap()
}

/// Held-out error of a rounder over that of nearest with the same clipping.
fn compare(planted: &Planted, grid: Grid, rounder: &dyn Rounder, clipping: Clipping, seed: u64) -> f32 {
    let layers = planted.layers(grid);
    let job = job(planted, &layers);
    let nearest = Nearest::new(NearestSettings { clipping });
    let nearest = nearest.round(&job, &Context::quiet(seed)).unwrap();
    let learned = rounder.round(&job, &Context::quiet(seed)).unwrap();
    for (layer, job) in learned.layers.iter().zip(&layers) {
        layer.validate(&job.spec, job.input.steps()).unwrap();
    }
    held_out(planted, &layers, &learned) / held_out(planted, &layers, &nearest)
}

/// The same for adaround.
fn gain(planted: &Planted, grid: Grid, settings: AdaRoundSettings, seed: u64) -> f32 {
    compare(planted, grid, &adaround(settings), settings.clipping, seed)
}

fn grid(bits: u8, granularity: Granularity, symmetric: bool) -> Grid {
    Grid::new(bits, granularity, symmetric).unwrap()
}

#[test]
fn halves_the_error_of_nearest_on_rows_it_never_saw() {
    for seed in 0..5 {
        let planted = Planted::new(seed, 48, 32, 128);
        for grid in [
            grid(4, Granularity::Channel, true),
            grid(3, Granularity::Group(16), true),
            grid(4, Granularity::Tensor, false),
        ] {
            let gain =
                gain(&planted, grid, AdaRoundSettings { iters: 500, lr: 0.04, ..Default::default() }, 1);
            assert!(gain < 0.5, "{grid:?}, seed {seed}: {gain} of nearest's error");
        }
    }
}

#[test]
fn layers_are_learned_jointly() {
    // Two layers on one input: what one rounds up the other can round down.
    let grid = grid(3, Granularity::Channel, true);
    let settings = AdaRoundSettings { iters: 500, lr: 0.04, ..Default::default() };
    for seed in 0..3 {
        let together = Planted::with_layers(seed, 32, 16, 128, 2);
        assert!(gain(&together, grid, settings, 1) < 0.35);
    }
}

#[test]
fn comes_closer_than_nearest_to_the_best_of_all_roundings() {
    // Ten weights have 2¹⁰ roundings. Errors over the best one's, as logarithms; their means over the problems.
    let (mut ours, mut nearests, problems) = (0.0, 0.0, 8);
    for seed in 0..problems {
        let planted = Planted::new(seed, 10, 1, 64);
        let layers = [planted.layer(grid(3, Granularity::Channel, true))];
        let job = job(&planted, &layers);
        let settings = AdaRoundSettings { batch_size: 64, clipping: Clipping::Absmax, ..Default::default() };
        let learned = adaround(settings).round(&job, &Context::quiet(0)).unwrap();
        let nearest = Nearest::new(NearestSettings { clipping: settings.clipping });
        let nearest = nearest.round(&job, &Context::quiet(0)).unwrap();
        let error =
            |layer: &RoundedLayer| planted.training_error(&[layer.quantized(&layers[0].input).unwrap()]);

        let mut best = f32::INFINITY;
        let mut candidate = learned.layers[0].clone();
        for choice in 0..1 << 10 {
            for (i, w) in planted.weight().iter().enumerate() {
                let down = (w / candidate.scale[0]).floor() as i8;
                candidate.weight_int[i] = (down + ((choice >> i) & 1) as i8).clamp(-4, 3);
            }
            best = best.min(error(&candidate));
        }
        ours += (error(&learned.layers[0]) / best).ln();
        nearests += (error(&nearest.layers[0]) / best).ln();
    }
    let mean = |sum: f32| (sum / problems as f32).exp();
    let (ours, nearests) = (mean(ours), mean(nearests));
    assert!((1.0..1.8).contains(&ours), "{ours} times the best rounding's error");
    assert!(ours < 0.6 * nearests, "{ours} times the best rounding's error, nearest {nearests} times");
}

#[test]
fn the_same_seed_gives_the_same_integers() {
    let planted = Planted::new(4, 24, 16, 96);
    let layers = planted.layers(grid(3, Granularity::Channel, true));
    let round = |seed| {
        let settings = AdaRoundSettings { iters: 150, batch_size: 8, ..Default::default() };
        adaround(settings).round(&job(&planted, &layers), &Context::quiet(seed)).unwrap()
    };
    let first = round(7);
    assert_eq!(first, round(7));
    assert_ne!(first.losses, round(8).losses);
    assert_eq!(first.losses.len(), 2);
}

#[test]
fn a_weight_on_the_grid_stays() {
    let planted = Planted::new(2, 16, 8, 32);
    let mut layers = planted.layers(grid(4, Granularity::Channel, true));
    let rounder = adaround(AdaRoundSettings { iters: 50, clipping: Clipping::Absmax, ..Default::default() });
    let once = Nearest::new(NearestSettings { clipping: Clipping::Absmax });
    let once = once.round(&job(&planted, &layers), &Context::quiet(0)).unwrap();
    layers[0].weight = once.layers[0].dequantize().unwrap();
    // Its own outputs are the target now, so that nothing is left to gain.
    let own = Planted::new(2, 16, 8, 32).with_weight(layers[0].weight.as_slice::<f32>());
    let again = rounder.round(&job(&own, &layers), &Context::quiet(0)).unwrap();
    let twice = RoundedBlock { layers: vec![again.layers[0].clone()], losses: vec![] };
    assert_eq!(twice.layers[0].weight_int, once.layers[0].weight_int);
}

#[test]
fn stops_when_asked() {
    /// Cancels at the third report.
    struct Impatient(Cancel, Mutex<Vec<String>>);
    impl Progress for Impatient {
        fn begin(&self, _: &str, _: u64) {
            unreachable!("the stage begins");
        }
        fn advance(&self, units: u64, note: &str) {
            assert_eq!(units, 10);
            let mut notes = self.1.lock().unwrap();
            notes.push(note.to_owned());
            if notes.len() == 3 {
                self.0.cancel();
            }
        }
        fn end(&self) {
            unreachable!("the stage ends");
        }
    }
    let planted = Planted::new(4, 12, 6, 32);
    let layers = planted.layers(grid(4, Granularity::Channel, true));
    let cancel = Cancel::default();
    let progress = Arc::new(Impatient(cancel.clone(), Mutex::default()));
    let cx = Context { seed: 0, progress: progress.clone(), cancel };
    let result = adaround(AdaRoundSettings::default()).round(&job(&planted, &layers), &cx);
    assert!(matches!(result, Err(Error::Cancelled)));
    let notes = progress.1.lock().unwrap();
    assert_eq!(notes.len(), 3);
    assert!(notes[0].starts_with("loss ") && notes[0].ends_with("% decided"), "{}", notes[0]);
}

#[test]
fn stops_when_all_is_decided() {
    struct Units(Mutex<Vec<u64>>);
    impl Progress for Units {
        fn begin(&self, _: &str, _: u64) {
            unreachable!("the stage begins");
        }
        fn advance(&self, units: u64, _: &str) {
            self.0.lock().unwrap().push(units);
        }
        fn end(&self) {
            unreachable!("the stage ends");
        }
    }
    let planted = Planted::new(1, 16, 8, 32);
    let layers = planted.layers(grid(4, Granularity::Channel, true));
    let reports = |lambda| {
        let progress = Arc::new(Units(Mutex::default()));
        let cx = Context { seed: 0, progress: progress.clone(), cancel: Cancel::default() };
        let settings = AdaRoundSettings { iters: 1000, lambda, beta: [2.0; 2], ..Default::default() };
        adaround(settings).round(&job(&planted, &layers), &cx).unwrap();
        let units = progress.0.lock().unwrap().clone();
        // The bar is full either way.
        assert_eq!(units.iter().sum::<u64>(), 1000);
        units.len()
    };
    assert!(reports(30.0) < 60, "a strong regulariser decides soon");
    assert_eq!(reports(0.0), 100);
}

/// A reconstruction that answers with what it was given.
struct Broken {
    rows: usize,
    loss: f32,
    gradients: Vec<Array>,
}

impl Reconstruction for Broken {
    fn rows(&self) -> usize {
        self.rows
    }
    fn step(&self, _: usize) -> usize {
        0
    }
    fn inputs(&self, _: &[usize], _: &mut dyn FnMut(usize, &Array) -> Result<()>) -> Result<()> {
        unreachable!("only GPTQ asks")
    }
    fn loss_and_grads(&self, _: &[QuantizedLayer], _: Batch<'_>) -> Result<(Array, Vec<LayerGradients>)> {
        let scale = Array::from_slice(&[0.0_f32], &[1]);
        let with =
            |weight: &Array| LayerGradients { weight: weight.clone(), scale: scale.clone(), bias: None };
        Ok((Array::from_f32(self.loss), self.gradients.iter().map(with).collect()))
    }
    fn held_out_loss(&self, _: &[QuantizedLayer]) -> Result<f32> {
        Ok(self.loss)
    }
}

#[test]
fn what_is_broken_is_named() {
    let planted = Planted::new(1, 4, 3, 8);
    let mut layers = planted.layers(grid(4, Granularity::Channel, true));
    let block = BlockSpec { id: "b".into(), layers: vec![] };
    let message = |layers: &[_], rows, loss, gradients| {
        let reconstruction = Broken { rows, loss, gradients };
        let job = BlockJob { block: &block, layers, reconstruction: &reconstruction };
        adaround(AdaRoundSettings { start: Start::Nearest, ..Default::default() })
            .round(&job, &Context::quiet(0))
            .unwrap_err()
            .to_string()
    };
    let fine = || vec![Array::from_slice(&[0.1_f32; 12], &[3, 4])];
    let nan = vec![Array::from_slice(&[f32::NAN; 12], &[3, 4])];
    assert_eq!(
        message(&layers, 0, 0.0, fine()),
        "rounder `adaround`: block `b` has no calibration rows to learn from"
    );
    assert_eq!(
        message(&layers, 8, f32::NAN, fine()),
        "reconstruction error of block `b` holds NaN or infinite values"
    );
    assert_eq!(message(&layers, 8, 1.0, nan), "gradient of layer `planted.0` holds NaN or infinite values");
    assert_eq!(
        message(&layers, 8, 1.0, vec![]),
        "gradients of block `b`: expected shape one per layer, 1, found [0]"
    );
    assert_eq!(
        message(&layers, 8, 1.0, vec![Array::from_slice(&[0.1_f32; 12], &[4, 3])]),
        "gradient of layer `planted.0`: expected shape [3, 4], found [4, 3]"
    );
    layers[0].weight = Array::from_slice(&[f32::INFINITY; 12], &[3, 4]);
    assert_eq!(message(&layers, 8, 1.0, fine()), "weight of layer `planted.0` holds NaN or infinite values");
}

#[test]
fn never_worse_than_nearest() {
    /// Learns from a problem and is judged by the distance from its nearest rounding.
    struct Misled<'a>(&'a Planted, Planted);
    impl Reconstruction for Misled<'_> {
        fn rows(&self) -> usize {
            self.0.rows()
        }
        fn step(&self, row: usize) -> usize {
            self.0.step(row)
        }
        fn inputs(&self, rows: &[usize], visit: &mut dyn FnMut(usize, &Array) -> Result<()>) -> Result<()> {
            self.0.inputs(rows, visit)
        }
        fn loss_and_grads(
            &self,
            layers: &[QuantizedLayer],
            batch: Batch<'_>,
        ) -> Result<(Array, Vec<LayerGradients>)> {
            self.0.loss_and_grads(layers, batch)
        }
        fn held_out_loss(&self, layers: &[QuantizedLayer]) -> Result<f32> {
            self.1.held_out_loss(layers)
        }
    }
    let problem = || Planted::new(1, 24, 12, 16);
    let planted = problem();
    let layers = planted.layers(grid(3, Granularity::Channel, true));
    let settings = AdaRoundSettings { iters: 300, ..Default::default() };
    let nearest = Nearest::new(NearestSettings { clipping: settings.clipping });
    let nearest = nearest.round(&job(&planted, &layers), &Context::quiet(0)).unwrap();
    let misled = Misled(&planted, problem().with_weight(&nearest.layers[0].values()));
    let job = BlockJob { reconstruction: &misled, ..job(&planted, &layers) };
    let rounded = adaround(settings).round(&job, &Context::quiet(0)).unwrap();
    assert_eq!(rounded.layers, nearest.layers);
    assert!(!rounded.losses.is_empty());
}

#[test]
fn nearest_then_adaround_then_taq_dit() {
    // On inputs that come from a GELU and change with the timestep, each is better than the one before, over seeds.
    let iters = 400;
    for (bits, seeds) in [(8, 3), (4, 3)] {
        for seed in 0..seeds {
            let planted = Planted::new(seed, 44, 32, 256).post_gelu(4, bits);
            let grid = grid(4, Granularity::Channel, true);
            let adaround = adaround(AdaRoundSettings { iters, lr: 0.04, ..Default::default() });
            let taq_dit = TaqDitSettings { iters, lr: 0.04, ..Default::default() };
            let taq_dit = TaqDit::new(taq_dit).unwrap();
            let adaround = compare(&planted, grid, &adaround, Clipping::Mse, 1);
            let taq_dit = compare(&planted, grid, &taq_dit, Clipping::Mse, 1);
            assert!(adaround < 0.95, "A{bits} seed {seed}: adaround {adaround} of nearest's error");
            assert!(taq_dit < 0.9 * adaround, "A{bits} seed {seed}: adaround {adaround}, taq-dit {taq_dit}");
        }
    }
}

#[test]
fn taq_dit_is_reproducible_and_its_parts_can_be_switched_off() {
    let planted = Planted::new(2, 33, 16, 96).post_gelu(3, 6);
    let layers = planted.layers(grid(4, Granularity::Channel, true));
    let round = |settings: TaqDitSettings| {
        let rounder = TaqDit::new(TaqDitSettings { iters: 60, polish: 20, ..settings }).unwrap();
        rounder.round(&job(&planted, &layers), &Context::quiet(3)).unwrap().layers.swap_remove(0)
    };
    let default = TaqDitSettings { per_timestep: true, ..Default::default() };
    let whole = round(default);
    assert_eq!(whole, round(default));
    let learned = whole.learned.unwrap();
    assert!(learned.scale[0] != learned.scale[1] && learned.shift[..33] != learned.shift[33..66]);
    assert_eq!((learned.scale.len(), learned.shift.len(), learned.bias.len()), (3, 3 * 33, 3 * 16));
    // No channels but the wide ones moved to the weight, by whole factors.
    for (channel, m) in learned.multiplier.iter().enumerate() {
        assert!(m.fract() == 0.0 && (channel % 11 == 3 || *m == 1.0), "channel {channel}: {m}");
    }
    let fixed = TaqDitSettings { per_timestep: false, ..default };
    let learned = round(fixed).learned.unwrap();
    assert!(learned.scale.iter().all(|s| *s == learned.scale[0]));
    assert!(learned.bias.chunks(16).all(|b| b == &learned.bias[..16]));
    let none = TaqDitSettings { shift: Inputs::None, migrate: Inputs::None, bias_lr: 0.0, ..default };
    let learned = round(none).learned.unwrap();
    assert!(learned.shift.is_empty() && learned.multiplier.is_empty() && learned.bias.is_empty());
}

#[test]
fn looking_at_all_blocks_keeps_the_integers_and_lowers_the_error() {
    for seed in 0..3 {
        let planted = Planted::with_layers(seed, 33, 16, 128, 2).post_gelu(3, 4);
        let layers = planted.layers(grid(3, Granularity::Channel, true));
        let job = job(&planted, &layers);
        let rounder = |end_to_end| {
            let settings =
                TaqDitSettings { iters: 100, lr: 0.1, polish: 0, end_to_end, ..Default::default() };
            TaqDit::new(settings).unwrap()
        };
        let rounder = rounder(300);
        let before = rounder.round(&job, &Context::quiet(3)).unwrap();
        assert_eq!(rounder.end_to_end_iterations(), 300);
        let after = rounder.end_to_end(&job, before.layers.clone(), &Context::quiet(3)).unwrap().unwrap();
        assert_eq!(after.losses.len(), 3);
        for (before, after) in before.layers.iter().zip(&after.layers) {
            assert_eq!(before.weight_int, after.weight_int);
            let (before, after) = (before.learned.as_ref().unwrap(), after.learned.as_ref().unwrap());
            assert_eq!((&before.shift, &before.multiplier), (&after.shift, &after.multiplier));
            assert!(before.scale != after.scale && before.bias != after.bias);
        }
        let (before, after) = (held_out(&planted, &layers, &before), held_out(&planted, &layers, &after));
        assert!(after < 0.99 * before, "seed {seed}: {before} became {after}");
    }
}

#[test]
fn nothing_learned_goes_on_where_it_was() {
    // With rates of 0, tuning gives back what it got, to the last digits.
    let planted = Planted::new(2, 33, 16, 96).post_gelu(3, 6);
    let layers = planted.layers(grid(4, Granularity::Channel, true));
    let job = job(&planted, &layers);
    let learn = TaqDitSettings { iters: 30, polish: 10, end_to_end: 5, ..Default::default() };
    let before = TaqDit::new(learn).unwrap().round(&job, &Context::quiet(3)).unwrap();
    let still = TaqDit::new(TaqDitSettings { scale_lr: 0.0, bias_lr: 0.0, ..learn }).unwrap();
    let after = still.end_to_end(&job, before.layers.clone(), &Context::quiet(3)).unwrap().unwrap();
    let close = |a: &[f32], b: &[f32]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6 * (1.0 + b.abs()))
    };
    let (a, b) = (&after.layers[0], &before.layers[0]);
    assert!(a.weight_int == b.weight_int && close(&a.scale, &b.scale));
    let (a, b) = (a.learned.as_ref().unwrap(), b.learned.as_ref().unwrap());
    assert!(close(&a.scale, &b.scale) && close(&a.bias, &b.bias) && a.shift == b.shift);
}

#[test]
fn settings_have_ranges_and_no_unknown_names() {
    let parse = |text: &str| serde_json::from_str::<AdaRoundSettings>(text);
    assert_eq!(parse("{}").unwrap(), AdaRoundSettings::default());
    let settings =
        parse(r#"{"iters": 5, "clipping": "absmax", "schedule": "cosine", "beta": [10, 3]}"#).unwrap();
    assert_eq!((settings.iters, settings.schedule), (5, BetaSchedule::Cosine));
    assert_eq!((settings.clipping, settings.beta), (Clipping::Absmax, [10.0, 3.0]));
    assert!(parse(r#"{"iter": 5}"#).is_err());
    let message = |settings| AdaRound::new(settings).unwrap_err().to_string();
    let default = AdaRoundSettings::default();
    let head = "rounder `adaround`: ";
    assert_eq!(
        message(AdaRoundSettings { iters: 0, ..default }),
        format!("{head}iters = 0, expected 1 or more")
    );
    assert!(message(AdaRoundSettings { batch_size: 0, ..default }).contains("batch_size = 0"));
    assert!(message(AdaRoundSettings { lr: 0.0, ..default }).contains("lr = 0"));
    assert!(message(AdaRoundSettings { lr: f32::NAN, ..default }).contains("lr = NaN"));
    assert!(message(AdaRoundSettings { lambda: -1.0, ..default }).contains("lambda = -1"));
    assert!(message(AdaRoundSettings { beta: [20.0, 0.5], ..default }).contains("beta = [20.0, 0.5]"));
    assert!(message(AdaRoundSettings { warm_up: 1.0, ..default }).contains("warm_up = 1"));
}
