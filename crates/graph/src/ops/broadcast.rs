//! ONNX's multidirectional broadcasting of shapes, and how operands are walked for it.

use crate::{error::OpError, op::Fact};
use fewbits_kernels::broadcast::Broadcast;

/// The common shape of two: aligned at the end, 1 stretches to anything.
pub fn broadcast_dims(a: &[usize], b: &[usize]) -> Result<Vec<usize>, OpError> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |axis| dims[axis]);
    let join = |axis| match (at(a, axis), at(b, axis)) {
        (m, n) if m == n => Some(m),
        (1, n) | (n, 1) => Some(n),
        _ => None,
    };
    (0..rank).map(join).collect::<Option<_>>().ok_or_else(|| OpError::Shapes {
        what: "operands to broadcast",
        left: a.to_vec(),
        right: b.to_vec(),
    })
}

/// How far apart the neighbours along each axis of `out` (in the order of `out`'s memory) are in the memory of `operand`; 0
/// where it is stretched.
pub fn steps(operand: &Fact, out: &Fact) -> Vec<usize> {
    let rank = out.dims.len();
    let lead = rank - operand.dims.len();
    let physical = operand.physical_dims();
    let mut steps = vec![0; rank];
    for (axis, &dim) in operand.dims.iter().enumerate().filter(|&(_, &dim)| dim != 1) {
        let place = operand.layout.physical_axis(axis, operand.dims.len());
        let inner = physical[place + 1..].iter().product();
        steps[out.layout.physical_axis(axis + lead, rank)] = if dim == out.dims[axis + lead] { inner } else { 0 };
    }
    steps
}

/// The walk over two operands of `out`.
pub fn walk(a: &Fact, b: &Fact, out: &Fact) -> Broadcast {
    Broadcast::new(&out.physical_dims(), [&steps(a, out), &steps(b, out)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{op::Layout, tensor::DType};

    #[test]
    fn shapes_stretch_both_ways() {
        assert_eq!(broadcast_dims(&[2, 1, 3], &[4, 1]), Ok(vec![2, 4, 3]));
        assert_eq!(broadcast_dims(&[], &[5]), Ok(vec![5]));
        assert_eq!(broadcast_dims(&[0], &[1]), Ok(vec![0]));
        assert!(broadcast_dims(&[2, 3], &[2]).is_err());
    }

    #[test]
    fn a_channel_vector_is_innermost_in_channels_last() {
        let last = |dims: &[usize]| Fact { layout: Layout::ChannelsLast, ..Fact::new(DType::F32, dims) };
        let plain = Fact::new(DType::F32, &[3, 1, 1]);
        assert_eq!(steps(&plain, &last(&[2, 3, 4, 5])), [0, 0, 0, 1]);
        assert_eq!(steps(&last(&[1, 3, 4, 1]), &last(&[2, 3, 4, 5])), [0, 3, 0, 1]);
        assert_eq!(steps(&last(&[2, 3, 4, 5]), &Fact::new(DType::F32, &[2, 3, 4, 5])), [60, 1, 15, 3]);
    }
}
