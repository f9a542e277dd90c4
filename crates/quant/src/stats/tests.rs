use super::*;
use crate::testing::Random;

fn image(random: &mut Random, len: usize, mean: f32) -> Vec<f32> {
    (0..len).map(|_| random.normal() + mean).collect()
}

#[test]
fn sums_and_extremes_are_those_of_all_elements() {
    let mut random = Random::new(1);
    let images: Vec<Vec<f32>> = (0..5).map(|i| image(&mut random, 20_011, 0.1 * i as f32)).collect();
    let mut stats = TensorStats::with_channels(1);
    images.iter().for_each(|x| stats.observe_image(x));
    let all: Vec<f64> = images.concat().iter().map(|&x| f64::from(x)).collect();
    let n = all.len() as f64;
    let mean = all.iter().sum::<f64>() / n;
    let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let deviation = all.iter().map(|x| (x - mean).abs()).sum::<f64>() / n;
    assert_eq!((stats.images, stats.count, stats.non_finite), (5, 100_055, 0));
    assert_eq!(f64::from(stats.min), all.iter().copied().fold(f64::MAX, f64::min));
    assert_eq!(f64::from(stats.max), all.iter().copied().fold(f64::MIN, f64::max));
    assert!((stats.mean() - mean).abs() < 1e-6);
    assert!((stats.std() - variance.sqrt()).abs() < 1e-6);
    assert!((stats.mean_abs_deviation() - deviation).abs() < 0.01);
    let extremes: Vec<f32> = images.iter().map(|x| x.iter().copied().fold(f32::MIN, f32::max)).collect();
    assert_eq!(stats.sum_of_image_max, extremes.iter().map(|&x| f64::from(x)).sum::<f64>());
    let moving = extremes[1..].iter().fold(f64::from(extremes[0]), |m, &x| 0.9 * m + 0.1 * f64::from(x));
    assert!((stats.moving_max - moving).abs() < 1e-12);
}

#[test]
fn channels_are_summed_apart() {
    let mut stats = TensorStats::with_channels(3);
    let place = |i: i32| [i as f32, -2.0 * i as f32, 7.0];
    let values: Vec<f32> = (1..=100).flat_map(place).collect();
    stats.observe_image(&values);
    stats.observe_image(&values);
    let channels = stats.channels.unwrap();
    assert_eq!(channels.count, 200);
    assert_eq!(channels.mean(), [50.5, -101.0, 7.0]);
    assert_eq!((channels.min, channels.max), (vec![1.0, -200.0, 7.0], vec![100.0, -2.0, 7.0]));
}

#[test]
fn numbers_that_are_not_finite_are_counted_and_left_out() {
    let mut stats = TensorStats::new();
    stats.observe_image(&[]);
    stats.observe_image(&[f32::NAN; 3]);
    stats.observe_image(&[1.0, f32::INFINITY, -2.0, f32::NAN, f32::NEG_INFINITY]);
    stats.observe_image(&[1e30, 1e30]); // the squares overflow f32
    assert_eq!((stats.images, stats.count, stats.non_finite), (4, 4, 6));
    assert_eq!((stats.min, stats.max), (-2.0, 1e30));
    assert!((stats.sum_of_squares / 2e60 - 1.0).abs() < 1e-6);
    assert_eq!(stats.histogram.total(), 4);
}

#[test]
fn samples_meet_every_channel_and_every_place_equally() {
    for len in [112 * 112 * 96, 56 * 56 * 144, 7 * 7 * 1280, 3 * 224 * 224, 4097, 4096, 1000] {
        let stride = sampling_stride(len, SAMPLES_PER_IMAGE);
        assert!(len.div_ceil(stride) <= SAMPLES_PER_IMAGE);
        assert!(len.div_ceil(stride) * 4 > SAMPLES_PER_IMAGE.min(len), "{len}: stride {stride}");
    }
    // Each channel of 96 holds its own number: the histogram must show all of them about as often.
    let values: Vec<f32> = (0..112 * 112 * 96).map(|i| (i % 96 + 1) as f32).collect();
    let mut stats = TensorStats::new();
    stats.observe_image(&values);
    let counts: Vec<u64> = stats.histogram.counts.iter().copied().filter(|&c| c > 0).collect();
    let expected = stats.histogram.total() / 96;
    assert_eq!(counts.len(), 96);
    assert!(counts.iter().all(|c| c.abs_diff(expected) <= 2), "{counts:?}");
}

#[test]
fn the_sampled_histogram_has_the_quantiles_of_the_full_data() {
    // 40 images of 60,000 elements, whose spread falls with the place in the image and differs between images.
    let mut random = Random::new(7);
    let mut stats = TensorStats::new();
    let mut all = Vec::new();
    for i in 0..40 {
        let spread = |p: usize| (1.0 + 0.05 * i as f32) * (1.0 - p as f32 / 80_000.0);
        let values: Vec<f32> = (0..60_000).map(|p| random.normal() * spread(p)).collect();
        stats.observe_image(&values);
        all.extend(values);
    }
    all.sort_by(f32::total_cmp);
    let histogram = &stats.histogram;
    for (p, tolerance) in [(0.5, 0.02), (0.9, 0.02), (0.99, 0.03), (0.9999, 0.5)] {
        let exact = f64::from(all[(p * all.len() as f64) as usize]);
        let mut left = p * histogram.total() as f64;
        let bin = histogram.counts.iter().position(|&c| {
            left -= c as f64;
            left < 0.0
        });
        let found = histogram.edge(bin.unwrap());
        assert!((found - exact).abs() < tolerance, "quantile {p}: {found} instead of {exact}");
    }
}
