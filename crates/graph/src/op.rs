//! What an operator is: the contract that each file of `ops/` fulfils, and the closed `enum Op` over all of them.

pub use crate::ops::Op;
use crate::{
    attrs::Attrs,
    error::OpError,
    grid::QuantParams,
    tensor::{DType, Tensor},
};
use fewbits_kernels::Threads;
pub use fewbits_kernels::float::Activation;
use std::{fmt::Debug, sync::Arc};

/// Order of the elements in memory. Dimensions are always stated in the logical (ONNX) order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// Row-major in the logical order (NCHW for images).
    #[default]
    Plain,
    /// The channel axis 1 moved to the end: `[N, C, H, W]` is stored as N, H, W, C. Rank 3 or more.
    ChannelsLast,
}

impl Layout {
    /// Where the logical `axis` of a tensor of rank `rank` stands in memory.
    pub fn physical_axis(self, axis: usize, rank: usize) -> usize {
        match (self, axis) {
            (Layout::Plain, a) | (Layout::ChannelsLast, a @ 0) => a,
            (Layout::ChannelsLast, 1) => rank - 1,
            (Layout::ChannelsLast, a) => a - 1,
        }
    }

    /// Dimensions in the order of memory.
    pub fn physical_dims(self, dims: &[usize]) -> Vec<usize> {
        let mut physical = vec![0; dims.len()];
        for (axis, &d) in dims.iter().enumerate() {
            physical[self.physical_axis(axis, dims.len())] = d;
        }
        physical
    }
}

/// What an operator's file says about memory order; the executor inserts the conversions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutRule {
    /// Inputs and outputs row-major in the logical order.
    Plain,
    /// The first input and every output channels-last; the other inputs are constants or plain.
    ChannelsLast,
    /// Works in either order: all tensors of the output's rank share one order, which the executor chooses.
    /// Lower-rank inputs are seen as broadcast from the right; the executor gives them leading ones up to that rank.
    Any,
}

/// What is known of a tensor before the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Element type in memory (`U8` for a quantized activation in integer mode).
    pub dtype: DType,
    /// Logical dimensions.
    pub dims: Vec<usize>,
    /// Memory order.
    pub layout: Layout,
    /// Its value, if known ahead; always in plain order.
    pub value: Option<Arc<Tensor>>,
    /// The grid that its elements are codes of (integer mode), or, for a float weight, the grid to quantize it to.
    pub grid: Option<QuantParams>,
}

impl Fact {
    /// A tensor of unknown value in plain order.
    pub fn new(dtype: DType, dims: &[usize]) -> Self {
        Fact { dtype, dims: dims.to_vec(), layout: Layout::Plain, value: None, grid: None }
    }

    /// A known tensor.
    pub fn constant(value: Arc<Tensor>) -> Self {
        Fact { value: Some(value.clone()), ..Fact::new(value.dtype(), &value.dims) }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Dimensions in the order of memory.
    pub fn physical_dims(&self) -> Vec<usize> {
        self.layout.physical_dims(&self.dims)
    }
}

/// The inputs of a node; absent optional inputs are `None`.
pub type Facts<'a> = &'a [Option<&'a Fact>];

/// Input `index` of `ins`, or [`OpError::MissingInput`].
pub fn required<'a>(ins: Facts<'a>, index: usize) -> Result<&'a Fact, OpError> {
    ins.get(index).copied().flatten().ok_or(OpError::MissingInput { index })
}

/// Input `index` if it is there.
pub fn optional<'a>(ins: Facts<'a>, index: usize) -> Option<&'a Fact> {
    ins.get(index).copied().flatten()
}

/// The known value of input `index`, or [`OpError::NotConstant`].
pub fn known<'a>(ins: Facts<'a>, index: usize) -> Result<&'a Tensor, OpError> {
    required(ins, index)?.value.as_deref().ok_or(OpError::NotConstant { index })
}

/// The known integers of input `index`.
pub fn known_ints(ins: Facts, index: usize) -> Result<Vec<i64>, OpError> {
    let value = known(ins, index)?;
    value.to_i64().ok_or(OpError::DType { index, expected: DType::I64, found: value.dtype() })
}

/// Checks that input `index` has type `expected`.
pub fn expect_dtype(ins: Facts, index: usize, expected: DType) -> Result<(), OpError> {
    let found = required(ins, index)?.dtype;
    if found == expected { Ok(()) } else { Err(OpError::DType { index, expected, found }) }
}

/// A possibly negative `axis` of a tensor of rank `rank`, normalised to `0..rank`.
pub fn normal_axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let shifted = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(shifted)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| OpError::Attribute { name: "axis", reason: format!("{axis} is out of range for rank {rank}") })
}

/// The elements of a tensor at run time, in memory order.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each variant is named after its DType")]
pub enum Slice<'a> {
    F32(&'a [f32]),
    I64(&'a [i64]),
    I32(&'a [i32]),
    U8(&'a [u8]),
    I8(&'a [i8]),
    Bool(&'a [bool]),
    /// An optional input that is not there.
    Absent,
}

/// The elements of an output at run time.
#[derive(Debug)]
#[expect(missing_docs, reason = "each variant is named after its DType")]
pub enum SliceMut<'a> {
    F32(&'a mut [f32]),
    I64(&'a mut [i64]),
    I32(&'a mut [i32]),
    U8(&'a mut [u8]),
    I8(&'a mut [i8]),
    Bool(&'a mut [bool]),
}

/// What a kernel gets when it runs: its inputs, its outputs, scratch memory of the size it asked for, and the threads.
/// The typed accessors return empty slices on a type mismatch, which the executor's facts rule out.
#[derive(Debug)]
pub struct Io<'a> {
    /// Worker threads.
    pub threads: &'a Threads,
    /// One per node input, plus a fused residual at the end if there is one.
    pub ins: &'a [Slice<'a>],
    /// One per node output.
    pub outs: &'a mut [SliceMut<'a>],
    /// Scratch memory, at least [`Kernel::scratch`] elements long.
    pub scratch: &'a mut [f32],
}

macro_rules! io {
    ($($variant:ident $ty:ty, $get:ident, $out:ident;)*) => {
        impl<'a> Io<'a> {
            $(
                #[doc = concat!("Input `i` as `", stringify!($ty), "`.")]
                pub fn $get(&self, i: usize) -> &'a [$ty] {
                    match self.ins.get(i) { Some(Slice::$variant(s)) => s, _ => &[] }
                }
                #[doc = concat!("Output `i` as `", stringify!($ty), "`.")]
                pub fn $out(&mut self, i: usize) -> &mut [$ty] {
                    match self.outs.get_mut(i) { Some(SliceMut::$variant(s)) => s, _ => &mut [] }
                }
            )*
        }
    };
}
io! {
    F32 f32, f32, out_f32;
    I64 i64, i64, out_i64;
    I32 i32, i32, out_i32;
    U8 u8, u8, out_u8;
    I8 i8, i8, out_i8;
    Bool bool, bool, out_bool;
}

impl Io<'_> {
    /// Output `i` as `f32`, and the scratch memory.
    pub fn out_f32_and_scratch(&mut self, i: usize) -> (&mut [f32], &mut [f32]) {
        match self.outs.get_mut(i) {
            Some(SliceMut::F32(s)) => (s, self.scratch),
            _ => (&mut [], self.scratch),
        }
    }

    /// Output `i` as `u8`, and the scratch memory.
    pub fn out_u8_and_scratch(&mut self, i: usize) -> (&mut [u8], &mut [f32]) {
        match self.outs.get_mut(i) {
            Some(SliceMut::U8(s)) => (s, self.scratch),
            _ => (&mut [], self.scratch),
        }
    }
}

type RunFn = dyn Fn(&mut Io<'_>) + Send + Sync;

/// An operator made ready for known shapes: checks, index arithmetic and weight packing are done.
pub struct Kernel {
    run: Box<RunFn>,
    /// How many `f32` elements of scratch memory a run needs.
    pub scratch: usize,
}

impl Kernel {
    /// A kernel without scratch memory.
    pub fn new(run: impl Fn(&mut Io<'_>) + Send + Sync + 'static) -> Self {
        Kernel { run: Box::new(run), scratch: 0 }
    }

    /// The same kernel with `scratch` `f32` elements of scratch memory.
    pub fn with_scratch(self, scratch: usize) -> Self {
        Kernel { scratch, ..self }
    }

    /// Computes the outputs.
    pub fn run(&self, io: &mut Io<'_>) {
        (self.run)(io);
    }
}

impl Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel(scratch {})", self.scratch)
    }
}

/// What becomes of the gradient with respect to one input of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nobody needs it.
    No,
    /// It replaces what the output holds.
    Write,
    /// It is added to what the output holds: other readers of the tensor have written there, or, for a parameter, other images.
    Add,
}

/// One direction of a node in training, where parameters change from run to run.
#[derive(Debug)]
pub struct Pass {
    /// The computation on some images of a batch.
    pub kernel: Kernel,
    /// Which of the node's inputs the kernel reads (backward passes; forward passes read all).
    pub reads_ins: Vec<bool>,
    /// Which of the node's outputs a backward kernel reads.
    pub reads_outs: Vec<bool>,
    /// What is done once per change of the parameters.
    pub packing: Option<Packing>,
    /// The form in which a backward kernel adds up the gradient of one parameter, where that is not the parameter's own.
    pub gradient: Option<Unpacking>,
}

/// Parameters brought into the form that a kernel reads. Its kernel gets the node's inputs of which only parameters are there
/// (the others are absent) and writes output 0; the result becomes the last input of the pass's kernel.
#[derive(Debug)]
pub struct Packing {
    /// Makes the form.
    pub kernel: Kernel,
    /// Its length.
    pub len: usize,
}

/// A gradient brought from the form in which it was added up into the parameter's own: input 0 to output 0.
#[derive(Debug)]
pub struct Unpacking {
    /// The parameter: which input of the node.
    pub input: usize,
    /// Length of the form that the backward kernel adds to.
    pub len: usize,
    /// Writes the parameter's gradient.
    pub kernel: Kernel,
}

impl Pass {
    /// A backward pass that reads none of the node's inputs and outputs, only gradients.
    pub fn new(kernel: Kernel) -> Self {
        Pass { kernel, reads_ins: vec![], reads_outs: vec![], packing: None, gradient: None }
    }

    /// The same pass, reading the node's inputs `ins` too.
    pub fn reading_ins(mut self, ins: &[usize]) -> Self {
        self.reads_ins = (0..=ins.iter().copied().max().unwrap_or(0)).map(|i| ins.contains(&i)).collect();
        self
    }

    /// The same pass, reading the node's outputs `outs` too.
    pub fn reading_outs(mut self, outs: &[usize]) -> Self {
        self.reads_outs = (0..=outs.iter().copied().max().unwrap_or(0)).map(|i| outs.contains(&i)).collect();
        self
    }
}

/// What follows a convolution or matrix product and is computed in the same kernel: `y = activation(op(x) + residual)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fused {
    /// Whether a tensor of the output's shape and layout, appended to the inputs, is added.
    pub residual: bool,
    /// Applied last.
    pub activation: Activation,
}

/// What an input is to its operator, for quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A tensor of data; quantized per tensor.
    Data,
    /// A constant that is multiplied with the data; quantized per channel along `channel_axis` or per tensor.
    Weight {
        /// The axis of output channels.
        channel_axis: usize,
    },
    /// A constant added to the sums, 32-bit.
    Bias,
    /// Shapes, indices, bounds: never quantized.
    Other,
}

/// Where the grid of an operator's output comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OutRule {
    /// From its own statistics.
    Own,
    /// The operator moves elements about: the output has the grid of the first input.
    SameAsInput,
    /// Never quantized by this operator.
    Float,
}

/// How an operator takes part in quantization: data, read by placement.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantRule {
    /// Role of each input; the last one repeats.
    pub inputs: Vec<Role>,
    /// The output's grid.
    pub output: OutRule,
}

impl QuantRule {
    /// An operator that stays float.
    pub fn float() -> Self {
        QuantRule { inputs: vec![Role::Other], output: OutRule::Float }
    }

    /// An operator on data tensors whose output has its own grid.
    pub fn data() -> Self {
        QuantRule { inputs: vec![Role::Data], output: OutRule::Own }
    }

    /// An operator that moves the elements of its first input; further inputs are indices and shapes.
    pub fn movement() -> Self {
        QuantRule { inputs: vec![Role::Data, Role::Other], output: OutRule::SameAsInput }
    }

    /// The role of input `i`.
    pub fn role(&self, i: usize) -> Role {
        self.inputs.get(i).or(self.inputs.last()).copied().unwrap_or(Role::Other)
    }
}

/// Behaviour of one operator instance. Every method is pure.
pub trait OpDef: Debug {
    /// The attributes in the form of [`CANONICAL_OPSET`].
    fn attrs(&self) -> Attrs;

    /// Types and shapes of the outputs; also their values, where the shapes alone decide them.
    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError>;

    /// Which memory orders it works in.
    fn layout(&self) -> LayoutRule {
        LayoutRule::Plain
    }

    /// Makes the float kernel for inputs and outputs as described (layouts chosen by the executor within [`OpDef::layout`]).
    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError>;

    /// The float kernel together with what follows it, where the operator can do that.
    fn build_fused(&self, _ins: Facts, _outs: &[Fact], _fused: Fused) -> Result<Option<Kernel>, OpError> {
        Ok(None)
    }

    /// The float kernel for training: parameters (constants that a training changes) are inputs without a known value, and
    /// what depends on them alone is done once per step in [`Pass::packing`].
    fn build_training(&self, ins: Facts, outs: &[Fact]) -> Result<Pass, OpError> {
        Ok(Pass::new(self.build(ins, outs)?))
    }

    /// The vector-Jacobian product: gradients of the inputs from those of the outputs. `wants` has one entry per input.
    ///
    /// The kernel's inputs are the node's inputs, then its outputs (both absent unless [`Pass::reads_ins`] and
    /// [`Pass::reads_outs`] ask for them), then the gradients of the outputs, in the outputs' shapes and memory orders; then the
    /// packed form if there is one. Its outputs are the gradients of the inputs, in their shapes and memory orders (in the
    /// form of [`Pass::gradient`] for that input), empty where unwanted.
    /// `None`: the operator has no derivative.
    fn build_backward(&self, _ins: Facts, _outs: &[Fact], _wants: &[Want]) -> Result<Option<Pass>, OpError> {
        Ok(None)
    }

    /// The integer kernel, equal to ONNX Runtime's on every element: data inputs and outputs are `U8` codes with a grid,
    /// weights and biases are float constants (weights with a grid). An output without a grid is float.
    /// `None` means: dequantize, compute in float, quantize.
    fn build_integer(&self, _ins: Facts, _outs: &[Fact], _clamp: Activation) -> Result<Option<Kernel>, OpError> {
        Ok(None)
    }

    /// This operator as an activation that can be fused behind another one.
    fn activation(&self, _ins: Facts) -> Option<Activation> {
        None
    }

    /// How it takes part in quantization.
    fn quant_rule(&self) -> QuantRule {
        QuantRule::float()
    }

    /// Multiply-accumulates of one run.
    fn macs(&self, _ins: Facts, _outs: &[Fact]) -> u64 {
        0
    }
}

/// What exists before an instance: the operator's name, its reader and its samples.
pub trait OpFile: OpDef + Sized {
    /// ONNX name.
    const NAME: &'static str;

    /// Reads the attributes, in the form of [`CANONICAL_OPSET`].
    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError>;

    /// Instances with inputs, for the conformance suite.
    fn samples() -> Vec<Sample>;
}

/// An operator instance with inputs to try it on.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The instance.
    pub op: Op,
    /// Its inputs; `None` where an optional one is absent.
    pub inputs: Vec<Option<Tensor>>,
}

/// The operator-set version whose attribute and input forms `ops/` understands. The `onnx` room raises older forms to it.
pub const CANONICAL_OPSET: i64 = 18;

/// An operator that Fewbits does not know: carried through unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct Opaque {
    /// Operator-set domain, empty for ONNX's own.
    pub domain: String,
    /// Operator type.
    pub op_type: String,
    /// All attributes.
    pub attrs: Attrs,
}

impl OpDef for Opaque {
    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, _ins: Facts) -> Result<Vec<Fact>, OpError> {
        Err(OpError::Unknown(self.op_type.clone()))
    }

    fn build(&self, _ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        Err(OpError::Unknown(self.op_type.clone()))
    }
}
