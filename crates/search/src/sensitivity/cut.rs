//! The pieces into which a network is cut around one layer.

use fewbits_graph::{DType, Graph, Node, Op, Tensor, ValueInfo, ops};
use fewbits_methods::{Ground, Layer, walk::Block};
use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
};

/// Names say what leads from one piece to the next; what is the same at every width is in the first.
#[derive(Debug)]
pub(super) struct Cut {
    /// From the inputs of the block to the tensors, made before the layer, that the other pieces read.
    pub prefix: Graph,
    /// The layer and what is behind it in the block, to the tensors that others read.
    pub variant: Graph,
    /// What is behind the block, if that is looked at.
    pub rest: Option<Graph>,
    /// The name under which the layer of `variant`, and it alone, reads its input: what is done to it concerns no other reader.
    pub input: String,
    /// The same for its weight.
    pub weight: String,
}

impl Cut {
    /// Around `layer` of `block`, which has the nodes `span`; with what is behind the block if `to_outputs`.
    pub fn new(ground: &Ground<'_>, block: &Block, span: &Range<usize>, layer: &Layer, to_outputs: bool) -> Self {
        let graph = ground.float;
        let producers = graph.producers();
        let made_in = |name: &str, nodes: &Range<usize>| producers.get(name).is_some_and(|node| nodes.contains(node));
        let behind = layer.node..span.end;
        let outputs = block.outputs.iter().map(String::as_str).filter(|name| made_in(name, &behind));
        let mut variant = piece(ground, behind.clone(), outputs);
        let rest = to_outputs.then(|| {
            let nodes = span.end..graph.nodes.len();
            let outputs = graph.outputs.iter().map(|info| info.name.as_str()).filter(|name| made_in(name, &nodes));
            piece(ground, nodes.clone(), outputs)
        });
        let before = span.start..layer.node;
        let read = variant.inputs.iter().chain(rest.iter().flat_map(|rest| &rest.inputs));
        let wanted: BTreeSet<&str> = read.map(|info| info.name.as_str()).collect();
        let mut prefix = piece(ground, before.clone(), wanted.into_iter().filter(|name| made_in(name, &before)));
        // It is given all inputs of the block, whether it reads them or not.
        prefix.inputs = block.inputs.iter().map(|name| info(ground, name)).collect();
        let (input, weight) = (graph.fresh_name(&layer.input), graph.fresh_name(&layer.weight));
        if let Some(node) = variant.nodes.iter_mut().find(|node| node.output() == layer.output) {
            node.inputs[0].clone_from(&input);
            node.inputs[1].clone_from(&weight);
            variant.inputs.push(ValueInfo { name: input.clone(), ..info(ground, &layer.input) });
        }
        Cut { prefix, variant, rest: rest.filter(|rest| !rest.outputs.is_empty()), input, weight }
    }
}

/// From the inputs of the block to the output of `layer`, and to that of a copy of it with each of `weights`. Also the name of the tensor
/// that the copies read, a copy of the layer's input.
pub(super) fn fan(
    ground: &Ground<'_>,
    block: &Block,
    span: &Range<usize>,
    layer: &Layer,
    weights: Vec<Arc<Tensor>>,
) -> (Graph, String) {
    let graph = ground.float;
    let mut fan = piece(ground, span.start..layer.node + 1, [layer.output.as_str()]);
    fan.inputs = block.inputs.iter().map(|name| info(ground, name)).collect();
    let input = graph.fresh_name(&layer.input);
    let op = Op::Identity(ops::Identity);
    fan.nodes.push(Node { name: input.clone(), op, inputs: vec![layer.input.clone()], outputs: vec![input.clone()] });
    for tensor in weights {
        let (weight, output) = (fan.fresh_name(&layer.weight), fan.fresh_name(&layer.output));
        let mut copy = graph.nodes[layer.node].clone();
        copy.name.clone_from(&output);
        copy.inputs[0].clone_from(&input);
        copy.inputs[1].clone_from(&weight);
        copy.outputs[0].clone_from(&output);
        fan.constants.insert(weight, tensor);
        fan.nodes.push(copy);
        fan.outputs.push(ValueInfo { name: output, ..info(ground, &layer.output) });
    }
    (fan, input)
}

/// The nodes `nodes` of the network, as far as `outputs` need them, as a graph of its own.
pub(crate) fn piece<'n>(ground: &Ground<'_>, nodes: Range<usize>, outputs: impl IntoIterator<Item = &'n str>) -> Graph {
    let graph = ground.float;
    let mut piece = Graph {
        name: graph.name.clone(),
        nodes: graph.nodes[nodes].to_vec(),
        inputs: vec![],
        outputs: outputs.into_iter().map(|name| info(ground, name)).collect(),
        constants: graph.constants.clone(),
        opset: graph.opset,
        domains: graph.domains.clone(),
        metadata: Default::default(),
    };
    piece.prune();
    let made: BTreeSet<&str> = piece.nodes.iter().flat_map(|node| node.outputs.iter().map(String::as_str)).collect();
    let read: BTreeSet<&str> = piece.nodes.iter().flat_map(|node| node.present_inputs()).collect();
    let given = read.into_iter().filter(|name| !made.contains(name) && graph.constant(name).is_none());
    piece.inputs = given.map(|name| info(ground, name)).collect();
    piece
}

/// The activation `name`.
pub(crate) fn info(ground: &Ground<'_>, name: &str) -> ValueInfo {
    let dtype = ground.facts.get(name).map_or(DType::F32, |fact| fact.dtype);
    ValueInfo { name: name.into(), dtype, dims: None }
}

/// The nodes of each block.
pub(crate) fn spans(graph: &Graph, blocks: &[Block]) -> Vec<Range<usize>> {
    let producers = graph.producers();
    let mut begin = 0;
    let span = |(i, block): (usize, &Block)| {
        let last = block.outputs.iter().filter_map(|name| producers.get(name.as_str())).max();
        let end = if i + 1 == blocks.len() { graph.nodes.len() } else { last.map_or(begin, |last| last + 1) };
        std::mem::replace(&mut begin, end)..end
    };
    blocks.iter().enumerate().map(span).collect()
}

/// Tensors that lead past a block which does not read them.
pub(super) fn passing(graph: &Graph, blocks: &[Block], spans: &[Range<usize>]) -> BTreeSet<String> {
    let producers: HashMap<&str, usize> = graph.producers();
    let mut passing = BTreeSet::new();
    for (block, span) in blocks.iter().zip(spans) {
        let read = graph.nodes[span.end..].iter().flat_map(|node| node.present_inputs());
        let is_older = |name: &&str| match producers.get(name) {
            Some(&node) => node < span.start,
            None => graph.constant(name).is_none(),
        };
        let past = read.filter(is_older).filter(|name| !block.inputs.iter().any(|input| input == name));
        passing.extend(past.map(String::from));
    }
    passing
}
