//! Elu: the identity with an exponential tail.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, Sample, Want, expect_dtype, required},
    ops::{
        backward::{self, Source},
        samples::sample,
    },
    tensor::DType,
};
use fewbits_kernels::chunks::for_each_chunk;

/// `y = x < 0 ? alpha · (e^x − 1) : x`; `dx = x < 0 ? alpha · e^x · dy : dy`
#[derive(Clone, Debug, PartialEq)]
pub struct Elu {
    /// Minus the limit on the left.
    pub alpha: f32,
}

impl OpDef for Elu {
    fn attrs(&self) -> Attrs {
        Attrs::default().with("alpha", Attr::Float(self.alpha))
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        expect_dtype(ins, 0, DType::F32)?;
        Ok(vec![Fact::new(DType::F32, &required(ins, 0)?.dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, _ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let alpha = self.alpha;
        Ok(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.f32(0));
            for_each_chunk(threads, io.out_f32(0), 1, 4, |first, y| {
                y.iter_mut()
                    .zip(&x[first..])
                    .for_each(|(y, &x)| *y = if x < 0.0 { alpha * (x.exp() - 1.0) } else { x });
            });
        }))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let alpha = self.alpha;
        let slope = move |x: f32, dy| if x < 0.0 { alpha * x.exp() * dy } else { dy };
        backward::map(ins, outs, wants, Source::Input(0), slope)
    }
}

impl OpFile for Elu {
    const NAME: &'static str = "Elu";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Elu { alpha: attrs.float("alpha")?.unwrap_or(1.0) })
    }

    fn samples() -> Vec<Sample> {
        vec![sample(Elu { alpha: 1.0 }, &[&[2, 3, 4, 5]]), sample(Elu { alpha: 0.25 }, &[&[6]])]
    }
}
