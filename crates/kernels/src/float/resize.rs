//! Resizing of NHWC images along height and width.
//!
//! What enters: an image and, per axis, a table that says which input indices make an output index. What leaves: the resized
//! image. How coordinates map is the caller's business.

use super::Shared;
use crate::Threads;
use crate::simd::{Isa, Kernel, Simd};

/// For every index of one output axis: the two input indices around it, and how much of the second is taken (0 to 1).
/// Nearest-neighbour tables have `lo == hi` and weight 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResizeAxis {
    /// First input index.
    pub lo: Vec<usize>,
    /// Second input index.
    pub hi: Vec<usize>,
    /// Share of the second.
    pub weight: Vec<f32>,
}

impl ResizeAxis {
    /// A table that takes one input index per output index.
    pub fn nearest(indices: Vec<usize>) -> Self {
        ResizeAxis { hi: indices.clone(), weight: vec![0.0; indices.len()], lo: indices }
    }

    fn is_valid(&self, size: usize) -> bool {
        let inside = |indices: &[usize]| indices.len() == self.weight.len() && indices.iter().all(|&i| i < size);
        inside(&self.lo) && inside(&self.hi)
    }

    fn is_nearest(&self) -> bool {
        self.weight.iter().all(|&w| w == 0.0)
    }
}

/// Resizes `x: [n, h, w, c]` to `y: [n, rows.len(), columns.len(), c]`. With `u` and `v` the shares of the second row and
/// column, `y = (1-v)(1-u) x00 + v(1-u) x01 + (1-v)u x10 + vu x11`, summed from left to right. Where all weights are 0, numbers
/// are copied.
///
/// # Panics
/// If a slice does not have its length, or a table points outside the image.
pub fn resize(
    threads: &Threads,
    [n, h, w, c]: [usize; 4],
    x: &[f32],
    rows: &ResizeAxis,
    columns: &ResizeAxis,
    y: &mut [f32],
) {
    let (oh, ow) = (rows.lo.len(), columns.lo.len());
    assert_eq!(x.len(), n * h * w * c, "the input has the given shape");
    assert_eq!(y.len(), n * oh * ow * c, "the output has the tables' shape");
    assert!(rows.is_valid(h) && columns.is_valid(w), "tables point into the image");
    let isa = Isa::best();
    let copies = rows.is_nearest() && columns.is_nearest();
    let y = Shared(y.as_mut_ptr());
    threads.run(n * oh, |row| {
        let (image, oy) = (row / oh, row % oh);
        // SAFETY: each task has its own output row.
        let y = unsafe { std::slice::from_raw_parts_mut(y.get().add(row * ow * c), ow * c) };
        let line = |iy: usize| &x[(image * h + iy) * w * c..][..w * c];
        let (top, bottom, u) = (line(rows.lo[oy]), line(rows.hi[oy]), rows.weight[oy]);
        for (ox, y) in y.chunks_exact_mut(c.max(1)).enumerate() {
            let (left, right, v) = (columns.lo[ox] * c, columns.hi[ox] * c, columns.weight[ox]);
            if copies {
                y.copy_from_slice(&top[left..left + c]);
            } else {
                isa.dispatch(Blend {
                    corners: [
                        (&top[left..left + c], (1.0 - v) * (1.0 - u)),
                        (&top[right..right + c], v * (1.0 - u)),
                        (&bottom[left..left + c], (1.0 - v) * u),
                        (&bottom[right..right + c], v * u),
                    ],
                    y,
                });
            }
        }
    });
}

/// A weighted sum of four pixels of as many channels as `y`.
struct Blend<'a> {
    corners: [(&'a [f32], f32); 4],
    y: &'a mut [f32],
}

impl Kernel for Blend<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = self.y.len();
        for i in (0..len).step_by(S::LANES) {
            let lanes = S::LANES.min(len - i);
            // SAFETY: all five slices hold `len` numbers, of which `lanes` follow `i`.
            unsafe {
                let term = |(x, weight): (&[f32], f32)| {
                    let x = x.as_ptr().add(i);
                    s.mul(s.splat(weight), if lanes == S::LANES { s.load(x) } else { s.load_head(x, lanes) })
                };
                let [a, b, c, d] = self.corners;
                let sum = s.add(s.add(s.add(term(a), term(b)), term(c)), term(d));
                let to = self.y.as_mut_ptr().add(i);
                if lanes == S::LANES { s.store(to, sum) } else { s.store_head(to, lanes, sum) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;

    #[test]
    fn resizing_equals_the_reference() {
        let threads = Threads::new(2);
        let rows =
            ResizeAxis { lo: vec![0, 0, 1, 2, 2], hi: vec![0, 1, 2, 2, 1], weight: vec![0.0, 0.25, 0.75, 0.5, 1.0] };
        let columns = ResizeAxis { lo: vec![3, 0], hi: vec![3, 1], weight: vec![0.0, 0.125] };
        let nearest = [ResizeAxis::nearest(vec![0, 0, 2, 1]), ResizeAxis::nearest(vec![3, 2, 2, 0, 1])];
        for c in [1, 6, 16, 35] {
            let shape = [2, 3, 4, c];
            let x: Vec<f32> = (0..24 * c).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
            for (rows, columns) in [(&rows, &columns), (&nearest[0], &nearest[1]), (&rows, &nearest[1])] {
                let mut y = vec![f32::NAN; 2 * rows.lo.len() * columns.lo.len() * c];
                resize(&threads, shape, &x, rows, columns, &mut y);
                assert_eq!(y, reference::resize(shape, &x, rows, columns));
            }
        }
    }
}
