//! The register tile of the direct convolution: a few vectors of output channels for a few neighbouring positions.
//!
//! What enters: raw places of input, packed weights and output. What leaves: finished outputs. It knows no border and no
//! image: every position it is given can be read in full.

#![expect(clippy::needless_range_loop, reason = "loops over constant counts, which the compiler unrolls")]

use super::activation::{Clamp, Function};
use super::sweep::Runs;
use crate::simd::{Isa, Kernel, Simd};

/// Numbers in a cache line.
pub(super) const CACHE_LINE: usize = 16;

/// Longest sum whose weights stay in the first-level cache with four vectors of output channels.
const SHORT_SUM: usize = 128;

/// Vectors of output channels in a tile, for a convolution with `vectors` of them and sums of `sum_len` terms. More vectors
/// read less input, fewer read less weights.
pub(super) fn vectors(isa: Isa, vectors: usize, sum_len: usize) -> usize {
    let wide = isa.registers() >= 32 && sum_len <= SHORT_SUM;
    [4, 3].into_iter().find(|v| wide && vectors.is_multiple_of(*v)).unwrap_or(2)
}

/// Most neighbouring positions in one of a tile's two segments: as many as leave room for weights in the registers.
pub(super) const fn segment(registers: usize, vectors: usize) -> usize {
    match (registers, vectors) {
        (32.., 4) => 3,
        (32.., 3) => 4,
        (32.., _) => 7,
        (16.., _) => 3,
        _ => 1,
    }
}

/// How the input of one output position is laid out, the same for all positions of a band.
#[derive(Clone, Copy)]
pub(super) struct Window {
    /// What a position reads, in the order of the weights.
    pub runs: Runs,
    /// Input numbers between neighbouring positions.
    pub x_pitch: usize,
    /// Output numbers between neighbouring positions.
    pub y_pitch: usize,
}

/// Weights and end of one block of output channels.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Packed `[run][number in the run][vector][lane]`.
    pub weights: *const f32,
    /// One number per channel, or null.
    pub bias: *const f32,
    /// Real channels: the rest of the last vector is padding.
    pub channels: usize,
    pub clamp: Clamp,
    /// What will be needed soon: one cache line from here is asked for at each step of the sum.
    pub ahead: *const f32,
}

/// `M` segments of `Q` positions each, with their inputs, outputs, and what is added to the outputs (or null).
#[derive(Clone, Copy)]
pub(super) struct Segments<const M: usize> {
    pub x: [*const f32; M],
    pub y: [*mut f32; M],
    pub residual: [*const f32; M],
}

/// A [`tile`] as a function of its own.
struct Tile<const V: usize, const M: usize, const Q: usize> {
    window: Window,
    block: Block,
    at: Segments<M>,
}

impl<const V: usize, const M: usize, const Q: usize> Kernel for Tile<V, M, Q> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: made only by `tile_of`, whose caller promised this.
        unsafe { tile::<S, V, M, Q>(s, self.window, self.block, self.at) }
    }
}

/// Computes one tile of `V` vectors by `M * Q` positions. Each output is `bias + Σ x·w` by fused steps in the order of the
/// weights, then `+ residual`, then clamped.
///
/// # Safety
/// All runs of all positions are readable, the block's weights hold `V` vectors for each of them, and the outputs are
/// writable by nobody else.
#[inline(always)]
unsafe fn tile<S: Simd, const V: usize, const M: usize, const Q: usize>(
    s: S,
    window: Window,
    block: Block,
    at: Segments<M>,
) {
    // SAFETY: the caller's promise covers every access; channel tails are read and written with heads.
    unsafe {
        let tail = block.channels - (V - 1) * S::LANES;
        let mut bias = [s.splat(0.0); V];
        if !block.bias.is_null() {
            for v in 0..V {
                bias[v] = load(s, block.bias.add(v * S::LANES), tail == S::LANES || v + 1 < V, tail);
            }
        }
        let mut sums = [[bias; Q]; M];
        for m in 0..M {
            for q in 0..Q {
                for v in 0..V {
                    s.prefetch_write(at.y[m].wrapping_add(q * window.y_pitch + v * S::LANES));
                }
            }
        }
        let mut weights = block.weights;
        let mut ahead = block.ahead;
        for row in 0..window.runs.rows {
            for column in 0..window.runs.columns {
                let run = row * window.runs.row_step + column * window.runs.column_step;
                let mut x = [at.x[0]; M];
                for m in 0..M {
                    x[m] = at.x[m].add(run);
                }
                for k in 0..window.runs.len {
                    let mut w = bias;
                    for v in 0..V {
                        w[v] = s.load(weights.add(v * S::LANES));
                    }
                    for m in 0..M {
                        for q in 0..Q {
                            let value = s.splat(*x[m].add(q * window.x_pitch + k));
                            for v in 0..V {
                                sums[m][q][v] = s.fma(value, w[v], sums[m][q][v]);
                            }
                        }
                    }
                    weights = weights.add(V * S::LANES);
                    s.prefetch(ahead);
                    ahead = ahead.wrapping_add(CACHE_LINE);
                }
            }
        }
        // A copy, and one loop without tests for each case: sums indexed at run time would not stay in registers above.
        let sums = sums;
        for m in 0..M {
            let (y, residual) = (at.y[m], at.residual[m]);
            match (residual.is_null(), tail == S::LANES) {
                (true, true) => finish::<S, V, Q, true, true>(s, window, block, &sums[m], y, residual),
                (true, false) => finish::<S, V, Q, true, false>(s, window, block, &sums[m], y, residual),
                (false, true) => finish::<S, V, Q, false, true>(s, window, block, &sums[m], y, residual),
                (false, false) => finish::<S, V, Q, false, false>(s, window, block, &sums[m], y, residual),
            }
        }
    }
}

/// Adds the residual, clamps and stores one segment.
///
/// # Safety
/// As for [`tile`]; `residual` is `BARE` of any, or readable; `WHOLE` if the last vector is full of channels.
#[inline(always)]
unsafe fn finish<S: Simd, const V: usize, const Q: usize, const BARE: bool, const WHOLE: bool>(
    s: S,
    window: Window,
    block: Block,
    sums: &[[S::F32; V]; Q],
    y: *mut f32,
    residual: *const f32,
) {
    let tail = block.channels - (V - 1) * S::LANES;
    for q in 0..Q {
        for v in 0..V {
            let offset = q * window.y_pitch + v * S::LANES;
            let whole = WHOLE || v + 1 < V;
            let mut sum = sums[q][v];
            // SAFETY: the caller's promise.
            unsafe {
                if !BARE {
                    sum = s.add(sum, load(s, residual.add(offset), whole, tail));
                }
                let sum = block.clamp.at(s, sum);
                if whole { s.store(y.add(offset), sum) } else { s.store_head(y.add(offset), tail, sum) }
            }
        }
    }
}

/// # Safety
/// `from` is readable for a whole vector, or for `head` numbers if not `whole`.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, from: *const f32, whole: bool, head: usize) -> S::F32 {
    // SAFETY: the caller's promise.
    unsafe { if whole { s.load(from) } else { s.load_head(from, head) } }
}

/// [`tile`] for a number of vectors and positions known only at run time.
///
/// # Safety
/// As for [`tile`]; `positions` is at most [`segment`] of the instruction set.
#[inline(always)]
pub(super) unsafe fn tile_of<S: Simd, const M: usize>(
    s: S,
    positions: usize,
    window: Window,
    block: Block,
    at: Segments<M>,
) {
    macro_rules! by_positions {
        ($v:literal, $($q:literal)*) => {
            match positions {
                // SAFETY of the call within: the caller's promise.
                $($q if $q <= segment(S::REGISTERS, $v) => s.call(Tile::<$v, M, $q> { window, block, at }),)*
                _ => debug_assert!(false, "a segment has 1 to {} positions", segment(S::REGISTERS, $v)),
            }
        };
    }
    match block.channels.div_ceil(S::LANES) {
        4 if S::REGISTERS >= 32 => by_positions!(4, 1 2 3),
        3 if S::REGISTERS >= 32 => by_positions!(3, 1 2 3 4),
        2 => by_positions!(2, 1 2 3 4 5 6 7),
        1 => by_positions!(1, 1 2 3 4 5 6 7),
        n => debug_assert!(false, "a block has 1 to 4 vectors, not {n}"),
    }
}
