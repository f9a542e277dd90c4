//! One uniform quantizer, values and gradients: what most methods come down to. The kernel does the arithmetic.

use fewbits_kernels::{
    float::fake_quant::{FakeQuant as Kernel, Gradients},
    simd::Isa,
};

/// `x` becomes `scale · code + offset` with `u = (x − offset) / scale` and `code = round_ties_even(clamp(u, low, high))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct FakeQuant {
    pub scale: f32,
    /// The value of code 0.
    pub offset: f32,
    /// Smallest and largest code, integers.
    pub low: f32,
    pub high: f32,
}

impl FakeQuant {
    /// Codes `low..=high` without offset.
    pub fn symmetric(scale: f32, low: i32, high: i32) -> Self {
        FakeQuant { scale, offset: 0.0, low: low as f32, high: high as f32 }
    }

    /// Writes the quantized numbers. NaN stays NaN.
    pub fn forward(self, x: &[f32], y: &mut [f32]) {
        self.kernel().forward(Isa::best(), x, y);
    }

    /// Writes `dx = dy` where `low < u < high` and 0 elsewhere.
    pub fn backward(self, x: &[f32], dy: &[f32], dx: &mut [f32]) -> Gradients {
        self.kernel().backward(Isa::best(), x, dy, false, dx)
    }

    fn kernel(self) -> Kernel {
        Kernel { scale: self.scale, offset: self.offset, low: self.low, high: self.high }
    }
}
