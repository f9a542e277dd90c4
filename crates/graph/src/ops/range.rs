//! Range: evenly spaced numbers.

use crate::{
    attrs::Attrs,
    error::OpError,
    op::{Fact, Facts, Kernel, OpDef, OpFile, Sample, known},
    tensor::{DType, Data, Tensor},
};
use std::sync::Arc;

/// `start, start + delta, …` to before `limit`: `max(ceil((limit − start) / delta), 0)` numbers. The inputs start, limit and delta
/// are scalars known ahead, float or 32/64-bit integers.
#[derive(Clone, Debug, PartialEq)]
pub struct Range;

/// Numbers at most: no model counts further, a broken file might.
const MOST: usize = 1 << 28;

fn numbers(ins: Facts) -> Result<Tensor, OpError> {
    let inputs = [known(ins, 0)?, known(ins, 1)?, known(ins, 2)?];
    let mixed = inputs.iter().position(|t| t.dtype() != inputs[0].dtype());
    if let Some(index) = mixed {
        return Err(OpError::DType { index, expected: inputs[0].dtype(), found: inputs[index].dtype() });
    }
    let refused = || OpError::Unsupported("a range that does not end, or of other things than three numbers".into());
    let count = |n: f64| if n < MOST as f64 { Ok(n.max(0.0) as usize) } else { Err(refused()) };
    if inputs[0].dtype() == DType::F32 {
        let [Some(start), Some(limit), Some(delta)] = inputs.map(Tensor::scalar_f32) else { return Err(refused()) };
        let n = count(((f64::from(limit) - f64::from(start)) / f64::from(delta)).ceil())?;
        return Ok(Tensor::f32(&[n], (0..n).map(|i| start + i as f32 * delta).collect()));
    }
    let scalar = |t: &Tensor| t.to_i64().filter(|v| v.len() == 1).map(|v| v[0]);
    let [Some(start), Some(limit), Some(delta)] = inputs.map(scalar) else { return Err(refused()) };
    let n = count(((limit as f64 - start as f64) / delta as f64).ceil())?;
    let values = (0..n as i64).map(|i| start.wrapping_add(i.wrapping_mul(delta)));
    match inputs[0].data {
        Data::I64(_) => Ok(Tensor::i64(&[n], values.collect())),
        Data::I32(_) => Ok(Tensor::i32(&[n], values.map(|v| v as i32).collect())),
        _ => Err(refused()),
    }
}

impl OpDef for Range {
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::constant(Arc::new(numbers(ins)?))])
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let numbers = numbers(ins)?;
        Ok(Kernel::new(move |io| match &numbers.data {
            Data::F32(v) => io.out_f32(0).copy_from_slice(v),
            Data::I64(v) => io.out_i64(0).copy_from_slice(v),
            Data::I32(v) => io.out_i32(0).copy_from_slice(v),
            _ => {}
        }))
    }
}

impl OpFile for Range {
    const NAME: &'static str = "Range";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Range)
    }

    fn samples() -> Vec<Sample> {
        let ints = [3, 11, 4].map(|v| Some(Tensor::i64(&[], vec![v])));
        let floats = [1.0, -1.0, -0.75].map(|v| Some(Tensor::f32(&[], vec![v])));
        vec![Sample { op: Range.into(), inputs: ints.to_vec() }, Sample { op: Range.into(), inputs: floats.to_vec() }]
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::first;
    use super::*;

    #[test]
    fn counts_as_numpy_arange() {
        let ints = |v: [i64; 3]| first(Range, &v.map(|v| Tensor::i64(&[], vec![v])));
        assert_eq!(ints([3, 11, 4]), Ok(Tensor::i64(&[2], vec![3, 7])));
        assert_eq!(ints([10, 4, -2]), Ok(Tensor::i64(&[3], vec![10, 8, 6])));
        assert_eq!(ints([0, -3, 1]), Ok(Tensor::i64(&[0], vec![])));
        assert!(ints([0, 3, 0]).is_err() && ints([0, i64::MAX, 1]).is_err());
        let floats = |v: [f32; 3]| first(Range, &v.map(|v| Tensor::f32(&[], vec![v])));
        assert_eq!(floats([1.0, -1.0, -0.75]), Ok(Tensor::f32(&[3], vec![1.0, 0.25, -0.5])));
        let mixed = [Tensor::i64(&[], vec![0]), Tensor::i32(&[], vec![3]), Tensor::i64(&[], vec![1])];
        assert!(matches!(first(Range, &mixed), Err(OpError::DType { index: 1, .. })));
    }
}
