//! The sums of the columns of a matrix: the gradient of a bias.
//!
//! What enters: rows, and sums of their columns. What leaves: the sums, more by these rows. It runs on the caller's thread alone.

#![expect(clippy::needless_range_loop, reason = "loops over constant counts, which the compiler unrolls")]

use crate::simd::{Isa, Kernel, Simd};

/// Vectors whose sums [`add_columns`] holds at once: enough to hide how long an addition takes.
const COLUMN_VECTORS: usize = 4;

/// Adds the columns of a matrix with rows as long as `sums` to the sums: the gradient of a bias.
pub fn add_columns(rows: &[f32], sums: &mut [f32]) {
    if !sums.is_empty() {
        Isa::best().dispatch(Columns(rows, sums));
    }
}

struct Columns<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Columns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Columns(rows, sums) = self;
        let (len, lanes) = (sums.len(), S::LANES);
        let wide = len / (COLUMN_VECTORS * lanes) * COLUMN_VECTORS * lanes;
        for c in (0..wide).step_by(COLUMN_VECTORS * lanes) {
            let mut total = [s.splat(0.0); COLUMN_VECTORS];
            for row in rows.chunks_exact(len) {
                for v in 0..COLUMN_VECTORS {
                    // SAFETY: all vectors from `c` are within the row.
                    total[v] = s.add(total[v], unsafe { s.load(row.as_ptr().add(c + v * lanes)) });
                }
            }
            for v in 0..COLUMN_VECTORS {
                // SAFETY: as above, for the sums.
                unsafe {
                    let to = sums.as_mut_ptr().add(c + v * lanes);
                    s.store(to, s.add(s.load(to), total[v]));
                }
            }
        }
        for c in (wide..len).step_by(lanes) {
            let count = lanes.min(len - c);
            let mut total = s.splat(0.0);
            // SAFETY: `count` numbers from `c` are within every row and the sums.
            unsafe {
                for row in rows.chunks_exact(len) {
                    total = s.add(total, load(s, row.as_ptr().add(c), count));
                }
                let to = sums.as_mut_ptr().add(c);
                let total = s.add(load(s, to, count), total);
                if count == lanes { s.store(to, total) } else { s.store_head(to, count, total) }
            }
        }
    }
}

/// # Safety
/// `from` is readable for `len` numbers, a vector's or fewer.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, from: *const f32, len: usize) -> S::F32 {
    // SAFETY: the caller's promise.
    unsafe { if len == S::LANES { s.load(from) } else { s.load_head(from, len) } }
}

#[cfg(test)]
mod tests {
    use super::super::reference::cases;
    use super::*;

    #[test]
    fn columns_are_added() {
        for len in [1, 3, 16, 24, 70, 130] {
            let rows = cases::numbers(len * 11, 4);
            let mut sums = vec![1.0; len];
            add_columns(&rows, &mut sums);
            for (c, sum) in sums.iter().enumerate() {
                let expected: f32 = rows.iter().skip(c).step_by(len).sum();
                assert!((sum - 1.0 - expected).abs() < 1e-5, "column {c} of {len}");
            }
        }
    }
}
