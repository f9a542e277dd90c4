use super::*;
use crate::{progress::Silent, testing};
use std::convert::Infallible;

#[test]
fn the_vertex_of_a_parabola_is_found() {
    let points = |f: &dyn Fn(f64) -> f64| -> Vec<(f32, f64)> {
        (0..10).map(|i| 2.0 + 2.0 * i as f32 / 9.0).map(|p| (p, f(f64::from(p)))).collect()
    };
    let found = vertex(&points(&|p| 0.3 * (p - 2.7).powi(2) + 5.0)).unwrap();
    assert!((found - 2.7).abs() < 1e-4, "{found}");
    assert_eq!(vertex(&points(&|p| -(p - 3.1).powi(2))), None);
}

/// Of least squares, not of interpolation: numpy.polyfit gives 0.48571 p² − 2.83429 p + 4.56 for these.
#[test]
fn a_parabola_through_scattered_points_is_that_of_least_squares() {
    let points = [(1.0, 2.2), (2.0, 1.0), (3.0, 0.0), (4.0, 1.4), (5.0, 2.4)];
    let found = vertex(&points).unwrap();
    assert!((found - 2.917647).abs() < 1e-5, "{found}");
}

#[test]
fn the_outputs_come_closer_whatever_the_number_of_threads() {
    let network = testing::zoo("demo", 3, 8);
    let samples = testing::images(24, &network.shape);
    let loss = |draft: &Draft, half: Part| -> Result<f64, Infallible> {
        let samples = if half == Part::Fit { &samples[..8] } else { &samples[8..16] };
        Ok(testing::damage(&network, draft, samples))
    };
    let tuned = |threads: usize| {
        let mut draft = network.draft.clone();
        let (config, threads) = (Config { count: 4, ..Config::default() }, Threads::new(threads));
        let Ok(kept) = tune(network.ground(), &mut draft, &config, &threads, &loss, &Silent);
        assert!(kept);
        draft
    };
    let draft = tuned(1);
    assert_eq!(draft, tuned(2));
    let fresh = &samples[16..];
    let (before, after) = (testing::damage(&network, &network.draft, fresh), testing::damage(&network, &draft, fresh));
    assert!(after < 0.7 * before, "{after} instead of {before}");
}
