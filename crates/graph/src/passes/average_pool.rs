//! Average pools: padding is counted only where there is some, and pools that no integer kernel computes are kept apart from the grid
//! behind them.
//!
//! ONNX Runtime takes the integer kernel wherever a pool stands between a DequantizeLinear and a QuantizeLinear, even one that it
//! then cannot load (dilations). A Max of one operand behind the pool changes nothing and is in the way.

use crate::{
    error::GraphError,
    graph::{Graph, Node},
    op::Op,
    ops::{Max, window::AutoPad},
};

/// Without padding, counting it says nothing to the float operator. To ONNX Runtime's integer kernel it does: of a window that overhangs
/// the image (`ceil_mode`) that counts what is not there.
pub(super) fn count_no_absent_padding(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut changed = 0;
    for node in &mut graph.nodes {
        let Op::AveragePool(pool) = &mut node.op else { continue };
        let padded = match pool.window.auto_pad {
            AutoPad::NotSet => pool.window.pads.iter().any(|&n| n > 0),
            AutoPad::Valid => false,
            AutoPad::SameUpper | AutoPad::SameLower => true,
        };
        if pool.count_include_pad && !padded {
            pool.count_include_pad = false;
            changed += 1;
        }
    }
    Ok(changed)
}

pub(super) fn keep_apart(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut changed = 0;
    for i in 0..graph.nodes.len() {
        let Op::AveragePool(pool) = &graph.nodes[i].op else { continue };
        let output = graph.nodes[i].output().to_string();
        let apart = graph.nodes.iter().any(|n| matches!(n.op, Op::Max(_)) && n.inputs == [output.clone()]);
        if pool.fits_integers() || apart {
            continue;
        }
        let [pooled, name] = ["pooled", "apart"].map(|suffix| graph.fresh_name(&format!("{output}_{suffix}")));
        graph.nodes[i].outputs = vec![pooled.clone()];
        graph.nodes.push(Node { name, op: Max.into(), inputs: vec![pooled], outputs: vec![output] });
        changed += 1;
    }
    Ok(changed)
}
