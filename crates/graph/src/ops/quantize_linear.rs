//! QuantizeLinear: from real numbers to codes, where a model says so itself.
//!
//! Quantize-dequantize pairs that describe a quantization are lifted into a plan at import; this operator computes what is left.

use super::cast::{from_onnx_code, onnx_code};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Sample, expect_dtype, known, normal_axis, optional, required,
    },
    tensor::{DType, Tensor},
};
use fewbits_kernels::{
    chunks::for_each_chunk,
    int::{GridParams, quantize},
};

/// `y = clamp(round_ties_even(x / scale) + zero_point)` with one scale, or one for each index along `axis`. Inputs: data (float),
/// scale, zero point (default 0). Scale and zero point must be known ahead.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeLinear {
    /// Where scales are listed; may be negative.
    pub axis: i64,
    /// Elements that share a scale along `axis`; 0 is no blocks.
    pub block_size: i64,
    /// Type of the output where there is no zero point.
    pub output_dtype: Option<DType>,
}

impl QuantizeLinear {
    fn output(&self, ins: Facts) -> Result<DType, OpError> {
        let dtype = optional(ins, 2).map(|zero_point| zero_point.dtype).or(self.output_dtype).unwrap_or(DType::U8);
        match dtype {
            DType::U8 | DType::I8 => Ok(dtype),
            other => Err(OpError::Unsupported(format!("quantization to {other}"))),
        }
    }
}

/// The scales and zero points of a quantized tensor, as its memory is walked.
pub(super) struct Scales {
    pub scale: Vec<f32>,
    pub zero_point: Vec<i32>,
    /// Elements from one index along the axis to the next.
    inner: usize,
}

impl Scales {
    /// From inputs 1 and 2 of a node, whose tensor is `x`.
    pub fn new(ins: Facts, x: &Fact, axis: i64, block_size: i64) -> Result<Self, OpError> {
        if block_size != 0 {
            return Err(OpError::Unsupported(format!("scales for blocks of {block_size}")));
        }
        let scale = known(ins, 1)?;
        let found = scale.dtype();
        let scale = scale.as_f32().ok_or(OpError::DType { index: 1, expected: DType::F32, found })?;
        let zero_point = match optional(ins, 2) {
            None => vec![0; scale.len()],
            Some(_) => match &known(ins, 2)?.to_i64() {
                Some(codes) => codes.iter().map(|&z| z as i32).collect(),
                None => return Err(OpError::Unsupported(format!("zero points of {}", required(ins, 2)?.dtype))),
            },
        };
        // One scale needs no axis.
        let (rank, axis) = (x.dims.len(), if scale.len() == 1 { None } else { Some(axis) });
        let axis = axis.map(|axis| normal_axis(axis, rank)).transpose()?;
        let groups = axis.map_or(1, |axis| x.dims[axis]);
        if scale.len() != groups || zero_point.len() != groups {
            let right = vec![scale.len(), zero_point.len()];
            return Err(OpError::Shapes { what: "scales and zero points along the axis", left: vec![groups], right });
        }
        let inner = axis.map_or(1, |axis| x.physical_dims()[x.layout.physical_axis(axis, rank) + 1..].iter().product());
        Ok(Scales { scale: scale.to_vec(), zero_point, inner })
    }

    /// The group of the element at place `i` of memory.
    pub fn group(&self, i: usize) -> usize {
        if self.scale.len() == 1 { 0 } else { i / self.inner % self.scale.len() }
    }
}

impl OpDef for QuantizeLinear {
    fn attrs(&self) -> Attrs {
        let attrs = Attrs::default().with("axis", Attr::Int(self.axis)).with("block_size", Attr::Int(self.block_size));
        match self.output_dtype {
            Some(dtype) => attrs.with("output_dtype", Attr::Int(onnx_code(dtype))),
            None => attrs,
        }
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        expect_dtype(ins, 0, DType::F32)?;
        let (x, output) = (required(ins, 0)?, self.output(ins)?);
        Scales::new(ins, x, self.axis, self.block_size)?;
        Ok(vec![Fact::new(output, &x.dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let scales = Scales::new(ins, required(ins, 0)?, self.axis, self.block_size)?;
        let output = self.output(ins)?;
        let (qmin, qmax) = if output == DType::I8 { (-128, 127) } else { (0, 255) };
        let grid = |(&scale, &zero)| GridParams { scale, zero, qmin, qmax };
        let grids: Vec<GridParams> = scales.scale.iter().zip(&scales.zero_point).map(grid).collect();
        let code = move |i: usize, x: f32| quantize::quantize_value(x, &grids[scales.group(i)]);
        Ok(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.f32(0));
            macro_rules! fill {
                ($y:expr, $T:ty) => {
                    for_each_chunk(threads, $y, 1, 4, |first, y| {
                        y.iter_mut().enumerate().for_each(|(i, y)| *y = code(first + i, x[first + i]) as $T);
                    })
                };
            }
            match output {
                DType::I8 => fill!(io.out_i8(0), i8),
                _ => fill!(io.out_u8(0), u8),
            }
        }))
    }
}

impl OpFile for QuantizeLinear {
    const NAME: &'static str = "QuantizeLinear";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(QuantizeLinear {
            axis: attrs.int("axis")?.unwrap_or(1),
            block_size: attrs.int("block_size")?.unwrap_or(0),
            output_dtype: attrs.int("output_dtype")?.filter(|&code| code != 0).map(from_onnx_code),
        })
    }

    fn samples() -> Vec<Sample> {
        let x = Some(Tensor::f32(&[1, 2, 2, 2], vec![-1.25, -0.25, 0.0, 0.25, 0.75, 1.0, 70.0, -70.0]));
        let scalar = |v| Some(Tensor::f32(&[], vec![v]));
        let op = QuantizeLinear { axis: 1, block_size: 0, output_dtype: None };
        let signed = QuantizeLinear { output_dtype: Some(DType::I8), ..op.clone() };
        let scales = Some(Tensor::f32(&[2], vec![0.5, 0.25]));
        let zeros = Some(Tensor::i8(&[2], vec![0, 0]));
        vec![
            Sample { op: op.clone().into(), inputs: vec![x.clone(), scalar(0.5), Some(Tensor::u8(&[], vec![128]))] },
            Sample { op: op.into(), inputs: vec![x.clone(), scales, zeros] },
            Sample { op: signed.into(), inputs: vec![x, scalar(0.1)] },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{first, trial};
    use super::*;

    const PLAIN: QuantizeLinear = QuantizeLinear { axis: 1, block_size: 0, output_dtype: None };

    #[test]
    fn ties_go_to_even_and_tails_saturate() {
        let x = Tensor::f32(&[7], vec![-0.25, 0.25, 0.75, 1.25, 100.0, -100.0, 0.3]);
        let scale = Tensor::f32(&[], vec![0.5]);
        let y = first(PLAIN, &[x.clone(), scale.clone(), Tensor::u8(&[], vec![10])]).unwrap();
        assert_eq!(y, Tensor::u8(&[7], vec![10, 10, 12, 12, 210, 0, 11]));
        let y = first(PLAIN, &[x.clone(), scale.clone(), Tensor::i8(&[], vec![-10])]).unwrap();
        assert_eq!(y, Tensor::i8(&[7], vec![-10, -10, -8, -8, 127, -128, -9]));
        let signed = QuantizeLinear { output_dtype: Some(DType::I8), ..PLAIN };
        assert_eq!(first(signed, &[x, scale]).unwrap(), Tensor::i8(&[7], vec![0, 0, 2, 2, 127, -128, 1]));
    }

    #[test]
    fn channels_have_their_own_scales_in_both_memory_orders() {
        let x = Tensor::f32(&[1, 2, 1, 2], vec![1.0, 2.0, 1.0, 2.0]);
        let (scale, zero) = (Tensor::f32(&[2], vec![1.0, 0.5]), Tensor::u8(&[2], vec![0, 7]));
        let y = first(QuantizeLinear { axis: -3, ..PLAIN }, &[x, scale, zero]).unwrap();
        assert_eq!(y, Tensor::u8(&[1, 2, 1, 2], vec![1, 2, 9, 11]));
    }

    #[test]
    fn what_is_not_computed_is_named() {
        let x = Tensor::f32(&[2, 2], vec![1.0; 4]);
        let one = Tensor::f32(&[], vec![1.0]);
        let words = Tensor { dims: vec![], data: crate::Data::Raw { data_type: 4, bytes: vec![0, 0] } };
        let error = trial(PLAIN, &[Some(x.clone()), Some(one.clone()), Some(words)]).unwrap_err();
        assert_eq!(error.to_string(), "not supported: quantization to ONNX data type 4");
        assert!(first(QuantizeLinear { block_size: 2, ..PLAIN }, &[x.clone(), one.clone()]).is_err());
        assert!(first(QuantizeLinear { output_dtype: Some(DType::I32), ..PLAIN }, &[x.clone(), one]).is_err());
        assert!(first(PLAIN, &[x.clone(), Tensor::f32(&[3], vec![1.0; 3])]).is_err());
        assert!(first(PLAIN, &[x, Tensor::f32(&[2], vec![1.0; 2]), Tensor::u8(&[], vec![1])]).is_err());
    }
}
