//! Why a node is computed in float, in words.

use super::{Placer, writes_floats};
use fewbits_graph::{Op, passes::is_layer_input_slot};

impl Placer<'_> {
    pub(super) fn why_float(&self, i: usize) -> String {
        let node = &self.graph.nodes[i];
        let op = node.op.name();
        if self.keep_float.contains(&node.name) {
            return "kept float on request".into();
        }
        if is_layer_input_slot(node) {
            return "rounds what layers multiply to fewer bits".into();
        }
        if matches!(node.op, Op::Opaque(_)) {
            return format!("operator {op} is unknown to Fewbits");
        }
        if self.graph.weighs_softmax(i, &self.producers) {
            return "decodes a softmax behind the last layer".into();
        }
        if self.graph.decodes_boxes(i, &self.producers) {
            return "turns boxes, whose coordinates no grid holds, into corners".into();
        }
        if self.target.layers.iter().any(|l| l == op) {
            return "its weight is not a float constant, or it is a Gemm that does more than multiply and add a bias"
                .into();
        }
        if writes_floats(node) && self.target.integer.iter().any(|o| o == op) {
            return format!("no integer kernel computes this form of {op}");
        }
        if let Some(reason) = self.target.float_reasons.get(op) {
            return reason.clone();
        }
        if !self.behind_layer[i] {
            return "before the first layer, or arithmetic on shapes".into();
        }
        if !self.before_layer[i] {
            return "behind the last layer: output decoding keeps its full range in float".into();
        }
        if self.target.integer.iter().any(|o| o == op) {
            return "among operators that are computed in float".into();
        }
        format!("{} has no integer kernel for {op}", self.target.runtime)
    }
}
