//! Sums, norms, maxima and minima along axes.

use crate::{Threads, chunks};

/// What becomes of the elements along the reduced axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
    /// The root of the sum of their squares.
    L2,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

/// A reduction over fixed dimensions, as a sequence of passes `[outer, len, inner]` → `[outer, inner]`.
#[derive(Clone, Debug)]
pub struct Reduce {
    reduction: Reduction,
    /// Innermost axis first.
    passes: Vec<[usize; 3]>,
    count: usize,
}

impl Reduce {
    /// Reduces the axes of `dims` (in the order of memory) for which `reduced` says so.
    pub fn new(reduction: Reduction, dims: &[usize], reduced: &[bool]) -> Self {
        let mut left = dims.to_vec();
        let mut passes: Vec<[usize; 3]> = Vec::new();
        let mut axis = dims.len();
        while axis > 0 {
            axis -= 1;
            if !reduced[axis] || left[axis] == 1 {
                continue;
            }
            // Neighbouring axes are one.
            let end = axis + 1;
            while axis > 0 && reduced[axis - 1] {
                axis -= 1;
            }
            let len = left[axis..end].iter().product();
            passes.push([left[..axis].iter().product(), len, left[end..].iter().product()]);
            left[axis..end].fill(1);
        }
        let count = dims.iter().zip(reduced).map(|(&d, &r)| if r { d } else { 1 }).product();
        Reduce { reduction, passes, count }
    }

    /// Computes `y` from `x`.
    ///
    /// # Panics
    /// If a slice does not have the length of its shape.
    pub fn run(&self, threads: &Threads, x: &[f32], y: &mut [f32]) {
        if x.is_empty() {
            return y.fill(match self.reduction {
                Reduction::Sum | Reduction::L2 => 0.0,
                Reduction::Mean => f32::NAN,
                Reduction::Max => f32::NEG_INFINITY,
                Reduction::Min => f32::INFINITY,
            });
        }
        let Some((&last, before)) = self.passes.split_last() else {
            y.copy_from_slice(x);
            if self.reduction == Reduction::L2 {
                y.iter_mut().for_each(|y| *y = y.abs());
            }
            return;
        };
        let mut between = Vec::new();
        for &pass in before {
            let mut out = vec![0.0; pass[0] * pass[2]];
            self.pass(threads, pass, if between.is_empty() { x } else { &between }, &mut out);
            between = out;
        }
        self.pass(threads, last, if between.is_empty() { x } else { &between }, y);
        if self.reduction == Reduction::Mean {
            y.iter_mut().for_each(|y| *y /= self.count as f32);
        }
    }

    fn pass(&self, threads: &Threads, [_, len, inner]: [usize; 3], x: &[f32], y: &mut [f32]) {
        let smaller = |a: f32, b: f32| if b < a || b.is_nan() { b } else { a };
        let larger = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
        chunks::for_each_chunk(threads, y, inner, len, |first, y| {
            let rows = x[first * len..].chunks(len * inner);
            match self.reduction {
                Reduction::Sum | Reduction::Mean if inner == 1 => {
                    y.iter_mut().zip(rows).for_each(|(y, x)| *y = x.iter().map(|&v| f64::from(v)).sum::<f64>() as f32);
                }
                Reduction::Sum | Reduction::Mean => {
                    y.fill(0.0);
                    for (y, x) in y.chunks_mut(inner).zip(rows) {
                        for x in x.chunks(inner) {
                            y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
                        }
                    }
                }
                // The norm of norms is the norm, so each pass ends with the root.
                Reduction::L2 => {
                    for (y, x) in y.chunks_mut(inner).zip(rows) {
                        for (i, y) in y.iter_mut().enumerate() {
                            let line = x[i..].iter().step_by(inner);
                            *y = line.map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt() as f32;
                        }
                    }
                }
                Reduction::Max => fold(y, rows, inner, f32::NEG_INFINITY, larger),
                Reduction::Min => fold(y, rows, inner, f32::INFINITY, smaller),
            }
        });
    }
}

/// Folds the elements along each row into `y`.
fn fold<'a>(
    y: &mut [f32],
    rows: impl Iterator<Item = &'a [f32]>,
    inner: usize,
    start: f32,
    f: impl Fn(f32, f32) -> f32,
) {
    y.fill(start);
    for (y, x) in y.chunks_mut(inner).zip(rows) {
        for x in x.chunks(inner) {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(*y, x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_of_axes_equals_indexing() {
        let dims = [2, 3, 4, 5];
        let x: Vec<f32> = (0..120).map(|i| ((i * 37) % 101) as f32).collect();
        for mask in 0..16usize {
            let reduced = [0, 1, 2, 3].map(|axis| mask >> axis & 1 == 1);
            let kept = [0, 1, 2, 3].map(|axis| if reduced[axis] { 1 } else { dims[axis] });
            let len: usize = kept.iter().product();
            let (mut sum, mut max, mut min) = (vec![0.0f32; len], vec![f32::MIN; len], vec![f32::MAX; len]);
            let mut squares = vec![0.0f32; len];
            for (i, &v) in x.iter().enumerate() {
                let index = [i / 60, i / 20 % 3, i / 5 % 4, i % 5];
                let place = (0..4).fold(0, |p, axis| p * kept[axis] + if reduced[axis] { 0 } else { index[axis] });
                sum[place] += v;
                max[place] = max[place].max(v);
                min[place] = min[place].min(v);
                squares[place] += v * v;
            }
            let mean: Vec<f32> = sum.iter().map(|s| s / (120 / len) as f32).collect();
            for (reduction, expected) in
                [(Reduction::Sum, &sum), (Reduction::Max, &max), (Reduction::Min, &min), (Reduction::Mean, &mean)]
            {
                let mut y = vec![0.0; len];
                Reduce::new(reduction, &dims, &reduced).run(&Threads::new(2), &x, &mut y);
                assert_eq!(&y, expected, "{reduction:?} {reduced:?}");
            }
            let mut y = vec![0.0; len];
            Reduce::new(Reduction::L2, &dims, &reduced).run(&Threads::new(2), &x, &mut y);
            let near = |(y, square): (&f32, &f32)| (y - square.sqrt()).abs() <= 1e-6 * square.sqrt();
            assert!(y.iter().zip(&squares).all(near), "{reduced:?}");
        }
    }
}
