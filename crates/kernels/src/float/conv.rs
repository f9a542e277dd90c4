//! Two-dimensional convolution with packed weights, and the matrix product as its 1×1 case.
//!
//! What enters: an NHWC image, a [`ConvGeometry`], OIHW weights packed beforehand. What leaves: the NHWC output with bias,
//! residual and activation applied. Every output is `bias + Σ x·w` by fused multiply-adds in the order kernel row, kernel
//! column, input channel, whatever the instruction set and the number of threads: equal to [`super::reference::conv2d`].

use super::activation::Activation;
use super::depthwise::Depthwise;
use super::direct::{Direct, Places};
use super::sweep::Sweep;
use crate::simd::Isa;
use crate::{ConvGeometry, Threads};

/// What happens to a sum before it is stored: `y = activation(bias + sum + residual)`.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a> {
    /// One number per output channel.
    pub bias: Option<&'a [f32]>,
    /// As many numbers as the output.
    pub residual: Option<&'a [f32]>,
    /// The last step.
    pub activation: Activation,
}

impl Epilogue<'_> {
    /// The bare sum.
    pub const NONE: Epilogue<'static> = Epilogue { bias: None, residual: None, activation: Activation::Identity };
}

/// A convolution made ready but for its weights, which are packed into memory of the caller's: they may change from run to run.
#[derive(Debug)]
pub struct ConvPlan {
    geometry: ConvGeometry,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Direct(Direct),
    Depthwise(Depthwise),
}

impl ConvPlan {
    /// For this processor.
    ///
    /// # Panics
    /// If the geometry is not valid.
    pub fn new(geometry: &ConvGeometry) -> Self {
        Self::for_isa(Isa::best(), geometry)
    }

    /// For an instruction set.
    ///
    /// # Panics
    /// As [`ConvPlan::new`].
    pub fn for_isa(isa: Isa, geometry: &ConvGeometry) -> Self {
        assert!(geometry.is_valid(), "a convolution has a valid geometry");
        let form = match geometry.is_depthwise() {
            true => Form::Depthwise(Depthwise::new(geometry, isa)),
            false => Form::Direct(Direct::new(geometry, isa)),
        };
        ConvPlan { geometry: *geometry, form }
    }

    /// How many numbers the packed weights are.
    pub fn packed_len(&self) -> usize {
        match &self.form {
            Form::Direct(direct) => direct.packed_len(),
            Form::Depthwise(_) => self.geometry.weight_len(),
        }
    }

    /// Packs OIHW weights.
    ///
    /// # Panics
    /// If a slice does not have its length.
    pub fn pack(&self, weights: &[f32], packed: &mut [f32]) {
        assert_eq!(weights.len(), self.geometry.weight_len(), "weights have the geometry's length");
        let (inputs, taps) = (self.geometry.group_in(), self.geometry.kernel[0] * self.geometry.kernel[1]);
        self.pack_with(|o, c, tap| weights[(o * inputs + c) * taps + tap], packed);
    }

    /// Packs `weight(output channel, input channel within its group, tap)`.
    ///
    /// # Panics
    /// If `packed` does not have its length.
    pub fn pack_with(&self, weight: impl Fn(usize, usize, usize) -> f32, packed: &mut [f32]) {
        assert_eq!(packed.len(), self.packed_len(), "packed weights have the plan's length");
        match &self.form {
            Form::Direct(direct) => direct.pack(weight, packed),
            Form::Depthwise(_) => {
                let channels = self.geometry.out_channels;
                packed.iter_mut().enumerate().for_each(|(i, to)| *to = weight(i % channels, 0, i / channels));
            }
        }
    }

    /// The convolution's shape.
    pub fn geometry(&self) -> &ConvGeometry {
        &self.geometry
    }

    /// How many numbers of scratch [`ConvPlan::run`] needs for `n` images of `h` × `w` on `threads` threads.
    pub fn scratch_len(&self, threads: usize, n: usize, h: usize, w: usize) -> usize {
        match &self.form {
            Form::Direct(direct) => {
                let sweep = Sweep::new(&self.geometry, [n, h, w]);
                threads * direct.scratch_len(&sweep, &Places::dense(&sweep, self.geometry.out_channels))
            }
            Form::Depthwise(_) => 0,
        }
    }

    /// Convolves `n` images of `h` × `w` with packed weights.
    ///
    /// Shapes: `x: [n, h, w, in_channels]`, `y: [n, output height, output width, out_channels]`.
    ///
    /// # Panics
    /// If a slice does not have its length, or `scratch` is too short.
    #[expect(clippy::too_many_arguments, reason = "a convolution, spelled out")]
    pub fn run(
        &self,
        threads: &Threads,
        shape: [usize; 3],
        packed: &[f32],
        x: &[f32],
        epilogue: &Epilogue,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let [n, h, w] = shape;
        let g = &self.geometry;
        let [oh, ow] = g.output_size(h, w).expect("the kernel fits into the padded image");
        assert_eq!(packed.len(), self.packed_len(), "packed weights have the plan's length");
        assert_eq!(x.len(), n * h * w * g.in_channels, "the input has the given shape");
        assert_eq!(y.len(), n * oh * ow * g.out_channels, "the output has the given shape");
        assert!(epilogue.bias.is_none_or(|b| b.len() == g.out_channels), "one bias per output channel");
        assert!(epilogue.residual.is_none_or(|r| r.len() == y.len()), "the residual has the output's shape");
        if y.is_empty() {
            return;
        }
        match &self.form {
            Form::Direct(direct) => {
                let sweep = Sweep::new(g, shape);
                let places = Places::dense(&sweep, g.out_channels);
                direct.run(threads, &sweep, packed, x, epilogue, &places, false, y, scratch);
            }
            Form::Depthwise(depthwise) => depthwise.run(threads, shape, packed, x, epilogue, y),
        }
    }
}

/// A convolution with weights that stay.
#[derive(Debug)]
pub struct PackedConv {
    plan: ConvPlan,
    weights: Vec<f32>,
}

impl PackedConv {
    /// Packs OIHW weights for this processor.
    ///
    /// # Panics
    /// If the geometry is not valid or the weights do not have its length.
    pub fn new(geometry: &ConvGeometry, weights: &[f32]) -> Self {
        Self::for_isa(Isa::best(), geometry, weights)
    }

    /// Packs OIHW weights for an instruction set.
    ///
    /// # Panics
    /// As [`PackedConv::new`].
    pub fn for_isa(isa: Isa, geometry: &ConvGeometry, weights: &[f32]) -> Self {
        let plan = ConvPlan::for_isa(isa, geometry);
        let mut packed = vec![0.0; plan.packed_len()];
        plan.pack(weights, &mut packed);
        PackedConv { plan, weights: packed }
    }

    /// Packs the second factor of a matrix product: `k` × `n`, row by row, or its transpose (`n` × `k`). Run it with the
    /// shape `[1, 1, m]`.
    ///
    /// # Panics
    /// If the matrix does not have `k * n` numbers, or none.
    pub fn from_matrix(k: usize, n: usize, matrix: &[f32], transposed: bool) -> Self {
        assert_eq!(matrix.len(), k * n, "a k × n matrix has k * n numbers");
        let plan = ConvPlan::new(&ConvGeometry::pointwise(k, n));
        let mut packed = vec![0.0; plan.packed_len()];
        plan.pack_with(|o, c, _| if transposed { matrix[o * k + c] } else { matrix[c * n + o] }, &mut packed);
        PackedConv { plan, weights: packed }
    }

    /// The convolution's shape.
    pub fn geometry(&self) -> &ConvGeometry {
        self.plan.geometry()
    }

    /// How many numbers of scratch [`PackedConv::run`] needs for `n` images of `h` × `w` on `threads` threads.
    pub fn scratch_len(&self, threads: usize, n: usize, h: usize, w: usize) -> usize {
        self.plan.scratch_len(threads, n, h, w)
    }

    /// Convolves `n` images of `h` × `w`: [`ConvPlan::run`].
    ///
    /// # Panics
    /// As [`ConvPlan::run`].
    pub fn run(
        &self,
        threads: &Threads,
        shape: [usize; 3],
        x: &[f32],
        epilogue: &Epilogue,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        self.plan.run(threads, shape, &self.weights, x, epilogue, y, scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::{
        self,
        cases::{numbers, square},
    };
    use super::*;

    fn check(g: ConvGeometry, shape: [usize; 3], activation: Activation) {
        let [n, h, w] = shape;
        let [oh, ow] = g.output_size(h, w).expect("cases fit");
        let weights = numbers(g.weight_len(), 1);
        let x = numbers(n * h * w * g.in_channels, 2);
        let bias = numbers(g.out_channels, 3);
        let residual = numbers(n * oh * ow * g.out_channels, 4);
        for (bias, residual) in [(Some(&bias[..]), None), (None, Some(&residual[..])), (None, None)] {
            let epilogue = Epilogue { bias, residual, activation };
            let expected = reference::conv2d(&g, &weights, shape, &x, &epilogue);
            for isa in Isa::available() {
                let conv = PackedConv::for_isa(isa, &g, &weights);
                for count in [1, 3] {
                    let threads = Threads::new(count);
                    let mut scratch = vec![f32::NAN; conv.scratch_len(count, n, h, w)];
                    let mut y = vec![f32::NAN; expected.len()];
                    conv.run(&threads, shape, &x, &epilogue, &mut y, &mut scratch);
                    let wrong = y.iter().zip(&expected).position(|(a, b)| a != b);
                    assert_eq!(wrong, None, "{g:?} {shape:?} {isa:?} {count} threads {epilogue:?}");
                }
            }
        }
    }

    #[test]
    fn dense_equals_the_reference() {
        let relu = Activation::Clamp { min: 0.0, max: f32::INFINITY };
        for channels in [[1, 1], [3, 8], [5, 16], [16, 17], [4, 40], [33, 70]] {
            check(square(1, 1, 0, channels), [2, 3, 5], Activation::Identity);
            check(square(3, 1, 1, channels), [1, 5, 9], relu);
            check(square(3, 2, 1, channels), [2, 6, 15], Activation::Silu);
        }
        check(square(7, 2, 3, [3, 20]), [1, 23, 40], relu);
        check(square(1, 2, 0, [8, 32]), [2, 7, 8], relu);
        check(square(3, 1, 0, [6, 18]), [1, 8, 13], relu);
    }

    #[test]
    fn tasks_cover_large_images_and_many_weights() {
        check(square(1, 1, 0, [24, 96]), [1, 40, 41], Activation::Identity);
        check(square(3, 1, 1, [32, 48]), [2, 29, 14], Activation::LeakyRelu { alpha: 0.1 });
        check(square(3, 1, 1, [128, 130]), [1, 4, 4], Activation::Identity);
    }

    #[test]
    fn odd_geometry_equals_the_reference() {
        let g = ConvGeometry {
            kernel: [3, 2],
            stride: [2, 1],
            dilation: [1, 3],
            pads: [0, 2, 3, 1],
            ..ConvGeometry::pointwise(6, 9)
        };
        check(g, [2, 9, 10], Activation::HardSwish);
        check(ConvGeometry { groups: 3, ..g }, [2, 9, 10], Activation::Identity);
        let grouped = ConvGeometry { groups: 2, ..square(3, 1, 1, [40, 80]) };
        check(grouped, [1, 7, 7], Activation::Sigmoid);
        check(ConvGeometry { groups: 4, ..square(3, 1, 1, [4, 8]) }, [1, 7, 7], Activation::Tanh);
        check(ConvGeometry { groups: 2, ..square(1, 1, 0, [8, 6]) }, [1, 7, 7], Activation::Identity);
    }

    #[test]
    fn depthwise_equals_the_reference() {
        let clamp = Activation::Clamp { min: -0.5, max: 0.5 };
        for (channels, size) in [(2, 5), (8, 7), (24, 14), (40, 20), (130, 3), (16, 33)] {
            for k in [3, 5] {
                for stride in [1, 2] {
                    let g = ConvGeometry { groups: channels, ..square(k, stride, k / 2, [channels; 2]) };
                    check(g, [2, size, size], clamp);
                    check(ConvGeometry { pads: [0, 1, 2, 0], ..g }, [1, size + 2, size + 3], Activation::Silu);
                }
            }
            let g = ConvGeometry { groups: channels, ..square(3, 1, 2, [channels; 2]) };
            check(ConvGeometry { dilation: [2, 2], ..g }, [1, size, size + 1], clamp);
            check(ConvGeometry { kernel: [1, 3], stride: [3, 2], ..g }, [1, size, size], clamp);
        }
    }

    #[test]
    fn matrix_product_takes_both_layouts() {
        let (k, n) = (19, 35);
        let matrix = numbers(k * n, 5);
        let transposed: Vec<f32> = (0..n * k).map(|i| matrix[i % k * n + i / k]).collect();
        for m in [1, 2, 30] {
            let x = numbers(m * k, 6);
            let expected: Vec<f32> = (0..m * n)
                .map(|i| (0..k).fold(0.0, |sum, j| x[i / n * k + j].mul_add(matrix[j * n + i % n], sum)))
                .collect();
            for conv in
                [PackedConv::from_matrix(k, n, &matrix, false), PackedConv::from_matrix(k, n, &transposed, true)]
            {
                let mut y = vec![0.0; m * n];
                conv.run(&Threads::new(2), [1, 1, m], &x, &Epilogue::NONE, &mut y, &mut []);
                assert_eq!(y, expected);
            }
        }
    }
}
