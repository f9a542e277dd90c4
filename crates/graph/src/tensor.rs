//! A tensor: dimensions and owned data in row-major order. No arithmetic.

use std::fmt;

/// Element type of a tensor that Fewbits computes with; every other ONNX type travels as [`DType::Raw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 64-bit signed integer (shapes, indices).
    I64,
    /// 32-bit signed integer (biases, sums).
    I32,
    /// 8-bit unsigned integer.
    U8,
    /// 8-bit signed integer.
    I8,
    /// Boolean.
    Bool,
    /// Any other ONNX `TensorProto.DataType`, by its number: carried through, never computed with.
    Raw(i32),
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DType::F32 => f.write_str("float32"),
            DType::I64 => f.write_str("int64"),
            DType::I32 => f.write_str("int32"),
            DType::U8 => f.write_str("uint8"),
            DType::I8 => f.write_str("int8"),
            DType::Bool => f.write_str("bool"),
            DType::Raw(code) => write!(f, "ONNX data type {code}"),
        }
    }
}

/// The elements of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is named after its DType")]
pub enum Data {
    F32(Vec<f32>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    Bool(Vec<bool>),
    /// Little-endian bytes as ONNX `raw_data` holds them.
    Raw {
        data_type: i32,
        bytes: Vec<u8>,
    },
}

/// Dimensions and data. Rank 0 is a scalar.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Size along each axis, outermost first.
    pub dims: Vec<usize>,
    /// The elements; `dims` multiply to their count.
    pub data: Data,
}

macro_rules! typed {
    ($($variant:ident $ty:ty, $new:ident, $get:ident;)*) => {
        impl Tensor {
            $(
                #[doc = concat!("A tensor of `", stringify!($ty), "`. `dims` must multiply to `data.len()`.")]
                pub fn $new(dims: &[usize], data: Vec<$ty>) -> Self {
                    debug_assert_eq!(dims.iter().product::<usize>(), data.len());
                    Tensor { dims: dims.to_vec(), data: Data::$variant(data) }
                }

                #[doc = concat!("The elements if they are `", stringify!($ty), "`.")]
                pub fn $get(&self) -> Option<&[$ty]> {
                    match &self.data {
                        Data::$variant(v) => Some(v),
                        _ => None,
                    }
                }
            )*
        }
    };
}

typed! {
    F32 f32, f32, as_f32;
    I64 i64, i64, as_i64;
    I32 i32, i32, as_i32;
    U8 u8, u8, as_u8;
    I8 i8, i8, as_i8;
    Bool bool, bool, as_bool;
}

impl Tensor {
    /// Element type.
    pub fn dtype(&self) -> DType {
        match &self.data {
            Data::F32(_) => DType::F32,
            Data::I64(_) => DType::I64,
            Data::I32(_) => DType::I32,
            Data::U8(_) => DType::U8,
            Data::I8(_) => DType::I8,
            Data::Bool(_) => DType::Bool,
            Data::Raw { data_type, .. } => DType::Raw(*data_type),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Integer elements widened to `i64`; `None` for floats, booleans and raw data.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        Some(match &self.data {
            Data::I64(v) => v.clone(),
            Data::I32(v) => v.iter().map(|&x| x.into()).collect(),
            Data::U8(v) => v.iter().map(|&x| x.into()).collect(),
            Data::I8(v) => v.iter().map(|&x| x.into()).collect(),
            _ => return None,
        })
    }

    /// The only element of a one-element float tensor.
    pub fn scalar_f32(&self) -> Option<f32> {
        match self.as_f32() {
            Some([x]) => Some(*x),
            _ => None,
        }
    }
}
