//! Operators that move codes about (`QuantizeLinear → Flatten → DequantizeLinear`, as in operator-format files) → the same
//! operators on real numbers between a DequantizeLinear and a QuantizeLinear. Exact: both use the parameters of the codes.

use crate::{error::OnnxError, import::first_free};
use fewbits_graph::{Attrs, Graph, Node, Op, op::OutRule};
use std::collections::{HashMap, HashSet};

/// The graph with every operator that moves codes of one scale made float. Pad stays: it also adds elements.
pub(crate) fn float_movement(graph: &Graph) -> Result<Graph, OnnxError> {
    let mut names: HashSet<String> = graph.constants.keys().cloned().collect();
    names.extend(graph.inputs.iter().map(|v| v.name.clone()));
    names.extend(graph.nodes.iter().flat_map(|n| n.outputs.iter().chain([&n.name]).cloned()));
    let mut fresh = |stem: &str| {
        let name = first_free(stem, &names);
        names.insert(name.clone());
        name
    };
    let scalar = |name: &str| graph.constant(name).is_some_and(|scale| scale.len() == 1);
    // Codes → the scale and zero point inputs of the node that made them.
    let mut parameters: HashMap<String, Vec<String>> = HashMap::new();
    let mut nodes = Vec::new();
    for node in &graph.nodes {
        if node.op.name() == "QuantizeLinear" && node.input(1).is_some_and(scalar) {
            parameters.insert(node.output().into(), node.inputs[1..].to_vec());
        }
        let moves = node.op.def().quant_rule().output == OutRule::SameAsInput && node.op.name() != "Pad";
        let Some(operands) = node.input(0).filter(|_| moves).and_then(|codes| parameters.get(codes)).cloned() else {
            nodes.push(node.clone());
            continue;
        };
        let mut float = node.clone();
        let mut real = |codes: &mut String| std::mem::replace(codes, fresh(&format!("{codes}_float")));
        let codes = real(&mut float.inputs[0]);
        // Other outputs than the first are indices and masks, except for Split.
        let moved = if node.op.name() == "Split" { float.outputs.len() } else { 1 };
        let mut back = Vec::new();
        for output in float.outputs[..moved].iter_mut().filter(|name| !name.is_empty()) {
            let codes = real(output);
            back.push((output.clone(), codes.clone()));
            parameters.insert(codes, operands.clone());
        }
        let mut convert = |op_type: &str, input: &str, output: &str| {
            let name = fresh(&format!("{output}_{op_type}"));
            let op = Op::from_attrs(op_type, &Attrs::default()).map_err(|source| OnnxError::Node {
                node: name.clone(),
                op_type: op_type.into(),
                source,
            })?;
            let inputs = [&[input.to_string()], &operands[..]].concat();
            Ok(Node { name, op, inputs, outputs: vec![output.into()] })
        };
        nodes.push(convert("DequantizeLinear", &codes, &float.inputs[0])?);
        nodes.push(float);
        for (real, codes) in back {
            nodes.push(convert("QuantizeLinear", &real, &codes)?);
        }
    }
    Ok(Graph { nodes, ..graph.clone() })
}
