//! Permuting axes.
//!
//! What enters: dimensions and a permutation once, then slices. What leaves: filled slices.

use crate::{Threads, chunks};

/// Side of the squares that are transposed in registers.
const TILE: usize = 8;
/// Neighbours in the input that are moved before the next column: some cache lines, which are then read once. A multiple of [`TILE`].
const BLOCK: usize = 32;

/// `out[i] = x[j]` where `i[k] = j[perm[k]]` for every axis `k`.
#[derive(Clone, Debug)]
pub struct Transpose {
    /// Output axes as (length, stride in the input), outermost first. Axes of length 1 are left out, and axes that stay
    /// neighbours are one axis; at least one axis is left.
    axes: Vec<(usize, usize)>,
}

impl Transpose {
    /// Prepares for an input of the given dimensions. `perm` must be a permutation of its axes.
    pub fn new(dims: &[usize], perm: &[usize]) -> Self {
        let mut axes: Vec<(usize, usize)> = Vec::with_capacity(perm.len());
        for &axis in perm.iter().filter(|&&axis| dims[axis] != 1) {
            let stride: usize = dims[axis + 1..].iter().product();
            match axes.last_mut() {
                Some((len, outer)) if *outer == stride * dims[axis] => (*len, *outer) = (*len * dims[axis], stride),
                _ => axes.push((dims[axis], stride)),
            }
        }
        if axes.is_empty() {
            axes.push((1, 1));
        }
        Transpose { axes }
    }

    /// Fills `out` from `x`.
    pub fn run<T: Copy + Default + Send + Sync>(&self, threads: &Threads, x: &[T], out: &mut [T]) {
        let row: usize = self.axes[1..].iter().map(|&(len, _)| len).product();
        let (len, stride) = self.axes[0];
        // Chunks of whole lines of the input where its neighbours are rows here.
        let unit = if stride == 1 && len >= 2 * BLOCK { BLOCK * row } else { row };
        chunks::for_each_chunk(threads, out, unit, 1, |first, chunk| {
            let mut axes = self.axes.clone();
            axes[0].0 = chunk.len() / row;
            permute(&x[first / row * stride..], &axes, chunk);
        });
    }
}

/// Fills `out`, whose axes lie in `x` as `axes` says. Recurses until the outermost axis is the one whose elements are
/// neighbours in `x`, or the last one.
fn permute<T: Copy + Default>(x: &[T], axes: &[(usize, usize)], out: &mut [T]) {
    match *axes {
        [] => {}
        [(len, 1)] => out.copy_from_slice(&x[..len]),
        [(_, stride)] => out.iter_mut().zip(x.iter().step_by(stride)).for_each(|(o, x)| *o = *x),
        [(rows, 1), ref middle @ .., (columns, stride)] => {
            let row: usize = middle.iter().map(|&(len, _)| len).product::<usize>() * columns;
            squares(x, rows, middle, columns, stride, row, out);
        }
        [(_, stride), ref inner @ ..] => {
            let row: usize = inner.iter().map(|&(len, _)| len).product();
            for (i, out) in out.chunks_exact_mut(row.max(1)).enumerate() {
                permute(&x[i * stride..], inner, out);
            }
        }
    }
}

/// The outermost axis, of `rows` elements `out_stride` apart in `out`, is innermost in `x`: transposes the plane that it spans with
/// the last axis, for each index of the axes between.
fn squares<T: Copy + Default>(
    x: &[T],
    rows: usize,
    middle: &[(usize, usize)],
    columns: usize,
    stride: usize,
    out_stride: usize,
    out: &mut [T],
) {
    match middle.split_first() {
        Some((&(len, middle_stride), rest)) => {
            let step: usize = rest.iter().map(|&(len, _)| len).product::<usize>() * columns;
            for i in 0..len {
                squares(&x[i * middle_stride..], rows, rest, columns, stride, out_stride, &mut out[i * step..]);
            }
        }
        None => plane(x, rows, columns, stride, out_stride, out),
    }
}

/// `out[i * out_stride + j] = x[i + j * stride]` for `i < rows`, `j < columns`.
fn plane<T: Copy + Default>(x: &[T], rows: usize, columns: usize, stride: usize, out_stride: usize, out: &mut [T]) {
    let (full_rows, full_columns) = (rows / TILE * TILE, columns / TILE * TILE);
    for block in (0..full_rows).step_by(BLOCK) {
        for j in (0..full_columns).step_by(TILE) {
            for i in (block..full_rows.min(block + BLOCK)).step_by(TILE) {
                let mut tile = [[T::default(); TILE]; TILE];
                for (k, line) in tile.iter_mut().enumerate() {
                    line.copy_from_slice(&x[i + (j + k) * stride..][..TILE]);
                }
                for k in 0..TILE {
                    let line: [T; TILE] = std::array::from_fn(|l| tile[l][k]);
                    out[(i + k) * out_stride + j..][..TILE].copy_from_slice(&line);
                }
            }
        }
    }
    for i in 0..rows {
        let start = if i < full_rows { full_columns } else { 0 };
        for j in start..columns {
            out[i * out_stride + j] = x[i + j * stride];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [`Transpose`] by its definition.
    fn reference(x: &[u32], dims: &[usize], perm: &[usize]) -> Vec<u32> {
        let stride = |axis: usize| dims[axis + 1..].iter().product::<usize>();
        let pick = |i: usize| {
            let mut rest = i;
            let offset = perm.iter().rev().map(|&axis| {
                let index = rest % dims[axis];
                rest /= dims[axis];
                index * stride(axis)
            });
            x[offset.sum::<usize>()]
        };
        (0..x.len()).map(pick).collect()
    }

    fn check(threads: &Threads, dims: &[usize], perm: &[usize]) {
        let x: Vec<u32> = (0..dims.iter().product::<usize>() as u32).collect();
        let mut out = vec![0; x.len()];
        Transpose::new(dims, perm).run(threads, &x, &mut out);
        assert!(out == reference(&x, dims, perm), "{dims:?} {perm:?}");
    }

    fn permutations(rank: usize) -> Vec<Vec<usize>> {
        if rank == 0 {
            return vec![vec![]];
        }
        let insert = |p: Vec<usize>| (0..=p.len()).map(move |at| [&p[..at], &[rank - 1], &p[at..]].concat());
        permutations(rank - 1).into_iter().flat_map(insert).collect()
    }

    #[test]
    fn every_permutation_equals_its_definition() {
        let threads = Threads::new(2);
        for dims in [
            &[][..],
            &[5],
            &[0, 3],
            &[9, 17],
            &[45, 75],
            &[3, 1, 20],
            &[2, 9, 11],
            &[2, 3, 8, 10],
            &[70, 1, 3, 16],
            &[2, 3, 4, 2, 9],
        ] {
            for perm in permutations(dims.len()) {
                check(&threads, dims, &perm);
            }
        }
    }

    #[test]
    fn large_arrays_are_cut_between_rows() {
        let threads = Threads::new(3);
        for (dims, perm) in
            [(&[3, 211, 217][..], &[1, 2, 0][..]), (&[2, 96, 31, 33], &[0, 2, 3, 1]), (&[2, 31, 33, 96], &[0, 3, 1, 2])]
        {
            check(&threads, dims, perm);
        }
    }

    #[test]
    fn a_permutation_of_ones_is_one_piece() {
        assert_eq!(Transpose::new(&[2, 1, 3, 1], &[1, 0, 3, 2]).axes, [(6, 1)]);
        assert_eq!(Transpose::new(&[2, 1, 3], &[2, 1, 0]).axes.len(), 2);
    }
}
