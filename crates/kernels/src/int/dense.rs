//! The inner kernel of dense convolutions: a register tile of output channels times output positions.
//!
//! What enters: pointers to input bytes, packed weights and the output of one tile. What leaves: the written tile. It knows
//! neither images nor borders; `conv` prepares both.
//!
//! Weights are packed `[vector of 16 output channels][step][16 channels][4 bytes]`; a step is four consecutive input bytes.

use super::Isa;

/// Output channels in one packed vector.
pub(super) const LANES: usize = 16;
/// Input bytes that one step consumes.
pub(super) const STEP: usize = 4;

/// Where a tile goes, and the last part of its arithmetic.
#[derive(Clone, Copy)]
pub(super) enum Output {
    /// `clamp(round_ties_even(f32(acc) * multiplier) + zero, qmin, qmax)`.
    U8 { y: *mut u8, zero: i16, qmin: u8, qmax: u8 },
    /// `f32(acc) * multiplier`.
    F32 { y: *mut f32 },
}

impl Output {
    /// The same output, `elements` further on.
    ///
    /// # Safety
    /// The result must lie within the output.
    pub(super) unsafe fn at(self, elements: usize) -> Output {
        // SAFETY: promised by the caller.
        unsafe {
            match self {
                Output::U8 { y, zero, qmin, qmax } => Output::U8 { y: y.add(elements), zero, qmin, qmax },
                Output::F32 { y } => Output::F32 { y: y.add(elements) },
            }
        }
    }
}

/// One tile: `positions` neighbours in a row, up to `vectors * 16` output channels.
pub(super) struct Tile<'a> {
    /// Input bytes of the first position.
    pub x: *const u8,
    /// Input bytes between positions.
    pub x_step: usize,
    /// Where the runs of contiguous input bytes begin.
    pub segments: &'a [usize],
    /// Steps of each run.
    pub steps: usize,
    /// Packed weights of the first vector.
    pub w: *const i8,
    /// Bytes between packed vectors.
    pub w_pitch: usize,
    /// What the sums start from, one per packed channel.
    pub offsets: *const i32,
    /// What the sums are multiplied by, one per packed channel.
    pub multipliers: *const f32,
    /// First output element.
    pub output: Output,
    /// Output elements between positions.
    pub y_step: usize,
    /// Output channels that exist.
    pub channels: usize,
}

/// How many vectors of output channels a tile may have.
pub(super) fn max_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512Vnni => 4,
        Isa::Avx2 | Isa::Portable => 1,
    }
}

/// How many positions a tile of `vectors` may have, limited by the number of registers.
pub(super) fn max_positions(isa: Isa, vectors: usize) -> usize {
    match isa {
        Isa::Avx512Vnni if vectors < 4 => 8,
        Isa::Avx512Vnni => 6,
        Isa::Avx2 | Isa::Portable => 4,
    }
}

/// Computes one tile.
///
/// # Safety
/// `isa` is available; `1 <= vectors <= max_vectors`, `1 <= positions <= max_positions`; every byte that the tile reads
/// (whole steps, `vectors * 16` packed channels) and every element that it writes lies within its buffer.
pub(super) unsafe fn run_tile(isa: Isa, vectors: usize, positions: usize, tile: &Tile) {
    // SAFETY: promised by the caller.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => x86::avx512(vectors, positions, tile),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(positions, tile),
            _ => portable(positions, tile),
        }
    }
}

/// One vector of channels in plain Rust.
unsafe fn portable(positions: usize, t: &Tile) {
    for p in 0..positions {
        // SAFETY: `run_tile` promises that the tile lies within its buffers.
        unsafe {
            let mut acc: [i32; LANES] = t.offsets.cast::<[i32; LANES]>().read_unaligned();
            let mut w = t.w.cast::<[[i8; STEP]; LANES]>();
            for &segment in t.segments {
                let x = t.x.add(segment + p * t.x_step).cast::<[u8; STEP]>();
                for step in 0..t.steps {
                    let x = x.add(step).read().map(i32::from);
                    for (acc, w) in acc.iter_mut().zip(&*w) {
                        let dot: i32 = (0..STEP).map(|i| x[i] * i32::from(w[i])).sum();
                        *acc = acc.wrapping_add(dot);
                    }
                    w = w.add(1);
                }
            }
            store_scalar(&acc[..t.channels.min(LANES)], t.multipliers, t.output.at(p * t.y_step));
        }
    }
}

/// Finishes sums of consecutive channels.
///
/// # Safety
/// `multipliers` and `output` hold at least `acc.len()` elements.
pub(super) unsafe fn store_scalar(acc: &[i32], multipliers: *const f32, output: Output) {
    for (i, &acc) in acc.iter().enumerate() {
        // SAFETY: promised by the caller.
        unsafe {
            let v = acc as f32 * *multipliers.add(i);
            match output {
                Output::U8 { y, zero, qmin, qmax } => {
                    let bounds = [f32::from(i16::from(qmin) - zero), f32::from(i16::from(qmax) - zero)];
                    *y.add(i) = (super::quantize::round_clamped(v, bounds) + i32::from(zero)) as u8;
                }
                Output::F32 { y } => *y.add(i) = v,
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, STEP, Tile};
    use crate::int::x86::{store16, store512};
    use std::arch::x86_64::*;

    macro_rules! by_count {
        ($kernel:ident, $v:literal, $p:expr, $tile:expr, [$($n:literal)*]) => {
            match $p { $($n => $kernel::<$v, $n>($tile),)* _ => unreachable!("positions are limited by max_positions") }
        };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) unsafe fn avx512(vectors: usize, positions: usize, tile: &Tile) {
        // SAFETY: promised by `run_tile`.
        unsafe {
            match vectors {
                1 => by_count!(tile_avx512, 1, positions, tile, [1 2 3 4 5 6 7 8]),
                2 => by_count!(tile_avx512, 2, positions, tile, [1 2 3 4 5 6 7 8]),
                3 => by_count!(tile_avx512, 3, positions, tile, [1 2 3 4 5 6 7 8]),
                _ => by_count!(tile_avx512, 4, positions, tile, [1 2 3 4 5 6]),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn tile_avx512<const V: usize, const P: usize>(t: &Tile) {
        // SAFETY: promised by `run_tile`.
        unsafe {
            let vectors = |start: *const i8, pitch: usize| {
                std::array::from_fn::<_, V, _>(|v| _mm512_loadu_si512(start.add(v * pitch).cast()))
            };
            let mut acc = [vectors(t.offsets.cast(), 4 * LANES); P];
            let mut w = t.w;
            for &segment in t.segments {
                let mut x = t.x.add(segment);
                for _ in 0..t.steps {
                    let weights = vectors(w, t.w_pitch);
                    for (p, acc) in acc.iter_mut().enumerate() {
                        let bytes = _mm512_set1_epi32(x.add(p * t.x_step).cast::<i32>().read_unaligned());
                        for (acc, weights) in acc.iter_mut().zip(weights) {
                            *acc = _mm512_dpbusd_epi32(*acc, bytes, weights);
                        }
                    }
                    x = x.add(STEP);
                    w = w.add(LANES * STEP);
                }
            }
            let multipliers = std::array::from_fn(|v| _mm512_loadu_ps(t.multipliers.add(v * LANES)));
            // A copy, so that the sums above live in registers: what follows may index memory.
            let sums = acc;
            store512(&sums, &multipliers, t.output, t.y_step, t.channels);
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(positions: usize, tile: &Tile) {
        // SAFETY: promised by `run_tile`.
        unsafe { by_count!(tile_avx2, 1, positions, tile, [1 2 3 4]) }
    }

    /// Bytes are widened to 16 bits in two halves, even and odd, so that no product saturates.
    #[target_feature(enable = "avx2")]
    unsafe fn tile_avx2<const V: usize, const P: usize>(t: &Tile) {
        // SAFETY: promised by `run_tile`.
        unsafe {
            let low_bytes = _mm256_set1_epi16(0xff);
            let offsets = t.offsets.cast::<__m256i>();
            let mut acc = [[_mm256_loadu_si256(offsets), _mm256_loadu_si256(offsets.add(1))]; P];
            let mut w = t.w.cast::<__m256i>();
            for &segment in t.segments {
                let mut x = t.x.add(segment);
                for _ in 0..t.steps {
                    let weights = [_mm256_loadu_si256(w), _mm256_loadu_si256(w.add(1))];
                    let odd = weights.map(|w| _mm256_srai_epi16::<8>(w));
                    let even = weights.map(|w| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)));
                    for (p, acc) in acc.iter_mut().enumerate() {
                        let bytes = _mm256_set1_epi32(x.add(p * t.x_step).cast::<i32>().read_unaligned());
                        let x_even = _mm256_and_si256(bytes, low_bytes);
                        let x_odd = _mm256_srli_epi16::<8>(bytes);
                        for half in 0..2 {
                            let dot = _mm256_add_epi32(
                                _mm256_madd_epi16(x_even, even[half]),
                                _mm256_madd_epi16(x_odd, odd[half]),
                            );
                            acc[half] = _mm256_add_epi32(acc[half], dot);
                        }
                    }
                    x = x.add(STEP);
                    w = w.add(2);
                }
            }
            let multipliers = [_mm256_loadu_ps(t.multipliers), _mm256_loadu_ps(t.multipliers.add(8))];
            for (p, acc) in acc.iter().enumerate() {
                store16(acc, &multipliers, t.output.at(p * t.y_step), t.channels);
            }
        }
    }
}
