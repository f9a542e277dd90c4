//! What a position of a target counts: as much as any other, unless it is far larger.
//!
//! At the corners of the last blocks of MobileNetV2, where padding drives them, activations are ten times as large as elsewhere. To the
//! network these are a few positions of many; in the squared error they would be all that is learned.

use fewbits_graph::Tensor;
use std::borrow::Cow;

/// How many times the mean a norm may be before it is far larger.
const FAR: f32 = 1.5;

/// For each position `p` of one image `t`, by channel, `min(1, (FAR·m / ‖t_p‖)²)`, with `m` the mean of all `‖t_p‖`. Huber's weights, but of
/// targets instead of errors, so that they do not change while a unit is learned.
pub(crate) fn influence(image: &[f32], positions: usize) -> Vec<f32> {
    let mut energies = vec![0f32; positions];
    for channel in image.chunks(positions.max(1)) {
        energies.iter_mut().zip(channel).for_each(|(e, t)| *e += t * t);
    }
    let mean = energies.iter().map(|e| f64::from(e.sqrt())).sum::<f64>() / positions.max(1) as f64;
    let most = (FAR * mean as f32).powi(2);
    energies.into_iter().map(|e| if e > most { most / e } else { 1.0 }).collect()
}

/// Positions of each image of `target`, `[N, C, ...]`.
pub(crate) fn positions(target: &Tensor) -> usize {
    target.dims.iter().skip(2).product::<usize>().max(1)
}

/// Multiplies `values`, like `target` of shape `[N, C, ...]`, by the influence of their positions.
pub(crate) fn damp(values: &mut [f32], target: &[f32], image: usize, positions: usize) {
    for (values, target) in values.chunks_mut(image.max(1)).zip(target.chunks(image.max(1))) {
        let influence = influence(target, positions);
        values.iter_mut().zip(influence.iter().cycle()).for_each(|(value, counts)| *value *= counts);
    }
}

/// What each element of one image counts: its `importance` where that is known, else the influence of its position (one channel after the
/// other).
pub(super) fn counts<'a>(image: &[f32], positions: usize, importance: &'a [f32]) -> Cow<'a, [f32]> {
    match importance {
        [] => influence(image, positions).into(),
        known => known.into(),
    }
}

/// `Σ counts · (output − target)²` over all images.
pub(super) fn squared_error(output: &Tensor, target: &Tensor, importance: &[f32]) -> f64 {
    let (Some(output), Some(values)) = (output.as_f32(), target.as_f32()) else { return 0.0 };
    let (size, positions) = (target.dims.iter().skip(1).product::<usize>().max(1), positions(target));
    let of_image = |(output, target): (&[f32], &[f32])| -> f64 {
        let counts = counts(target, positions, importance);
        let pairs = output.iter().zip(target).zip(counts.iter().cycle());
        pairs.map(|((a, b), counts)| f64::from(*counts) * f64::from(a - b).powi(2)).sum()
    };
    output.chunks(size).zip(values.chunks(size)).map(of_image).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_large_position_counts_as_a_few_and_even_ones_all_the_same() {
        // Two channels of four positions.
        let image = |corner: f32| [corner, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(influence(&image(1.2), 4), [1.0; 4]);
        let found = influence(&image(13.0), 4);
        // The mean norm is 4, so that nothing counts beyond (1.5 · 4)² = 36.
        assert!((found[0] - 36.0 / 169.0).abs() < 1e-6 && found[1..] == [1.0; 3], "{found:?}");
        assert_eq!(influence(&[9.0, 0.1, -3.0], 1), [1.0], "a vector is one position");
        let target = Tensor::f32(&[2, 2, 4], [image(13.0), image(1.0)].concat());
        let output = Tensor::f32(&[2, 2, 4], [image(15.0), image(3.0)].concat());
        let mut values = vec![1.0; 16];
        damp(&mut values, target.as_f32().unwrap(), 8, 4);
        assert!((values.iter().sum::<f32>() - 2.0 * 36.0 / 169.0 - 14.0).abs() < 1e-5, "{values:?}");
        assert!((squared_error(&output, &target, &[]) - 4.0 * (36.0 / 169.0 + 1.0)).abs() < 1e-5);
        // Where importance is known, it alone counts.
        let importance = [2.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5];
        assert!((squared_error(&output, &target, &importance) - 2.0 * 2.0 * 4.0).abs() < 1e-5);
    }
}
