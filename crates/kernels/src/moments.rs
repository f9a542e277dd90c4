//! Extremes and sums of a slice in one pass.

use crate::int::isa::multiversion;

/// What [`moments`] finds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// Smallest element.
    pub min: f32,
    /// Largest element.
    pub max: f32,
    /// Sum of the elements.
    pub sum: f64,
    /// Sum of their squares.
    pub squares: f64,
}

/// Partial results kept side by side: four AVX-512 registers of each kind. Part of the result's definition, since it decides the
/// order of the sums.
const LANES: usize = 64;

multiversion! {
    /// Minimum, maximum, sum and sum of squares of `x`, zero if it is empty. Sums are in f32 over every 64th element, in f64 across
    /// these: call it on a few thousand elements at a time. If an element is not finite, neither is `squares`.
    pub fn moments(x: &[f32], found: &mut Moments) {
        let Some(&start) = x.first() else {
            *found = Moments::default();
            return;
        };
        let (mut min, mut max) = ([start; LANES], [start; LANES]);
        let (mut sum, mut squares) = ([0f32; LANES], [0f32; LANES]);
        let (rows, rest) = x.as_chunks::<LANES>();
        for row in rows {
            for lane in 0..LANES {
                let x = row[lane];
                min[lane] = if x < min[lane] { x } else { min[lane] };
                max[lane] = if x > max[lane] { x } else { max[lane] };
                sum[lane] += x;
                squares[lane] += x * x;
            }
        }
        for (lane, &x) in rest.iter().enumerate() {
            min[lane] = if x < min[lane] { x } else { min[lane] };
            max[lane] = if x > max[lane] { x } else { max[lane] };
            sum[lane] += x;
            squares[lane] += x * x;
        }
        *found = Moments {
            min: min.into_iter().fold(start, f32::min),
            max: max.into_iter().fold(start, f32::max),
            sum: sum.into_iter().map(f64::from).sum(),
            squares: squares.into_iter().map(f64::from).sum(),
        };
    }
}

multiversion! {
    /// Sums of `x`, `|x|` and `x²`, minimum and maximum of each channel of `x`, whose channels are the fastest axis; added to what the
    /// slices hold. One number per channel in each; sums are in f32, so call it on a few dozen places at a time.
    pub fn channel_moments(x: &[f32], sums: [&mut [f32]; 3], min: &mut [f32], max: &mut [f32]) {
        let [sum, magnitude, square] = sums;
        let channels = sum.len();
        let (magnitude, square) = (&mut magnitude[..channels], &mut square[..channels]);
        let (min, max) = (&mut min[..channels], &mut max[..channels]);
        for place in x.chunks_exact(channels.max(1)) {
            for c in 0..channels {
                let x = place[c];
                sum[c] += x;
                magnitude[c] += x.abs();
                square[c] += x * x;
                min[c] = if x < min[c] { x } else { min[c] };
                max[c] = if x > max[c] { x } else { max[c] };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_definition_at_every_length() {
        for len in [0, 1, 2, 63, 64, 65, 127, 128, 1000] {
            let x: Vec<f32> = (0..len).map(|i| ((i * 37 + 5) % 101) as f32 * 0.25 - 7.0).collect();
            let mut found = Moments::default();
            moments(&x, &mut found);
            let wide = || x.iter().map(|&v| f64::from(v));
            // Quarters: every sum is exact.
            assert_eq!(found.sum, wide().sum::<f64>(), "{len}");
            assert_eq!(found.squares, wide().map(|v| v * v).sum::<f64>(), "{len}");
            assert_eq!(f64::from(found.min), wide().reduce(f64::min).unwrap_or(0.0), "{len}");
            assert_eq!(f64::from(found.max), wide().reduce(f64::max).unwrap_or(0.0), "{len}");
        }
        for broken in [f32::NAN, f32::INFINITY] {
            let mut found = Moments::default();
            moments(&[1.0, broken, 2.0], &mut found);
            assert!(!found.squares.is_finite());
        }
    }

    #[test]
    fn channels_are_kept_apart() {
        let x = [1.0, -2.0, 3.0, 4.0, 5.0, -6.0];
        let [mut sum, mut magnitude, mut square] = [[0.0; 2]; 3];
        let (mut min, mut max) = ([1.0, -2.0], [1.0, -2.0]);
        channel_moments(&x, [&mut sum, &mut magnitude, &mut square], &mut min, &mut max);
        assert_eq!((sum, min, max), ([9.0, -4.0], [1.0, -6.0], [5.0, 4.0]));
        assert_eq!((magnitude, square), ([9.0, 12.0], [35.0, 56.0]));
    }
}
