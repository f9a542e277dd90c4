//! What Conv, Gemm and MatMul share: bias checks, and kernels around packed weights.

use crate::{
    attrs::Attrs,
    error::OpError,
    op::{Activation, Fact, Facts, Fused, Io, Kernel, optional, required},
    ops::integer::{self, WeightCodes},
};
use fewbits_kernels::{
    ConvGeometry, Threads,
    chunks::as_bytes,
    float::{Epilogue, PackedConv},
    int::{PackedQConv, Requantize, quantize::quantize_bias},
};

mod training;
pub use training::{Plain, Trained};

/// The attribute `group`: at least 1, default 1.
pub fn group(attrs: &Attrs) -> Result<usize, OpError> {
    let group = attrs.int("group")?.unwrap_or(1);
    let reason = || format!("{group} should be at least 1");
    usize::try_from(group).ok().filter(|&g| g > 0).ok_or_else(|| OpError::Attribute { name: "group", reason: reason() })
}

/// Checks that input 2, if present, is a vector of one number per output channel.
pub fn check_bias(ins: Facts, channels: usize) -> Result<(), OpError> {
    match optional(ins, 2) {
        Some(bias) if bias.dims != [channels] => {
            Err(OpError::Shapes { what: "bias and output channels", left: bias.dims.clone(), right: vec![channels] })
        }
        _ => Ok(()),
    }
}

/// Input 2 as the accumulator holds it; zeros if absent, `None` if it is no float constant.
pub fn integer_bias(ins: Facts, weight: &WeightCodes, x_scale: f32) -> Option<Vec<i32>> {
    match optional(ins, 2) {
        None => Some(vec![0; weight.scales.len()]),
        Some(bias) => Some(quantize_bias(bias.value.as_ref()?.as_f32()?, x_scale, &weight.scales)),
    }
}

/// Where the bias of a product comes from.
pub enum Bias {
    /// There is none.
    Absent,
    /// Input 2, at run time.
    Input,
    /// Known ahead.
    Known(Vec<f32>),
}

/// A convolution of input 0 with weights that are packed already; a residual is the last input.
pub struct FloatProduct {
    /// Weights.
    pub packed: PackedConv,
    /// Images, height, width.
    pub shape: [usize; 3],
    /// Added to every position.
    pub bias: Bias,
    /// What follows.
    pub fused: Fused,
}

impl FloatProduct {
    /// The kernel.
    pub fn kernel(self) -> Kernel {
        let [n, h, w] = self.shape;
        let scratch = self.packed.scratch_len(usual_threads(), n, h, w);
        Kernel::new(move |io| self.run(io)).with_scratch(scratch)
    }

    /// Computes output 0.
    pub fn run(&self, io: &mut Io<'_>) {
        let (threads, x) = (io.threads, io.f32(0));
        let epilogue = Epilogue {
            bias: match &self.bias {
                Bias::Absent => None,
                Bias::Input => Some(io.f32(2)),
                Bias::Known(bias) => Some(bias),
            },
            residual: self.fused.residual.then(|| io.f32(io.ins.len() - 1)),
            activation: self.fused.activation,
        };
        let [n, h, w] = self.shape;
        let needed = self.packed.scratch_len(threads.count(), n, h, w);
        let (y, scratch) = io.out_f32_and_scratch(0);
        with_scratch(scratch, needed, |scratch| self.packed.run(threads, self.shape, x, &epilogue, y, scratch));
    }
}

/// How many threads a run is expected to have: as many as the machine runs at once.
pub fn usual_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Calls `run` with `scratch`, or with memory of its own where more threads run than was expected.
pub fn with_scratch(scratch: &mut [f32], needed: usize, run: impl FnOnce(&mut [f32])) {
    if scratch.len() >= needed { run(scratch) } else { run(&mut vec![0.0; needed]) }
}

/// The inputs of the node itself, without a fused residual.
pub fn own_inputs<'a>(ins: Facts<'a>, fused: Fused) -> Facts<'a> {
    if fused.residual { &ins[..ins.len() - 1] } else { ins }
}

/// The integer product of input 0 with packed weights, onto the output's grid.
pub fn quantized(packed: PackedQConv, shape: [usize; 3], constants: Requantize) -> Kernel {
    let scratch = packed.scratch_len(shape).div_ceil(size_of::<f32>());
    let run = move |io: &mut Io<'_>| {
        let (threads, x) = (io.threads, io.u8(0));
        let (y, scratch) = io.out_u8_and_scratch(0);
        packed.run(threads, shape, x, &constants, y, as_bytes(scratch));
    };
    Kernel::new(run).with_scratch(scratch)
}

/// The integer product of input 0 with packed weights, left in float.
fn rescaled(packed: PackedQConv, shape: [usize; 3], constants: Requantize) -> Kernel {
    let scratch = packed.scratch_len(shape).div_ceil(size_of::<f32>());
    let run = move |io: &mut Io<'_>| {
        let (threads, x) = (io.threads, io.u8(0));
        let (y, scratch) = io.out_f32_and_scratch(0);
        packed.run_to_f32(threads, shape, x, &constants, y, as_bytes(scratch));
    };
    Kernel::new(run).with_scratch(scratch)
}

/// `y = epilogue(x · packed)` for `rows` rows, with memory of its own.
pub fn multiply(
    threads: &Threads,
    packed: &PackedConv,
    rows: usize,
    x: &[f32],
    epilogue: &Epilogue<'_>,
    y: &mut [f32],
) {
    let mut scratch = vec![0.0; packed.scratch_len(threads.count(), 1, 1, rows)];
    packed.run(threads, [1, 1, rows], x, epilogue, y, &mut scratch);
}

/// The integer product of input 0, `rows` rows, with a weight matrix whose output channels are `channel_axis`; bias is input 2.
/// Without a grid the output is float.
pub fn integer_matrix(
    ins: Facts,
    out: &Fact,
    channel_axis: usize,
    rows: usize,
    clamp: Activation,
) -> Result<Option<Kernel>, OpError> {
    let (x, w) = (required(ins, 0)?, required(ins, 1)?);
    let Some(x) = integer::grid(x) else { return Ok(None) };
    let Some(weight) = WeightCodes::new(w, channel_axis) else { return Ok(None) };
    let (Some(codes), Some(bias)) = (weight.to_i8(), integer_bias(ins, &weight, x.scale)) else { return Ok(None) };
    let sum_scales = weight.sum_scales(x.scale);
    let packed = match channel_axis {
        0 => PackedQConv::new(&ConvGeometry::pointwise(w.dims[1], w.dims[0]), &codes),
        _ => PackedQConv::from_matrix(w.dims[0], w.dims[1], &codes),
    };
    let shape = [1, 1, rows];
    if out.grid.is_none() {
        let constants = packed.rescale(x.zero as u8, &bias, &sum_scales);
        return Ok((clamp == Activation::Identity).then(|| rescaled(packed, shape, constants)));
    }
    let Some(y) = integer::clamped(out, clamp) else { return Ok(None) };
    let multipliers: Vec<f32> = sum_scales.iter().map(|s| s / y.scale).collect();
    let constants = packed.requantize(x.zero as u8, &bias, &multipliers, y.zero, [y.qmin, y.qmax]);
    Ok(Some(quantized(packed, shape, constants)))
}

/// Nothing follows.
pub const ALONE: Fused = Fused { residual: false, activation: Activation::Identity };
