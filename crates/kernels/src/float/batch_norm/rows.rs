//! A formula at every number of some rows, panel by panel of columns: the numbers that go out, and sums down the columns.

use crate::simd::{Kernel, Simd};

/// What is computed at each number. Implementations are `#[inline(always)]`.
pub(super) trait Formula<const P: usize>: Copy {
    /// From `x`, `dy` and the channel's coefficients: the output, and what is added to the channel's sums.
    fn at<S: Simd>(self, s: S, x: S::F32, dy: S::F32, coefficients: [S::F32; P], sums: &mut [S::F32; 2]) -> S::F32;
}

/// Most columns whose coefficients are held at a time.
const PANEL: usize = 256;
/// Rows that are added up in one register.
const RUN: usize = 128;

/// A formula at every number of some rows.
pub(super) struct Rows<'a, F, const P: usize> {
    pub formula: F,
    /// `x` and `dy`.
    pub data: [&'a [f32]; 2],
    pub coefficients: [&'a [f32]; P],
    /// Where the output goes, and whether it is added.
    pub y: Option<(&'a mut [f32], bool)>,
    /// Two numbers per channel, or none.
    pub sums: &'a mut [f32],
}

impl<'a, F, const P: usize> Rows<'a, F, P> {
    pub fn new(formula: F, data: [&'a [f32]; 2], coefficients: [&'a [f32]; P], sums: &'a mut [f32]) -> Self {
        Rows { formula, data, coefficients, y: None, sums }
    }
}

impl<F: Formula<P>, const P: usize> Kernel for Rows<'_, F, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (len, channels) = (self.data[0].len(), self.coefficients[0].len());
        assert!(self.coefficients.iter().all(|c| c.len() == channels), "one coefficient per channel");
        assert!(len.checked_rem(channels) == Some(0), "rows are whole");
        assert_eq!(self.data[1].len(), len, "as many gradients as numbers");
        assert!(self.y.as_ref().is_none_or(|(y, _)| y.len() == len), "as many outputs as numbers");
        let (y, add) = self.y.map_or((std::ptr::null_mut(), false), |(y, add)| (y.as_mut_ptr(), add));
        let repeat = positions_per_row::<S>(channels);
        let positions = len / channels;
        for start in (0..channels).step_by(PANEL) {
            let width = PANEL.min(channels - start);
            let mut panel = Panel {
                formula: self.formula,
                data: self.data.map(|data| data.as_ptr()),
                y,
                add,
                pitch: channels * repeat,
                coefficients: [[0.0; PANEL]; P],
                sums: [[0.0; PANEL]; 2],
            };
            for (to, from) in panel.coefficients.iter_mut().zip(self.coefficients) {
                for to in to[..width * repeat].chunks_exact_mut(width) {
                    to.copy_from_slice(&from[start..start + width]);
                }
            }
            let rows = positions / repeat;
            // SAFETY: the columns `start..start + width` lie within all rows; if a row holds several positions, there is one
            // panel, which holds as many, and the rest of the positions is the head of one more row.
            unsafe {
                panel.columns(s, start, width * repeat, rows);
                panel.columns(s, start + rows * repeat * channels, width * (positions % repeat), 1);
            }
            if !self.sums.is_empty() {
                for (sums, panel) in self.sums.chunks_exact_mut(channels).zip(&panel.sums) {
                    for part in panel[..width * repeat].chunks_exact(width) {
                        sums[start..start + width].iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                    }
                }
            }
        }
    }
}

/// How many positions are seen as one row, so that a row is a whole number of vectors, and several where possible.
fn positions_per_row<S: Simd>(channels: usize) -> usize {
    let whole = (1..=S::LANES).find(|k| (k * channels).is_multiple_of(S::LANES)).unwrap_or(1);
    if whole * channels > PANEL {
        return 1;
    }
    whole * (4 * S::LANES / (whole * channels)).max(1)
}

/// Some columns of all rows.
struct Panel<F, const P: usize> {
    formula: F,
    data: [*const f32; 2],
    /// Null if there is no output.
    y: *mut f32,
    add: bool,
    /// Numbers from one row to the next.
    pitch: usize,
    coefficients: [[f32; PANEL]; P],
    sums: [[f32; PANEL]; 2],
}

impl<F: Formula<P>, const P: usize> Panel<F, P> {
    /// # Safety
    /// `data` is readable and `y` writable for `width` numbers from `start` and from every `pitch` numbers on, `rows` times.
    #[inline(always)]
    unsafe fn columns<S: Simd>(&mut self, s: S, start: usize, width: usize, rows: usize) {
        let mut column = 0;
        // SAFETY: the columns lie within `width`.
        unsafe {
            while column + S::LANES <= width {
                let fit = (width - column) / S::LANES;
                column += S::LANES
                    * match fit.min(if S::REGISTERS >= 32 { 4 } else { 2 }) {
                        4 => self.column::<S, 4>(s, start, column, rows, S::LANES),
                        3 => self.column::<S, 3>(s, start, column, rows, S::LANES),
                        2 => self.column::<S, 2>(s, start, column, rows, S::LANES),
                        _ => self.column::<S, 1>(s, start, column, rows, S::LANES),
                    };
            }
            if column < width {
                self.column::<S, 1>(s, start, column, rows, width - column);
            }
        }
    }

    /// `V` vectors next to each other, of `lanes` numbers each, down all rows. Returns `V`.
    ///
    /// # Safety
    /// As [`Panel::columns`], for the numbers of these vectors.
    #[inline(always)]
    unsafe fn column<S: Simd, const V: usize>(
        &mut self,
        s: S,
        start: usize,
        column: usize,
        rows: usize,
        lanes: usize,
    ) -> usize {
        let [x, dy] = self.data;
        // SAFETY: the vectors lie within the panel, and within each row by the caller's promise.
        unsafe {
            let mut coefficients = [[s.splat(0.0); P]; V];
            for (v, vectors) in coefficients.iter_mut().enumerate() {
                for (vector, panel) in vectors.iter_mut().zip(&self.coefficients) {
                    *vector = s.load_up_to(panel.as_ptr().add(column + v * S::LANES), lanes);
                }
            }
            for run in (0..rows).step_by(RUN) {
                let mut sums = [[s.splat(0.0); 2]; V];
                for row in run..rows.min(run + RUN) {
                    let first = start + row * self.pitch + column;
                    for v in 0..V {
                        let i = first + v * S::LANES;
                        let (x, dy) = (s.load_up_to(x.add(i), lanes), s.load_up_to(dy.add(i), lanes));
                        let y = self.formula.at(s, x, dy, coefficients[v], &mut sums[v]);
                        if !self.y.is_null() {
                            let to = self.y.add(i);
                            s.store_up_to(to, lanes, if self.add { s.add(s.load_up_to(to, lanes), y) } else { y });
                        }
                    }
                }
                for (v, sums) in sums.into_iter().enumerate() {
                    for (panel, sum) in self.sums.iter_mut().zip(sums) {
                        let total = panel.as_mut_ptr().add(column + v * S::LANES);
                        s.store_up_to(total, lanes, s.add(s.load_up_to(total, lanes), sum));
                    }
                }
            }
        }
        V
    }
}
