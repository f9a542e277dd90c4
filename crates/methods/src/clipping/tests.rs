use super::*;
use fewbits_testing::anchors::{self, Anchor, Density};
use fewbits_train::random::Random;

fn normal(count: usize) -> Vec<f32> {
    let mut random = Random::new(5);
    (0..count).map(|_| random.normal() as f32).collect()
}

fn laplace(count: usize) -> Vec<f32> {
    let mut random = Random::new(6);
    (0..count).map(|_| (1.0 - random.uniform()).ln() as f32 * if random.uniform() < 0.5 { -1.0 } else { 1.0 }).collect()
}

/// Clips of known distributions, given as quantiles: formulas to the digits of their tables, as far as quantiles go.
#[test]
fn clips_of_known_distributions_are_where_theory_says() {
    let (normal, laplace) = (Density::Normal.quantiles(200_000), anchors::laplace(200_000));
    let analytic = anchors::ACIQ.into_iter().flat_map(|(bits, gauss, wide)| {
        [(Clip::Aciq(Prior::Gauss), &normal, bits, gauss), (Clip::Aciq(Prior::Laplace), &laplace, bits, wide)]
    });
    let others = [
        (Clip::Sigmas(3.0), &normal, 4, 3.0),
        (Clip::Percentile(99.9), &normal, 8, 3.2905),
        // The tenth largest of 100,000 magnitudes stands for the middle of its share.
        (Clip::Percentile(99.99), &laplace, 8, (1e5f32 / 10.5).ln()),
        (Clip::Sawb, &normal, 4, 12.68 - 12.80 * 0.79788),
        (Clip::Sawb, &laplace, 3, 7.509 * 2f32.sqrt() - 6.892),
    ];
    for (clip, values, bits, expected) in analytic.chain(others) {
        let found = clip.magnitude(values, bits).unwrap();
        assert!((found / expected - 1.0).abs() < 2e-3, "{clip} at {bits} bits: {found} instead of {expected}");
    }
    for Anchor { bits, clip, step, .. } in Density::Normal.anchors() {
        let found = f64::from(Clip::Lp(2.0).magnitude(&normal, *bits).unwrap());
        let best = Density::Normal.best_clip(*bits);
        assert!((found / best - 1.0).abs() < 5e-3, "{bits} bits: {found} instead of {best}");
        assert!((found - clip).abs() <= 0.5 * step + 5e-3 * clip, "{bits} bits: {found}, in the table {clip}");
    }
}

#[test]
fn powers_are_as_good_as_an_exhaustive_search() {
    for (p, bits) in [(2.0, 3), (2.4, 4), (4.0, 4), (2.0, 2)] {
        let values = &laplace(500);
        let error = |clip: f32| -> f64 {
            let scale = clip / Grid::weights(bits).qmax() as f32;
            let pairs = rounded(values, scale, bits).into_iter().zip(values);
            pairs.map(|(new, old)| f64::from((new - old).abs().powf(p))).sum()
        };
        let least = (200..=1000).map(|i| error(largest(values) * i as f32 / 1000.0)).fold(f64::MAX, f64::min);
        let found = error(Clip::Lp(p).magnitude(values, bits).unwrap());
        assert!(found <= 1.01 * least, "p = {p}, {bits} bits: {found} instead of {least}");
    }
}

#[test]
fn no_rule_reaches_beyond_the_weights_or_breaks_on_few() {
    let few: [&[f32]; 5] = [&[], &[0.0, 0.0], &[0.7], &[-0.2, 0.2], &[1e-44]];
    for clip in CLIPS {
        for values in few {
            for bits in [2, 3, 4, 5, 8] {
                let most = largest(values);
                let found = clip.magnitude(values, bits);
                assert!(found.is_none_or(|c| c > 0.0 && c <= most), "{clip} of {values:?} at {bits} bits: {found:?}");
            }
        }
    }
    assert_eq!(Clip::Max.magnitude(&[0.3, -0.7], 4), Some(0.7));
    assert_eq!(Clip::Sawb.magnitude(&[0.3, -0.7], 6), None);
}

/// Nine weights have no distribution, but ten thousand such rows have, each in its own size.
#[test]
fn short_rows_are_judged_together_each_in_its_own_size() {
    let size = |row: usize| 10f32.powi(row as i32 % 5 - 2);
    let mut rows: Vec<f32> = normal(9 * 10_000);
    rows.iter_mut().enumerate().for_each(|(i, w)| *w *= size(i / 9));
    rows[..9].fill(0.0);
    let found = Clip::Aciq(Prior::Gauss).magnitudes(&rows, 9, 2, &Threads::new(2));
    assert_eq!(found[0], None);
    for (row, clip) in found.iter().enumerate().skip(1) {
        let weights = &rows[row * 9..][..9];
        let expected = (ranges::optimum(Prior::Gauss, 2) as f32 * root_mean_square(weights)).min(largest(weights));
        assert!((clip.unwrap() / expected - 1.0).abs() < 0.03);
    }
    let wide = normal(4 * 100);
    let own: Vec<_> = wide.chunks(100).map(|row| Clip::Kl.magnitude(row, 4)).collect();
    assert_eq!(Clip::Kl.magnitudes(&wide, 100, 4, &Threads::new(2)), own);
}
