//! What channels are like according to BatchNormalizations: each puts out a normal distribution, of mean `β` and deviation `|γ|`.
//!
//! A graph with its BatchNormalizations enters, and then the folded one, whose tensors have the same names; means and deviations by
//! channel leave. No samples are known here.
//!
//! What a function makes of a normal distribution has mean and deviation in closed form; further on it is taken for normal again. Summands
//! are taken for independent. Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019),
//! appendix C, which has the means.

mod normal;

use fewbits_graph::{Graph, Node, Op};
pub use normal::Normal;
use std::collections::BTreeMap;

/// Distributions by channel, by tensor.
pub type Normals = BTreeMap<String, Vec<Normal>>;

/// What the BatchNormalizations of `graph` put out: `β` and `|γ| √(σ² / (σ² + ε))`.
pub fn of_normalizations(graph: &Graph) -> Normals {
    let put_out = |node: &Node| {
        let Op::BatchNormalization(normalization) = &node.op else { return None };
        let constant = |i: usize| graph.constant(node.input(i)?)?.as_f32();
        let epsilon = f64::from(normalization.epsilon);
        let normal = |((gamma, beta), variance): ((&f32, &f32), &f32)| {
            let variance = f64::from(variance.max(0.0));
            let share = if variance > 0.0 { (variance / (variance + epsilon)).sqrt() } else { 0.0 };
            Normal { mean: (*beta).into(), deviation: f64::from(gamma.abs()) * share }
        };
        let channels = constant(1)?.iter().zip(constant(2)?).zip(constant(4)?).map(normal);
        Some((node.output().to_string(), channels.collect()))
    };
    graph.nodes.iter().filter_map(put_out).collect()
}

/// `normals`, and what follows from them for the other tensors of `graph`. Behind anything but Relu, LeakyRelu, Clip, additions,
/// concatenations and global means nothing is known.
pub fn propagate(graph: &Graph, normals: &Normals) -> Normals {
    let mut known = normals.clone();
    for node in &graph.nodes {
        if !known.contains_key(node.output())
            && let Some(found) = through(graph, node, &known)
        {
            known.insert(node.output().into(), found);
        }
    }
    known
}

fn through(graph: &Graph, node: &Node, known: &Normals) -> Option<Vec<Normal>> {
    let data = |i: usize| known.get(node.input(i)?);
    let bound = |i: usize, open: f64| match node.input(i) {
        None => Some(open),
        Some(name) => graph.constant(name)?.scalar_f32().map(f64::from),
    };
    let each = |f: &dyn Fn(&Normal) -> Normal| Some(data(0)?.iter().map(f).collect());
    match &node.op {
        // A mean over positions keeps the mean; that it narrows the distribution matters to nothing behind it.
        Op::Identity(_) | Op::Dropout(_) | Op::Flatten(_) | Op::GlobalAveragePool(_) => data(0).cloned(),
        Op::Relu(_) => each(&|x| x.clipped(0.0, f64::INFINITY)),
        Op::LeakyRelu(leaky) => each(&|x| x.leaky(leaky.alpha.into())),
        Op::Clip(_) => {
            let (low, high) = (bound(1, f64::NEG_INFINITY)?, bound(2, f64::INFINITY)?);
            each(&|x| x.clipped(low, high))
        }
        Op::Add(_) => {
            let (a, b) = (data(0)?, data(1)?);
            (a.len() == b.len()).then(|| a.iter().zip(b).map(|(a, b)| a.plus(b)).collect())
        }
        Op::Concat(concat) if concat.axis == 1 => {
            Some((0..node.inputs.len()).map(data).collect::<Option<Vec<_>>>()?.into_iter().flatten().copied().collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
