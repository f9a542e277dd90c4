//! What an operator is: the contract that each file of `ops/` fulfils, and the closed `enum Op` over all of them.

use crate::{
    attrs::Attrs,
    error::OpError,
    grid::QuantParams,
    tensor::{DType, Tensor},
};
pub use crate::{
    kernel::{Io, Kernel, Packing, Pass, Slice, SliceMut, Unpacking},
    layout::{Layout, LayoutRule},
    ops::Op,
};
pub use fewbits_kernels::float::Activation;
use std::{fmt::Debug, sync::Arc};

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

/// Elements of a tensor at most (32 GiB of floats): what a broken file asks for is an error, not a failed allocation.
const MOST_ELEMENTS: usize = 1 << 33;

/// Longest axis for which tables of indices are built (2 GiB).
const LONGEST_AXIS: usize = 1 << 28;

/// Refuses dimensions of more elements than any network has.
pub(crate) fn check_size(dims: &[usize]) -> Result<(), OpError> {
    // Zeros are left out, so that no partial product of other code can overflow either.
    let product = dims.iter().filter(|&&d| d > 0).try_fold(1usize, |n, &d| n.checked_mul(d));
    match product.filter(|&n| n <= MOST_ELEMENTS) {
        Some(_) => Ok(()),
        None => Err(OpError::Unsupported(format!("a tensor of shape {dims:?}"))),
    }
}

/// The same for an operator that builds tables of indices for its axes, to be asked before it does.
pub(crate) fn check_axes(dims: &[usize]) -> Result<(), OpError> {
    check_size(dims)?;
    match dims.iter().all(|&d| d <= LONGEST_AXIS) {
        true => Ok(()),
        false => Err(OpError::Unsupported(format!("a tensor of shape {dims:?}"))),
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
    /// Never quantized by this operator: it writes floats, even if what it reads is quantized.
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
