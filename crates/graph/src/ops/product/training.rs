//! Conv, Gemm and MatMul in training: a weight is packed once per step, and its gradient is added up in the kernel's own form.

use crate::op::{Facts, Io, Kernel, Packing, Pass, Unpacking, Want};
use crate::ops::product::with_scratch;
use fewbits_kernels::{
    ConvGeometry,
    float::{ConvPlan, Epilogue, InputGradient, WeightGradient},
};
use std::sync::Arc;

/// A product of input 0 with a weight, input 1, that may change from run to run.
#[derive(Clone, Copy, Debug)]
pub struct Trained {
    /// The product as a convolution.
    pub geometry: ConvGeometry,
    /// Images, height, width.
    pub shape: [usize; 3],
    /// Whether the weight is a matrix `[in_channels, out_channels]`, not OIHW.
    pub by_rows: bool,
    /// Factor of the weight.
    pub alpha: f32,
}

impl Trained {
    /// Where a weight is.
    #[inline]
    fn place(&self, o: usize, c: usize, tap: usize) -> usize {
        let g = &self.geometry;
        match self.by_rows {
            true => c * g.out_channels + o,
            false => (o * g.group_in() + c) * g.kernel[0] * g.kernel[1] + tap,
        }
    }

    /// The product, with input 2 as bias if there is one.
    pub fn forward(self, has_bias: bool) -> Pass {
        let plan = Arc::new(ConvPlan::new(&self.geometry));
        let len = plan.packed_len();
        let [n, h, w] = self.shape;
        let scratch = plan.scratch_len(1, n, h, w);
        let pack = Arc::clone(&plan);
        let packing = Kernel::new(move |io| {
            let weight = io.f32(1);
            pack.pack_with(|o, c, tap| self.alpha * weight[self.place(o, c, tap)], io.out_f32(0));
        });
        let run = move |io: &mut Io<'_>| {
            let (threads, x, packed) = (io.threads, io.f32(0), last(io));
            let epilogue = Epilogue { bias: has_bias.then(|| io.f32(2)), ..Epilogue::NONE };
            let needed = plan.scratch_len(threads.count(), n, h, w);
            let (y, scratch) = io.out_f32_and_scratch(0);
            with_scratch(scratch, needed, |scratch| plan.run(threads, self.shape, packed, x, &epilogue, y, scratch));
        };
        let packing = Packing { kernel: packing, len };
        Pass { packing: Some(packing), ..Pass::new(Kernel::new(run).with_scratch(scratch)) }
    }

    /// The gradients of input, weight and bias that are wanted; `add_bias` adds that of the bias, given that of the output.
    pub fn backward(
        self,
        ins: Facts,
        wants: &[Want],
        add_bias: impl Fn(&[f32], &mut [f32]) + Send + Sync + 'static,
    ) -> Pass {
        let [input_want, weight_want, bias_want] = [0, 1, 2].map(|i| wants.get(i).copied().unwrap_or(Want::No));
        let (gradient_index, shape) = (ins.len() + 1, self.shape);
        let input = (input_want != Want::No).then(|| Arc::new(InputGradient::new(&self.geometry)));
        let weight = (weight_want != Want::No).then(|| Arc::new(WeightGradient::new(&self.geometry)));
        let input_scratch = input.as_ref().map_or(0, |input| input.scratch_len(1, shape));
        let weight_scratch = weight.as_ref().map_or(0, |weight| weight.scratch_len(shape));

        // A weight that stays is packed here and now.
        let known = ins.get(1).copied().flatten().and_then(|w| w.value.as_deref()).and_then(|w| w.as_f32());
        let pack = move |input: &InputGradient, weight: &[f32], packed: &mut [f32]| {
            input.pack_with(|o, c, tap| self.alpha * weight[self.place(o, c, tap)], packed);
        };
        let mut ahead = None;
        let mut packing = None;
        if let Some(input) = &input {
            let len = input.packed_len();
            if let Some(weight) = known {
                pack(input, weight, ahead.insert(vec![0.0; len]));
            } else {
                let input = Arc::clone(input);
                let kernel = Kernel::new(move |io| pack(&input, io.f32(1), io.out_f32(0)));
                packing = Some(Packing { kernel, len });
            }
        }
        let gradient = weight.as_ref().map(|weight| {
            let (len, weight) = (weight.form_len(), Arc::clone(weight));
            let kernel = Kernel::new(move |io| {
                let (form, out) = (io.f32(0), io.out_f32(0));
                weight.unpack_with(form, |o, c, tap, sum| out[self.place(o, c, tap)] = self.alpha * sum);
            });
            Unpacking { input: 1, len, kernel }
        });

        let reads_input = weight.is_some();
        let run = move |io: &mut Io<'_>| {
            let (threads, dy) = (io.threads, io.f32(gradient_index));
            if let Some(input) = &input {
                let packed = ahead.as_deref().unwrap_or(last(io));
                let needed = input.scratch_len(threads.count(), shape);
                let (dx, scratch) = io.out_f32_and_scratch(0);
                let add = input_want == Want::Add;
                with_scratch(scratch, needed, |scratch| input.run(threads, shape, packed, dy, add, dx, scratch));
            }
            if let Some(weight) = &weight {
                let x = io.f32(0);
                let (form, scratch) = io.out_f32_and_scratch(1);
                start(weight_want, form);
                with_scratch(scratch, weight_scratch, |scratch| weight.run(shape, x, dy, form, scratch));
            }
            if bias_want != Want::No {
                let sums = io.out_f32(2);
                start(bias_want, sums);
                add_bias(dy, sums);
            }
        };
        let kernel = Kernel::new(run).with_scratch(input_scratch.max(weight_scratch));
        let pass = Pass { packing, gradient, ..Pass::new(kernel) };
        if reads_input { pass.reading_ins(&[0]) } else { pass }
    }
}

/// Products of matrices that lie in any order, for gradients by plain sums: few models train with these.
#[derive(Clone, Debug)]
pub struct Plain {
    /// `[M, K, N]` of each product.
    pub sizes: [usize; 3],
    /// For each product, where the matrices of input 0 and input 1 start.
    pub starts: Vec<[usize; 2]>,
    /// Numbers between rows and between columns of the left matrix `[M, K]`.
    pub left: [usize; 2],
    /// As `left`, for the right matrix `[K, N]`.
    pub right: [usize; 2],
    /// Factor of the products.
    pub alpha: f32,
}

impl Plain {
    /// `dA = alpha · dY · Bᵀ`, `dB = alpha · Aᵀ · dY`, and the bias as in [`Trained::backward`].
    pub fn backward(
        self,
        ins: Facts,
        wants: &[Want],
        add_bias: impl Fn(&[f32], &mut [f32]) + Send + Sync + 'static,
    ) -> Pass {
        let wants = [0, 1, 2].map(|i| wants.get(i).copied().unwrap_or(Want::No));
        let gradient_index = ins.len() + 1;
        let kernel = Kernel::new(move |io| {
            let (a, b, dy) = (io.f32(0), io.f32(1), io.f32(gradient_index));
            let [m, k, n] = self.sizes;
            for (side, want) in wants.into_iter().enumerate().filter(|(_, want)| *want != Want::No) {
                let sums = io.out_f32(side);
                start(want, sums);
                if side == 2 {
                    add_bias(dy, sums);
                    continue;
                }
                for (product, &[left, right]) in self.starts.iter().enumerate() {
                    for (i, j, l) in (0..m * k * n).map(|at| (at / n / k, at / n % k, at % n)) {
                        let dy = self.alpha * dy[(product * m + i) * n + l];
                        let a_at = left + i * self.left[0] + j * self.left[1];
                        let b_at = right + j * self.right[0] + l * self.right[1];
                        if side == 0 { sums[a_at] += dy * b[b_at] } else { sums[b_at] += dy * a[a_at] }
                    }
                }
            }
        });
        let reads: Vec<usize> = (0..2).filter(|&i| wants[1 - i] != Want::No).collect();
        Pass::new(kernel).reading_ins(&reads)
    }
}

/// The packed form.
fn last<'a>(io: &Io<'a>) -> &'a [f32] {
    io.f32(io.ins.len() - 1)
}

/// Makes `sums` ready to be added to.
fn start(want: Want, sums: &mut [f32]) {
    if want == Want::Write {
        sums.fill(0.0);
    }
}
