//! The float graph: nodes in topological order over named tensors. It never contains quantization.
//!
//! Tensor names are the keys of everything laid over a graph (plans, statistics, patches), so passes keep them.

use crate::{
    error::GraphError,
    op::Op,
    tensor::{DType, Tensor},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

/// One dimension of a graph input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Known.
    Fixed(usize),
    /// Chosen at run time; the name may be empty.
    Symbol(String),
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Symbol(s) if s.is_empty() => f.write_str("?"),
            Dim::Symbol(s) => f.write_str(s),
        }
    }
}

/// A graph input or output: name, type, dimensions (`None` when the file does not say).
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Declared dimensions.
    pub dims: Option<Vec<Dim>>,
}

/// One operator application. An empty input name stands for an absent optional input, as in ONNX.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Unique name.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Names of the tensors read.
    pub inputs: Vec<String>,
    /// Names of the tensors written.
    pub outputs: Vec<String>,
}

impl Node {
    /// The name of input `i` if it is present.
    pub fn input(&self, i: usize) -> Option<&str> {
        self.inputs.get(i).map(String::as_str).filter(|s| !s.is_empty())
    }

    /// Names of the inputs that are present.
    pub fn present_inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(String::as_str).filter(|s| !s.is_empty())
    }

    /// Name of the first output.
    pub fn output(&self) -> &str {
        &self.outputs[0]
    }
}

/// A network. Invariants, checked by [`Graph::sort`]: nodes are in topological order, every tensor has one producer
/// (node, input or constant), every tensor that a node reads or the graph puts out has one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Name of the graph.
    pub name: String,
    /// Operators in topological order.
    pub nodes: Vec<Node>,
    /// What the caller gives.
    pub inputs: Vec<ValueInfo>,
    /// What the caller gets.
    pub outputs: Vec<ValueInfo>,
    /// Weights and other tensors known ahead, by name.
    pub constants: BTreeMap<String, Arc<Tensor>>,
    /// Version of the default operator set of the file it came from.
    pub opset: i64,
    /// Versions of the other operator sets, by domain.
    pub domains: BTreeMap<String, i64>,
    /// Free-form strings of the file (`metadata_props`).
    pub metadata: BTreeMap<String, String>,
}

impl Graph {
    /// The constant `name` if there is one.
    pub fn constant(&self, name: &str) -> Option<&Arc<Tensor>> {
        self.constants.get(name)
    }

    /// Position of the node that writes each tensor.
    pub fn producers(&self) -> HashMap<&str, usize> {
        let outputs = |(i, node): (usize, &'_ Node)| -> Vec<_> {
            // The lifetime of the names is that of the graph.
            (0..node.outputs.len()).map(|k| (i, k)).collect()
        };
        let pairs = self.nodes.iter().enumerate().flat_map(outputs);
        pairs.map(|(i, k)| (self.nodes[i].outputs[k].as_str(), i)).collect()
    }

    /// Positions of the nodes that read each tensor, once per reading node.
    pub fn consumers(&self) -> HashMap<&str, Vec<usize>> {
        let mut map: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for name in node.present_inputs().collect::<BTreeSet<_>>() {
                map.entry(name).or_default().push(i);
            }
        }
        map
    }

    /// Whether `node` reads a softmax: detectors decode box distances so, as expectations over bins. `producers` are the graph's.
    pub fn weighs_softmax(&self, node: usize, producers: &HashMap<&str, usize>) -> bool {
        let mut node = node;
        while let Some(&before) = self.nodes[node].input(0).and_then(|name| producers.get(name)) {
            match self.nodes[before].op {
                Op::Softmax(_) => return true,
                Op::Transpose(_) | Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => node = before,
                _ => return false,
            }
        }
        false
    }

    /// Whether a node that looks like a layer decodes what a detector puts out: it [weighs a softmax](Graph::weighs_softmax), or it is a
    /// product with at most 4×4 constants, which turns centres and sizes of boxes into corners.
    pub fn decodes_boxes(&self, node: usize, producers: &HashMap<&str, usize>) -> bool {
        let weight = self.nodes[node].input(1).and_then(|name| self.constant(name));
        let turns = matches!(self.nodes[node].op, Op::MatMul(_))
            && weight.is_some_and(|w| w.dims.len() == 2 && w.dims.iter().all(|&n| n <= 4));
        turns || self.weighs_softmax(node, producers)
    }

    /// Whether `name` is a graph output.
    pub fn is_output(&self, name: &str) -> bool {
        self.outputs.iter().any(|o| o.name == name)
    }

    /// A tensor name that is not in use yet, starting with `stem`.
    pub fn fresh_name(&self, stem: &str) -> String {
        let taken = |name: &str| {
            self.constants.contains_key(name)
                || self.inputs.iter().any(|v| v.name == name)
                || self.nodes.iter().any(|n| n.name == name || n.outputs.iter().any(|o| o == name))
        };
        let numbered = (1..).map(|i| format!("{stem}_{i}"));
        std::iter::once(stem.to_string()).chain(numbered).find(|name| !taken(name)).expect("the names never run out")
    }

    /// Sorts the nodes topologically (stable: nodes already in order stay) and checks the invariants.
    ///
    /// # Errors
    /// [`GraphError::Dangling`], [`GraphError::Duplicate`], [`GraphError::Cycle`], or [`GraphError::NoTensor`] for a graph output.
    pub fn sort(&mut self) -> Result<(), GraphError> {
        let mut known: BTreeSet<String> = self.constants.keys().cloned().collect();
        known.extend(self.inputs.iter().map(|v| v.name.clone()));
        let mut producer: HashMap<String, usize> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for out in node.outputs.iter().filter(|o| !o.is_empty()) {
                if known.contains(out) || producer.insert(out.clone(), i).is_some() {
                    return Err(GraphError::Duplicate { tensor: out.clone() });
                }
            }
        }
        // Depth-first from each node in file order; `state` is 0 unseen, 1 open, 2 done.
        let mut state = vec![0u8; self.nodes.len()];
        let mut order = Vec::with_capacity(self.nodes.len());
        for root in 0..self.nodes.len() {
            let mut stack = vec![(root, 0)];
            while let Some((i, next)) = stack.pop() {
                if next == 0 {
                    match state[i] {
                        2 => continue,
                        1 => return Err(GraphError::Cycle { node: self.nodes[i].name.clone() }),
                        _ => state[i] = 1,
                    }
                }
                match self.nodes[i].inputs.get(next) {
                    None => {
                        state[i] = 2;
                        order.push(i);
                    }
                    Some(name) => {
                        stack.push((i, next + 1));
                        match producer.get(name) {
                            Some(&p) if state[p] != 2 => stack.push((p, 0)),
                            Some(_) => {}
                            None if name.is_empty() || known.contains(name) => {}
                            None => {
                                let node = self.nodes[i].name.clone();
                                return Err(GraphError::Dangling { tensor: name.clone(), node });
                            }
                        }
                    }
                }
            }
        }
        let mut slots: Vec<Option<Node>> = std::mem::take(&mut self.nodes).into_iter().map(Some).collect();
        self.nodes = order.into_iter().filter_map(|i| slots[i].take()).collect();
        for output in &self.outputs {
            if !producer.contains_key(&output.name) && !known.contains(&output.name) {
                return Err(GraphError::NoTensor(output.name.clone()));
            }
        }
        Ok(())
    }

    /// Drops nodes and constants that no output depends on.
    pub fn prune(&mut self) {
        let mut live: BTreeSet<String> = self.outputs.iter().map(|o| o.name.clone()).collect();
        let mut keep = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            keep[i] = node.outputs.iter().any(|o| live.contains(o));
            if keep[i] {
                live.extend(node.present_inputs().map(String::from));
            }
        }
        let mut flags = keep.iter();
        self.nodes.retain(|_| *flags.next().expect("one flag per node"));
        self.constants.retain(|name, _| live.contains(name));
    }

    /// Makes every node that reads `old` read `new` instead. The graph outputs keep their names.
    pub fn redirect(&mut self, old: &str, new: &str) {
        let names = self.nodes.iter_mut().flat_map(|n| n.inputs.iter_mut());
        for name in names.filter(|name| *name == old) {
            *name = new.to_string();
        }
    }

    /// The part of the graph that computes `outputs` from `inputs`, as a graph of its own with the same tensor names.
    ///
    /// # Errors
    /// [`GraphError::NoTensor`] if a name is unknown, [`GraphError::Dangling`] if `outputs` need a graph input that
    /// is not among `inputs`.
    pub fn slice(&self, inputs: &[ValueInfo], outputs: &[&str]) -> Result<Graph, GraphError> {
        let mut part = self.clone();
        part.inputs = inputs.to_vec();
        part.outputs =
            outputs.iter().map(|&name| ValueInfo { name: name.into(), dtype: DType::F32, dims: None }).collect();
        part.nodes.retain(|n| !n.outputs.iter().all(|o| inputs.iter().any(|v| v.name == *o)));
        part.prune();
        part.sort()?;
        Ok(part)
    }
}
