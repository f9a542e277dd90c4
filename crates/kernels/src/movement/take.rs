//! Picking elements by one index table per axis: slices, pads, gathers, tiles, broadcasts and nearest-neighbour resizes.
//!
//! What enters: dimensions and tables once, then slices. What leaves: filled slices.

use crate::{Threads, chunks};

/// An index that stands for the fill value.
pub const FILL: usize = usize::MAX;

/// `out[i, j, …] = x[tables[0][i], tables[1][j], …]`, and the fill value where any of the indices is [`FILL`].
#[derive(Clone, Debug)]
pub struct Take {
    /// Offsets into the input of each index of each outer axis, outermost axis first; [`FILL`] fills the row.
    outer: Vec<Vec<usize>>,
    /// What a row of the output consists of: runs of neighbours in the input by offset and length; [`FILL`] fills the run.
    spans: Vec<(usize, usize)>,
    /// Elements of a row of the output.
    row: usize,
}

impl Take {
    /// Prepares for an input of the given dimensions; `None` instead of a table takes the whole axis. Indices must be
    /// smaller than the axis.
    ///
    /// # Panics
    /// If there is not one table per axis.
    pub fn new(dims: &[usize], tables: &[Option<Vec<usize>>]) -> Self {
        assert_eq!(dims.len(), tables.len(), "one table per axis");
        // Whole axes at the end move as one block; the axis before them is cut into runs of neighbours.
        let cut = tables.iter().rposition(Option::is_some).unwrap_or(0);
        let offsets = |axis: usize| {
            let stride: usize = dims[axis + 1..].iter().product();
            let scaled = |&i: &usize| if i == FILL { FILL } else { i * stride };
            match &tables[axis] {
                Some(table) => table.iter().map(scaled).collect(),
                None => (0..dims[axis]).map(|i| i * stride).collect::<Vec<_>>(),
            }
        };
        let block: usize = dims.get(cut + 1..).unwrap_or_default().iter().product();
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for start in if dims.is_empty() { vec![0] } else { offsets(cut) } {
            match spans.last_mut() {
                Some((FILL, len)) if start == FILL => *len += block,
                Some((first, len)) if *first != FILL && *first + *len == start => *len += block,
                _ => spans.push((start, block)),
            }
        }
        let row = spans.iter().map(|&(_, len)| len).sum();
        Take { outer: (0..cut).map(offsets).collect(), spans, row }
    }

    /// Number of elements of the output.
    pub fn out_len(&self) -> usize {
        self.outer.iter().map(Vec::len).product::<usize>() * self.row
    }

    /// Fills `out` from `x`.
    pub fn run<T: Copy + Send + Sync>(&self, threads: &Threads, x: &[T], fill: T, out: &mut [T]) {
        chunks::for_each_chunk(threads, out, self.row, 1, |first, chunk| {
            for (i, row) in chunk.chunks_exact_mut(self.row).enumerate() {
                match self.row_offset(first / self.row + i) {
                    Some(offset) => self.copy_row(&x[offset..], fill, row),
                    None => row.fill(fill),
                }
            }
        });
    }

    /// Where in the input row `index` of the output is taken from; `None` if it is fill.
    fn row_offset(&self, mut index: usize) -> Option<usize> {
        let mut offset = 0;
        for table in self.outer.iter().rev() {
            match table[index % table.len()] {
                FILL => return None,
                o => offset += o,
            }
            index /= table.len();
        }
        Some(offset)
    }

    fn copy_row<T: Copy>(&self, x: &[T], fill: T, mut row: &mut [T]) {
        for &(start, len) in &self.spans {
            let (to, rest) = row.split_at_mut(len);
            match start {
                FILL => to.fill(fill),
                // A call of `memcpy` for single elements would cost more than they do.
                _ if len == 1 => to[0] = x[start],
                _ => to.copy_from_slice(&x[start..start + len]),
            }
            row = rest;
        }
    }
}

/// [`Take`] by its definition.
#[cfg(test)]
pub fn reference<T: Copy>(dims: &[usize], tables: &[Option<Vec<usize>>], x: &[T], fill: T) -> Vec<T> {
    let Some((&len, inner)) = dims.split_first() else { return x.to_vec() };
    let stride: usize = inner.iter().product();
    let all: Vec<usize> = (0..len).collect();
    let table = tables[0].as_ref().unwrap_or(&all);
    let inner_len: usize = inner.iter().zip(&tables[1..]).map(|(&d, t)| t.as_ref().map_or(d, Vec::len)).product();
    let pick = |&i: &usize| match i {
        FILL => vec![fill; inner_len],
        i => reference(inner, &tables[1..], &x[i * stride..][..stride], fill),
    };
    table.iter().flat_map(pick).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{PadMode, pad, slice};
    use super::*;

    fn check(threads: &Threads, dims: &[usize], tables: &[Option<Vec<usize>>]) {
        let x: Vec<u32> = (0..dims.iter().product::<usize>() as u32).collect();
        let expected = reference(dims, tables, &x, 7777);
        let take = Take::new(dims, tables);
        assert_eq!(take.out_len(), expected.len(), "{dims:?} {tables:?}");
        let mut out = vec![0; expected.len()];
        take.run(threads, &x, 7777, &mut out);
        assert!(out == expected, "{dims:?} {tables:?}");
    }

    #[test]
    fn take_equals_its_definition() {
        let threads = Threads::new(2);
        let choices = |len: usize| {
            vec![
                None,
                Some(pad(len, 1, 2, PadMode::Constant)),
                Some(pad(len, 2, 0, PadMode::Reflect)),
                Some(slice(len - 1, -1, len)),
                Some(slice(0, 2, len.div_ceil(2))),
                Some(vec![]),
                Some(vec![FILL]),
            ]
        };
        for a in choices(3) {
            for b in choices(4) {
                for c in choices(2) {
                    check(&threads, &[3, 4, 2], &[a.clone(), b.clone(), c]);
                }
            }
        }
        check(&threads, &[], &[]);
        check(&threads, &[0, 3], &[Some(vec![FILL; 2]), None]);
    }

    #[test]
    fn large_arrays_are_cut_between_rows() {
        let threads = Threads::new(3);
        for dims in [[70, 30, 40], [1, 3, 90_000], [200_000, 1, 1]] {
            let border = |axis: usize| Some(pad(dims[axis], 1, 1, PadMode::Constant));
            check(&threads, &dims, &[None, border(1), border(2)]);
            check(&threads, &dims, &[border(0), None, None]);
        }
    }
}
