use super::*;
use crate::{progress::Silent, testing, walk::walk_through};
use fewbits_kernels::Threads;
use fewbits_train::random::Random;

/// Rows of nine numbers that are related to each other; with `constant_sum`, all of one sum.
fn rows(constant_sum: bool) -> Vec<Vec<f32>> {
    let mut random = Random::new(3);
    let row = |_| {
        let all = random.normal();
        let mut row: Vec<f32> = (0..9).map(|_| (0.7 + 0.6 * all + random.normal()) as f32).collect();
        if constant_sum {
            row[8] = 5.0 - row[..8].iter().sum::<f32>();
        }
        row
    };
    (0..60).map(row).collect()
}

/// The moments of these rows about their mean.
fn group(rows: &[Vec<f32>]) -> Group {
    let mean: Vec<f64> =
        (0..9).map(|i| rows.iter().map(|r| f64::from(r[i])).sum::<f64>() / rows.len() as f64).collect();
    let about = |i: usize, j: usize| -> f64 {
        rows.iter().map(|r| (f64::from(r[i]) - mean[i]) * (f64::from(r[j]) - mean[j])).sum::<f64>() / rows.len() as f64
    };
    let gram = (0..81).map(|i| about(i / 9, i % 9) as f32).collect();
    Group { gram, cross: vec![0.0; 9], mean, mean_error: vec![0.0], rows: rows.len() }
}

/// Calls `look` with the candidates of a channel of nine weights, for several weights, on these moments.
fn each(moments: &Group, shift: Shift, look: impl Fn(&mut Candidates<'_>)) {
    let network = testing::residual();
    let all = crate::layers(&network.graph, &network.placement);
    let shape = |layer: &Layer| crate::moments::Shape::of(&network.graph, layer, &network.facts[&layer.input].dims);
    let depthwise = all.iter().find(|layer| shape(layer).unwrap().inputs == 9).unwrap();
    let shape = shape(depthwise).unwrap();
    let mut weights = Weights::of(network.ground(), &network.draft, depthwise, &shape).unwrap();
    let (moments, mut random) = (std::slice::from_ref(moments), Random::new(8));
    let sums = [moments[0].sums()];
    for _ in 0..20 {
        // One tail is longer than the other.
        weights.rows[..9].fill_with(|| (random.normal() as f32 + 0.4).powi(3));
        weights.params.scale[0] = largest(weights.group(0)) / 7.0;
        look(&mut Candidates::new(&weights, moments, &sums, 0, shift));
    }
}

fn energy(moments: &Group, v: &[f64]) -> f64 {
    (0..81).map(|i| v[i / 9] * v[i % 9] * f64::from(moments.gram[i])).sum()
}

/// Against every scale with every shift, each weight the nearest of all values that its codes stand for.
#[test]
fn the_search_finds_the_best_of_all_scales_and_shifts() {
    let moments = group(&rows(false)).about_zero();
    for shift in [Shift::Window, Shift::Phase] {
        each(&moments, shift, |candidates| {
            let nearest = |w: f32, s: f32, d: f32| {
                let values = (-7..=7).map(|code| f64::from(s) * (f64::from(code) - f64::from(d)));
                values.map(|v| v - f64::from(w)).min_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap()
            };
            let error = |s: f32, d: f32| -> f64 {
                let v: Vec<f64> = candidates.weights.group(0).iter().map(|w| nearest(*w, s, d)).collect();
                energy(&moments, &v)
            };
            let all = candidates.scales.iter().flat_map(|s| candidates.shifts.iter().map(|d| error(*s, *d)));
            let least = all.fold(f64::INFINITY, f64::min);
            let [alone, best] =
                candidates.search().map(|(s, d)| (error(candidates.scales[s], candidates.shifts[d]), d));
            assert!(best.0 <= least * (1.0 + 1e-5), "{shift:?}: {} instead of {least}", best.0);
            assert!(alone.1 == 0 && best.0 <= alone.0);
        });
    }
}

/// The best shift at dequantization against a straight line through the output errors of all rows, with and without an intercept.
#[test]
fn the_closed_form_solves_least_squares() {
    let rows = rows(false);
    for bias in [true, false] {
        let moments = if bias { group(&rows) } else { group(&rows).about_zero() };
        each(&moments, Shift::Dequantization, |candidates| {
            let old = candidates.weights.group(0);
            for (place, &scale) in candidates.scales.iter().enumerate() {
                let plain = candidates.candidate(place, 0).0;
                let dot = |v: &dyn Fn(usize) -> f64, x: &[f32]| (0..9).map(|i| v(i) * f64::from(x[i])).sum::<f64>();
                let r: Vec<f64> = rows.iter().map(|x| dot(&|i| f64::from(plain[i] - old[i]), x)).collect();
                let t: Vec<f64> = rows.iter().map(|x| dot(&|_| f64::from(scale), x)).collect();
                let n = rows.len() as f64;
                let (mr, mt) = if bias { (r.iter().sum::<f64>() / n, t.iter().sum::<f64>() / n) } else { (0.0, 0.0) };
                let over: f64 = r.iter().zip(&t).map(|(r, t)| (r - mr) * (t - mt)).sum();
                let slope = over / t.iter().map(|t| (t - mt).powi(2)).sum::<f64>();
                let (row, shift) = candidates.candidate(place, 1);
                assert!((f64::from(shift) - slope).abs() < 1e-4 * (slope.abs() + 1.0), "{shift} for {slope}");
                assert!(row.iter().zip(&plain).all(|(a, b)| (a - (b - scale * shift)).abs() < 1e-5));
            }
        });
    }
}

/// Where the sum of the inputs is always the same, a shift at dequantization adds a constant: it takes off the mean error as a bias does,
/// and is worth nothing beside one.
#[test]
fn beside_a_bias_a_constant_sum_leaves_nothing_to_shift() {
    let centred = group(&rows(true));
    let about_zero = centred.about_zero();
    each(&about_zero, Shift::Dequantization, |candidates| {
        let old: Vec<f64> = candidates.weights.group(0).iter().map(|w| f64::from(*w)).collect();
        let errors = |shift: usize, moments: &Group| {
            let new = candidates.candidate(5, shift).0;
            energy(moments, &new.iter().zip(&old).map(|(new, old)| f64::from(*new) - old).collect::<Vec<_>>())
        };
        let (before, shifted) = (errors(0, &about_zero), errors(1, &about_zero));
        let with_bias = errors(0, &centred);
        assert!((shifted - with_bias).abs() < 1e-3 * before, "{shifted}, and with a bias {with_bias}");
        assert!(with_bias < before);
    });
    each(&centred, Shift::Dequantization, |candidates| assert_eq!(candidates.candidate(5, 1).1, 0.0));
}

#[test]
fn shifting_a_window_that_clips_nothing_changes_nothing() {
    let moments = group(&rows(false));
    each(&moments, Shift::Window, |candidates| {
        let (row, scale) = (candidates.weights.group(0), largest(candidates.weights.group(0)) / 3.0);
        let plain = shifted(row, Shift::Window, scale, 0.0, 4);
        for shift in [-4.0, -2.0, 1.0, 4.0] {
            assert_eq!(shifted(row, Shift::Window, scale, shift, 4), plain);
        }
        assert_ne!(shifted(row, Shift::Window, scale, -7.0, 4), shifted(row, Shift::Window, scale, 7.0, 4));
        candidates.scales = vec![scale];
        candidates.shifts.retain(|shift| shift.abs() <= 4.0);
        assert_eq!(candidates.search(), [(0, 0); 2]);
    });
}

#[test]
fn outputs_come_closer_and_shifted_weights_lose_their_grid() {
    let network = testing::zoo("demo", 3, 8);
    let (samples, fresh) = (testing::images(48, &network.shape), &testing::images(60, &network.shape)[48..]);
    let before = testing::damage(&network, &network.draft, fresh);
    for shift in [Shift::Window, Shift::Dequantization, Shift::Phase] {
        let improved = |threads: usize| {
            let threads = Threads::new(threads);
            let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
            let (mut draft, method) = (network.draft.clone(), WeightShift::new(shift, true));
            walk_through::<MethodError>(&mut walk, &mut draft, &[&method], None, &Silent, |_, _| Ok(())).unwrap();
            (draft, method.findings())
        };
        let (draft, findings) = improved(1);
        assert_eq!((&draft, &findings), (&improved(3).0, &improved(3).1));
        let after = testing::damage(&network, &draft, fresh);
        assert!(after < 0.9 * before, "{shift:?}: {after} instead of {before}");
        let layers = crate::layers(&network.graph, &network.placement);
        let off = layers.iter().filter(|layer| draft.grids.params(&layer.weight).is_none()).count();
        assert!(off > 0 && findings[1].contains(&format!(" {off} layers")), "{findings:?}");
    }
}
