//! Attributes of an operator as a neutral map, so that operators know no protobuf.

use crate::{error::OpError, tensor::Tensor};
use std::collections::BTreeMap;

/// One attribute value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants say what they hold")]
pub enum Attr {
    Int(i64),
    Float(f32),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strs(Vec<String>),
    Tensor(Tensor),
    /// An attribute kind that Fewbits does not look into (sub-graphs …), as encoded protobuf.
    Encoded(Vec<u8>),
}

/// Attributes by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs(pub BTreeMap<String, Attr>);

macro_rules! getter {
    ($get:ident, $variant:ident, $ty:ty, $kind:literal) => {
        #[doc = concat!("The attribute `name` if present; an error if it is not ", $kind, ".")]
        pub fn $get(&self, name: &'static str) -> Result<Option<$ty>, OpError> {
            match self.0.get(name) {
                None => Ok(None),
                Some(Attr::$variant(v)) => Ok(Some(v.clone())),
                Some(_) => Err(OpError::Attribute { name, reason: concat!("expected ", $kind).into() }),
            }
        }
    };
}

impl Attrs {
    getter!(int, Int, i64, "an integer");
    getter!(float, Float, f32, "a float");
    getter!(str, Str, String, "a string");
    getter!(ints, Ints, Vec<i64>, "a list of integers");
    getter!(floats, Floats, Vec<f32>, "a list of floats");
    getter!(tensor, Tensor, Tensor, "a tensor");

    /// A list of sizes: non-negative, at most `i32::MAX`.
    pub fn sizes(&self, name: &'static str) -> Result<Option<Vec<usize>>, OpError> {
        let Some(list) = self.ints(name)? else { return Ok(None) };
        let sizes = list.iter().map(|&v| u32::try_from(v).ok().filter(|&v| v <= i32::MAX as u32).map(|v| v as usize));
        sizes.collect::<Option<Vec<_>>>().map(Some).ok_or_else(|| OpError::Attribute {
            name,
            reason: format!("{list:?} has a value that is negative or too large"),
        })
    }

    /// Adds an attribute; for building.
    pub fn with(mut self, name: &str, value: Attr) -> Self {
        self.0.insert(name.into(), value);
        self
    }
}
