//! Making [`Sample`]s: inputs with varied values.

use crate::{
    op::{Op, Sample},
    tensor::Tensor,
};

/// A float tensor of distinct-looking values in −2…2; `seed` tells tensors apart.
pub fn varied(dims: &[usize], seed: u32) -> Tensor {
    let value = |i: u32| {
        let hash = (i + 1).wrapping_mul(0x9E37_79B9).wrapping_add(seed.wrapping_mul(0x85EB_CA6B));
        ((hash ^ hash >> 15).wrapping_mul(0x2C1B_3C6D) >> 16) as f32 / 16384.0 - 2.0
    };
    Tensor::f32(dims, (0..dims.iter().product::<usize>() as u32).map(value).collect())
}

/// `op` applied to varied float tensors of these dimensions.
pub fn sample(op: impl Into<Op>, dims: &[&[usize]]) -> Sample {
    let inputs = dims.iter().zip(1..).map(|(dims, seed)| Some(varied(dims, seed))).collect();
    Sample { op: op.into(), inputs }
}
