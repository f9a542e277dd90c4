//! The last step of a tile on x86-64: sums in registers become requantized bytes, or floats, in memory.
//!
//! No result depends on the instruction set: `cvtps_epi32` rounds half to even, the upper bound applied before it keeps large
//! values from wrapping, and the packs saturate as the clamp does.

use super::dense::{LANES, Output};
use std::arch::x86_64::*;

/// Sums above this saturate anyway; conversion to i32 would turn values of 2^31 and more into negative ones.
const SATURATED: f32 = 65536.0;

/// Finishes `V` vectors of 16 consecutive channels at `P` positions `step` apart; the first `channels` channels exist.
///
/// # Safety
/// `output` holds `min(channels, V * 16)` elements at each position.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn store512<const V: usize, const P: usize>(
    sums: &[[__m512i; V]; P],
    multipliers: &[__m512; V],
    output: Output,
    step: usize,
    channels: usize,
) {
    match output {
        Output::U8 { y, zero, qmin, qmax } => {
            // Lane l of a packed vector holds channels 4l..4l+4 of each of the four vectors.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let mask = first(channels.min(V * LANES));
            for (p, sums) in sums.iter().enumerate() {
                let mut q = [_mm512_setzero_si512(); 4];
                for v in 0..V {
                    q[v] = requantize512(sums[v], multipliers[v]);
                }
                let bytes = _mm512_permutexvar_epi32(order, pack512(&q, zero, qmin, qmax));
                // SAFETY: only bytes of existing channels are written.
                unsafe { _mm512_mask_storeu_epi8(y.add(p * step).cast(), mask, bytes) }
            }
        }
        Output::F32 { y } => {
            for (p, sums) in sums.iter().enumerate() {
                for v in 0..V {
                    let values = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[v]), multipliers[v]);
                    let mask = first(channels.saturating_sub(v * LANES)) as u16;
                    // SAFETY: only elements of existing channels are written.
                    unsafe { _mm512_mask_storeu_ps(y.add(p * step + v * LANES), mask, values) }
                }
            }
        }
    }
}

/// A mask of the first `n` of 64 lanes.
#[inline(always)]
pub(super) fn first(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// `round_ties_even(f32(acc) * multiplier)`, values above 65536 cut to it.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn requantize512(acc: __m512i, multiplier: __m512) -> __m512i {
    let v = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), multiplier);
    _mm512_cvtps_epi32(_mm512_min_ps(v, _mm512_set1_ps(SATURATED)))
}

/// Adds the zero point and clamps; 128-bit lane l of the result holds lane l of the four vectors in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack512(q: &[__m512i; 4], zero: i16, qmin: u8, qmax: u8) -> __m512i {
    let zero = _mm512_set1_epi16(zero);
    let low = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), zero);
    let high = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), zero);
    let bytes = _mm512_packus_epi16(low, high);
    let bytes = _mm512_max_epu8(bytes, _mm512_set1_epi8(qmin as i8));
    _mm512_min_epu8(bytes, _mm512_set1_epi8(qmax as i8))
}

/// Finishes 16 consecutive channels, of which the first `channels` exist.
///
/// # Safety
/// `output` holds `min(channels, 16)` elements.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn store16(acc: &[__m256i; 2], multipliers: &[__m256; 2], output: Output, channels: usize) {
    let channels = channels.min(LANES);
    match output {
        Output::U8 { y, zero, qmin, qmax } => {
            let q = [requantize256(acc[0], multipliers[0]), requantize256(acc[1], multipliers[1])];
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(q[0], q[1]));
            let words = _mm256_adds_epi16(words, _mm256_set1_epi16(zero));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let bytes = _mm_max_epu8(bytes, _mm_set1_epi8(qmin as i8));
            let bytes = _mm_min_epu8(bytes, _mm_set1_epi8(qmax as i8));
            // SAFETY: only the first `channels` bytes are written.
            unsafe {
                if channels == LANES {
                    _mm_storeu_si128(y.cast(), bytes);
                } else {
                    let bytes: [u8; LANES] = std::mem::transmute(bytes);
                    y.copy_from_nonoverlapping(bytes.as_ptr(), channels);
                }
            }
        }
        Output::F32 { y } => {
            let values = [0, 1].map(|half| _mm256_mul_ps(_mm256_cvtepi32_ps(acc[half]), multipliers[half]));
            // SAFETY: only the first `channels` elements are written.
            unsafe {
                let values: [f32; LANES] = std::mem::transmute(values);
                y.copy_from_nonoverlapping(values.as_ptr(), channels);
            }
        }
    }
}

/// As [`requantize512`], for 8 lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn requantize256(acc: __m256i, multiplier: __m256) -> __m256i {
    let v = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), multiplier);
    _mm256_cvtps_epi32(_mm256_min_ps(v, _mm256_set1_ps(SATURATED)))
}

/// As [`pack512`], for 256-bit vectors.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pack256(q: &[__m256i; 4], zero: i16, qmin: u8, qmax: u8) -> __m256i {
    let zero = _mm256_set1_epi16(zero);
    let low = _mm256_adds_epi16(_mm256_packs_epi32(q[0], q[1]), zero);
    let high = _mm256_adds_epi16(_mm256_packs_epi32(q[2], q[3]), zero);
    let bytes = _mm256_packus_epi16(low, high);
    let bytes = _mm256_max_epu8(bytes, _mm256_set1_epi8(qmin as i8));
    _mm256_min_epu8(bytes, _mm256_set1_epi8(qmax as i8))
}
