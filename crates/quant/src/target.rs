//! What a runtime computes in integers, as data files: which operators, grids and fusions it has.

use crate::error::QuantError;
use fewbits_graph::Grid;
use serde::Deserialize;
use std::{collections::BTreeMap, str::FromStr};

/// Where Q/DQ pairs belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// On the inputs and the output of every integer operator (ONNX Runtime).
    InputsAndOutputs,
    /// On the inputs of layers and on the residual input of additions behind them (TensorRT).
    LayerInputs,
}

/// One runtime.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name on the command line.
    pub name: String,
    /// Name for people.
    pub runtime: String,
    /// Whether activations are int8 rather than uint8.
    pub signed_activations: bool,
    /// Whether activation zero points are 0.
    pub symmetric_activations: bool,
    /// Whether biases stay float.
    pub float_bias: bool,
    /// Where Q/DQ pairs belong.
    pub style: Style,
    /// Operators with weights, for whose sake a network is quantized.
    pub layers: Vec<String>,
    /// Further operators with integer kernels.
    pub integer: Vec<String>,
    /// Operators that run on codes when input and output share one grid.
    pub same_grid: Vec<String>,
    /// Activations that an integer operator computes for free in front of its output grid.
    pub absorbs: BTreeMap<String, Vec<String>>,
    /// Layers that can write floats from integer sums.
    pub float_output: Vec<String>,
    /// Why an operator stays float.
    pub float_reasons: BTreeMap<String, String>,
}

const FILES: &[(&str, &str)] = &[
    ("ort", include_str!("targets/ort.json")),
    ("tensorrt", include_str!("targets/tensorrt.json")),
    ("generic", include_str!("targets/generic.json")),
];

impl FromStr for Target {
    type Err = QuantError;

    fn from_str(name: &str) -> Result<Self, QuantError> {
        let file = FILES.iter().find(|(n, _)| *n == name);
        let (_, text) = file.ok_or_else(|| QuantError::UnknownTarget { name: name.into() })?;
        Ok(serde_json::from_str(text).expect("the files are part of the program, and a test reads each"))
    }
}

impl Target {
    /// The grid of activations of `bits` bits.
    pub fn activation_grid(&self, bits: u8) -> Grid {
        Grid { bits, signed: self.signed_activations, narrow: false }
    }

    /// Whether `op`'s output passes through `activation` inside the integer kernel.
    pub fn absorbs(&self, op: &str, activation: &str) -> bool {
        self.absorbs.get(op).is_some_and(|list| list.iter().any(|name| name == activation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_file_reads_and_names_itself() {
        for (name, _) in FILES {
            assert_eq!(&name.parse::<Target>().expect("a target file of ours").name, name);
        }
        let unknown = "npu".parse::<Target>().unwrap_err();
        let hint = unknown.hint().unwrap();
        assert!(unknown.to_string().contains("npu") && FILES.iter().all(|(name, _)| hint.contains(name)));
    }
}
