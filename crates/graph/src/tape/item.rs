//! Items: kernel calls on values, before they are scheduled.

use crate::{
    error::OpError,
    op::{Fact, Kernel},
    tensor::Tensor,
};
use std::{ops::Range, rc::Rc, sync::Arc};

/// Index of a [`Value`].
pub(super) type ValueId = usize;

/// How the lanes' results are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    Sum,
    Max,
}

impl Join {
    pub fn neutral(self) -> f32 {
        match self {
            Join::Sum => 0.0,
            Join::Max => f32::NEG_INFINITY,
        }
    }

    /// `total[i]` = all lanes' numbers at `at + i`, joined.
    pub fn rows(self, total: &mut [f32], lanes: &[Vec<f32>], at: usize) {
        let len = total.len();
        total.copy_from_slice(&lanes[0][at..][..len]);
        for lane in &lanes[1..] {
            let pairs = total.iter_mut().zip(&lane[at..][..len]);
            match self {
                Join::Sum => pairs.for_each(|(t, x)| *t += x),
                Join::Max => pairs.for_each(|(t, x)| *t = t.max(*x)),
            }
        }
    }
}

/// Where a value is found.
#[derive(Clone, Debug)]
pub(super) enum Home {
    /// Given by the caller.
    Input(usize),
    /// Given by the caller between the passes: the gradient of an output.
    OutputGradient(usize),
    Constant(Arc<Tensor>),
    /// In [`super::Leaves::values`].
    Parameter(Range<usize>),
    /// In [`super::Leaves::statistics`].
    Statistic(Range<usize>),
    /// Written by an item.
    Made,
    /// Written by items of a segment in parts, joined at its end.
    Joined(Join),
    /// The same numbers as another value, described by another fact.
    Alias(ValueId),
}

/// A tensor in one form.
#[derive(Clone, Debug)]
pub(super) struct Value {
    /// Described for the whole batch.
    pub fact: Fact,
    /// One row per image.
    pub rows: bool,
    pub home: Home,
}

/// Makes the kernel for a number of images.
pub(super) type Build = Rc<dyn Fn(usize) -> Result<Kernel, OpError>>;

/// One kernel call.
#[derive(Clone)]
pub(super) struct Item {
    /// The node it belongs to, for messages.
    pub node: Option<usize>,
    pub build: Build,
    /// Runs once for the batch, not image by image.
    pub whole: bool,
    pub ins: Vec<Option<ValueId>>,
    pub outs: Vec<Option<ValueId>>,
    /// The tensor whose quantizer is to be set before this item runs.
    pub stop: Option<String>,
}

/// A fact that can be told for any number of images.
#[derive(Clone, Debug)]
pub(super) struct Rowed {
    pub fact: Fact,
    pub rows: bool,
}

impl Rowed {
    pub fn at(&self, images: usize) -> Fact {
        let mut fact = self.fact.clone();
        if self.rows {
            fact.dims[0] = images;
        }
        fact
    }
}

/// All facts for `images`.
pub(super) fn facts_at(rowed: &[Option<Rowed>], images: usize) -> Vec<Option<Fact>> {
    rowed.iter().map(|r| r.as_ref().map(|r| r.at(images))).collect()
}
