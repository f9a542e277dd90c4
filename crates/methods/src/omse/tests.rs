use super::*;
use fewbits_train::random::Random;

#[test]
fn the_scale_is_as_good_as_an_exhaustive_search() {
    let mut random = Random::new(2);
    for (count, bits) in [(9, 4), (27, 4), (200, 3), (200, 2), (500, 8)] {
        for _ in 0..10 {
            let row: Vec<f32> = (0..count).map(|_| 0.05 * random.normal() as f32).collect();
            let error = |scale: f32| -> f64 {
                let new = rounded(&row, scale, bits);
                new.iter().zip(&row).map(|(a, b)| f64::from(a - b).powi(2)).sum()
            };
            let full = largest(&row) / Grid::weights(bits).qmax() as f32;
            let least = (150..=1100).map(|i| error(full * i as f32 / 1000.0)).fold(f64::MAX, f64::min);
            let scale = best_scale(&row, bits).unwrap();
            assert!(error(scale) <= 1.1 * least, "{count} weights, {bits} bits: {} and not {least}", error(scale));
            // The best scale for its codes.
            let new = rounded(&row, scale, bits);
            let sum = |other: &[f32]| new.iter().zip(other).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            assert!((sum(&row) / sum(&new) - 1.0).abs() < 1e-4);
        }
    }
}

#[test]
fn weights_on_a_grid_keep_it() {
    let row: Vec<f32> = [-7, 3, 1, 0, 5, -2].map(|code| 0.25 * code as f32).to_vec();
    assert_eq!(best_scale(&row, 4), Some(0.25));
    assert_eq!(best_scale(&[0.0, 0.0], 4), None);
}
