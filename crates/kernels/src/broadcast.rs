//! Elementwise functions of two operands with ONNX's multidirectional broadcasting.
//!
//! What enters: operands of any dimensions that stretch to those of the output, as steps through memory. What leaves: the
//! filled output. Same shape, scalar and per-channel operands are cases of the same walk, in which axes are merged first.

use crate::simd::{Isa, Kernel, Simd};
use crate::{Threads, chunks};

/// How two operands are walked while the output is filled in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcast {
    /// Outermost first, never empty. Neighbours that both operands walk without a jump are one axis.
    axes: Vec<Axis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    len: usize,
    /// Elements between neighbours along this axis; 0 repeats one element.
    steps: [usize; 2],
}

impl Broadcast {
    /// `dims` are the output's in the order of memory; `steps` the distances between neighbours in each operand, 0 along axes
    /// where it is stretched.
    pub fn new(dims: &[usize], steps: [&[usize]; 2]) -> Self {
        let mut axes: Vec<Axis> = Vec::new();
        for (axis, &len) in dims.iter().enumerate().filter(|&(_, &len)| len != 1) {
            let inner = Axis { len, steps: steps.map(|s| s[axis]) };
            match axes.last_mut() {
                Some(outer) if (0..2).all(|i| outer.steps[i] == inner.steps[i] * len) => {
                    *outer = Axis { len: outer.len * len, ..inner };
                }
                _ => axes.push(inner),
            }
        }
        if axes.is_empty() {
            axes.push(Axis { len: 1, steps: [0, 0] });
        }
        Broadcast { axes }
    }

    /// `out[i] = f(a[…], b[…])`.
    ///
    /// # Panics
    /// If an operand is shorter than its steps reach.
    pub fn map<T, O, F>(&self, threads: &Threads, a: &[T], b: &[T], out: &mut [O], f: F)
    where
        T: Copy + Sync,
        O: Send,
        F: Fn(T, T) -> O + Copy + Sync + Send,
    {
        let isa = Isa::best();
        self.for_each_row(threads, out, |[i, j], steps, out| {
            isa.dispatch(Row { a: &a[i..], b: &b[j..], steps, out, f })
        });
    }

    /// Calls `task(first element of each operand, step in each operand, row)` for runs of the output in which both operands are
    /// walked evenly.
    pub fn for_each_row<O: Send>(
        &self,
        threads: &Threads,
        out: &mut [O],
        task: impl Fn([usize; 2], [usize; 2], &mut [O]) + Sync + Send,
    ) {
        let inner = self.axes[self.axes.len() - 1];
        chunks::for_each_chunk(threads, out, 1, 1, |mut first, mut out| {
            while !out.is_empty() {
                let column = first % inner.len;
                let (row, rest) = out.split_at_mut(out.len().min(inner.len - column));
                let starts = self.starts(first / inner.len);
                first += row.len();
                task([0, 1].map(|i| starts[i] + column * inner.steps[i]), inner.steps, row);
                out = rest;
            }
        });
    }

    /// Where row `row` starts in each operand.
    fn starts(&self, mut row: usize) -> [usize; 2] {
        let mut starts = [0; 2];
        for axis in self.axes[..self.axes.len() - 1].iter().rev() {
            let index = row % axis.len;
            row /= axis.len;
            starts = [0, 1].map(|i| starts[i] + index * axis.steps[i]);
        }
        starts
    }
}

struct Row<'a, T, O, F> {
    a: &'a [T],
    b: &'a [T],
    steps: [usize; 2],
    out: &'a mut [O],
    f: F,
}

impl<T: Copy, O, F: Fn(T, T) -> O + Copy> Kernel for Row<'_, T, O, F> {
    type Output = ();
    /// Plain loops, compiled for each instruction set.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Row { a, b, steps, out, f } = self;
        let n = out.len();
        match steps {
            [1, 1] => out.iter_mut().zip(&a[..n]).zip(&b[..n]).for_each(|((o, &a), &b)| *o = f(a, b)),
            [1, 0] => {
                let b = b[0];
                out.iter_mut().zip(&a[..n]).for_each(|(o, &a)| *o = f(a, b));
            }
            [0, 1] => {
                let a = a[0];
                out.iter_mut().zip(&b[..n]).for_each(|(o, &b)| *o = f(a, b));
            }
            [s, t] => out.iter_mut().enumerate().for_each(|(i, o)| *o = f(a[i * s], b[i * t])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a row-major operand of shape `dims`, 0 where it is stretched.
    fn steps(dims: &[usize]) -> Vec<usize> {
        let inner = |axis: usize| dims[axis + 1..].iter().product();
        (0..dims.len()).map(|axis| if dims[axis] == 1 { 0 } else { inner(axis) }).collect()
    }

    #[test]
    fn every_way_to_stretch_equals_indexing() {
        let threads = Threads::new(2);
        let dims = [3, 4, 2, 5];
        for mask in 0..256usize {
            let shape = |bits: usize| [0, 1, 2, 3].map(|i| if bits >> i & 1 == 1 { 1 } else { dims[i] });
            let shapes = [shape(mask), shape(mask >> 4)];
            let out_dims = [0, 1, 2, 3].map(|i| shapes[0][i].max(shapes[1][i]));
            let [a, b] = shapes.map(|s| (0..s.iter().product::<usize>() as i64).collect::<Vec<_>>());
            let (sa, sb) = (steps(&shapes[0]), steps(&shapes[1]));
            let mut out = vec![0; out_dims.iter().product()];
            Broadcast::new(&out_dims, [&sa, &sb]).map(&threads, &a, &b, &mut out, |a, b| a - 1000 * b);
            for (i, &o) in out.iter().enumerate() {
                let mut rest = i;
                let index = [3, 2, 1, 0].map(|axis: usize| {
                    let index = rest % out_dims[axis];
                    rest /= out_dims[axis];
                    (axis, index)
                });
                let at = |steps: &[usize]| index.iter().map(|&(axis, i)| i * steps[axis]).sum::<usize>();
                assert_eq!(o, a[at(&sa)] - 1000 * b[at(&sb)], "{shapes:?} element {i}");
            }
        }
    }

    #[test]
    fn axes_merge_where_both_operands_run_on() {
        let axis = |len, steps| Axis { len, steps };
        assert_eq!(Broadcast::new(&[2, 3, 4], [&[12, 4, 1], &[12, 4, 1]]).axes, [axis(24, [1, 1])]);
        assert_eq!(Broadcast::new(&[2, 3, 4], [&[12, 4, 1], &[0, 0, 1]]).axes, [axis(6, [4, 0]), axis(4, [1, 1])]);
        assert_eq!(Broadcast::new(&[1, 1], [&[0, 0], &[0, 0]]).axes, [axis(1, [0, 0])]);
    }

    #[test]
    fn long_rows_are_split() {
        let threads = Threads::new(2);
        let a: Vec<f32> = (0..100_003).map(|i| i as f32).collect();
        let mut out = vec![0.0; a.len()];
        Broadcast::new(&[a.len()], [&[1], &[0]]).map(&threads, &a, &[0.5], &mut out, |a, b| a + b);
        assert!(out.iter().zip(&a).all(|(o, a)| *o == a + 0.5));
    }
}
