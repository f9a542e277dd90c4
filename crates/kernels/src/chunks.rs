//! Handing the parts of one output slice to the threads.

use crate::Threads;
use std::sync::{Mutex, PoisonError};

/// Elements that one task fills at least: enough to hide the cost of handing it out.
const TASK_LEN: usize = 1 << 14;
/// Tasks at most.
const TASKS: usize = 64;

/// Cuts `out` into chunks of whole rows of `row` elements and calls `task(index of the chunk's first element, chunk)` for
/// each. The cuts do not depend on the number of threads. `cost` weighs an element against a copy (1).
pub fn for_each_chunk<T: Send>(
    threads: &Threads,
    out: &mut [T],
    row: usize,
    cost: usize,
    task: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    if out.is_empty() || row == 0 {
        return;
    }
    let rows = (TASK_LEN / cost.max(1)).div_ceil(row).max(out.len() / row / TASKS).max(1);
    // A lock that is never contended hands each task its own part of the output.
    let chunks: Vec<_> = out.chunks_mut(rows * row).map(Mutex::new).collect();
    threads.run(chunks.len(), |i| {
        task(i * rows * row, &mut chunks[i].lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// The memory of `scratch` seen as bytes.
pub fn as_bytes(scratch: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory; `u8` has no alignment, and every bit pattern is valid for both types.
    unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast(), size_of_val(scratch)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_whole_rows_and_cover_the_output_once() {
        for (rows, row, cost) in [(0, 3, 1), (1, 5, 1), (5000, 7, 1), (70, 3000, 9), (3, 100_000, 1)] {
            for threads in [Threads::new(1), Threads::new(3)] {
                let mut out = vec![0usize; rows * row];
                for_each_chunk(&threads, &mut out, row, cost, |first, chunk| {
                    assert!(first % row == 0 && chunk.len() % row == 0);
                    chunk.iter_mut().enumerate().for_each(|(i, v)| *v += first + i + 1);
                });
                assert!(out.iter().enumerate().all(|(i, &v)| v == i + 1));
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_floats() {
        let mut x = [1.5f32, -2.0];
        assert_eq!(as_bytes(&mut x)[4..], (-2f32).to_ne_bytes());
        as_bytes(&mut x)[..4].copy_from_slice(&7f32.to_ne_bytes());
        assert_eq!(x, [7.0, -2.0]);
    }
}
