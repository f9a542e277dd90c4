//! Interpolation along axes: every output is a weighted sum of a few inputs on its line.

use crate::{Threads, chunks};

/// For each output position along an axis, the inputs that it is made of and their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Taps(pub Vec<Vec<(usize, f32)>>);

/// Interpolation over fixed dimensions, one axis after the other.
#[derive(Clone, Debug)]
pub struct Interpolate {
    /// `[outer, input length, inner]` and the taps of that axis.
    passes: Vec<([usize; 3], Taps)>,
}

impl Interpolate {
    /// `dims` are the input's in the order of memory; axes without taps stay as they are.
    pub fn new(dims: &[usize], taps: Vec<Option<Taps>>) -> Self {
        let mut left = dims.to_vec();
        let mut passes = Vec::new();
        for (axis, taps) in taps.into_iter().enumerate() {
            let Some(taps) = taps else { continue };
            let inner = left[axis + 1..].iter().product();
            passes.push(([left[..axis].iter().product(), left[axis], inner], taps));
            left[axis] = passes[passes.len() - 1].1.0.len();
        }
        Interpolate { passes }
    }

    /// How many numbers of scratch [`Interpolate::run`] needs.
    pub fn scratch_len(&self) -> usize {
        let between = &self.passes[..self.passes.len().saturating_sub(1)];
        between.iter().map(|([outer, _, inner], taps)| outer * taps.0.len() * inner).max().unwrap_or(0) * 2
    }

    /// Computes `y` from `x`.
    ///
    /// # Panics
    /// If a slice does not have the length of its shape, or `scratch` is too short.
    pub fn run(&self, threads: &Threads, x: &[f32], y: &mut [f32], scratch: &mut [f32]) {
        let Some((last, before)) = self.passes.split_last() else { return y.copy_from_slice(x) };
        let (mut from, mut to) = scratch.split_at_mut(scratch.len() / 2);
        let mut input = x;
        for pass in before {
            let len = pass.0[0] * pass.1.0.len() * pass.0[2];
            line_up(threads, pass, input, &mut to[..len]);
            std::mem::swap(&mut from, &mut to);
            input = &from[..len];
        }
        line_up(threads, last, input, y);
    }
}

/// `y[o, j, i] = Σ_t weight_t · x[o, index_t, i]` over the taps `t` of `j`.
fn line_up(threads: &Threads, ([_, len, inner], taps): &([usize; 3], Taps), x: &[f32], y: &mut [f32]) {
    let (len, inner, taps) = (*len, *inner, &taps.0);
    chunks::for_each_chunk(threads, y, inner, 2, |first, y| {
        for (row, y) in (first / inner..).zip(y.chunks_mut(inner)) {
            let x = &x[row / taps.len() * len * inner..][..len * inner];
            y.fill(0.0);
            for &(index, weight) in &taps[row % taps.len()] {
                y.iter_mut().zip(&x[index * inner..]).for_each(|(y, x)| *y += weight * x);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_axes_are_interpolated_one_after_the_other() {
        // Rows 0, 1 become 0, 1/2, 1; columns are exchanged; the middle axis stays.
        let rows = Taps(vec![vec![(0, 1.0)], vec![(0, 0.5), (1, 0.5)], vec![(1, 1.0)]]);
        let columns = Taps(vec![vec![(1, 1.0)], vec![(0, 1.0)]]);
        let interpolate = Interpolate::new(&[2, 3, 2], vec![Some(rows), None, Some(columns)]);
        let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let mut y = vec![0.0; 18];
        let mut scratch = vec![0.0; interpolate.scratch_len()];
        interpolate.run(&Threads::new(2), &x, &mut y, &mut scratch);
        let expected = (0..18).map(|i| (i / 6) as f32 * 3.0 + (i / 2 % 3) as f32 * 2.0 + (1 - i % 2) as f32);
        assert!(y.iter().copied().eq(expected), "{y:?}");
    }
}
