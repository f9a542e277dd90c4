//! Gradients of a depthwise convolution, vectors over channels.
//!
//! What enters: NHWC images, gradients of the output, weights laid out `[tap][channel]`; the part of a batch that one thread
//! works on. What leaves: the gradient of the images, written or added; the gradient of the weights, added in the form
//! `[tap][channel]`. Padding is never stored: taps beside the image are left out.
//!
//! Sums are by fused multiply-adds in an order that depends on the shapes alone: the same bits on every instruction set.

use crate::ConvGeometry;
use crate::simd::{Isa, Kernel, Simd};

/// The backward pass of a depthwise convolution.
#[derive(Debug)]
pub struct DepthwiseBackward {
    geometry: ConvGeometry,
    isa: Isa,
}

impl DepthwiseBackward {
    /// For this processor.
    ///
    /// # Panics
    /// If the geometry is not that of a depthwise convolution.
    pub fn new(geometry: &ConvGeometry) -> Self {
        Self::for_isa(Isa::best(), geometry)
    }

    /// For an instruction set.
    ///
    /// # Panics
    /// As [`DepthwiseBackward::new`].
    pub fn for_isa(isa: Isa, geometry: &ConvGeometry) -> Self {
        assert!(geometry.is_valid() && geometry.is_depthwise(), "every channel has one filter");
        DepthwiseBackward { geometry: *geometry, isa }
    }

    /// Length of the form `[tap][channel]`, in which weights are read and their gradient is added up.
    pub fn packed_len(&self) -> usize {
        self.geometry.weight_len()
    }

    /// Brings OIHW weights into the form, which is that of the forward pass too.
    ///
    /// # Panics
    /// If a slice does not have its length.
    pub fn pack(&self, weights: &[f32], packed: &mut [f32]) {
        assert_eq!([weights.len(), packed.len()], [self.packed_len(); 2], "as many numbers as weights");
        let channels = self.geometry.out_channels;
        let taps = packed.len() / channels;
        packed.iter_mut().enumerate().for_each(|(i, to)| *to = weights[i % channels * taps + i / channels]);
    }

    /// Brings a gradient from the form to OIHW.
    ///
    /// # Panics
    /// If a slice does not have its length.
    pub fn unpack(&self, packed: &[f32], gradient: &mut [f32]) {
        assert_eq!([gradient.len(), packed.len()], [self.packed_len(); 2], "as many numbers as weights");
        let channels = self.geometry.out_channels;
        let taps = packed.len() / channels;
        gradient.iter_mut().enumerate().for_each(|(i, to)| *to = packed[i % taps * channels + i / taps]);
    }

    /// Writes the gradient of `n` images of `h` × `w`, or adds it if `add`:
    /// `dx[i, y, x, c] = Σ dy[i, oy, ox, c] * w[tap, c]` over the outputs and taps that read the pixel.
    ///
    /// Shapes: `packed: [taps, channels]`, `dy: [n, output height, output width, channels]`, `dx: [n, h, w, channels]`.
    ///
    /// # Panics
    /// If the kernel does not fit or a slice does not have its length.
    pub fn input_gradient(&self, shape: [usize; 3], packed: &[f32], dy: &[f32], add: bool, dx: &mut [f32]) {
        let [h, w] = [shape[1], shape[2]];
        let output = self.check(shape, dx.len(), dy.len(), packed.len());
        let channels = self.geometry.out_channels;
        let images = dx.chunks_exact_mut((h * w * channels).max(1));
        for (dx, dy) in images.zip(dy.chunks_exact(output[0] * output[1] * channels)) {
            let geometry = &self.geometry;
            self.isa.dispatch(InputGradient { geometry, size: [h, w], output, weights: packed, dy, add, dx });
        }
    }

    /// Adds the gradient of the weights: `dw[tap, c] += Σ dy[i, oy, ox, c] * x[i, the pixel that the tap reads, c]`.
    ///
    /// Shapes: as [`DepthwiseBackward::input_gradient`].
    ///
    /// # Panics
    /// If the kernel does not fit or a slice does not have its length.
    pub fn weight_gradient(&self, shape: [usize; 3], x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let [h, w] = [shape[1], shape[2]];
        let output = self.check(shape, x.len(), dy.len(), dw.len());
        let channels = self.geometry.out_channels;
        let images = x.chunks_exact((h * w * channels).max(1));
        for (x, dy) in images.zip(dy.chunks_exact(output[0] * output[1] * channels)) {
            self.isa.dispatch(WeightGradient { geometry: &self.geometry, size: [h, w], output, x, dy, dw });
        }
    }

    /// Height and width of the output, if all lengths are right.
    fn check(&self, [n, h, w]: [usize; 3], inputs: usize, outputs: usize, weights: usize) -> [usize; 2] {
        let [oh, ow] = self.geometry.output_size(h, w).expect("the kernel fits into the padded image");
        assert_eq!(inputs, n * h * w * self.geometry.in_channels, "images have the given shape");
        assert_eq!(outputs, n * oh * ow * self.geometry.out_channels, "gradients of the output have its shape");
        assert_eq!(weights, self.packed_len(), "as many numbers as weights");
        [oh, ow]
    }
}

/// The taps of one axis that read an input position, and the outputs that they belong to: taps `first`, `first + step`, ...
/// belong to outputs `output`, `output - back`, ..., which may lie beside the image.
#[derive(Clone, Copy)]
struct Readers {
    first: usize,
    step: usize,
    output: isize,
    back: isize,
}

impl Readers {
    fn new(g: &ConvGeometry, axis: usize, position: usize) -> Self {
        let (stride, dilation) = (g.stride[axis] as isize, g.dilation[axis] as isize);
        let padded = (position + g.pads[axis]) as isize;
        // Taps repeat their distance to the outputs' grid after at most `stride`; none on the grid is a tap beyond the kernel.
        let on_grid = |tap: &usize| (padded - *tap as isize * dilation) % stride == 0;
        let step = (1..=g.stride[axis]).find(|s| (s * g.dilation[axis]).is_multiple_of(g.stride[axis])).unwrap_or(1);
        let first = (0..step).find(on_grid).unwrap_or(g.kernel[axis]);
        let output = (padded - first as isize * dilation) / stride;
        Readers { first, step, output, back: step as isize * dilation / stride }
    }

    /// `(tap, output)` for each tap of a kernel.
    #[inline(always)]
    fn each(self, kernel: usize) -> impl Iterator<Item = (usize, isize)> {
        let outputs = (0..).map(move |i: isize| self.output - i * self.back);
        (self.first..kernel).step_by(self.step).zip(outputs)
    }
}

/// Numbers of output rows that should stay in the first-level cache from one row to the next.
const CACHED_LEN: usize = 6 * 1024;
/// Most columns of taps that go into one tile at a time; more are added in turns.
const MOST_TAPS: usize = 16;

/// The gradient of one image.
struct InputGradient<'a> {
    geometry: &'a ConvGeometry,
    size: [usize; 2],
    output: [usize; 2],
    weights: &'a [f32],
    dy: &'a [f32],
    add: bool,
    dx: &'a mut [f32],
}

impl Kernel for InputGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let stride = self.geometry.stride[1];
        for phase in 0..stride.min(self.size[1]) {
            // Columns that the same taps read, at neighbouring outputs.
            let columns = (self.size[1] - phase).div_ceil(stride);
            match (S::REGISTERS >= 32, columns) {
                (true, 8..) => self.columns::<S, 14>(s, phase, columns),
                (true, _) => self.columns::<S, 7>(s, phase, columns),
                (false, 5..) => self.columns::<S, 8>(s, phase, columns),
                (false, _) => self.columns::<S, 4>(s, phase, columns),
            }
        }
    }
}

/// A column of taps of the kernel in a tile.
#[derive(Clone, Copy, Default)]
struct TapColumn {
    tap: usize,
    /// The output column that it belongs to at the tile's first column.
    output: isize,
    /// At which of the tile's columns there is such an output: bit by bit.
    mask: u32,
}

impl InputGradient<'_> {
    /// Covers the columns of a phase with tiles of `P`.
    #[inline(always)]
    fn columns<S: Simd, const P: usize>(&mut self, s: S, phase: usize, columns: usize) {
        let g = self.geometry;
        let readers = Readers::new(g, 1, phase);
        for first in (0..columns).step_by(P) {
            let count = P.min(columns - first);
            let width = self.output[1];
            let mut rest = readers.each(g.kernel[1]).map(|(tap, output)| {
                let output = output + first as isize;
                TapColumn { tap, output, mask: mask(count, output, 1, width) }
            });
            let mut add = self.add;
            loop {
                let mut taps = [TapColumn::default(); MOST_TAPS];
                let used = taps.iter_mut().zip(&mut rest).map(|(to, tap)| *to = tap).count();
                let column = phase + first * g.stride[1];
                s.call(Tiles::<P> { image: self, column, count, taps: &taps[..used], add });
                if used < MOST_TAPS {
                    break;
                }
                add = true;
            }
        }
    }
}

/// Tiles of `P` columns of all rows and channels.
struct Tiles<'a, 'b, const P: usize> {
    image: &'a mut InputGradient<'b>,
    /// First column, and how many, a stride apart.
    column: usize,
    count: usize,
    taps: &'a [TapColumn],
    add: bool,
}

impl<const P: usize> Kernel for Tiles<'_, '_, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let g = self.image.geometry;
        let cached = CACHED_LEN / ((P + g.kernel[1]) * g.kernel[0]);
        let group = cached.next_multiple_of(S::LANES).max(S::LANES);
        for start in (0..g.out_channels).step_by(group) {
            let end = g.out_channels.min(start + group);
            let whole = end - (end - start) % S::LANES;
            for row in 0..self.image.size[0] {
                let readers = Readers::new(g, 0, row);
                // SAFETY: the row and the channels lie within the image.
                unsafe {
                    for c in (start..whole).step_by(S::LANES) {
                        self.tile(s, row, readers, c, S::LANES);
                    }
                    if whole < end {
                        self.tile(s, row, readers, whole, end - whole);
                    }
                }
            }
        }
    }
}

impl<const P: usize> Tiles<'_, '_, P> {
    /// One tile of `lanes` channels.
    ///
    /// # Safety
    /// `row` lies within the image; there are `lanes <= LANES` channels from `c`.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&mut self, s: S, row: usize, readers: Readers, c: usize, lanes: usize) {
        let g = self.image.geometry;
        let [height, width] = self.image.output;
        let pitch = g.out_channels;
        let full = (1 << P) - 1;
        let first = (row * self.image.size[1] + self.column) * pitch + c;
        for p in 0..P {
            s.prefetch_write(self.image.dx.as_mut_ptr().wrapping_add(first + p * g.stride[1] * pitch));
        }
        let mut sums = [s.splat(0.0); P];
        for (tap, oy) in readers.each(g.kernel[0]) {
            if oy < 0 || oy as usize >= height {
                continue;
            }
            let weights = self.image.weights.as_ptr().wrapping_add(tap * g.kernel[1] * pitch + c);
            let dy = self.image.dy.as_ptr().wrapping_add(oy as usize * width * pitch + c);
            for &TapColumn { tap, output, mask } in self.taps {
                let dy = dy.wrapping_offset(output * pitch as isize);
                // SAFETY: the tap lies within the kernel, outputs in the mask within the image, the channels by the caller's
                // promise.
                unsafe {
                    let weight = s.load_up_to(weights.add(tap * pitch), lanes);
                    if mask == full {
                        for (p, sum) in sums.iter_mut().enumerate() {
                            *sum = s.fma(s.load_up_to(dy.wrapping_add(p * pitch), lanes), weight, *sum);
                        }
                    } else {
                        for (p, sum) in sums.iter_mut().enumerate() {
                            if mask & 1 << p != 0 {
                                *sum = s.fma(s.load_up_to(dy.wrapping_add(p * pitch), lanes), weight, *sum);
                            }
                        }
                    }
                }
            }
        }
        for (p, &sum) in sums.iter().enumerate() {
            if p < self.count {
                // SAFETY: the column lies within the image, the channels by the caller's promise.
                unsafe {
                    let to = self.image.dx.as_mut_ptr().add(first + p * g.stride[1] * pitch);
                    s.store_up_to(to, lanes, if self.add { s.add(s.load_up_to(to, lanes), sum) } else { sum });
                }
            }
        }
    }
}

/// The gradient of the weights from one image.
struct WeightGradient<'a> {
    geometry: &'a ConvGeometry,
    size: [usize; 2],
    output: [usize; 2],
    x: &'a [f32],
    dy: &'a [f32],
    dw: &'a mut [f32],
}

impl Kernel for WeightGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.geometry.kernel[1], S::REGISTERS >= 32) {
            (5, true) => s.call(Blocks::<5, 5>(self)),
            (5, false) => s.call(Blocks::<2, 5>(self)),
            (7, true) => s.call(Blocks::<4, 7>(self)),
            (7, false) => s.call(Blocks::<2, 7>(self)),
            _ => s.call(Blocks::<3, 3>(self)),
        }
    }
}

/// Covers the kernel with blocks of `R` × `K` taps, whose sums stay in registers for a whole image.
struct Blocks<'a, const R: usize, const K: usize>(WeightGradient<'a>);

impl<const R: usize, const K: usize> Kernel for Blocks<'_, R, K> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let ConvGeometry { out_channels: channels, kernel, .. } = *self.0.geometry;
        let whole = channels - channels % S::LANES;
        for row in (0..kernel[0]).step_by(R) {
            for column in (0..kernel[1]).step_by(K) {
                // SAFETY: the taps lie within the kernel, the channels within the image.
                unsafe {
                    for c in (0..whole).step_by(S::LANES) {
                        self.block(s, [row, column], c, S::LANES);
                    }
                    if whole < channels {
                        self.block(s, [row, column], whole, channels - whole);
                    }
                }
            }
        }
    }
}

impl<const R: usize, const K: usize> Blocks<'_, R, K> {
    /// The block of taps from `tap`, for `lanes` channels.
    ///
    /// # Safety
    /// `tap` lies within the kernel; there are `lanes <= LANES` channels from `c`.
    #[inline(always)]
    unsafe fn block<S: Simd>(&mut self, s: S, tap: [usize; 2], c: usize, lanes: usize) {
        let WeightGradient { geometry: g, size: [h, w], output: [oh, ow], x, dy, .. } = self.0;
        let pitch = g.out_channels;
        let height = R.min(g.kernel[0] - tap[0]);
        let width = K.min(g.kernel[1] - tap[1]);
        let [down, right] = [g.dilation[0] * w * pitch, g.dilation[1] * pitch];
        // Outputs at which all `K` columns of taps lie within the image.
        let left = (tap[1] * g.dilation[1]) as isize - g.pads[1] as isize;
        let reach = left + ((K - 1) * g.dilation[1]) as isize;
        let stride = g.stride[1] as isize;
        let up = |n: isize| (n + stride - 1).div_euclid(stride).clamp(0, ow as isize);
        let inside = if width == K { up(-left)..up(w as isize - reach) } else { 0..0 };
        let mut sums = [[s.splat(0.0); K]; R];
        for oy in 0..oh {
            let top = (oy * g.stride[0] + tap[0] * g.dilation[0]) as isize - g.pads[0] as isize;
            let rows = mask(height, top, g.dilation[0], h);
            for ox in 0..ow as isize {
                let ix = ox * stride + left;
                let x = x.as_ptr().wrapping_offset((top * w as isize + ix) * pitch as isize + c as isize);
                // SAFETY: the outputs lie within the image, as do the taps in the masks; the channels by the caller's promise.
                unsafe {
                    let dy = s.load_up_to(dy.as_ptr().add((oy * ow + ox as usize) * pitch + c), lanes);
                    if inside.contains(&ox) {
                        for (r, sums) in sums.iter_mut().enumerate() {
                            if rows & 1 << r != 0 {
                                for (k, sum) in sums.iter_mut().enumerate() {
                                    let x = x.wrapping_add(r * down + k * right);
                                    *sum = s.fma(dy, s.load_up_to(x, lanes), *sum);
                                }
                            }
                        }
                    } else {
                        let columns = mask(width, ix, g.dilation[1], w);
                        for (r, sums) in sums.iter_mut().enumerate() {
                            for (k, sum) in sums.iter_mut().enumerate() {
                                if rows & 1 << r != 0 && columns & 1 << k != 0 {
                                    let x = x.wrapping_add(r * down + k * right);
                                    *sum = s.fma(dy, s.load_up_to(x, lanes), *sum);
                                }
                            }
                        }
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (k, &sum) in sums.iter().enumerate() {
                if r < height && k < width {
                    let at = ((tap[0] + r) * g.kernel[1] + tap[1] + k) * pitch + c;
                    // SAFETY: the tap lies within the kernel, the channels by the caller's promise.
                    unsafe {
                        let to = self.0.dw.as_mut_ptr().add(at);
                        s.store_up_to(to, lanes, s.add(s.load_up_to(to, lanes), sum));
                    }
                }
            }
        }
    }
}

/// Which of `count` positions, the first at `from` and `step` apart, lie within `0..size`: bit by bit.
#[inline(always)]
fn mask(count: usize, from: isize, step: usize, size: usize) -> u32 {
    let mut mask = 0;
    for i in 0..count {
        let inside = ((from + (i * step) as isize) as usize) < size;
        mask |= u32::from(inside) << i;
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1 that repeat after a long while.
    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    /// Calls `visit(output, tap, input)` with the pixels and the tap of every product, images, rows, columns and taps in order.
    fn products(g: &ConvGeometry, [n, h, w]: [usize; 3], mut visit: impl FnMut(usize, usize, usize)) {
        let [oh, ow] = g.output_size(h, w).expect("cases fit");
        for output in 0..n * oh * ow {
            let (image, oy, ox) = (output / (oh * ow), output / ow % oh, output % ow);
            for tap in 0..g.kernel[0] * g.kernel[1] {
                let iy = (oy * g.stride[0] + tap / g.kernel[1] * g.dilation[0]).wrapping_sub(g.pads[0]);
                let ix = (ox * g.stride[1] + tap % g.kernel[1] * g.dilation[1]).wrapping_sub(g.pads[1]);
                if iy < h && ix < w {
                    visit(output, tap, (image * h + iy) * w + ix);
                }
            }
        }
    }

    fn check(g: ConvGeometry, shape: [usize; 3]) {
        let channels = g.out_channels;
        let [oh, ow] = g.output_size(shape[1], shape[2]).expect("cases fit");
        let pixels = shape.iter().product::<usize>();
        let (x, dy) = (numbers(pixels * channels, 1), numbers(shape[0] * oh * ow * channels, 2));
        let weights = numbers(g.weight_len(), 3);
        let taps = g.weight_len() / channels;
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weights.len()]);
        products(&g, shape, |output, tap, input| {
            for c in 0..channels {
                let dy = f64::from(dy[output * channels + c]);
                dx[input * channels + c] += dy * f64::from(weights[c * taps + tap]);
                dw[c * taps + tap] += dy * f64::from(x[input * channels + c]);
            }
        });
        let mut bits: Option<[Vec<f32>; 2]> = None;
        for isa in Isa::available() {
            let case = format!("{g:?} {shape:?} {isa:?}");
            let close = |found: &[f32], expected: &[f64], before: f64| {
                let wrong = found
                    .iter()
                    .zip(expected)
                    .position(|(&f, e)| f.is_nan() || (f64::from(f) - e - before).abs() > 2e-5);
                assert_eq!(wrong, None, "{case}");
            };
            let plan = DepthwiseBackward::for_isa(isa, &g);
            let mut packed = vec![f32::NAN; plan.packed_len()];
            plan.pack(&weights, &mut packed);
            let mut found = vec![f32::NAN; x.len()];
            plan.input_gradient(shape, &packed, &dy, false, &mut found);
            close(&found, &dx, 0.0);
            let mut added = vec![0.5; x.len()];
            plan.input_gradient(shape, &packed, &dy, true, &mut added);
            close(&added, &dx, 0.5);
            let mut form = vec![0.25; packed.len()];
            plan.weight_gradient(shape, &x, &dy, &mut form);
            let mut unpacked = vec![f32::NAN; form.len()];
            plan.unpack(&form, &mut unpacked);
            close(&unpacked, &dw, 0.25);
            let found = [found, unpacked];
            assert_eq!(&found, bits.get_or_insert_with(|| found.clone()), "{case}");
        }
    }

    fn square(k: usize, stride: usize, channels: usize) -> ConvGeometry {
        ConvGeometry {
            kernel: [k; 2],
            stride: [stride; 2],
            pads: [k / 2; 4],
            groups: channels,
            ..ConvGeometry::pointwise(channels, channels)
        }
    }

    #[test]
    fn square_kernels_equal_the_plain_loop() {
        for k in [1, 3, 5, 7, 9, 11, 17] {
            for stride in [1, 2] {
                for (channels, size) in [(2, 5), (16, 14), (24, 7), (35, 9)] {
                    check(square(k, stride, channels), [2, size, size]);
                }
                check(square(k, stride, 8), [1, 13, 31]);
            }
        }
    }

    #[test]
    fn odd_geometry_equals_the_plain_loop() {
        for channels in [3, 17] {
            for (kernel, stride, dilation, pads) in [
                ([3, 3], [1, 1], [2, 2], [2, 2, 2, 2]),
                ([3, 3], [2, 2], [1, 1], [0, 0, 1, 1]),
                ([3, 3], [2, 2], [2, 2], [1, 2, 3, 2]),
                ([5, 2], [1, 3], [1, 2], [4, 0, 0, 3]),
                ([1, 7], [3, 2], [1, 3], [0, 9, 0, 8]),
                ([2, 2], [4, 6], [1, 4], [0, 0, 0, 0]),
                ([3, 3], [1, 1], [1, 1], [4, 5, 4, 5]),
            ] {
                let g = ConvGeometry { kernel, stride, dilation, pads, ..square(1, 1, channels) };
                check(g, [1, 12, 17]);
                check(g, [2, 9, 20]);
            }
        }
    }

    #[test]
    fn pixels_that_no_tap_reads_have_no_gradient() {
        let g = ConvGeometry { stride: [2; 2], ..square(1, 1, 4) };
        let plan = DepthwiseBackward::new(&g);
        let mut dx = [f32::NAN; 36];
        plan.input_gradient([1, 3, 3], &[2.0; 4], &[1.0; 16], false, &mut dx);
        let expected = |i: usize| if [i / 12, i / 4 % 3].contains(&1) { 0.0 } else { 2.0 };
        assert!(dx.iter().enumerate().all(|(i, &dx)| dx == expected(i)));
    }
}
