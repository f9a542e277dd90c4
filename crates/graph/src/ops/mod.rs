//! The operators: one file each (a file of several holds like things), listed once below.
//!
//! To add an operator: write its file (attributes, shapes, kernel, quantization rule, samples) and add a line to `ops!`.

use crate::{
    attrs::Attrs,
    error::OpError,
    op::{OpDef, OpFile, Opaque, Sample},
};

mod backward;
mod broadcast;
mod integer;
mod product;
pub(crate) mod samples;
pub mod window;

pub mod codes;

pub(crate) mod dispatch;
#[cfg(test)]
mod trial;

macro_rules! ops {
    ($($module:ident: $($Name:ident),+;)*) => {
        $(pub(crate) mod $module; pub use $module::{$($Name),+};)*

        /// One operator instance.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "each variant is the ONNX operator of that name")]
        pub enum Op {
            $($($Name($Name),)+)*
            Opaque(Opaque),
        }

        impl Op {
            /// The behaviour of this instance.
            pub fn def(&self) -> &dyn OpDef {
                match self {
                    $($(Op::$Name(op) => op,)+)*
                    Op::Opaque(op) => op,
                }
            }

            /// ONNX operator type.
            pub fn name(&self) -> &str {
                match self {
                    $($(Op::$Name(_) => <$Name as OpFile>::NAME,)+)*
                    Op::Opaque(op) => &op.op_type,
                }
            }

            /// The operator `op_type` of the default domain; unknown ones become [`Op::Opaque`].
            pub fn from_attrs(op_type: &str, attrs: &Attrs) -> Result<Op, OpError> {
                match op_type {
                    $($(<$Name as OpFile>::NAME => <$Name as OpFile>::from_attrs(attrs).map(Op::$Name),)+)*
                    _ => Ok(Op::Opaque(Opaque {
                        domain: String::new(), op_type: op_type.into(), attrs: attrs.clone(),
                    })),
                }
            }
        }

        $($(impl From<$Name> for Op {
            fn from(op: $Name) -> Op { Op::$Name(op) }
        })+)*

        /// Every operator: its name and its samples.
        pub const REGISTRY: &[(&str, fn() -> Vec<Sample>)] =
            &[$($((<$Name as OpFile>::NAME, <$Name as OpFile>::samples),)+)*];
    };
}

ops! {
    activation: Clip, Exp, HardSigmoid, HardSwish, LeakyRelu, Relu, Sigmoid, Tanh;
    arg_max: ArgMax;
    average_pool: AveragePool;
    batch_normalization: BatchNormalization;
    binary: Add, Div, Mul, Sub;
    cast: Cast;
    compare: Equal, Greater, GreaterOrEqual, Less, LessOrEqual, And, Or, Min, Max;
    concat: Concat;
    conv: Conv;
    conv_transpose: ConvTranspose;
    depth_to_space: DepthToSpace, SpaceToDepth;
    dequantize_linear: DequantizeLinear;
    elu: Elu;
    expand: Expand, Tile;
    gather: Gather;
    gemm: Gemm;
    global_pool: GlobalAveragePool, GlobalMaxPool;
    identity: Identity, Dropout;
    log_softmax: LogSoftmax;
    lrn: Lrn;
    matmul: MatMul;
    max_pool: MaxPool;
    normalization: InstanceNormalization, LayerNormalization;
    pow: Pow;
    prelu: PRelu;
    reduce: ReduceL2, ReduceMax, ReduceMean, ReduceMin, ReduceSum;
    resize: Resize;
    softmax: Softmax;
    pad: Pad;
    quantize_linear: QuantizeLinear;
    range: Range;
    reshape: Reshape, Flatten, Squeeze, Unsqueeze;
    select: Where;
    shape: Shape, ConstantOfShape;
    slice: Slice;
    split: Split;
    transpose: Transpose;
    unary: Abs, Ceil, Erf, Floor, Log, Mish, Neg, Not, Reciprocal, Round, Softplus, Sqrt;
}
