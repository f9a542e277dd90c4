//! Which channels can only be scaled together: a graph enters, groups of layers and tensors leave.

use fewbits_graph::{Graph, Node, Op};
use std::collections::{BTreeMap, BTreeSet};

/// Tensors whose channels can only be scaled together: what one layer writes, what Relu, pooling and residual additions make of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Positions of the layers that write into it.
    pub writers: Vec<usize>,
    /// Positions of the layers that read from it.
    pub readers: Vec<usize>,
    /// What they read.
    pub tensors: BTreeSet<String>,
    /// What a Clip makes, read by layers or by pooling in front of them, each with its upper bound.
    pub ceilings: BTreeMap<String, f32>,
    /// What LeakyRelu and PRelu read, each with the largest slope of negative elements.
    pub leaking: BTreeMap<String, f32>,
}

impl Group {
    /// Tensors of which statistics by channel are needed.
    pub fn observed(&self) -> impl Iterator<Item = &String> {
        self.tensors.iter().chain(self.ceilings.keys()).chain(self.leaking.keys())
    }
}

/// Whether `f(s·x) = s·f(x)` for positive `s` per channel, of all inputs together, below the ceiling if there is one.
fn scales_through(graph: &Graph, node: &Node) -> bool {
    let flattens = matches!(&node.op, Op::Flatten(flatten) if flatten.axis == 1);
    matches!(node.op, Op::Identity(_) | Op::Relu(_) | Op::Add(_) | Op::Resize(_))
        || matches!(node.op, Op::MaxPool(_) | Op::AveragePool(_) | Op::GlobalMaxPool(_) | Op::GlobalAveragePool(_))
        || flattens
        || slope(graph, node).is_some()
        || ceiling(graph, node).is_some()
}

/// The upper bound of a Clip whose lower one is zero.
fn ceiling(graph: &Graph, node: &Node) -> Option<f32> {
    let bound = |i: usize| graph.constant(node.input(i)?)?.scalar_f32();
    let most = bound(2).filter(|most| *most > 0.0 && most.is_finite());
    most.filter(|_| matches!(node.op, Op::Clip(_)) && bound(1) == Some(0.0))
}

/// What LeakyRelu multiplies negative elements by; of PRelu the largest.
fn slope(graph: &Graph, node: &Node) -> Option<f32> {
    match &node.op {
        Op::LeakyRelu(leaky) => Some(leaky.alpha.abs()),
        Op::PRelu(_) => {
            let slopes = graph.constant(node.input(1)?)?.as_f32()?;
            Some(slopes.iter().fold(0.0, |most, slope| slope.abs().max(most)))
        }
        _ => None,
    }
}

/// The groups that only layers write to and read from, in graph order.
pub fn groups(graph: &Graph) -> Vec<Group> {
    let consumers = graph.consumers();
    let own = |name: Option<&str>| name.is_none_or(|n| graph.constant(n).is_some() && consumers[n].len() == 1);
    let is_layer = |i: usize| {
        let node = &graph.nodes[i];
        let weights = node.input(1).is_some() && own(node.input(1)) && own(node.input(2));
        weights && Axes::of(graph, i).is_some()
    };
    // Each tensor points to another of its group; the last one stands for all.
    let mut link: BTreeMap<&str, &str> = BTreeMap::new();
    fn root<'g>(link: &BTreeMap<&'g str, &'g str>, mut name: &'g str) -> &'g str {
        while let Some(next) = link.get(name) {
            name = next;
        }
        name
    }
    for node in graph.nodes.iter().filter(|n| scales_through(graph, n)) {
        let data = if let Op::Add(_) = node.op { node.inputs.len() } else { 1 };
        for input in &node.inputs[..data] {
            let (from, to) = (root(&link, input), root(&link, node.output()));
            if from != to {
                link.insert(from, to);
            }
        }
    }
    let mut found: BTreeMap<&str, Group> = BTreeMap::new();
    let mut closed: BTreeSet<&str> = BTreeSet::new();
    let outside = graph.inputs.iter().chain(&graph.outputs).map(|v| v.name.as_str());
    closed.extend(outside.chain(graph.constants.keys().map(String::as_str)).map(|name| root(&link, name)));
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some(ceiling) = ceiling(graph, node) {
            let group = found.entry(root(&link, node.output())).or_default();
            group.ceilings.insert(node.output().into(), ceiling);
        }
        if let Some(slope) = slope(graph, node) {
            let group = found.entry(root(&link, node.output())).or_default();
            group.leaking.insert(node.inputs[0].clone(), slope);
        }
        if scales_through(graph, node) {
            continue;
        }
        if is_layer(i) {
            let read = found.entry(root(&link, &node.inputs[0])).or_default();
            read.readers.push(i);
            read.tensors.insert(node.inputs[0].clone());
            found.entry(root(&link, node.output())).or_default().writers.push(i);
        } else {
            let touched = node.present_inputs().chain(node.outputs.iter().map(String::as_str));
            closed.extend(touched.map(|name| root(&link, name)));
        }
    }
    let open = |(name, group): (&str, Group)| {
        let usable = !closed.contains(name) && !group.writers.is_empty() && !group.readers.is_empty();
        usable.then_some(group)
    };
    let mut groups: Vec<Group> = found.into_iter().filter_map(open).collect();
    groups.sort_by_key(|g| g.readers[0]);
    groups
}

/// Where the weight of a layer has its channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axes {
    /// Those that it writes.
    pub(super) written: usize,
    /// Those that it reads.
    pub(super) read: usize,
    /// Whether these are the same.
    pub(super) depthwise: bool,
}

impl Axes {
    /// Of a dense or depthwise convolution or a product with a matrix; other layers are not handled.
    pub(super) fn of(graph: &Graph, layer: usize) -> Option<Axes> {
        let node = &graph.nodes[layer];
        let dims = &graph.constant(node.input(1)?)?.dims;
        match &node.op {
            Op::Conv(conv) if conv.group == 1 => Some(Axes { written: 0, read: 1, depthwise: false }),
            Op::Conv(conv) if conv.group == dims[0] && dims[1] == 1 => {
                Some(Axes { written: 0, read: 0, depthwise: true })
            }
            Op::Gemm(gemm) if !gemm.trans_a => {
                let written = usize::from(!gemm.trans_b);
                Some(Axes { written, read: 1 - written, depthwise: false })
            }
            _ => None,
        }
    }
}

/// How many channels the writers of `group` agree on.
pub(super) fn channels_of(graph: &Graph, group: &Group) -> Option<usize> {
    let of = |&writer: &usize| {
        let weight = graph.constant(graph.nodes[writer].input(1)?)?;
        weight.dims.get(Axes::of(graph, writer)?.written).copied()
    };
    group.writers.iter().map(of).reduce(|a, b| if a == b { a } else { None })?
}
