use serde_json::json;
use taq_policy::testing::{self, Random, with_settings};
use taq_policy::{LayerId, Role, Sensitivity};

use super::*;

fn error(items: &[Item], bits: &[u8]) -> f64 {
    let at = |(item, bits): (&Item, &u8)| item.choices.iter().find(|c| c.0 == *bits).unwrap().1;
    items.iter().zip(bits).map(at).sum()
}

fn cost(items: &[Item], bits: &[u8]) -> u64 {
    items.iter().zip(bits).map(|(item, &bits)| item.cost * u64::from(bits)).sum()
}

/// The smallest error of all combinations within the capacity.
fn brute_force(items: &[Item], capacity: u64) -> f64 {
    let Some((first, rest)) = items.split_first() else { return 0.0 };
    let choices = first.choices.iter().filter_map(|&(bits, error)| {
        let left = capacity.checked_sub(first.cost * u64::from(bits))?;
        Some(error + brute_force(rest, left))
    });
    choices.fold(f64::INFINITY, f64::min)
}

/// Up to five items with random errors: falling, but neither convex nor strictly.
fn arbitrary(random: &mut Random) -> Vec<Item> {
    let items = 1 + random.below(5);
    let item = |random: &mut Random| {
        let mut error = 10.0 * random.uniform();
        let cost = 1 + random.below(9);
        let widths = (2..=8u8).filter(|_| random.uniform() < 0.6).collect::<Vec<_>>();
        let widths = if widths.is_empty() { vec![4] } else { widths };
        let choice = |bits| {
            let at = (bits, error);
            // Now and then more bits help nothing, or do harm as measured errors may.
            error *= if random.uniform() < 0.2 { 1.05 } else { random.uniform() };
            at
        };
        Item { cost, choices: widths.into_iter().map(choice).collect() }
    };
    (0..items).map(|_| item(random)).collect()
}

fn range(items: &[Item]) -> (u64, u64) {
    let cost = |at: fn(&Item) -> u8| items.iter().map(|item| item.cost * u64::from(at(item))).sum();
    (cost(|item| item.choices[0].0), cost(|item| item.choices[item.choices.len() - 1].0))
}

#[test]
fn golden() {
    // By hand: 4 bits of budget over the narrowest widths. The second item saves 6 per bit on the hull from 2
    // to 4, although its first bit alone saves only 1; then the first item's two bits save 4 and 2.
    let items = [
        Item { cost: 1, choices: vec![(2, 10.0), (3, 6.0), (4, 4.0)] },
        Item { cost: 1, choices: vec![(2, 12.0), (3, 11.0), (4, 0.0)] },
    ];
    let expected: [(u64, [u8; 2]); 6] =
        [(4, [2, 2]), (5, [3, 2]), (6, [2, 4]), (7, [3, 4]), (8, [4, 4]), (99, [4, 4])];
    for (capacity, bits) in expected {
        let found = allocate(&items, capacity).unwrap();
        assert_eq!(found, bits, "with {capacity}");
        assert_eq!(error(&items, &found), brute_force(&items, capacity), "with {capacity}");
    }
    assert_eq!(allocate(&items, 3), Err(4));
}

#[test]
fn at_most_one_step_from_brute_force_and_never_over_the_budget() {
    let mut random = Random::new(1);
    let (mut best, mut problems) = (0, 0);
    for _ in 0..300 {
        let items = arbitrary(&mut random);
        let step = items.iter().map(|i| i.choices[0].1).fold(0.0, f64::max);
        let (low, high) = range(&items);
        for capacity in low..=high {
            let bits = allocate(&items, capacity).unwrap();
            assert!(cost(&items, &bits) <= capacity);
            let (found, optimum) = (error(&items, &bits), brute_force(&items, capacity));
            assert!(found >= optimum - 1e-9 && found <= optimum + step, "{found} for {optimum}");
            problems += 1;
            best += usize::from(found <= optimum + 1e-9);
        }
        assert_eq!(allocate(&items, low - 1), Err(low));
    }
    assert!(best * 10 > problems * 7, "{best} of {problems} optimal");
}

#[test]
fn bits_of_one_price_and_convex_errors_are_allocated_optimally() {
    let mut random = Random::new(2);
    for _ in 0..200 {
        let item = |random: &mut Random| {
            let power = random.uniform();
            let choices = (3..=8u8).map(|b| (b, power / f64::from((1 << (b - 1)) - 1).powi(2))).collect();
            Item { cost: 3, choices }
        };
        let items: Vec<Item> = (0..4).map(|_| item(&mut random)).collect();
        let (low, high) = range(&items);
        for capacity in low..=high {
            let bits = allocate(&items, capacity).unwrap();
            assert!((error(&items, &bits) - brute_force(&items, capacity)).abs() < 1e-12);
        }
    }
}

#[test]
fn more_budget_never_predicts_more_error_and_nothing_that_fits_is_left() {
    let mut random = Random::new(3);
    for _ in 0..500 {
        let items = arbitrary(&mut random);
        let (low, high) = range(&items);
        let mut before = f64::INFINITY;
        for capacity in low..=high + 2 {
            let bits = allocate(&items, capacity).unwrap();
            let now = error(&items, &bits);
            assert!(now <= before + 1e-12, "{now} after {before}");
            before = now;
            let left = capacity - cost(&items, &bits);
            for (item, &bits) in items.iter().zip(&bits) {
                let at = item.choices.iter().find(|c| c.0 == bits).unwrap().1;
                let fits = |c: &&(u8, f64)| c.0 > bits && item.cost * u64::from(c.0 - bits) <= left;
                assert!(!item.choices.iter().filter(fits).any(|c| c.1 < at), "a step was left out");
            }
        }
    }
}

#[test]
fn capacity_is_never_above_the_average() {
    let mut random = Random::new(4);
    for _ in 0..100_000 {
        let (average, total) = (2.0 + 6.0 * random.uniform(), 1 + random.below(1 << 40));
        let bits = capacity(average, total);
        assert!(bits as f64 / total as f64 <= average);
        assert!((bits + 2) as f64 / total as f64 > average, "nearly all of it");
    }
    assert_eq!((capacity(4.5, 1000), capacity(4.1, 10), capacity(8.0, 0)), (4500, 41, 0));
}

/// Layers of different sizes, every sixth post-GELU, whose reach grows with the layer and with the timestep.
fn request(layers: usize, steps: usize) -> PolicyRequest {
    let layer = |i: usize| {
        let id = format!("mm{}.{i}", i / 12);
        match i % 6 {
            4 => testing::layer(&id, Role::Fc1, 1536, 6144),
            5 => testing::layer(&id, Role::Fc2, 6144, 1536),
            _ => testing::layer(&id, Role::Q, 1536, 1536),
        }
    };
    let mut request = testing::request((0..layers).map(layer).collect(), steps);
    for (i, columns) in request.statistics.iter_mut().enumerate() {
        columns.absmax = (0..steps).map(|t| 4.0 + (i % 17) as f32 + t as f32 / 8.0).collect();
        columns.p99 = vec![2.0; steps];
        columns.spike_fraction = vec![(i % 5) as f32 / 100.0; steps];
    }
    request
}

fn with(request: PolicyRequest, settings: serde_json::Value) -> PolicyRequest {
    with_settings(request, &settings)
}

fn averages(request: &PolicyRequest, plan: &PolicyPlan) -> (f64, f64) {
    let layers = || plan.layers.iter().zip(&request.layers);
    let parameters: usize = request.layers.iter().map(LayerSpec::parameters).sum();
    let weights: usize = layers().map(|(p, l)| usize::from(p.weight_bits) * l.parameters()).sum();
    let activations: Vec<f64> =
        plan.layers.iter().flat_map(|l| &l.activation_bits).map(|&b| f64::from(b)).collect();
    (weights as f64 / parameters as f64, activations.iter().sum::<f64>() / activations.len() as f64)
}

#[test]
fn sd3_medium_spends_its_averages() {
    let request = request(285, 50);
    for (weight, activation) in [(4.5, 8.0), (3.0, 4.0), (3.7, 5.25), (4.0, 6.0), (7.99, 7.99), (8.0, 9.0)] {
        let settings = json!({ "average_weight_bits": weight, "average_activation_bits": activation });
        let request = with(request.clone(), settings);
        let plan = testing::run(&request, assign).unwrap();
        let (w, a) = averages(&request, &plan);
        assert!(w <= weight && w > weight - 0.01, "{w} of {weight}");
        assert!(a <= activation && a > f64::min(activation, 8.0) - 0.001, "{a} of {activation}");
        assert!(plan.layers.iter().zip(&request.layers).all(|(p, l)| p.shift == l.post_gelu));
    }
}

#[test]
fn far_reach_gets_more_activation_bits_and_spikes_more_weight_bits() {
    let mut request = with(request(4, 2), json!({ "average_activation_bits": 6 }));
    for columns in &mut request.statistics {
        (columns.absmax, columns.spike_fraction) = (vec![4.0; 2], vec![0.0; 2]);
    }
    request.statistics[1].absmax = vec![4.0, 40.0];
    request.statistics[1].spike_fraction = vec![0.01; 2];
    let plan = assign(&request).unwrap();
    let bits: Vec<_> = plan.layers.iter().map(|l| l.activation_bits.clone()).collect();
    assert_eq!(bits, [[6, 6], [6, 8], [6, 6], [5, 5]]);
    // (1 + 0.01 · 2² · 2.576²) / 2 + (1 + 0.01 · 20² · 2.576²) / 2 = 14.4 times the others' noise: two bits.
    let weights: Vec<_> = plan.layers.iter().map(|l| l.weight_bits).collect();
    assert_eq!(weights, [4, 6, 4, 4]);
}

#[test]
fn timesteps_count_by_how_far_the_noise_falls() {
    let mut request = with(request(1, 3), json!({ "average_activation_bits": 6 }));
    request.statistics[0].absmax = vec![4.0; 3];
    for (timestep, sigma) in request.timesteps.iter_mut().zip([1.0, 0.95, 0.8]) {
        timestep.sigma = sigma;
    }
    // Falls of 0.05, 0.15 and 0.8: factors of 3 and 5.3, which are 1.6 and 2.4 bits.
    assert_eq!(assign(&request).unwrap().layers[0].activation_bits, [4, 6, 8]);
    request.timesteps.iter_mut().for_each(|t| t.sigma = 0.0);
    assert_eq!(assign(&request).unwrap().layers[0].activation_bits, [6, 6, 6]);
}

#[test]
fn shifted_layers_reach_as_far_as_the_shift_leaves() {
    let mut request = with(request(6, 1), json!({ "average_activation_bits": 6 }));
    for columns in &mut request.statistics {
        columns.absmax = vec![8.0];
    }
    let bits = |request: &PolicyRequest| assign(request).unwrap().layers[5].activation_bits[0];
    assert!(bits(&request) < 6);
    request.settings.insert("shift_post_gelu".into(), json!(false));
    assert_eq!(bits(&request), 6);
}

#[test]
fn bytes_replace_the_average() {
    let request = request(3, 1);
    let parameters: usize = request.layers.iter().map(LayerSpec::parameters).sum();
    let request = with(request, json!({ "weight_bytes": parameters * 5 / 8 }));
    let plan = assign(&request).unwrap();
    assert_eq!(plan.layers.iter().map(|l| l.weight_bits).collect::<Vec<_>>(), [5, 5, 5]);
    let message = assign(&with(request, json!({ "weight_bytes": 1 }))).unwrap_err().to_string();
    assert_eq!(message, "weight_bytes: 1 cannot be met, the narrowest widths need 2654208");
}

/// Σ inputs · outputs · weight bits · activation bits over layers and timesteps, against eight bits everywhere.
fn bit_ops(request: &PolicyRequest, plan: &PolicyPlan) -> f64 {
    let (mut sum, mut full) = (0.0, 0.0);
    for (layer, spec) in plan.layers.iter().zip(&request.layers) {
        let size = (spec.in_features * spec.out_features) as f64;
        for &bits in &layer.activation_bits {
            sum += size * f64::from(layer.weight_bits) * f64::from(bits);
            full += size * 64.0;
        }
    }
    sum / full
}

#[test]
fn bit_operations_replace_the_average_of_activations() {
    let request = testing::sd3_request(24, 1536, 20);
    for (weight, share) in [(4.5, 0.5), (4.0, 0.375), (5.0, 0.4), (3.0, 0.19), (8.0, 1.0), (8.0, 2.0)] {
        let settings =
            json!({ "average_weight_bits": weight, "bit_ops": share, "average_activation_bits": 0 });
        let request = with(request.clone(), settings);
        let plan = testing::run(&request, assign).unwrap();
        let found = bit_ops(&request, &plan);
        assert!(found <= share && found > f64::min(share, 1.0) - 0.01, "{found} of {share}");
    }
    let message = assign(&with(request, json!({ "average_weight_bits": 3, "bit_ops": 0.125 }))).unwrap_err();
    assert_eq!(message.to_string(), "bit_ops: 0.125 cannot be met, the narrowest widths need 0.1875");
}

#[test]
fn bit_operations_favour_no_layer_for_its_size_and_cost_as_much_as_the_weight_is_wide() {
    let layers = vec![testing::layer("a", Role::Q, 64, 64), testing::layer("b", Role::Fc1, 64, 256)];
    let alike = testing::request(layers, 2);
    let settings = json!({ "average_weight_bits": 4, "bit_ops": 0.375 });
    let plan = assign(&with(alike.clone(), settings)).unwrap();
    assert!(plan.layers.iter().all(|l| l.weight_bits == 4 && l.activation_bits == [6, 6]), "{plan:?}");
    // Of two layers alike but for the width of their weights, the cheaper one gets more bits: 8 · 5 + 4 · 7 = 68
    // of the 70 bit operations that 0.546875 allows; 8 · 6 + 4 · 6 would be 72.
    let layers = vec![testing::layer("a", Role::Q, 64, 64), testing::layer("b", Role::Q, 64, 64)];
    let mut request = testing::request(layers, 1);
    request.weight_bits = vec![4, 8];
    request.sensitivities = measured(&request.layers, true, &[4, 8]);
    request.sensitivities[0].error = 9.0;
    let plan = assign(&with(request, json!({ "average_weight_bits": 6, "bit_ops": 0.546875 }))).unwrap();
    let bits: Vec<_> = plan.layers.iter().map(|l| (l.weight_bits, l.activation_bits[0])).collect();
    assert_eq!(bits, [(8, 5), (4, 7)]);
}

/// What was measured: the last layer suffers most at low widths.
fn measured(layers: &[LayerSpec], weight: bool, widths: &[u8]) -> Vec<Sensitivity> {
    let error =
        |at: usize, bits: u8| 0.1 * (1 + 9 * (at + 1 == layers.len()) as u8) as f32 / f32::from(bits).exp2();
    let of = |(at, l): (usize, &LayerSpec)| {
        let id: LayerId = l.id.clone();
        widths
            .iter()
            .map(move |&bits| Sensitivity { id: id.clone(), bits, weight, error: error(at, bits) })
            .collect()
    };
    layers.iter().enumerate().flat_map::<Vec<_>, _>(of).collect()
}

#[test]
fn sensitivities_go_before_statistics_and_need_none() {
    let mut request = with(request(4, 3), json!({ "average_weight_bits": 5, "average_activation_bits": 6 }));
    request.statistics.clear();
    assert_eq!(assign(&request).unwrap_err().to_string(), "statistics of 4 layers are needed, found 0");
    request.sensitivities = measured(&request.layers, true, &[4, 8]);
    request.sensitivities.extend(measured(&request.layers, false, &[4, 6, 8]));
    let plan = assign(&request).unwrap();
    let weights = |plan: &PolicyPlan| plan.layers.iter().map(|l| l.weight_bits).collect::<Vec<_>>();
    assert_eq!(weights(&plan), [4, 4, 4, 8]);
    assert_eq!(plan.layers[3].activation_bits, [8, 8, 8]);
    request.settings.insert("average_weight_bits".into(), json!(6.3));
    let plan = assign(&request).unwrap();
    assert_eq!(weights(&plan), [8, 4, 4, 8], "among equals the first; 5 bits were not measured");
}

#[test]
fn timesteps_share_a_measured_error_by_their_statistics() {
    let mut request = with(request(2, 2), json!({ "average_activation_bits": 6 }));
    request.statistics.iter_mut().for_each(|c| c.absmax = vec![4.0, 40.0]);
    request.sensitivities = measured(&request.layers, false, &[4, 6, 8]);
    let plan = assign(&request).unwrap();
    // The second timestep has 100 times the first one's share, the second layer 10 times the first one's
    // error.
    assert_eq!(plan.layers[0].activation_bits, [4, 8]);
    assert_eq!(plan.layers[1].activation_bits, [4, 8]);
    request.settings.insert("average_activation_bits".into(), json!(5));
    assert_eq!(assign(&request).unwrap().layers[0].activation_bits, [4, 4]);
}

#[test]
fn bad_sensitivities_are_refused_by_name() {
    let fine = request(2, 1);
    type Change = fn(&mut Vec<Sensitivity>);
    let cases: [(Change, &str); 4] = [
        (|s| s[1].error = f32::NAN, "sensitivities: the weight of mm0.0 at 8 bits has the error NaN"),
        (|s| s[1].error = -1.0, "sensitivities: the weight of mm0.0 at 8 bits has the error -1"),
        (|s| s[1].bits = 4, "sensitivities: the weight of mm0.0 at 4 bits appears twice"),
        (
            |s| s.truncate(2),
            "sensitivities: the weight of mm0.1 was not measured at any of [3, 4, 5, 6, 7, 8] bits",
        ),
    ];
    for (change, message) in cases {
        let mut request = fine.clone();
        request.sensitivities = measured(&request.layers, true, &[4, 8]);
        change(&mut request.sensitivities);
        assert_eq!(assign(&request).unwrap_err().to_string(), message);
    }
}

#[test]
fn settings_are_checked() {
    let cases = [
        (json!({ "average_weight_bit": 4 }), "unknown field `average_weight_bit`"),
        (json!({ "max_weight_bits": 9 }), "max_weight_bits must be 2 to 8, not 9"),
        (
            json!({ "min_activation_bits": 8, "max_activation_bits": 4 }),
            "min_activation_bits must not be above max_activation_bits: 8 and 4",
        ),
        (
            json!({ "average_weight_bits": 2.5 }),
            "average_weight_bits must be at least min_weight_bits, which is 3, not 2.5",
        ),
        (json!({ "bit_ops": 0 }), "bit_ops must be a share above 0, not 0"),
    ];
    for (settings, message) in cases {
        let found = assign(&with(request(1, 1), settings)).unwrap_err().to_string();
        let reason = found.strip_prefix("settings: ").unwrap_or_else(|| panic!("{found}"));
        assert!(reason.starts_with(message), "{found}");
    }
}

#[test]
fn only_allowed_widths_are_used() {
    let mut request =
        with(request(12, 4), json!({ "average_weight_bits": 5.0, "average_activation_bits": 6.9 }));
    (request.weight_bits, request.activation_bits) = (vec![8, 4], vec![2, 6, 8]);
    let plan = assign(&request).unwrap();
    assert!(plan.layers.iter().all(|l| [4, 8].contains(&l.weight_bits)));
    assert!(plan.layers.iter().flat_map(|l| &l.activation_bits).all(|b| [6, 8].contains(b)));
    request.weight_bits = vec![6, 8];
    let message = assign(&request).unwrap_err().to_string();
    assert_eq!(message, "average_weight_bits: 5 cannot be met, the narrowest widths need 6");
    request.weight_bits = vec![2];
    let message = assign(&request).unwrap_err().to_string();
    assert_eq!(message, "min_weight_bits and max_weight_bits: none of 3 to 8 is allowed, only [2]");
}

#[test]
fn without_timesteps_there_are_still_weights() {
    assert_eq!(
        assign(&request(2, 0)).unwrap().layers.iter().map(|l| l.weight_bits).collect::<Vec<_>>(),
        [5, 4]
    );
    assert_eq!(assign(&request(0, 0)).unwrap().layers.len(), 0);
}

#[test]
fn statistics_that_are_not_finite_are_refused() {
    let mut request = request(2, 1);
    request.statistics[1].absmax[0] = f32::INFINITY;
    assert_eq!(assign(&request).unwrap_err().to_string(), "the statistics of mm0.1 are not finite");
}
