//! Maps over whole tensors.
//!
//! What enters: a slice. What leaves: as many numbers, each of which depends on its own operand only.

use super::Shared;
use super::activation::Activation;
use crate::Threads;
use crate::simd::Isa;

/// Numbers in a task: large enough to be worth a thread, small enough to balance.
const TASK_LEN: usize = 16 * 1024;

/// Writes `function(x)` to `y`.
///
/// # Panics
/// If the lengths differ.
pub fn map(threads: &Threads, function: Activation, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "a map keeps the length");
    let isa = Isa::best();
    parts(threads, y, 1, |start, y| function.map(isa, &x[start..start + y.len()], y));
}

/// Calls `task(start, part)` for consecutive parts of `y`, whose starts are multiples of `unit`.
pub(super) fn parts(threads: &Threads, y: &mut [f32], unit: usize, task: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let step = TASK_LEN.div_ceil(unit) * unit;
    let len = y.len();
    let y = Shared(y.as_mut_ptr());
    threads.run(len.div_ceil(step), |i| {
        let start = i * step;
        // SAFETY: the parts lie within `y` and do not overlap.
        task(start, unsafe { std::slice::from_raw_parts_mut(y.get().add(start), step.min(len - start)) });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_cover_all_parts() {
        let threads = Threads::new(3);
        let x: Vec<f32> = (0..TASK_LEN * 2 + 5).map(|i| i as f32 - 20_000.0).collect();
        let mut y = vec![f32::NAN; x.len()];
        map(&threads, Activation::LeakyRelu { alpha: 0.5 }, &x, &mut y);
        assert!(x.iter().zip(&y).all(|(&x, &y)| y == if x < 0.0 { x / 2.0 } else { x }));
        map(&threads, Activation::Identity, &x, &mut y);
        assert_eq!(x, y);
    }
}
