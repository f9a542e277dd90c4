//! Mean of each channel over all positions, in the order of ONNX Runtime's kernel: four interleaved sums, joined crosswise, then
//! the positions left over. Equal to its float GlobalAveragePool on every element.

use crate::{Threads, int::isa::multiversion};
use std::sync::Mutex;

/// Channels summed side by side.
const LANES: usize = 16;

/// `y[n, c] = mean x[n, ·, c]` for `x` of shape `[n, positions, c]`.
pub(super) fn global_average(threads: &Threads, [n, positions, c]: [usize; 3], x: &[f32], y: &mut [f32]) {
    let images: Vec<_> = x.chunks(positions * c).zip(y.chunks_mut(c).map(Mutex::new)).collect();
    debug_assert_eq!(images.len(), n);
    threads.run(images.len(), |i| {
        let (x, y) = &images[i];
        if let Ok(mut y) = y.lock() {
            average(x, positions, &mut y);
        }
    });
}

multiversion! {
    /// One image: `x` is `[positions, y.len()]`.
    fn average(x: &[f32], positions: usize, y: &mut [f32]) {
        let channels = y.len();
        let mut first = 0;
        for y in y.chunks_mut(LANES) {
            let lanes = y.len();
            let mut sums = [[0f32; LANES]; 4];
            let at = |p: usize| &x[p * channels + first..][..lanes];
            let whole = positions - positions % 4;
            for p in 0..whole {
                let row = at(p);
                for (sum, &x) in sums[p % 4].iter_mut().zip(row) {
                    *sum += x;
                }
            }
            let [a, b, c, d] = sums;
            for (lane, y) in y.iter_mut().enumerate() {
                let mut sum = (a[lane] + c[lane]) + (b[lane] + d[lane]);
                for p in whole..positions {
                    sum += at(p)[lane];
                }
                *y = sum / positions as f32;
            }
            first += lanes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_in_the_order_of_the_runtime() {
        // Sums of these depend on their order: 1e8 swallows what is added to it.
        let x = [1e8, 1.0, -1e8, 1.0, 3.0, 5.0, 7.0];
        let expected: f32 = (((1e8 + 0.0) - 1e8) + (1.0 + 1.0) + 3.0 + 5.0 + 7.0) / 7.0;
        for c in [1, 15, 16, 17, 40] {
            let wide: Vec<f32> = x.iter().flat_map(|&v| std::iter::repeat_n(v, c)).collect();
            let mut y = vec![0.0; c];
            global_average(&Threads::new(1), [1, 7, c], &wide, &mut y);
            assert!(y.iter().all(|&v| v == expected), "{c}: {y:?}, expected {expected}");
        }
    }
}
