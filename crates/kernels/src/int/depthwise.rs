//! The inner kernel of depthwise convolutions: one row of positions, a block of channels at a time.
//!
//! What enters: pointers to input bytes (channels contiguous), packed weights and one output row. What leaves: the written row.
//!
//! Kernel rows are taken four at a time: the bytes of one column are interleaved so that each 32-bit lane holds four rows of one
//! channel, which is what an 8-bit dot product wants, and an interleaved column then serves every tap that reaches it.
//! Interleaving in 128-bit lanes puts channels `16l + 4j .. 16l + 4j + 4` of a block into lane l of vector j; weights, offsets and
//! multipliers are packed in that order, and packing the results undoes it.

use super::Isa;
use super::dense::{Output, store_scalar};
use crate::geometry::ConvGeometry;

/// Kernel rows that one dot product takes.
pub(super) const ROWS: usize = 4;
/// Interleaved columns (times groups of four rows) that the fast kernels keep.
const LINE: usize = 64;

/// Channels of one block.
pub(super) fn block_channels(isa: Isa, g: &ConvGeometry) -> usize {
    match vectors(isa, g) {
        Vectors::Zmm => 64,
        Vectors::Ymm | Vectors::YmmVnni => 32,
        Vectors::None => 16,
    }
}

/// Which registers a convolution uses.
enum Vectors {
    Zmm,
    YmmVnni,
    Ymm,
    None,
}

fn vectors(isa: Isa, g: &ConvGeometry) -> Vectors {
    let fits = g.extent()[1] * g.kernel[0].div_ceil(ROWS) <= LINE;
    match isa {
        Isa::Avx512Vnni if fits && g.in_channels <= 32 => Vectors::YmmVnni,
        Isa::Avx512Vnni if fits => Vectors::Zmm,
        Isa::Avx2 if fits => Vectors::Ymm,
        _ => Vectors::None,
    }
}

/// Which channel of a block stands at place `i` of a packed block: vector `j = i / (block / 4)`, lane `l`, then four in a row.
pub(super) fn channel_at(i: usize, block: usize) -> usize {
    let (vector, rest) = (i / (block / 4), i % (block / 4));
    16 * (rest / 4) + 4 * vector + rest % 4
}

/// One row of output positions.
pub(super) struct Row<'a> {
    pub geometry: &'a ConvGeometry,
    /// First channel of the image's first pixel.
    pub x: *const u8,
    /// Pixels in a row of the image.
    pub width: usize,
    /// What pixels outside the image hold.
    pub x_zero: u8,
    /// Byte offset of the image row under each kernel row, `None` outside the image; a multiple of four, surplus rows have zero
    /// weights.
    pub rows: &'a [Option<usize>],
    /// Positions that [`LINE`] interleaved columns suffice for.
    pub part: usize,
    /// Packed weights `[block][kernel column][rows / 4][block channels][4]`.
    pub w: *const i8,
    /// What the sums start from, in packed order.
    pub offsets: *const i32,
    /// What the sums are multiplied by, in packed order.
    pub multipliers: *const f32,
    /// First output element.
    pub output: Output,
    /// Number of positions.
    pub positions: usize,
}

impl Row<'_> {
    /// The byte offset of a column of the padded image, if it lies inside the image.
    #[inline(always)]
    fn column(&self, column: usize) -> Option<usize> {
        let column = column.wrapping_sub(self.geometry.pads[1]);
        (column < self.width).then(|| column * self.geometry.in_channels)
    }
}

/// How many positions a line of interleaved columns suffices for.
pub(super) fn line_positions(g: &ConvGeometry) -> usize {
    (LINE / g.kernel[0].div_ceil(ROWS)).saturating_sub(g.extent()[1]) / g.stride[1] + 1
}

/// Computes one row.
///
/// # Safety
/// `isa` is available, the rows lie within the input and the positions within the output.
pub(super) unsafe fn run_row(isa: Isa, row: &Row) {
    let channels = row.geometry.in_channels;
    let block = block_channels(isa, row.geometry);
    for first in (0..channels).step_by(block) {
        let count = block.min(channels - first);
        // SAFETY: promised by the caller; the packed slices are padded to whole blocks.
        unsafe {
            let part = Row {
                x: row.x.add(first),
                w: row.w.add(first * row.geometry.kernel[1] * row.rows.len()),
                offsets: row.offsets.add(first),
                multipliers: row.multipliers.add(first),
                output: row.output.at(first),
                ..*row
            };
            match vectors(isa, row.geometry) {
                #[cfg(target_arch = "x86_64")]
                Vectors::Zmm => x86::zmm(&part, count),
                #[cfg(target_arch = "x86_64")]
                Vectors::YmmVnni => x86::ymm_vnni(&part, count),
                #[cfg(target_arch = "x86_64")]
                Vectors::Ymm => x86::ymm(&part, count),
                _ => portable(&part, count),
            }
        }
    }
}

/// One block of 16 channels in plain Rust.
unsafe fn portable(row: &Row, count: usize) {
    let g = row.geometry;
    for p in 0..row.positions {
        // SAFETY: `run_row` promises that the row lies within its buffers.
        unsafe {
            let mut acc = row.offsets.cast::<[i32; 16]>().read_unaligned();
            for s in 0..g.kernel[1] {
                let column = row.column(p * g.stride[1] + s * g.dilation[1]);
                for (r, &offset) in row.rows.iter().enumerate() {
                    let w = row.w.add((s * row.rows.len() + r / ROWS * ROWS) * 16 + r % ROWS);
                    let x = offset.zip(column).map(|(offset, column)| row.x.add(offset + column));
                    for (c, acc) in acc[..count].iter_mut().enumerate() {
                        let x = x.map_or(row.x_zero, |x| *x.add(c));
                        *acc = acc.wrapping_add(i32::from(x) * i32::from(*w.add(c * ROWS)));
                    }
                }
            }
            store_scalar(&acc[..count], row.multipliers, row.output.at(p * g.in_channels));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
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
        /// Finishes the sums of one position.
        unsafe fn store(acc: &[Self::Int; 4], multipliers: *const f32, output: Output, count: usize);
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
            for (p, sums) in sums.iter().enumerate() {
                R::store(sums, row.multipliers, output.at(p * g.in_channels), count);
            }
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
        unsafe fn store(acc: &[__m512i; 4], multipliers: *const f32, output: Output, count: usize) {
            // SAFETY: only the first `count` elements are written.
            unsafe {
                let m = [
                    _mm512_loadu_ps(multipliers),
                    _mm512_loadu_ps(multipliers.add(16)),
                    _mm512_loadu_ps(multipliers.add(32)),
                    _mm512_loadu_ps(multipliers.add(48)),
                ];
                match output {
                    Output::U8 { y, zero, qmin, qmax } => {
                        let q = [
                            requantize512(acc[0], m[0]),
                            requantize512(acc[1], m[1]),
                            requantize512(acc[2], m[2]),
                            requantize512(acc[3], m[3]),
                        ];
                        _mm512_mask_storeu_epi8(y.cast(), first(count), pack512(&q, zero, qmin, qmax));
                    }
                    Output::F32 { y } => {
                        let mut v = m;
                        for j in 0..4 {
                            v[j] = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[j]), m[j]);
                        }
                        store_floats::<16>(&transmute::<[__m512; 4], [[f32; 16]; 4]>(v), y, count);
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
        unsafe fn store(acc: &[__m256i; 4], multipliers: *const f32, output: Output, count: usize) {
            // SAFETY: only the first `count` elements are written.
            unsafe {
                let m = [
                    _mm256_loadu_ps(multipliers),
                    _mm256_loadu_ps(multipliers.add(8)),
                    _mm256_loadu_ps(multipliers.add(16)),
                    _mm256_loadu_ps(multipliers.add(24)),
                ];
                match output {
                    Output::U8 { y, zero, qmin, qmax } => {
                        let q = [
                            requantize256(acc[0], m[0]),
                            requantize256(acc[1], m[1]),
                            requantize256(acc[2], m[2]),
                            requantize256(acc[3], m[3]),
                        ];
                        let bytes = pack256(&q, zero, qmin, qmax);
                        if count == 32 {
                            _mm256_storeu_si256(y.cast(), bytes);
                        } else {
                            let bytes = transmute::<__m256i, [u8; 32]>(bytes);
                            y.copy_from_nonoverlapping(bytes.as_ptr(), count);
                        }
                    }
                    Output::F32 { y } => {
                        let mut v = m;
                        for j in 0..4 {
                            v[j] = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[j]), m[j]);
                        }
                        store_floats::<8>(&transmute::<[__m256; 4], [[f32; 8]; 4]>(v), y, count);
                    }
                }
            }
        }
    }
}
