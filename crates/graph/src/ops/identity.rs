//! Identity, and Dropout at inference, where it is one.

use super::{
    backward, codes,
    dispatch::{copy, move_codes},
};
use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, LayoutRule, OpDef, OpFile, Pass, QuantRule, Sample, Want, optional, required,
    },
    tensor::{DType, Tensor},
};
use fewbits_kernels::int::lookup::Table;

/// `y = x`
#[derive(Clone, Debug, PartialEq)]
pub struct Identity;

impl OpDef for Identity {
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        Ok(vec![Fact { value: x.value.clone(), ..Fact::new(x.dtype, &x.dims) }])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        copy(required(ins, 0)?)
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        backward::copy(ins, outs, wants)
    }

    /// The codes themselves, or those of the same numbers on another grid.
    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        if let Some(kernel) = move_codes(self, ins, outs, clamp)? {
            return Ok(Some(kernel));
        }
        let stored = |fact: &Fact| fact.grid.as_ref().and_then(codes::stored);
        let (Some(from), Some(to)) = (stored(required(ins, 0)?), stored(&outs[0])) else { return Ok(None) };
        let table = Table::requantize(&from, &to);
        Ok((clamp == Activation::Identity).then(|| Kernel::new(move |io| table.run(io.u8(0), io.out_u8(0)))))
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

impl OpFile for Identity {
    const NAME: &'static str = "Identity";

    fn from_attrs(_attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Identity)
    }

    fn samples() -> Vec<Sample> {
        vec![Sample { op: Identity.into(), inputs: vec![image()] }]
    }
}

/// `y = x`; the second output, a mask of what was kept, is all true. Inputs: data, ratio, training_mode, which must be false.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropout {
    /// Seed of the training mode; carried through.
    pub seed: Option<i64>,
}

impl OpDef for Dropout {
    fn attrs(&self) -> Attrs {
        match self.seed {
            Some(seed) => Attrs::default().with("seed", Attr::Int(seed)),
            None => Attrs::default(),
        }
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        if let Some(mode) = optional(ins, 2) {
            match mode.value.as_ref().and_then(|v| v.as_bool()) {
                Some([false]) => {}
                Some(_) => return Err(OpError::Unsupported("Dropout in training mode".into())),
                None => return Err(OpError::NotConstant { index: 2 }),
            }
        }
        let x = required(ins, 0)?;
        Ok(vec![Fact::new(x.dtype, &x.dims), Fact::new(DType::Bool, &x.dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, _outs: &[Fact]) -> Result<Kernel, OpError> {
        let copy = copy(required(ins, 0)?)?;
        Ok(Kernel::new(move |io| {
            copy.run(io);
            io.out_bool(1).fill(true);
        }))
    }

    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        backward::copy(ins, outs, wants)
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        move_codes(self, ins, &outs[..1], clamp)
    }

    fn quant_rule(&self) -> QuantRule {
        QuantRule::movement()
    }
}

impl OpFile for Dropout {
    const NAME: &'static str = "Dropout";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(Dropout { seed: attrs.int("seed")? })
    }

    fn samples() -> Vec<Sample> {
        let ratio = Some(Tensor::f32(&[], vec![0.5]));
        let training = Some(Tensor::bool(&[], vec![false]));
        vec![
            Sample { op: Dropout { seed: None }.into(), inputs: vec![image(), ratio] },
            Sample { op: Dropout { seed: Some(3) }.into(), inputs: vec![image(), None, training] },
        ]
    }
}

fn image() -> Option<Tensor> {
    Some(Tensor::f32(&[1, 2, 2, 3], (0..12).map(|i| i as f32 - 4.0).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::trial::{first, iota, trial};
    use super::*;

    #[test]
    fn both_leave_the_data_alone() {
        assert_eq!(
            first(Identity, &[Tensor::bool(&[2], vec![true, false])]).unwrap(),
            Tensor::bool(&[2], vec![true, false])
        );
        let dropped = trial(Dropout { seed: None }, &[Some(iota(&[2, 3, 4]))]).unwrap();
        assert_eq!(dropped, [iota(&[2, 3, 4]), Tensor::bool(&[2, 3, 4], vec![true; 24])]);
    }

    #[test]
    fn training_mode_is_refused() {
        let training = Some(Tensor::bool(&[], vec![true]));
        let result = trial(Dropout { seed: None }, &[Some(iota(&[2])), None, training]);
        assert!(matches!(result, Err(OpError::Unsupported(_))));
    }
}
