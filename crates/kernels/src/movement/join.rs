//! Joining and cutting along one axis.
//!
//! What enters: arrays seen as rows of runs, where a run is everything from the axis inwards. What leaves: filled slices.

use crate::{Threads, chunks};

/// `out[o] = parts[0][o] ++ parts[1][o] ++ …` for every row `o`. Each part comes with the length of its runs, of which its slice
/// holds as many as `out` holds rows of the summed length.
pub fn concat<T: Copy + Send + Sync>(threads: &Threads, parts: &[(&[T], usize)], out: &mut [T]) {
    concat_with(threads, parts, out, |_, from, to| to.copy_from_slice(from));
}

/// [`concat()`] with `copy(index of the part, run, its place in the output)` for copying.
pub fn concat_with<T: Send + Sync>(
    threads: &Threads,
    parts: &[(&[T], usize)],
    out: &mut [T],
    copy: impl Fn(usize, &[T], &mut [T]) + Send + Sync,
) {
    let row: usize = parts.iter().map(|&(_, run)| run).sum();
    chunks::for_each_chunk(threads, out, row, 1, |first, chunk| {
        let mut start = 0;
        for (i, &(x, run)) in parts.iter().enumerate().filter(|&(_, &(_, run))| run > 0) {
            for (from, to) in x[first / row * run..].chunks_exact(run).zip(chunk.chunks_exact_mut(row)) {
                copy(i, from, &mut to[start..start + run]);
            }
            start += run;
        }
    });
}

/// `out[o] = x[o][start..start + run]`, where a row of `x` has `row` elements and one of `out` has `run`: the inverse of
/// [`concat()`] for one part.
pub fn split<T: Copy + Send + Sync>(threads: &Threads, x: &[T], row: usize, start: usize, run: usize, out: &mut [T]) {
    chunks::for_each_chunk(threads, out, run, 1, |first, chunk| {
        for (from, to) in x[first / run * row..].chunks_exact(row).zip(chunk.chunks_exact_mut(run)) {
            to.copy_from_slice(&from[start..start + run]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concat_joins_rows_and_split_takes_them_apart() {
        let threads = Threads::new(2);
        let (a, b) = ([1, 2, 3, 4], [5, 6, 7, 8, 9, 10]);
        let mut joined = [0; 10];
        concat(&threads, &[(&a, 2), (&[], 0), (&b, 3)], &mut joined);
        assert_eq!(joined, [1, 2, 5, 6, 7, 3, 4, 8, 9, 10]);
        let mut part = [0; 6];
        split(&threads, &joined, 5, 2, 3, &mut part);
        assert_eq!(part, b);
        split(&threads, &joined, 5, 0, 0, &mut []);
        concat(&threads, &[(&[], 0), (&[], 0)], &mut [0; 0]);
    }

    #[test]
    fn long_arrays_are_cut_between_rows() {
        let threads = Threads::new(3);
        let (a, b): (Vec<u32>, Vec<u32>) = ((0..60_000).collect(), (0..90_000).map(|i| i + 1_000_000).collect());
        let mut joined = vec![0; 150_000];
        concat(&threads, &[(&a, 2), (&b, 3)], &mut joined);
        for (row, joined) in joined.chunks_exact(5).enumerate() {
            assert_eq!(joined, [&a[2 * row..][..2], &b[3 * row..][..3]].concat());
        }
        let mut part = vec![0; 60_000];
        split(&threads, &joined, 5, 0, 2, &mut part);
        assert!(part == a);
    }
}
