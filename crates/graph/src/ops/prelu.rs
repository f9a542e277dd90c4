//! PRelu: LeakyRelu with slopes that are a tensor.

use crate::{
    attrs::Attrs,
    error::OpError,
    op::{
        Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, OutRule, Pass, QuantRule, Role, Sample, Want, expect_dtype,
        required,
    },
    ops::{
        backward::{Elementwise, Source},
        broadcast::{self, broadcast_dims},
        samples::sample,
    },
    tensor::DType,
};

/// `y = x < 0 ? slope · x : x`; the slope (input 1) stretches to the shape of x. `dx = x < 0 ? slope · dy : dy`,
/// `d slope = Σ x · dy` over the negative ones.
#[derive(Clone, Debug, PartialEq)]
pub struct PRelu;

impl OpDef for PRelu {
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let (x, slope) = (required(ins, 0)?, required(ins, 1)?);
        expect_dtype(ins, 0, DType::F32)?;
        expect_dtype(ins, 1, DType::F32)?;
        if broadcast_dims(&x.dims, &slope.dims)? != x.dims {
            return Err(OpError::Shapes { what: "slope and input", left: slope.dims.clone(), right: x.dims.clone() });
        }
        Ok(vec![Fact::new(DType::F32, &x.dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let walk = broadcast::walk(required(ins, 0)?, required(ins, 1)?, &outs[0]);
        Ok(Kernel::new(move |io| {
            let (threads, x, slope) = (io.threads, io.f32(0), io.f32(1));
            walk.map(threads, x, slope, io.out_f32(0), |x, slope| if x < 0.0 { slope * x } else { x });
        }))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        Elementwise::new(ins, outs, wants)
            .toward(0, [Source::Input(1), Source::Input(0)], |slope, x, dy| if x < 0.0 { slope * dy } else { dy })?
            .toward(1, [Source::Input(0), Source::Gradient], |x, _, dy| if x < 0.0 { x * dy } else { 0.0 })?
            .pass()
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule { inputs: vec![Role::Data, Role::Other], output: OutRule::Own }
    }
}

impl OpFile for PRelu {
    const NAME: &'static str = "PRelu";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(PRelu)
    }

    fn samples() -> Vec<Sample> {
        let shapes: [[&[usize]; 2]; 3] = [[&[2, 3, 4, 5], &[3, 1, 1]], [&[2, 3, 4, 5], &[1]], [&[4, 6], &[6]]];
        shapes.iter().map(|dims| sample(PRelu, dims)).collect()
    }
}
