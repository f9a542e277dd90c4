use super::*;
use crate::{stats::MAX_BINS, testing::Random};
use fewbits_testing::anchors::{ACIQ, Anchor, Density, agrees, laplace};

const RULES: [RangeRule; 10] = [
    RangeRule::MinMax,
    RangeRule::MeanMinMax,
    RangeRule::MovingAverage,
    RangeRule::Percentile(99.99),
    RangeRule::Percentile(99.0),
    RangeRule::Mse,
    RangeRule::Kl,
    RangeRule::Aciq,
    RangeRule::AciqPrior(Prior::Laplace),
    RangeRule::AciqPrior(Prior::Gauss),
];

fn observed(values: &[f32]) -> TensorStats {
    let mut stats = TensorStats::new();
    // Images of this size enter the histogram whole.
    values.chunks(4000).for_each(|image| stats.observe_image(image));
    stats
}

/// The definition, on the elements themselves.
fn measured_error(values: &[f32], params: &QuantParams) -> f64 {
    let (scale, zero) = params.tensor_params().unwrap();
    let error = |&x: &f32| {
        let q = ((x / scale).round_ties_even() as i32 + zero).clamp(params.grid.qmin(), params.grid.qmax());
        (f64::from(x) - f64::from((q - zero) as f32 * scale)).powi(2)
    };
    values.iter().map(error).sum::<f64>() / values.len() as f64
}

/// Shapes of activations: name and 32,000 elements.
fn shapes() -> Vec<(&'static str, Vec<f32>)> {
    let mut random = Random::new(11);
    let mut draw = |f: &mut dyn FnMut(&mut Random) -> f32| (0..32_000).map(|_| f(&mut random)).collect::<Vec<f32>>();
    vec![
        ("normal", draw(&mut |r| r.normal())),
        ("laplace", draw(&mut |r| r.laplace() - 0.3)),
        ("relu", draw(&mut |r| (3.0 * r.normal() - 1.0).max(0.0))),
        ("relu6", draw(&mut |r| (4.0 * r.normal() + 2.0).clamp(0.0, 6.0))),
        ("silu", draw(&mut |r| 2.0 * r.normal()).iter().map(|x| x / (1.0 + (-x).exp())).collect()),
        ("outliers", draw(&mut |r| if r.uniform() < 0.002 { 40.0 * r.uniform() } else { 0.5 * r.normal() })),
        ("below zero", draw(&mut |r| -2.0 - r.uniform())),
    ]
}

#[test]
fn the_expected_error_is_the_measured_one() {
    for (name, values) in shapes() {
        let moments = Moments::new(&observed(&values));
        for bits in [1, 2, 3, 4, 6, 8] {
            for (lo, hi) in [(-6.0, 6.0), (-0.4, 3.0), (-1.1, 0.2), (0.0, 4.0)] {
                let params = Range::of(lo, hi).params(Grid::activations(bits), Mapping::Affine);
                let (expected, measured) = (moments.mean_squared_error(&params), measured_error(&values, &params));
                assert!((expected / measured - 1.0).abs() < 0.02, "{name}, {bits} bits: {expected} against {measured}");
            }
        }
    }
}

#[test]
fn mse_finds_the_least_error_of_an_exhaustive_search() {
    for (name, values) in shapes() {
        let stats = observed(&values);
        for bits in [2, 3, 4, 8] {
            let grid = Grid::activations(bits);
            let found = measured_error(&values, &RangeRule::Mse.params(&stats, grid, Mapping::Affine));
            let (lo, hi) = (f64::from(stats.min).min(0.0), f64::from(stats.max).max(0.0));
            let shares = || (0..18).map(|i| 0.85f64.powi(i));
            let all = shares().flat_map(|l| shares().map(move |h| (l, h)));
            let all = all.filter(|(l, h)| (lo < 0.0 || *l == 1.0) && (hi > 0.0 || *h == 1.0));
            let ranges = all.map(|(l, h)| Range::of(lo * l, hi * h));
            let least = ranges
                .map(|range| measured_error(&values, &range.params(grid, Mapping::Affine)))
                .fold(f64::MAX, f64::min);
            assert!(found <= 1.01 * least, "{name}, {bits} bits: {found} against {least}");
        }
    }
}

#[test]
fn the_range_from_samples_is_nearly_as_good_as_that_from_all_elements() {
    let mut random = Random::new(23);
    let images: Vec<Vec<f32>> =
        (0..64).map(|i| (0..30_000).map(|_| random.laplace() * (1.0 + 0.01 * i as f32)).collect()).collect();
    let (mut sampled, mut whole) = (TensorStats::new(), TensorStats::new());
    for image in &images {
        sampled.observe_image(image);
        image.chunks(4000).for_each(|part| whole.observe_image(part));
    }
    assert!(sampled.histogram.total() * 6 < whole.histogram.total());
    let moments = Moments::new(&whole);
    for (bits, tolerance) in [(2, 0.001), (4, 0.002), (8, 0.02)] {
        let error =
            |stats| moments.mean_squared_error(&RangeRule::Mse.params(stats, Grid::activations(bits), Mapping::Affine));
        assert!(
            error(&sampled) / error(&whole) - 1.0 < tolerance,
            "{bits} bits: {} {}",
            error(&sampled),
            error(&whole)
        );
    }
}

/// Statistics of a density itself, by its share of each bin in place of samples.
fn integrated(density: Density, lo: i64, hi: i64) -> TensorStats {
    let log2_width = (hi - lo).ilog2() as i32 - MAX_BINS.ilog2() as i32;
    let width = 2f64.powi(log2_width);
    let first = (lo as f64 / width) as i64;
    let share = |k: i64| density.share((first + k) as f64 * width, (first + k + 1) as f64 * width);
    let counts = (0..MAX_BINS as i64).map(|k| (share(k) * 2f64.powi(50)).round() as u64).collect();
    let histogram = Histogram { log2_width, first, counts, zeros: 0 };
    TensorStats { images: 1, min: lo as f32, max: hi as f32, histogram, ..TensorStats::new() }
}

#[test]
fn mse_clips_a_normal_and_an_exponential_where_theory_says() {
    let cases = [
        (Density::Normal, integrated(Density::Normal, -8, 8), Mapping::Symmetric),
        (Density::Exponential, integrated(Density::Exponential, 0, 32), Mapping::Affine),
    ];
    for (density, stats, mapping) in cases {
        for &Anchor { bits, clip, step, error } in density.anchors() {
            let what = format!("{density:?} at {bits} bits");
            let grid = if density == Density::Normal { Grid::weights(bits) } else { Grid::activations(bits) };
            let measured = |params: &QuantParams| Moments::new(&stats).mean_squared_error(params);
            let scale = (clip / f64::from(grid.qmax())) as f32;
            let printed = measured(&QuantParams::per_tensor(grid, scale, 0));
            assert!(error.is_none_or(|error| agrees(printed, error)), "{what}: {printed}");
            let params = RangeRule::Mse.params(&stats, grid, mapping);
            // As near to the best as neighbouring candidates of the search are, so within a step of the table and a little.
            let (found, best) = (f64::from(params.range(0).1), density.best_clip(bits));
            assert!((found / best - 1.0).abs() < 0.01, "{what}: {found} and not {best}");
            assert!((found - clip).abs() <= 0.5 * step + 0.01 * clip, "{what}: {found}, in the table {clip}");
            let ratio = measured(&params) / density.error(best, bits);
            assert!((ratio - 1.0).abs() < 1e-3, "{what}: {ratio}");
        }
    }
}

#[test]
fn percentiles_are_those_of_the_sorted_elements() {
    for (name, values) in shapes() {
        let stats = observed(&values);
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        for percent in [90.0, 99.0, 99.9, 100.0] {
            let range = RangeRule::Percentile(percent).range(&stats, Grid::activations(8), Mapping::Affine);
            let at = |p: f64| f64::from(sorted[((p * values.len() as f64) as usize).min(values.len() - 1)]);
            let expected = Range::of(at(1.0 - percent / 100.0), at(percent / 100.0));
            let tolerance = 2.0 * stats.histogram.width() + 0.02 * (expected.hi - expected.lo);
            let near = (range.lo - expected.lo).abs() < tolerance && (range.hi - expected.hi).abs() < tolerance;
            assert!(near, "{name}, {percent}: {range:?} instead of {expected:?}");
        }
    }
}

#[test]
fn aciq_clips_where_the_published_tables_say() {
    let [normal, laplace] = [Density::Normal.quantiles(200_000), laplace(200_000)].map(|values| observed(&values));
    let alpha = |stats: &TensorStats, prior, bits| {
        RangeRule::AciqPrior(prior).range(stats, Grid::activations(bits), Mapping::Affine).hi - stats.mean()
    };
    for (bits, gauss, wide) in ACIQ {
        for (stats, prior, expected) in [(&normal, Prior::Gauss, gauss), (&laplace, Prior::Laplace, wide)] {
            let (found, expected) = (alpha(stats, prior, bits), f64::from(expected));
            // Quantiles end early, which takes a little off the widths.
            assert!((found / expected - 1.0).abs() < 1e-3, "{prior:?} at {bits} bits: {found} and not {expected}");
        }
    }
    let grid = Grid::activations(4);
    // Each prior suits its own distribution, and `aciq` picks the better one.
    for (stats, own) in [(&normal, Prior::Gauss), (&laplace, Prior::Laplace)] {
        assert_eq!(
            RangeRule::Aciq.range(stats, grid, Mapping::Affine),
            RangeRule::AciqPrior(own).range(stats, grid, Mapping::Affine)
        );
    }
}

#[test]
fn what_follows_a_relu6_has_zero_point_0_and_stays_within_it() {
    let stats = observed(&shapes()[3].1);
    for rule in RULES {
        for bits in [2, 4, 8] {
            let params = rule.params(&stats, Grid::activations(bits), Mapping::Affine);
            let (lo, hi) = params.range(0);
            assert_eq!((params.zero_point[0], lo), (0, 0.0), "{rule}");
            assert!(hi > 0.3 && hi <= 6.0 * (1.0 + f32::EPSILON), "{rule}: {hi}");
        }
    }
    let exact = RangeRule::MinMax.params(&stats, Grid::activations(8), Mapping::Affine);
    assert_eq!(exact.scale, [6.0 / 255.0]);
}

#[test]
fn degenerate_tensors_have_valid_grids() {
    let cases: [&[f32]; 7] =
        [&[], &[0.0; 9], &[1e-12, -1e-12], &[3.0; 5], &[-3.0; 5], &[f32::NAN], &[f32::MAX, f32::MIN, 0.0]];
    for values in cases {
        let stats = observed(values);
        for rule in RULES {
            for (grid, mapping) in [(Grid::activations(8), Mapping::Affine), (Grid::weights(2), Mapping::Symmetric)] {
                let params = rule.params(&stats, grid, mapping);
                let (scale, zero_point) = params.tensor_params().unwrap();
                assert!(scale.is_normal() && scale > 0.0, "{rule} of {values:?}: {scale}");
                assert!((grid.qmin()..=grid.qmax()).contains(&zero_point));
                if values.iter().all(|x| x.abs() < 1e-8 || x.is_nan()) {
                    assert_eq!((scale, zero_point), (1.0, 0), "{rule} of {values:?}");
                }
            }
        }
    }
}

#[test]
fn averages_of_extremes_follow_their_definition() {
    let mut stats = TensorStats::new();
    stats.observe_image(&[-1.0, 2.0]);
    stats.observe_image(&[-3.0, 8.0]);
    let range = |rule: RangeRule| rule.range(&stats, Grid::activations(8), Mapping::Affine);
    assert_eq!(range(RangeRule::MinMax), Range { lo: -3.0, hi: 8.0 });
    assert_eq!(range(RangeRule::MeanMinMax), Range { lo: -2.0, hi: 5.0 });
    let moving = range(RangeRule::MovingAverage);
    assert!((moving.lo + 1.2).abs() < 1e-12 && (moving.hi - 2.6).abs() < 1e-12);
}

#[test]
fn names_of_rules_read_back() {
    for rule in RULES {
        assert_eq!(rule.to_string().parse::<RangeRule>().unwrap(), rule);
        let json = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<RangeRule>(&json).unwrap(), rule);
    }
    for wrong in ["", "max", "percentile", "percentile:", "percentile:40", "percentile:101", "percentile:nan"] {
        assert!(wrong.parse::<RangeRule>().unwrap_err().hint().unwrap().contains("percentile:P"), "{wrong}");
    }
}
