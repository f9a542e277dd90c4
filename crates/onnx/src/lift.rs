//! A graph with QuantizeLinear / DequantizeLinear nodes → the float graph, and the grids laid over it.
//!
//! Lifting loses nothing: [`emit_qdq`](crate::emit_qdq) on the result makes the same integers. What cannot be lifted exactly
//! (16-bit types, blocks, scales that are computed, codes that something else reads …) stays in the graph as literal nodes
//! and is listed with the reason.

mod constants;
mod stated;

use crate::{
    codes::{Container, misfit},
    emit::BITS_KEY,
    error::OnnxError,
    guard::without_guards,
    import::captured,
    movement::float_movement,
};
use fewbits_graph::{Granularity, Graph, Grid, Grids, Node, QuantParams, Tensor, TensorQuant, op::OutRule};
use stated::Codes;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// A float graph and the quantization that the file stated.
#[derive(Clone, Debug)]
pub struct Lifted {
    /// The graph without the nodes that were lifted.
    pub graph: Graph,
    /// What they said.
    pub grids: Grids,
    /// QuantizeLinear and DequantizeLinear nodes that are still in the graph.
    pub kept: Vec<Kept>,
}

/// A node that was not lifted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub node: String,
    /// Why.
    pub reason: &'static str,
}

/// Separates quantization from computation.
///
/// An activation's grid is laid over the tensor that QuantizeLinear reads, which then feeds the readers of DequantizeLinear;
/// if DequantizeLinear writes a graph output, the tensor takes the output's name. An integer constant `W_quantized` becomes
/// the float constant `W`; other names stay. A 32-bit bias whose scale is `f32(s_x · s_w)` becomes [`TensorQuant::BiasOf`],
/// any other one a plain float constant.
///
/// # Errors
/// [`OnnxError::Graph`] if the graph is not well formed.
pub fn lift(graph: &Graph) -> Result<Lifted, OnnxError> {
    let graph = without_guards(float_movement(graph)?);
    let mut lifter = Lifter::new(&graph);
    lifter.activations();
    lifter.weights();
    lifter.biases();
    lifter.finish()
}

/// What a grid was meant for.
struct Meant<'a> {
    /// The tensor.
    source: &'a str,
    grid: Grid,
    /// Positions of nodes that only serve the grid.
    removed: Vec<usize>,
    /// A tensor, and what its reader reads when those nodes are gone.
    bypass: Option<(&'a str, &'a str)>,
}

struct Lifter<'a> {
    graph: &'a Graph,
    producers: HashMap<&'a str, usize>,
    consumers: HashMap<&'a str, Vec<usize>>,
    /// Tensors that sub-graphs read by name.
    captured: HashSet<&'a str>,
    bits: BTreeMap<String, u8>,
    /// Positions of nodes that are lifted.
    lifted: BTreeSet<usize>,
    /// Tensor as the file calls it → tensor of the float graph.
    renamed: HashMap<String, String>,
    constants: BTreeMap<String, Arc<Tensor>>,
    grids: Grids,
    reasons: HashMap<usize, &'static str>,
}

impl<'a> Lifter<'a> {
    fn new(graph: &'a Graph) -> Self {
        let bits = graph.metadata.get(BITS_KEY).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Lifter {
            graph,
            producers: graph.producers(),
            consumers: graph.consumers(),
            captured: graph.nodes.iter().flat_map(captured).map(String::as_str).collect(),
            bits,
            lifted: BTreeSet::new(),
            renamed: HashMap::new(),
            constants: BTreeMap::new(),
            grids: Grids::default(),
            reasons: HashMap::new(),
        }
    }

    /// Nodes of type `op_type`, by position.
    fn nodes_of(&self, op_type: &'static str) -> impl Iterator<Item = (usize, &'a Node)> + use<'a> {
        self.graph.nodes.iter().enumerate().filter(move |(_, node)| node.op.name() == op_type)
    }

    fn readers(&self, tensor: &str) -> &[usize] {
        self.consumers.get(tensor).map_or(&[], Vec::as_slice)
    }

    fn activations(&mut self) {
        let mut seen = HashSet::new();
        // The last first: of two pairs of one low-bit grid, the second one knows what belongs to it.
        let quantizers: Vec<_> = self.nodes_of("QuantizeLinear").collect();
        for (i, node) in quantizers.into_iter().rev() {
            if self.lifted.contains(&i) {
                continue;
            }
            let Some(tensor) = node.input(0).filter(|t| seen.insert(*t)) else { continue };
            if let Err(reason) = self.activation(tensor) {
                let readers = self.readers(tensor).to_vec();
                self.reasons.extend(readers.into_iter().map(|i| (i, reason)));
            }
        }
    }

    /// Lifts every Q/DQ pair behind `tensor`.
    fn activation(&mut self, tensor: &'a str) -> Result<(), &'static str> {
        let graph = self.graph;
        let quantizers = self.readers(tensor).to_vec();
        let first = *quantizers.first().ok_or("nothing reads it")?;
        let reads_first = |i: usize, name: &str, op_type: &str| {
            let node = &graph.nodes[i];
            node.op.name() == op_type && node.inputs.iter().position(|s| s == name) == Some(0)
        };
        if graph.is_output(tensor) || !quantizers.iter().all(|&i| reads_first(i, tensor, "QuantizeLinear")) {
            return Err("the tensor is also read unquantized");
        }
        let codes = Codes::read(graph, &graph.nodes[first])?;
        let mut pair = Vec::new();
        let mut results: Vec<&str> = Vec::new();
        for &q in &quantizers {
            let quantized = graph.nodes[q].output();
            let dequantizers = self.readers(quantized);
            if graph.is_output(quantized) || dequantizers.is_empty() {
                return Err("nothing dequantizes the codes");
            }
            if !dequantizers.iter().all(|&i| reads_first(i, quantized, "DequantizeLinear")) {
                return Err("something else than DequantizeLinear reads the codes");
            }
            for &i in [&q].into_iter().chain(dequantizers) {
                if Codes::read(graph, &graph.nodes[i])? != codes {
                    return Err("QuantizeLinear and DequantizeLinear have different parameters");
                }
                pair.push(i);
            }
            results.extend(dequantizers.iter().map(|&i| graph.nodes[i].output()));
        }
        if results.iter().any(|r| self.captured.contains(r)) {
            return Err("a sub-graph reads the result");
        }
        let outputs: Vec<&str> = results.iter().copied().filter(|r| graph.is_output(r)).collect();
        let Meant { source, grid, removed, bypass } = self.without_clip(tensor, outputs.first().copied(), &codes)?;
        let rank = graph.constant(tensor).map(|t| t.dims.len());
        let params = codes.params(grid, rank).ok_or("the axis is counted from the end")?;
        if misfit(&params, graph.constant(tensor).map(|t| &t.dims[..])).is_some() {
            return Err("the parameters do not fit the tensor");
        }
        let name = match outputs[..] {
            [] => source,
            [output] if self.producers.contains_key(source) => output,
            _ => return Err("it connects a graph input and outputs"),
        };
        if name != source {
            self.renamed.insert(source.into(), name.into());
        }
        self.renamed.extend(results.iter().filter(|r| **r != name).map(|r| (r.to_string(), name.to_string())));
        self.renamed.extend(bypass.map(|(rounded, before)| (rounded.into(), before.into())));
        self.lifted.extend(pair.into_iter().chain(removed));
        self.grids.0.insert(name.into(), TensorQuant::Quantized(params));
        Ok(())
    }

    /// The tensor and grid that were meant, if `tensor` was clipped to fewer codes than its type has; also the Clip, and the Q/DQ
    /// pair before it (or before a Relu or Clip of the network).
    fn without_clip(&self, tensor: &'a str, output: Option<&str>, codes: &Codes) -> Result<Meant<'a>, &'static str> {
        let container = Container::of(codes.dtype).ok_or("16-bit or other wide codes")?;
        let plain = Meant { source: tensor, grid: container.grid(), removed: vec![], bypass: None };
        let graph = self.graph;
        let Some(&at) = self.producers.get(tensor).filter(|&&i| graph.nodes[i].op.name() == "Clip") else {
            return Ok(plain);
        };
        let clip = &graph.nodes[at];
        let Some(clipped) = clip.input(0).filter(|s| self.readers(s).len() == 1 && !graph.is_output(s)) else {
            return Ok(plain);
        };
        let direct = self.unrounded(clipped, codes);
        let source = direct.map_or(clipped, |(source, _)| source);
        let bound = |i| clip.input(i).and_then(|name| graph.constant(name)).and_then(|t| t.scalar_f32());
        let (Some(bits), Some(low), Some(high)) = (self.bits.get(output.unwrap_or(source)), bound(1), bound(2)) else {
            return Ok(plain);
        };
        let meant = [false, true].into_iter().map(|narrow| Grid { bits: *bits, narrow, ..container.grid() });
        let fits = |grid: &Grid| {
            let params = codes.params(*grid, None).filter(|p| misfit(p, None).is_none());
            params.filter(|p| p.tensor_params().is_some()).is_some_and(|p| p.range(0) == (low, high))
        };
        let Some(grid) = meant.into_iter().find(fits) else { return Ok(plain) };
        let mut removed = vec![at];
        removed.extend(direct.iter().flat_map(|(_, pair)| pair));
        let activation =
            self.producers.get(source).map(|&i| &graph.nodes[i]).filter(|n| matches!(n.op.name(), "Relu" | "Clip"));
        let rounded = activation.and_then(|n| n.input(0));
        let behind = rounded.and_then(|rounded| Some((rounded, self.unrounded(rounded, codes)?)));
        removed.extend(behind.iter().flat_map(|(_, (_, pair))| pair));
        Ok(Meant { source, grid, removed, bypass: behind.map(|(rounded, (before, _))| (rounded, before)) })
    }

    /// The tensor behind which a Q/DQ pair of the grid `codes` computes `name`, and the pair; all of them have one reader.
    fn unrounded(&self, name: &'a str, codes: &Codes) -> Option<(&'a str, [usize; 2])> {
        let graph = self.graph;
        let step = |name: &str, op_type: &str| {
            let alone = self.readers(name).len() == 1 && !graph.is_output(name);
            let i = *self.producers.get(name).filter(|_| alone)?;
            let node = &graph.nodes[i];
            let same = node.op.name() == op_type && Codes::read(graph, node).is_ok_and(|found| found == *codes);
            Some((i, node.input(0)?)).filter(|_| same)
        };
        let (dequantizer, quantized) = step(name, "DequantizeLinear")?;
        let (quantizer, source) = step(quantized, "QuantizeLinear")?;
        let computed =
            self.producers.contains_key(source) && self.readers(source).len() == 1 && !graph.is_output(source);
        computed.then_some((source, [quantizer, dequantizer]))
    }

    /// What the float graph calls a tensor of the file.
    fn float_side(&self, name: &str) -> String {
        let mut name = name;
        while let Some(next) = self.renamed.get(name) {
            name = next;
        }
        name.into()
    }

    fn finish(self) -> Result<Lifted, OnnxError> {
        let mut graph = self.graph.clone();
        let mut kept = Vec::new();
        let mut nodes = Vec::new();
        for (i, mut node) in std::mem::take(&mut graph.nodes).into_iter().enumerate() {
            if self.lifted.contains(&i) {
                continue;
            }
            let direct = node.inputs.len() - captured(&node).len();
            for name in node.inputs[..direct].iter_mut().chain(&mut node.outputs) {
                *name = self.float_side(name);
            }
            if matches!(node.op.name(), "QuantizeLinear" | "DequantizeLinear") {
                let reason = self.reasons.get(&i).copied().unwrap_or("it has no partner");
                kept.push(Kept { node: node.name.clone(), reason });
            }
            nodes.push(node);
        }
        graph.nodes = nodes;
        graph.constants.extend(self.constants);
        graph.metadata.remove(BITS_KEY);
        graph.sort().map_err(OnnxError::graph)?;
        graph.prune();
        let mut grids = self.grids;
        share_grids(&graph, &mut grids);
        Ok(Lifted { graph, grids, kept })
    }
}

/// Operators that only move elements: an output with the parameters of its input shares them.
fn share_grids(graph: &Graph, grids: &mut Grids) {
    for node in graph.nodes.iter().filter(|n| n.op.def().quant_rule().output == OutRule::SameAsInput) {
        let Some(input) = node.input(0).filter(|name| graph.constant(name).is_none()) else { continue };
        let Some(params) = grids.params(input).filter(|p| p.granularity == Granularity::Tensor).cloned() else {
            continue;
        };
        for output in node.outputs.iter().filter(|o| o.as_str() != input) {
            // Behind moved codes, a grid of the same steps holds no others.
            let same = |found: &QuantParams| {
                let Grid { bits, narrow, .. } = params.grid;
                let confined = QuantParams { grid: Grid { bits, narrow, ..found.grid }, ..found.clone() };
                found == &params || (found.grid.bits == 8 && confined == params)
            };
            if grids.params(output).is_some_and(same) {
                grids.0.insert(output.clone(), TensorQuant::SameAs(input.into()));
            }
        }
    }
}
