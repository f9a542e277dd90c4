//! A graph with QuantizeLinear / DequantizeLinear nodes → the float graph, and the grids laid over it.
//!
//! Lifting loses nothing: [`emit_qdq`](crate::emit_qdq) on the result makes the same integers. What cannot be lifted exactly
//! (16-bit types, blocks, scales that are computed, codes that something else reads …) stays in the graph as literal nodes
//! and is listed with the reason.

use crate::{
    codes::{Container, dequantize, misfit, quantize, unpack},
    emit::BITS_KEY,
    error::OnnxError,
    import::{captured, first_free},
    movement::float_movement,
};
use fewbits_graph::{
    Attr, DType, Granularity, Graph, Grid, Grids, Node, QuantParams, Tensor, TensorQuant, op::OutRule,
};
use fewbits_kernels::int::quantize::quantize_bias;
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
    let graph = float_movement(graph)?;
    let mut lifter = Lifter::new(&graph);
    lifter.activations();
    lifter.weights();
    lifter.biases();
    lifter.finish()
}

/// Scale, zero point and code type of a QuantizeLinear or DequantizeLinear node.
#[derive(Clone, PartialEq)]
struct Codes {
    scale: Vec<f32>,
    zero_point: Vec<i32>,
    axis: Option<i64>,
    dtype: DType,
}

impl Codes {
    /// The constants of node `node`, or why they cannot be lifted.
    fn read(graph: &Graph, node: &Node) -> Result<Self, &'static str> {
        for (name, value) in &node.op.def().attrs().0 {
            match (name.as_str(), value) {
                ("axis" | "saturate", _) | ("block_size" | "output_dtype" | "precision", Attr::Int(0)) => {}
                ("block_size", _) => return Err("scales for blocks"),
                _ => return Err("a type stated by an attribute"),
            }
        }
        let constant = |i| node.input(i).and_then(|name| graph.constant(name));
        let scale = constant(1).ok_or("the scale is computed")?;
        let values = scale.as_f32().ok_or("the scale is not float32")?.to_vec();
        if values.is_empty() || !values.iter().all(|s| *s > 0.0 && s.is_finite()) {
            return Err("a scale is not a positive number");
        }
        let (zero_point, mut dtype) = match (node.input(2), constant(2)) {
            (None, _) => (vec![0; values.len()], DType::U8),
            (_, Some(zero)) => {
                let codes = unpack(zero).filter(|z| z.len() == values.len());
                (codes.ok_or("16-bit or other wide codes")?, zero.dtype())
            }
            _ => return Err("the zero point is computed"),
        };
        if let (None, Some(codes)) = (node.input(2), constant(0).filter(|_| node.op.name() == "DequantizeLinear")) {
            dtype = codes.dtype(); // without a zero point the type is that of the codes
        }
        let axis = match node.op.def().attrs().0.get("axis") {
            Some(Attr::Int(axis)) => *axis,
            _ => 1,
        };
        match scale.dims.len() {
            0 => Ok(Codes { scale: values, zero_point, axis: None, dtype }),
            1 => Ok(Codes { axis: (values.len() > 1).then_some(axis), scale: values, zero_point, dtype }),
            _ => Err("scales for blocks"),
        }
    }

    /// As parameters of a tensor; `rank` turns a negative axis into a position.
    fn params(&self, grid: Grid, rank: Option<usize>) -> Option<QuantParams> {
        let granularity = match self.axis {
            None => Granularity::Tensor,
            Some(axis) => {
                let axis = if axis < 0 { axis + rank? as i64 } else { axis };
                Granularity::Channel { axis: usize::try_from(axis).ok()? }
            }
        };
        Some(QuantParams { grid, granularity, scale: self.scale.clone(), zero_point: self.zero_point.clone() })
    }
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

    /// DequantizeLinear nodes of constants that are not lifted yet.
    fn constant_dequantizers(&self) -> Vec<(usize, &'a Node, &'a str, &'a Tensor)> {
        let constant = |(i, node): (usize, &'a Node)| {
            let name = node.input(0)?;
            Some((i, node, name, self.graph.constants.get(name)?.as_ref()))
        };
        let nodes = self.nodes_of("DequantizeLinear").filter_map(constant);
        nodes.filter(|(i, ..)| !self.lifted.contains(i)).collect()
    }

    fn weights(&mut self) {
        let mut groups: Vec<(&str, Codes, String)> = Vec::new();
        for (i, node, name, value) in self.constant_dequantizers() {
            let lifted = Codes::read(self.graph, node).and_then(|codes| {
                if codes.dtype == DType::I32 {
                    return Ok(());
                }
                self.check_result(node)?;
                if codes.dtype != value.dtype() {
                    return Err("codes and zero point differ in type");
                }
                let known = groups.iter().find(|(n, c, _)| *n == name && *c == codes).map(|g| g.2.clone());
                let target = known.map_or_else(|| self.weight(name, value, &codes), Ok)?;
                self.renamed.insert(node.output().into(), target.clone());
                self.lifted.insert(i);
                groups.push((name, codes, target));
                Ok(())
            });
            if let Err(reason) = lifted {
                self.reasons.insert(i, reason);
            }
        }
    }

    /// Makes the float constant of integer codes and lays its grid over it.
    fn weight(&mut self, name: &str, value: &Tensor, codes: &Codes) -> Result<String, &'static str> {
        let container = Container::of(codes.dtype).ok_or("16-bit or other wide codes")?;
        let integers = unpack(value).ok_or("the codes are damaged")?;
        let target = self.float_name(name);
        let lowest = integers.iter().copied().min().unwrap_or(0);
        let grid = |bits: u8| {
            let grid = Grid { bits, ..container.grid() };
            Grid { narrow: grid.signed && lowest > grid.qmin(), ..grid }
        };
        let holds = |bits: &u8| integers.iter().all(|q| (grid(*bits).qmin()..=grid(*bits).qmax()).contains(q));
        let bits =
            self.bits.get(&target).copied().filter(|b| (2..=8).contains(b)).filter(holds).unwrap_or(container.bits);
        let params = codes.params(grid(bits), Some(value.dims.len())).ok_or("the axis is out of range")?;
        if misfit(&params, Some(&value.dims)).is_some() {
            return Err("the parameters do not fit the tensor");
        }
        let floats = dequantize(&integers, &value.dims, &params);
        if quantize(&floats, &value.dims, &params) != integers {
            return Err("float32 cannot hold the values");
        }
        self.constants.insert(target.clone(), Arc::new(Tensor::f32(&value.dims, floats)));
        self.grids.0.insert(target.clone(), TensorQuant::Quantized(params));
        Ok(target)
    }

    fn biases(&mut self) {
        for (i, node, name, value) in self.constant_dequantizers() {
            let Some(integers) = value.as_i32() else { continue };
            let lifted = Codes::read(self.graph, node).and_then(|codes| {
                self.check_result(node)?;
                self.bias(node, name, value, integers, &codes)
            });
            match lifted {
                Ok(()) => drop(self.lifted.insert(i)),
                Err(reason) => drop(self.reasons.insert(i, reason)),
            }
        }
    }

    fn bias(&mut self, node: &Node, name: &str, value: &Tensor, q: &[i32], codes: &Codes) -> Result<(), &'static str> {
        let full = Grid { bits: 32, signed: true, narrow: false };
        let params = codes.params(full, Some(value.dims.len())).ok_or("the axis is out of range")?;
        let groups = codes.scale.len();
        let inner: usize = match params.granularity {
            Granularity::Channel { axis } if value.dims.get(axis) == Some(&groups) => {
                value.dims[axis + 1..].iter().product()
            }
            Granularity::Channel { .. } => return Err("the parameters do not fit the tensor"),
            _ => value.len().max(1),
        };
        let group = |i: usize| i / inner % groups;
        let real = |(i, &q): (usize, &i32)| q.wrapping_sub(codes.zero_point[group(i)]) as f32 * codes.scale[group(i)];
        let floats: Vec<f32> = q.iter().enumerate().map(real).collect();
        let state = self.bias_state(node, codes);
        if let Some((TensorQuant::BiasOf { input, weight }, _)) = &state {
            let (input_scale, weights) = (self.grids.params(input), self.grids.params(weight));
            let input_scale = input_scale.and_then(QuantParams::tensor_params).map(|(s, _)| s);
            let again = input_scale.zip(weights).map(|(s, w)| quantize_bias(&floats, s, &w.scale));
            if again.as_deref() != Some(q) {
                return Err("float32 cannot hold the bias codes");
            }
        }
        let target = self.float_name(name);
        self.renamed.insert(node.output().into(), target.clone());
        self.constants.insert(target.clone(), Arc::new(Tensor::f32(&value.dims, floats)));
        if let Some((state, _)) = state {
            self.grids.0.insert(target, state);
        }
        Ok(())
    }

    /// The bias state that all readers of `node` agree on: scales are the products of their input's and weight's.
    fn bias_state(&self, node: &Node, codes: &Codes) -> Option<(TensorQuant, Vec<f32>)> {
        let mut states = self.readers(node.output()).iter().map(|&i| {
            let reader = &self.graph.nodes[i];
            let is_bias = matches!(reader.op.name(), "Conv" | "ConvTranspose" | "Gemm")
                && reader.inputs.iter().position(|s| s == node.output()) == Some(2);
            let (input, weight) = (self.float_side(reader.input(0)?), self.float_side(reader.input(1)?));
            let (input_scale, _) = self.grids.params(&input)?.tensor_params()?;
            let products: Vec<f32> = self.grids.params(&weight)?.scale.iter().map(|s| input_scale * s).collect();
            (is_bias && products == codes.scale && codes.zero_point.iter().all(|&z| z == 0))
                .then_some((TensorQuant::BiasOf { input, weight }, products))
        });
        let first = states.next()??;
        states.all(|other| other.is_some_and(|o| o.1 == first.1)).then_some(first)
    }

    fn check_result(&self, node: &Node) -> Result<(), &'static str> {
        let result = node.output();
        match self.graph.is_output(result) || self.captured.contains(result) {
            true => Err("the constant is a graph output or read by a sub-graph"),
            false => Ok(()),
        }
    }

    /// What the float graph calls a tensor of the file.
    fn float_side(&self, name: &str) -> String {
        let mut name = name;
        while let Some(next) = self.renamed.get(name) {
            name = next;
        }
        name.into()
    }

    /// The name of the float constant for the codes called `name`.
    fn float_name(&self, name: &str) -> String {
        let graph = self.graph;
        // Only a constant that nothing reads as integers any more may change its type under the same name.
        let codes = |i: &usize| -> Option<Codes> {
            let node = &graph.nodes[*i];
            let dequantizes = node.op.name() == "DequantizeLinear" && self.check_result(node).is_ok();
            dequantizes.then(|| Codes::read(graph, node).ok()).flatten()
        };
        let all_lifted = || {
            let readers = self.readers(name);
            let first = readers.first().and_then(codes);
            let alike = first.is_some() && readers.iter().all(|i| codes(i) == first);
            readers.len() == 1 || (alike && first.is_some_and(|c| c.dtype != DType::I32))
        };
        let mut taken: HashSet<String> = graph.constants.keys().chain(self.constants.keys()).cloned().collect();
        taken.extend(graph.inputs.iter().map(|v| v.name.clone()));
        taken.extend(graph.nodes.iter().flat_map(|n| n.outputs.iter().cloned()));
        taken.extend(self.renamed.values().cloned());
        match name.strip_suffix("_quantized").filter(|stem| !stem.is_empty()) {
            Some(stem) => first_free(stem, &taken),
            None if all_lifted() && !self.constants.contains_key(name) => name.into(),
            None => first_free(&format!("{name}_float"), &taken),
        }
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
