//! Gemm: product of two matrices, plus a third.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Fused, Kernel, OpDef, OpFile, OutRule, Pass, QuantRule, Role, Sample, Want,
        expect_dtype, optional, required,
    },
    ops::{
        broadcast,
        product::{self, Bias, FloatProduct, Plain, Trained},
        samples::sample,
    },
    tensor::DType,
};
use fewbits_kernels::{
    ConvGeometry,
    float::{Epilogue, PackedConv, add_columns},
    movement::Transpose,
};

/// `y = alpha · A' · B' + beta · C`, where `A'` `[M, K]` and `B'` `[K, N]` are inputs 0 and 1 or their transposes; input 2,
/// optional, stretches to `[M, N]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of C.
    pub beta: f32,
    /// Whether A is given as `[K, M]`.
    pub trans_a: bool,
    /// Whether B is given as `[N, K]`.
    pub trans_b: bool,
}

impl Default for Gemm {
    /// `y = A · B + C`.
    fn default() -> Self {
        Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false }
    }
}

impl Gemm {
    /// `[M, K, N]`.
    fn sizes(&self, ins: Facts) -> Result<[usize; 3], OpError> {
        let matrix = |index: usize, transposed: bool| match required(ins, index)?.dims[..] {
            [a, b] => Ok(if transposed { [b, a] } else { [a, b] }),
            ref dims => Err(OpError::Rank { index, expected: 2, found: dims.len() }),
        };
        let ([m, k], [k_b, n]) = (matrix(0, self.trans_a)?, matrix(1, self.trans_b)?);
        if k != k_b {
            return Err(OpError::Shapes { what: "A and B", left: vec![m, k], right: vec![k_b, n] });
        }
        Ok([m, k, n])
    }

    /// B ready for products, `alpha` included.
    fn pack(&self, k: usize, n: usize, b: &[f32]) -> PackedConv {
        if self.alpha == 1.0 {
            return PackedConv::from_matrix(k, n, b, self.trans_b);
        }
        let scaled: Vec<f32> = b.iter().map(|b| b * self.alpha).collect();
        PackedConv::from_matrix(k, n, &scaled, self.trans_b)
    }

    /// C as one known number per column.
    fn known_bias(&self, c: Option<&Fact>, n: usize) -> Option<Bias> {
        let Some(c) = c else { return Some(Bias::Absent) };
        let per_column = matches!(c.dims[..], [] | [_] | [1, _]);
        let value = c.value.as_ref()?.as_f32().filter(|_| per_column)?;
        Some(Bias::Known((0..n).map(|i| self.beta * value[i % value.len()]).collect()))
    }

    fn float(&self, ins: Facts, out: &Fact, fused: Fused) -> Result<Kernel, OpError> {
        let own = product::own_inputs(ins, fused);
        let [m, k, n] = self.sizes(own)?;
        let packed = required(own, 1)?.value.as_ref().and_then(|b| b.as_f32()).filter(|b| !b.is_empty());
        let packed = packed.map(|b| self.pack(k, n, b));
        let c = optional(own, 2);
        match (packed, self.known_bias(c, n)) {
            (Some(packed), Some(bias)) if !self.trans_a => {
                Ok(FloatProduct { packed, shape: [1, 1, m], bias, fused }.kernel())
            }
            (packed, _) => Ok(self.general([m, k, n], packed, c, out, fused)),
        }
    }

    /// The kernel without assumptions: operands are transposed, packed and stretched at run time.
    fn general(
        &self,
        sizes: [usize; 3],
        packed: Option<PackedConv>,
        c: Option<&Fact>,
        out: &Fact,
        fused: Fused,
    ) -> Kernel {
        let [m, k, n] = sizes;
        let gemm = self.clone();
        let stretched = c.map(|c| broadcast::walk(c, out, out));
        let transpose = self.trans_a.then(|| Transpose::new(&[k, m], &[1, 0]));
        Kernel::new(move |io| {
            let (threads, mut a) = (io.threads, io.f32(0));
            let mut addend = match fused.residual {
                true => io.f32(io.ins.len() - 1).to_vec(),
                false => vec![0.0; m * n],
            };
            if let Some(walk) = &stretched {
                let other = addend.clone();
                walk.map(threads, io.f32(2), &other, &mut addend, |c, other| gemm.beta * c + other);
            }
            if k == 0 || m * n == 0 {
                fused.activation.map(fewbits_kernels::simd::Isa::best(), &addend, io.out_f32(0));
                return;
            }
            let mut transposed = vec![0.0; if transpose.is_some() { a.len() } else { 0 }];
            if let Some(transpose) = &transpose {
                transpose.run(threads, a, &mut transposed);
                a = &transposed;
            }
            let mut at_run = None;
            let packed = match &packed {
                Some(packed) => packed,
                None => at_run.insert(gemm.pack(k, n, io.f32(1))),
            };
            let epilogue = Epilogue { bias: None, residual: Some(&addend), activation: fused.activation };
            product::multiply(threads, packed, m, a, &epilogue, io.out_f32(0));
        })
    }
}

impl Gemm {
    /// The product in training, if A is not transposed and nothing is empty.
    fn trained(&self, ins: Facts) -> Result<Option<Trained>, OpError> {
        let [m, k, n] = self.sizes(ins)?;
        let trained = Trained {
            geometry: ConvGeometry::pointwise(k, n),
            shape: [1, 1, m],
            by_rows: !self.trans_b,
            alpha: self.alpha,
        };
        Ok((!self.trans_a && m * k * n > 0).then_some(trained))
    }
}

impl OpDef for Gemm {
    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("alpha", Attr::Float(self.alpha))
            .with("beta", Attr::Float(self.beta))
            .with("transA", Attr::Int(self.trans_a.into()))
            .with("transB", Attr::Int(self.trans_b.into()))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let [m, _, n] = self.sizes(ins)?;
        expect_dtype(ins, 0, DType::F32)?;
        expect_dtype(ins, 1, DType::F32)?;
        if let Some(c) = optional(ins, 2)
            && broadcast::broadcast_dims(&c.dims, &[m, n])? != [m, n]
        {
            return Err(OpError::Shapes { what: "C and the product", left: c.dims.clone(), right: vec![m, n] });
        }
        Ok(vec![Fact::new(DType::F32, &[m, n])])
    }

    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        self.float(ins, &outs[0], product::ALONE)
    }

    fn build_fused(&self, ins: Facts, outs: &[Fact], fused: Fused) -> Result<Option<Kernel>, OpError> {
        self.float(ins, &outs[0], fused).map(Some)
    }

    fn build_training(&self, ins: Facts, outs: &[Fact]) -> Result<Pass, OpError> {
        let [_, _, n] = self.sizes(ins)?;
        let c = optional(ins, 2);
        let plain = self.beta == 1.0 && c.is_none_or(|c| c.len() == n && matches!(c.dims[..], [_] | [1, _]));
        match self.trained(ins)? {
            Some(trained) if plain && required(ins, 1)?.value.is_none() => Ok(trained.forward(c.is_some())),
            _ => Ok(Pass::new(self.build(ins, outs)?)),
        }
    }

    fn build_backward(&self, ins: Facts, _outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let [m, k, n] = self.sizes(ins)?;
        let (beta, c) = (self.beta, optional(ins, 2).map_or(&[][..], |c| &c.dims));
        let (row, column) = match *c {
            [rows, columns] => (if rows > 1 { columns } else { 0 }, columns > 1),
            _ => (0, c.iter().any(|&columns| columns > 1)),
        };
        let whole_row = row == 0 && (column || n == 1);
        let add_bias = move |dy: &[f32], sums: &mut [f32]| {
            if whole_row && beta == 1.0 {
                return add_columns(dy, sums);
            }
            for (i, dy) in dy.chunks_exact(n.max(1)).enumerate() {
                dy.iter().enumerate().for_each(|(j, dy)| sums[i * row + j * usize::from(column)] += beta * dy);
            }
        };
        Ok(Some(match self.trained(ins)? {
            Some(trained) => trained.backward(ins, wants, add_bias),
            None => {
                let left = if self.trans_a { [1, m] } else { [k, 1] };
                let right = if self.trans_b { [1, k] } else { [n, 1] };
                let plain = Plain { sizes: [m, k, n], starts: vec![[0, 0]], left, right, alpha: self.alpha };
                plain.backward(ins, wants, add_bias)
            }
        }))
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let [m, k, n] = self.sizes(ins)?;
        let per_column = optional(ins, 2).is_none_or(|c| c.len() == n && matches!(c.dims[..], [_] | [1, _]));
        if self.alpha != 1.0 || self.beta != 1.0 || self.trans_a || !per_column || k * n == 0 {
            return Ok(None);
        }
        product::integer_matrix(ins, &outs[0], if self.trans_b { 0 } else { 1 }, m, clamp)
    }

    fn quant_rule(&self) -> QuantRule {
        let channel_axis = if self.trans_b { 0 } else { 1 };
        QuantRule { inputs: vec![Role::Data, Role::Weight { channel_axis }, Role::Bias], output: OutRule::Own }
    }

    fn macs(&self, ins: Facts, _outs: &[Fact]) -> u64 {
        self.sizes(ins).map_or(0, |sizes| sizes.iter().map(|&n| n as u64).product())
    }
}

impl OpFile for Gemm {
    const NAME: &'static str = "Gemm";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Gemm {
            alpha: attrs.float("alpha")?.unwrap_or(1.0),
            beta: attrs.float("beta")?.unwrap_or(1.0),
            trans_a: attrs.int("transA")?.unwrap_or(0) != 0,
            trans_b: attrs.int("transB")?.unwrap_or(0) != 0,
        })
    }

    fn samples() -> Vec<Sample> {
        let plain = Gemm::default();
        let linear = Gemm { trans_b: true, ..plain.clone() };
        let scaled = Gemm { alpha: 0.5, beta: -2.0, trans_a: true, trans_b: false };
        vec![
            sample(linear.clone(), &[&[2, 19], &[18, 19], &[18]]),
            sample(linear, &[&[3, 5], &[4, 5]]),
            sample(plain.clone(), &[&[3, 5], &[5, 4], &[1, 4]]),
            sample(plain.clone(), &[&[3, 5], &[5, 4], &[3, 1]]),
            sample(plain, &[&[3, 5], &[5, 4], &[]]),
            sample(scaled, &[&[5, 3], &[5, 4], &[3, 4]]),
        ]
    }
}
