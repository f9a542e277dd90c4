//! Integer codes in tensors: the types that hold them, and the values they stand for.
//!
//! Shared by lifting and emission, so that both quantize with the same function.

use crate::proto::data_type as ty;
use fewbits_graph::{DType, Data, Granularity, Grid, QuantParams, Tensor};
use fewbits_kernels::int::quantize::{GridParams, dequantize_value, quantize_value};

/// The integer type that stores codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    pub bits: u8,
    pub signed: bool,
}

impl Container {
    /// The type `dtype`, if it is an integer type of at most 8 bits.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        let (bits, signed) = match dtype {
            DType::U8 => (8, false),
            DType::I8 => (8, true),
            DType::Raw(ty::UINT4) => (4, false),
            DType::Raw(ty::INT4) => (4, true),
            DType::Raw(ty::UINT2) => (2, false),
            DType::Raw(ty::INT2) => (2, true),
            _ => return None,
        };
        Some(Container { bits, signed })
    }

    /// The grid of all codes that the type has.
    pub(crate) fn grid(self) -> Grid {
        Grid { bits: self.bits, signed: self.signed, narrow: false }
    }

    /// A tensor of codes, which must be in range.
    pub(crate) fn pack(self, dims: &[usize], codes: &[i32]) -> Tensor {
        let (per_byte, data_type) = match (self.bits, self.signed) {
            (8, true) => return Tensor::i8(dims, codes.iter().map(|&q| q as i8).collect()),
            (4, true) => (2, ty::INT4),
            (4, false) => (2, ty::UINT4),
            (2, true) => (4, ty::INT2),
            (2, false) => (4, ty::UINT2),
            _ => return Tensor::u8(dims, codes.iter().map(|&q| q as u8).collect()),
        };
        let mask = (1u8 << self.bits) - 1;
        let byte = |group: &[i32]| group.iter().rev().fold(0u8, |b, &q| b << self.bits | (q as u8 & mask));
        Tensor { dims: dims.to_vec(), data: Data::Raw { data_type, bytes: codes.chunks(per_byte).map(byte).collect() } }
    }
}

/// The codes of an integer tensor of at most 8 bits, or of 32.
pub(crate) fn unpack(tensor: &Tensor) -> Option<Vec<i32>> {
    Some(match &tensor.data {
        Data::U8(v) => v.iter().map(|&q| q.into()).collect(),
        Data::I8(v) => v.iter().map(|&q| q.into()).collect(),
        Data::I32(v) => v.clone(),
        Data::Raw { bytes, .. } => {
            let Container { bits, signed } = Container::of(tensor.dtype())?;
            let per_byte = usize::from(8 / bits);
            let code = |i: usize| -> Option<i32> {
                let byte = *bytes.get(i / per_byte)?;
                let up = byte << (8 - usize::from(bits) * (i % per_byte + 1));
                Some(if signed { i32::from((up as i8) >> (8 - bits)) } else { i32::from(up >> (8 - bits)) })
            };
            (0..tensor.len()).map(code).collect::<Option<_>>()?
        }
        _ => return None,
    })
}

/// What is wrong with parameters for a tensor of these dimensions, if anything.
pub(crate) fn misfit(params: &QuantParams, dims: Option<&[usize]>) -> Option<&'static str> {
    let groups = params.scale.len();
    let Grid { bits, signed, .. } = params.grid;
    let container = Container { bits: 8, signed }.grid();
    match params.granularity {
        Granularity::Tensor if groups != 1 => Some("one scale is needed"),
        Granularity::Channel { axis } if dims.is_some_and(|d| d.get(axis) != Some(&groups)) => {
            Some("the number of scales differs from the number of channels")
        }
        Granularity::Block { .. } => Some("scales for blocks cannot be written"),
        _ if params.zero_point.len() != groups => Some("there must be as many zero points as scales"),
        _ if !(2..=8).contains(&bits) => Some("the width must be 2 to 8 bits"),
        _ if !params.scale.iter().all(|s| *s > 0.0 && s.is_finite()) => Some("scales must be positive and finite"),
        _ if !params.zero_point.iter().all(|z| (container.qmin()..=container.qmax()).contains(z)) => {
            Some("a zero point is outside its type")
        }
        _ => None,
    }
}

/// The grid of each element, for parameters that fit the tensor.
fn element_grids<'a>(params: &'a QuantParams, dims: &[usize]) -> impl Fn(usize) -> GridParams + 'a {
    let inner: usize = match params.granularity {
        Granularity::Channel { axis } => dims[axis + 1..].iter().product(),
        _ => usize::MAX,
    };
    move |i| {
        let group = i / inner % params.scale.len();
        let (qmin, qmax) = (params.grid.qmin(), params.grid.qmax());
        GridParams { scale: params.scale[group], zero: params.zero_point[group], qmin, qmax }
    }
}

/// `clamp(round_ties_even(x / scale) + zero_point, qmin, qmax)` for every element; the parameters fit the tensor.
pub(crate) fn quantize(values: &[f32], dims: &[usize], params: &QuantParams) -> Vec<i32> {
    let grid = element_grids(params, dims);
    values.iter().enumerate().map(|(i, &x)| quantize_value(x, &grid(i))).collect()
}

/// `(q − zero_point) · scale` for every element; the parameters fit the tensor.
pub(crate) fn dequantize(codes: &[i32], dims: &[usize], params: &QuantParams) -> Vec<f32> {
    let grid = element_grids(params, dims);
    codes.iter().enumerate().map(|(i, &q)| dequantize_value(q, &grid(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_byte_codes_are_packed_from_the_lowest_bits() {
        let int4 = Container { bits: 4, signed: true };
        let packed = int4.pack(&[3], &[-8, 7, -1]);
        assert_eq!(packed.data, Data::Raw { data_type: ty::INT4, bytes: vec![0x78, 0x0f] });
        assert_eq!(unpack(&packed), Some(vec![-8, 7, -1]));
        let uint2 = Container { bits: 2, signed: false };
        let packed = uint2.pack(&[5], &[0, 1, 2, 3, 1]);
        assert_eq!(packed.data, Data::Raw { data_type: ty::UINT2, bytes: vec![0b11100100, 1] });
        assert_eq!(unpack(&packed), Some(vec![0, 1, 2, 3, 1]));
    }

    #[test]
    fn channels_use_their_own_scale() {
        let params = QuantParams::per_channel(Grid::weights(4), 1, vec![0.5, 2.0]);
        let values = [0.25, 3.0, 0.75, 99.0, -9.0, -3.0];
        let codes = quantize(&values, &[3, 2], &params);
        assert_eq!(codes, [0, 2, 2, 7, -7, -2]);
        assert_eq!(dequantize(&codes, &[3, 2], &params), [0.0, 4.0, 1.0, 14.0, -3.5, -4.0]);
    }
}
