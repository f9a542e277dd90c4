//! Depthwise rows in AVX-512 and AVX2 registers: interleave columns, multiply, finish.
//!
//! What enters: a row as `depthwise` prepares it. What leaves: the written row. One generic body serves all register kinds.

use super::{LINE, ROWS, Row};
use crate::int::dense::Output;
use crate::int::x86::{first, pack256, pack512, requantize256, requantize512};
use std::arch::x86_64::*;
use std::mem::{MaybeUninit, transmute};

/// Four registers of one width: a block of channels, one 32-bit lane each.
///
/// # Safety
/// The methods may only run where their instructions exist, on pointers that hold a whole register, or `count` elements.
trait Registers {
    type Int: Copy;
    /// Positions whose sums fit into registers together.
    const POSITIONS: usize;
    unsafe fn load(p: *const i8) -> Self::Int;
    /// The same byte everywhere.
    unsafe fn splat(byte: u8) -> Self::Int;
    /// `count` bytes, the rest zero.
    unsafe fn load_bytes(x: *const u8, count: usize) -> Self::Int;
    /// Lane by lane, the four bytes of four rows.
    unsafe fn interleave(rows: [Self::Int; 4]) -> [Self::Int; 4];
    /// `acc + Σ x * w` over the four bytes of each lane.
    unsafe fn dot(acc: Self::Int, x: Self::Int, w: Self::Int) -> Self::Int;
    /// Finishes the sums of `P` positions `step` apart.
    unsafe fn store<const P: usize>(
        sums: &[[Self::Int; 4]; P],
        multipliers: *const f32,
        output: Output,
        step: usize,
        count: usize,
    );
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn zmm(row: &Row, count: usize) {
    // SAFETY: promised by `run_row`.
    unsafe { run::<Zmm>(row, count) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn ymm_vnni(row: &Row, count: usize) {
    // SAFETY: promised by `run_row`.
    unsafe { run::<Ymm<true>>(row, count) }
}

#[target_feature(enable = "avx2")]
pub(super) unsafe fn ymm(row: &Row, count: usize) {
    // SAFETY: promised by `run_row`.
    unsafe { run::<Ymm<false>>(row, count) }
}

/// Room for `LINE` interleaved columns of the widest registers.
#[repr(align(64))]
struct Line(MaybeUninit<[[u8; 256]; LINE]>);

#[inline(always)]
unsafe fn run<R: Registers>(row: &Row, count: usize) {
    let g = row.geometry;
    let (stride, groups) = (g.stride[1], row.rows.len() / ROWS);
    let mut line = Line(MaybeUninit::uninit());
    let line = (&raw mut line.0).cast::<[R::Int; 4]>();
    for begin in (0..row.positions).step_by(row.part) {
        let positions = row.part.min(row.positions - begin);
        // SAFETY: promised by `run_row`; `part` positions need at most LINE interleaved columns.
        unsafe {
            let outside = R::splat(row.x_zero);
            for column in 0..(positions - 1) * stride + g.extent()[1] {
                let inside = row.column(begin * stride + column);
                for (group, rows) in row.rows.chunks_exact(ROWS).enumerate() {
                    let mut bytes = [outside; 4];
                    if let Some(column) = inside {
                        for (bytes, offset) in bytes.iter_mut().zip(rows) {
                            if let Some(offset) = offset {
                                *bytes = R::load_bytes(row.x.add(offset + column), count);
                            }
                        }
                    }
                    line.add(column * groups + group).write(R::interleave(bytes));
                }
            }
            let mut done = 0;
            while done < positions {
                let line = line.add(done * stride * groups);
                let output = row.output.at((begin + done) * g.in_channels);
                if R::POSITIONS == 4 && positions - done >= 4 {
                    tile::<R, 4>(row, line, output, count);
                    done += 4;
                } else if positions - done >= 2 {
                    tile::<R, 2>(row, line, output, count);
                    done += 2;
                } else {
                    tile::<R, 1>(row, line, output, count);
                    done += 1;
                }
            }
        }
    }
}

/// `P` neighbouring positions whose columns begin at `line`.
#[inline(always)]
unsafe fn tile<R: Registers, const P: usize>(row: &Row, line: *const [R::Int; 4], output: Output, count: usize) {
    let g = row.geometry;
    let groups = row.rows.len() / ROWS;
    // SAFETY: promised by `run_row`.
    unsafe {
        let mut acc = [four::<R>(row.offsets.cast()); P];
        let mut w = row.w;
        for s in 0..g.kernel[1] {
            for group in 0..groups {
                let weights = four::<R>(w);
                for (p, acc) in acc.iter_mut().enumerate() {
                    let x = *line.add((p * g.stride[1] + s * g.dilation[1]) * groups + group);
                    for j in 0..4 {
                        acc[j] = R::dot(acc[j], x[j], weights[j]);
                    }
                }
                w = w.add(4 * size_of::<R::Int>());
            }
        }
        // A copy, so that the sums above live in registers: what follows may index memory.
        let sums = acc;
        R::store(&sums, row.multipliers, output, g.in_channels, count);
    }
}

/// Four registers that lie one behind the other.
#[inline(always)]
unsafe fn four<R: Registers>(p: *const i8) -> [R::Int; 4] {
    let size = size_of::<R::Int>();
    // SAFETY: promised by the caller.
    unsafe { [R::load(p), R::load(p.add(size)), R::load(p.add(2 * size)), R::load(p.add(3 * size))] }
}

/// Four vectors of floats in packed order, as many as exist, to their channels.
unsafe fn store_floats<const N: usize>(vectors: &[[f32; N]; 4], y: *mut f32, count: usize) {
    for (i, &v) in vectors.iter().flatten().enumerate() {
        let channel = super::channel_at(i, 4 * N);
        if channel < count {
            // SAFETY: the output holds `count` channels.
            unsafe { *y.add(channel) = v }
        }
    }
}

/// 64 channels, AVX-512 VNNI.
struct Zmm;

impl Registers for Zmm {
    type Int = __m512i;
    const POSITIONS: usize = 4;

    #[inline(always)]
    unsafe fn load(p: *const i8) -> __m512i {
        // SAFETY: promised by the caller.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(byte: u8) -> __m512i {
        // SAFETY: promised by the caller.
        unsafe { _mm512_set1_epi8(byte as i8) }
    }

    #[inline(always)]
    unsafe fn load_bytes(x: *const u8, count: usize) -> __m512i {
        // SAFETY: masked bytes are not read.
        unsafe { _mm512_maskz_loadu_epi8(first(count), x.cast()) }
    }

    #[inline(always)]
    unsafe fn interleave([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: promised by the caller.
        unsafe {
            let (low_ab, high_ab) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (low_cd, high_cd) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_unpacklo_epi16(low_ab, low_cd),
                _mm512_unpackhi_epi16(low_ab, low_cd),
                _mm512_unpacklo_epi16(high_ab, high_cd),
                _mm512_unpackhi_epi16(high_ab, high_cd),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dot(acc: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: promised by the caller.
        unsafe { _mm512_dpbusd_epi32(acc, x, w) }
    }

    #[inline(always)]
    unsafe fn store<const P: usize>(
        sums: &[[__m512i; 4]; P],
        multipliers: *const f32,
        output: Output,
        step: usize,
        count: usize,
    ) {
        // SAFETY: only the first `count` elements of each position are written.
        unsafe {
            let m = [
                _mm512_loadu_ps(multipliers),
                _mm512_loadu_ps(multipliers.add(16)),
                _mm512_loadu_ps(multipliers.add(32)),
                _mm512_loadu_ps(multipliers.add(48)),
            ];
            match output {
                Output::U8 { y, zero, qmin, qmax } => {
                    for (p, sums) in sums.iter().enumerate() {
                        let mut q = *sums;
                        for j in 0..4 {
                            q[j] = requantize512(sums[j], m[j]);
                        }
                        _mm512_mask_storeu_epi8(y.add(p * step).cast(), first(count), pack512(&q, zero, qmin, qmax));
                    }
                }
                Output::F32 { y } => {
                    for (p, sums) in sums.iter().enumerate() {
                        let mut v = m;
                        for j in 0..4 {
                            v[j] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[j]), m[j]);
                        }
                        let v = transmute::<[__m512; 4], [[f32; 16]; 4]>(v);
                        store_floats::<16>(&v, y.add(p * step), count);
                    }
                }
            }
        }
    }
}

/// 32 channels, AVX-512 VNNI or plain AVX2.
struct Ymm<const VNNI: bool>;

impl<const VNNI: bool> Registers for Ymm<VNNI> {
    type Int = __m256i;
    const POSITIONS: usize = if VNNI { 4 } else { 2 };

    #[inline(always)]
    unsafe fn load(p: *const i8) -> __m256i {
        // SAFETY: promised by the caller.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(byte: u8) -> __m256i {
        // SAFETY: promised by the caller.
        unsafe { _mm256_set1_epi8(byte as i8) }
    }

    #[inline(always)]
    unsafe fn load_bytes(x: *const u8, count: usize) -> __m256i {
        // SAFETY: only `count` bytes are read.
        unsafe {
            if count == 32 {
                return _mm256_loadu_si256(x.cast());
            }
            let mut bytes = [0u8; 32];
            bytes.as_mut_ptr().copy_from_nonoverlapping(x, count);
            transmute::<[u8; 32], __m256i>(bytes)
        }
    }

    #[inline(always)]
    unsafe fn interleave([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        // SAFETY: promised by the caller.
        unsafe {
            let (low_ab, high_ab) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let (low_cd, high_cd) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
            [
                _mm256_unpacklo_epi16(low_ab, low_cd),
                _mm256_unpackhi_epi16(low_ab, low_cd),
                _mm256_unpacklo_epi16(high_ab, high_cd),
                _mm256_unpackhi_epi16(high_ab, high_cd),
            ]
        }
    }

    /// Without VNNI, bytes are widened to 16 bits in two halves, even and odd, so that no product saturates.
    #[inline(always)]
    unsafe fn dot(acc: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: promised by the caller.
        unsafe {
            if VNNI {
                return _mm256_dpbusd_epi32(acc, x, w);
            }
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
            let odd = _mm256_srai_epi16::<8>(w);
            let x_even = _mm256_and_si256(x, _mm256_set1_epi16(0xff));
            let x_odd = _mm256_srli_epi16::<8>(x);
            let dot = _mm256_add_epi32(_mm256_madd_epi16(x_even, even), _mm256_madd_epi16(x_odd, odd));
            _mm256_add_epi32(acc, dot)
        }
    }

    #[inline(always)]
    unsafe fn store<const P: usize>(
        sums: &[[__m256i; 4]; P],
        multipliers: *const f32,
        output: Output,
        step: usize,
        count: usize,
    ) {
        // SAFETY: only the first `count` elements of each position are written.
        unsafe {
            let m = [
                _mm256_loadu_ps(multipliers),
                _mm256_loadu_ps(multipliers.add(8)),
                _mm256_loadu_ps(multipliers.add(16)),
                _mm256_loadu_ps(multipliers.add(24)),
            ];
            match output {
                Output::U8 { y, zero, qmin, qmax } => {
                    for (p, sums) in sums.iter().enumerate() {
                        let mut q = *sums;
                        for j in 0..4 {
                            q[j] = requantize256(sums[j], m[j]);
                        }
                        let bytes = pack256(&q, zero, qmin, qmax);
                        if count == 32 {
                            _mm256_storeu_si256(y.add(p * step).cast(), bytes);
                        } else {
                            let bytes = transmute::<__m256i, [u8; 32]>(bytes);
                            y.add(p * step).copy_from_nonoverlapping(bytes.as_ptr(), count);
                        }
                    }
                }
                Output::F32 { y } => {
                    for (p, sums) in sums.iter().enumerate() {
                        let mut v = m;
                        for j in 0..4 {
                            v[j] = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[j]), m[j]);
                        }
                        let v = transmute::<[__m256; 4], [[f32; 8]; 4]>(v);
                        store_floats::<8>(&v, y.add(p * step), count);
                    }
                }
            }
        }
    }
}
