//! MatMul: product of matrices or of stacks of them, as numpy's `matmul`.

use crate::{
    attrs::Attrs,
    error::OpError,
    op::{
        Activation, Fact, Facts, Fused, Kernel, OpDef, OpFile, OutRule, Pass, QuantRule, Role, Sample, Want,
        expect_dtype, required,
    },
    ops::{
        broadcast::broadcast_dims,
        integer,
        product::{self, Bias, FloatProduct, Plain, Trained},
        samples::sample,
    },
    tensor::DType,
};
use fewbits_kernels::{
    ConvGeometry,
    float::{Epilogue, PackedConv},
    int,
};

/// `y[…, m, n] = Σ_k a[…, m, k] · b[…, k, n]`; leading axes are broadcast. A vector is a row on the left and a column on the
/// right, and its axis is left out of the result.
#[derive(Clone, Debug, PartialEq)]
pub struct MatMul;

/// Both operands as stacks of matrices.
struct Stacks {
    /// `[M, K, N]` of each product.
    sizes: [usize; 3],
    /// For each product, which matrix of each operand takes part.
    pairs: Vec<[usize; 2]>,
    dims: Vec<usize>,
}

impl MatMul {
    fn stacks(ins: Facts) -> Result<Stacks, OpError> {
        let (a, b) = (&required(ins, 0)?.dims, &required(ins, 1)?.dims);
        let misfit = || OpError::Shapes { what: "factors", left: a.clone(), right: b.clone() };
        let (a_batch, [m, k]) = match a[..] {
            [] => return Err(misfit()),
            [k] => (&[][..], [1, k]),
            [ref batch @ .., m, k] => (batch, [m, k]),
        };
        let (b_batch, [k_b, n]) = match b[..] {
            [] => return Err(misfit()),
            [k] => (&[][..], [k, 1]),
            [ref batch @ .., k, n] => (batch, [k, n]),
        };
        if k != k_b {
            return Err(misfit());
        }
        let mut dims = broadcast_dims(a_batch, b_batch)?;
        let count: usize = dims.iter().product();
        let matrix = |batch: &[usize], mut index: usize| {
            let (mut place, mut size) = (0, 1);
            for (axis, &d) in dims.iter().enumerate().rev() {
                if let Some(own) = (axis + batch.len()).checked_sub(dims.len()) {
                    place += index % d % batch[own] * size;
                    size *= batch[own];
                }
                index /= d;
            }
            place
        };
        let pairs = (0..count).map(|i| [matrix(a_batch, i), matrix(b_batch, i)]).collect();
        dims.extend((a.len() > 1).then_some(m));
        dims.extend((b.len() > 1).then_some(n));
        Ok(Stacks { sizes: [m, k, n], pairs, dims })
    }

    fn float(ins: Facts, fused: Fused) -> Result<Option<Kernel>, OpError> {
        let Stacks { sizes: [m, k, n], pairs, .. } = MatMul::stacks(product::own_inputs(ins, fused))?;
        let b = required(ins, 1)?;
        if let (Some(value), true) = (b.value.as_ref().and_then(|b| b.as_f32()), b.dims.len() <= 2 && k * n > 0) {
            let packed = PackedConv::from_matrix(k, n, value, false);
            let shape = [1, 1, m * pairs.len()];
            return Ok(Some(FloatProduct { packed, shape, bias: Bias::Absent, fused }.kernel()));
        }
        if fused != product::ALONE {
            return Ok(None);
        }
        Ok(Some(Kernel::new(move |io| {
            let (threads, a, b) = (io.threads, io.f32(0), io.f32(1));
            let y = io.out_f32(0);
            if k * m * n == 0 {
                return y.fill(0.0);
            }
            for (&[i, j], y) in pairs.iter().zip(y.chunks_mut(m * n)) {
                let packed = PackedConv::from_matrix(k, n, &b[j * k * n..][..k * n], false);
                product::multiply(threads, &packed, m, &a[i * m * k..][..m * k], &Epilogue::NONE, y);
            }
        })))
    }

    /// The product in training where one matrix, taken to be a parameter, stands on the right.
    fn trained(ins: Facts) -> Result<Option<Trained>, OpError> {
        let Stacks { sizes: [m, k, n], pairs, .. } = MatMul::stacks(ins)?;
        let rows = m * pairs.len();
        let single = required(ins, 1)?.dims.len() <= 2 && rows * k * n > 0;
        Ok(single.then(|| Trained {
            geometry: ConvGeometry::pointwise(k, n),
            shape: [1, 1, rows],
            by_rows: true,
            alpha: 1.0,
        }))
    }

    /// Both factors are data: few models have this, so plain sums will do.
    fn integer_data(ins: Facts, out: &Fact, clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let Stacks { sizes: [m, k, n], pairs, .. } = MatMul::stacks(ins)?;
        let grids = (integer::grid(required(ins, 0)?), integer::grid(required(ins, 1)?), integer::clamped(out, clamp));
        let (Some(a), Some(b), Some(y)) = grids else { return Ok(None) };
        if m * k * n == 0 {
            return Ok(None);
        }
        let geometry = ConvGeometry::pointwise(k, n);
        let multiplier = [a.scale * b.scale / y.scale];
        Ok(Some(Kernel::new(move |io| {
            let (left, right) = (io.u8(0), io.u8(1));
            let (bias, mut sums) = (vec![0; n], vec![0; m * n]);
            for (&[i, j], out) in pairs.iter().zip(io.out_u8(0).chunks_mut(m * n)) {
                let right = &right[j * k * n..][..k * n];
                let columns: Vec<i32> =
                    (0..n).flat_map(|o| right.iter().skip(o).step_by(n)).map(|&q| q.into()).collect();
                let left = &left[i * m * k..][..m * k];
                int::reference::conv_sums(
                    &geometry,
                    [1, 1, m],
                    left,
                    a.zero as u8,
                    &columns,
                    &[b.zero],
                    &bias,
                    &mut sums,
                );
                int::reference::requantize(&sums, &multiplier, y.zero, y.qmin, y.qmax, out);
            }
        })))
    }
}

impl OpDef for MatMul {
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let stacks = MatMul::stacks(ins)?;
        expect_dtype(ins, 0, DType::F32)?;
        expect_dtype(ins, 1, DType::F32)?;
        Ok(vec![Fact::new(DType::F32, &stacks.dims)])
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let kernel = MatMul::float(ins, product::ALONE)?;
        Ok(kernel.expect("a product with nothing fused behind it always has a kernel"))
    }

    fn build_fused(&self, ins: Facts, _outs: &[Fact], fused: Fused) -> Result<Option<Kernel>, OpError> {
        MatMul::float(ins, fused)
    }

    fn build_training(&self, ins: Facts, outs: &[Fact]) -> Result<Pass, OpError> {
        match MatMul::trained(ins)? {
            Some(trained) if required(ins, 1)?.value.is_none() => Ok(trained.forward(false)),
            _ => Ok(Pass::new(self.build(ins, outs)?)),
        }
    }

    fn build_backward(&self, ins: Facts, _outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        match MatMul::trained(ins)? {
            Some(trained) => Ok(Some(trained.backward(ins, wants, |_, _| {}))),
            None => {
                let Stacks { sizes: [m, k, n], pairs, .. } = MatMul::stacks(ins)?;
                let starts = pairs.iter().map(|[left, right]| [left * m * k, right * k * n]).collect();
                let plain = Plain { sizes: [m, k, n], starts, left: [k, 1], right: [n, 1], alpha: 1.0 };
                Ok(Some(plain.backward(ins, wants, |_, _| {})))
            }
        }
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let b = required(ins, 1)?;
        if b.dtype == DType::U8 {
            return MatMul::integer_data(ins, &outs[0], clamp);
        }
        let Stacks { sizes: [m, k, n], pairs, .. } = MatMul::stacks(ins)?;
        if b.dims.len() != 2 || k * n == 0 {
            return Ok(None);
        }
        product::integer_matrix(ins, &outs[0], 1, m * pairs.len(), clamp)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule { inputs: vec![Role::Data, Role::Weight { channel_axis: 1 }], output: OutRule::Own }
    }

    fn macs(&self, ins: Facts, _outs: &[Fact]) -> u64 {
        MatMul::stacks(ins).map_or(0, |s| s.pairs.len() as u64 * s.sizes.iter().map(|&n| n as u64).product::<u64>())
    }
}

impl OpFile for MatMul {
    const NAME: &'static str = "MatMul";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(MatMul)
    }

    fn samples() -> Vec<Sample> {
        let shapes: [[&[usize]; 2]; 5] = [
            [&[3, 5], &[5, 17]],
            [&[2, 1, 3, 4], &[4, 6]],
            [&[2, 1, 3, 4], &[3, 4, 2]],
            [&[4], &[2, 4, 3]],
            [&[2, 3, 4], &[4]],
        ];
        shapes.iter().map(|dims| sample(MatMul, dims)).collect()
    }
}
