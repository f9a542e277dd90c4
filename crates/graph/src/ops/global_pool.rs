//! GlobalAveragePool and GlobalMaxPool: each channel of each image becomes one number.

use super::{
    backward::{Elementwise, Source},
    max_pool,
    window::Frame,
};
use crate::{
    attrs::Attrs,
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, QuantRule, Sample, Want, expect_dtype,
        required,
    },
    ops::{integer, samples::sample},
    tensor::DType,
};
use fewbits_kernels::{float::pool, int};

fn infer(ins: Facts) -> Result<Vec<Fact>, OpError> {
    let x = required(ins, 0)?;
    expect_dtype(ins, 0, DType::F32)?;
    if x.dims.len() < 3 {
        return Err(OpError::Rank { index: 0, expected: 4, found: x.dims.len() });
    }
    let mut dims = x.dims.clone();
    dims[2..].fill(1);
    Ok(vec![Fact::new(DType::F32, &dims)])
}

/// Pixels of an image; all spatial axes are one.
fn pixels(x: &Fact) -> usize {
    x.dims[2..].iter().product()
}

fn kernel(x: &Fact, max: bool) -> Kernel {
    let shape = [x.dims[0], pixels(x), x.dims[1]];
    Kernel::new(move |io| {
        let (threads, x) = (io.threads, io.f32(0));
        pool::global(threads, max, shape, x, io.out_f32(0));
    })
}

/// `y[n, c] = mean x[n, c, …]`
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalAveragePool;

impl OpDef for GlobalAveragePool {
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        infer(ins)
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::ChannelsLast
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        Ok(kernel(required(ins, 0)?, false))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let x = required(ins, 0)?;
        let share = 1.0 / pixels(x).max(1) as f32;
        let pass = Elementwise::new(ins, outs, wants).over(x, outs[0].clone());
        pass.toward(0, [Source::Gradient; 2], move |_, _, dy| dy * share)?.pass()
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        let x = required(ins, 0)?;
        let (Some(from), Some(to)) = (integer::grid(x), integer::clamped(&outs[0], clamp)) else { return Ok(None) };
        let (n, pixels) = (x.dims[0], pixels(x));
        Ok(Some(Kernel::new(move |io| {
            let x = io.u8(0);
            int::pool::global_average_pool(n, pixels, x, &from, io.out_u8(0), &to);
        })))
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::data()
    }
}

impl OpFile for GlobalAveragePool {
    const NAME: &'static str = "GlobalAveragePool";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(GlobalAveragePool)
    }

    fn samples() -> Vec<Sample> {
        vec![sample(GlobalAveragePool, &[&[2, 5, 3, 4]]), sample(GlobalAveragePool, &[&[2, 3, 7]])]
    }
}

/// `y[n, c] = max x[n, c, …]`. The gradient goes to the first of equal maxima.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalMaxPool;

impl OpDef for GlobalMaxPool {
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        infer(ins)
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::ChannelsLast
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        Ok(kernel(required(ins, 0)?, true))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let pixels = pixels(required(ins, 0)?);
        let (kernel, one) = ([1, pixels], [1, 1]);
        let whole = Frame { input: kernel, kernel, stride: one, dilation: one, pads: [0; 4], output: one };
        max_pool::route(whole, ins, outs, wants)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

impl OpFile for GlobalMaxPool {
    const NAME: &'static str = "GlobalMaxPool";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(GlobalMaxPool)
    }

    fn samples() -> Vec<Sample> {
        vec![sample(GlobalMaxPool, &[&[2, 5, 3, 4]]), sample(GlobalMaxPool, &[&[2, 3, 7]])]
    }
}
