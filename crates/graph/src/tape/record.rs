//! Nodes turned into items on values, in forward order; what the backward pass has to know of them is noted beside.
//!
//! Memory orders are chosen as the executor chooses them. A BatchNormalization becomes sums over the batch, a result for each
//! channel, and a pass over the data that also does the Relu or Clip behind it.

mod forms;
mod norms;
mod quantizers;

pub(super) use forms::reorder_item;

use super::{
    Config, Laid, Leaves, Statistics,
    item::{Build, Home, Item, Rowed, Value, ValueId, facts_at},
    leaves::Leaf,
    normalization::Normalization,
};
use crate::{
    error::{GraphError, OpError},
    exec::{self, images},
    graph::{Graph, Node},
    layout,
    op::{Fact, Kernel, Layout, LayoutRule, Op, Role},
    tensor::DType,
};
use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

/// What the backward pass undoes.
pub(super) enum Entry {
    Node {
        node: usize,
        ins: Vec<Option<ValueId>>,
        outs: Vec<ValueId>,
    },
    Normalize {
        spec: Normalization,
        x: ValueId,
        y: ValueId,
        all: ValueId,
        scale: ValueId,
        bias: ValueId,
    },
    /// A weight (or bias) multiplied per output channel.
    Fold {
        whole: ValueId,
        factors: ValueId,
        folded: ValueId,
    },
    Quantize {
        laid: Laid,
        x: ValueId,
        y: ValueId,
        parameters: ValueId,
    },
    Reorder {
        x: ValueId,
        y: ValueId,
    },
}

/// Everything recorded.
pub(super) struct Record {
    pub images: usize,
    pub values: Vec<Value>,
    /// Items that depend on parameters alone.
    pub prologue: Vec<Item>,
    pub forward: Vec<Item>,
    pub backward: Vec<Item>,
    /// Items that finish gradients of parameters.
    pub epilogue: Vec<Item>,
    pub entries: Vec<Entry>,
    pub outputs: Vec<ValueId>,
    /// Gradients of outputs, as the caller gives them.
    pub output_gradients: Vec<ValueId>,
    /// Values of the graph's inputs.
    pub inputs: Vec<ValueId>,
    /// Their gradients, once reversed, if wanted.
    pub input_gradients: Vec<Option<ValueId>>,
    /// Values of parameters.
    pub parameters: Vec<(Leaf, ValueId)>,
    /// Gradients of parameters, once reversed.
    pub gradients: Vec<(Leaf, ValueId)>,
    /// Running statistics that follow the batch: where they are, and whose result holds them.
    pub running: Vec<([Leaf; 2], ValueId, usize)>,
    /// Ranges seen by quantizers.
    pub ranges: Vec<(String, ValueId)>,
}

impl Record {
    pub fn add(&mut self, fact: Fact, rows: bool, home: Home) -> ValueId {
        self.values.push(Value { fact, rows, home });
        self.values.len() - 1
    }

    /// The value whose numbers `v` shares.
    pub fn resolve(&self, mut v: ValueId) -> ValueId {
        while let Home::Alias(of) = self.values[v].home {
            v = of;
        }
        v
    }

    pub fn rowed(&self, values: &[Option<ValueId>]) -> Vec<Option<Rowed>> {
        let rowed = |v: ValueId| Rowed { fact: self.values[v].fact.clone(), rows: self.values[v].rows };
        values.iter().map(|v| v.map(rowed)).collect()
    }

    /// Adds an item that packs parameters, before everything else if `at_once`, and returns its result.
    pub fn pack(&mut self, node: usize, len: usize, ins: &[Option<ValueId>], build: Build, at_once: bool) -> ValueId {
        let packed = self.vector(len, Home::Made);
        let ins = ins.iter().map(|v| v.filter(|&v| !self.values[v].rows && self.is_parameter(v))).collect();
        let item = Item { node: Some(node), build, whole: true, ins, outs: vec![Some(packed)], stop: None };
        if at_once {
            self.prologue.push(item)
        } else {
            self.forward.push(item)
        }
        packed
    }

    /// Whether `v` is known once parameters are.
    fn is_parameter(&self, v: ValueId) -> bool {
        let v = self.resolve(v);
        !matches!(self.values[v].home, Home::Input(_) | Home::OutputGradient(_)) && !self.values[v].rows
    }

    /// A vector of one dimension.
    pub fn vector(&mut self, len: usize, home: Home) -> ValueId {
        self.add(Fact::new(DType::F32, &[len]), false, home)
    }
}

/// An item whose kernel is the same for any number of images.
pub(super) fn item(
    node: Option<usize>,
    whole: bool,
    kernel: impl Fn() -> Kernel + 'static,
    ins: Vec<Option<ValueId>>,
    outs: Vec<Option<ValueId>>,
) -> Item {
    Item { node, build: Rc::new(move |_| Ok(kernel())), whole, ins, outs, stop: None }
}

/// Records the forward pass.
pub(super) fn record(
    graph: &Graph,
    leaves: &Leaves,
    shapes: &[Vec<usize>],
    config: &Config,
) -> Result<Record, GraphError> {
    let facts = exec::infer(graph, shapes)?;
    let images = shapes.first().and_then(|s| s.first()).copied().unwrap_or(1);
    let record = Record {
        images,
        values: vec![],
        prologue: vec![],
        forward: vec![],
        backward: vec![],
        epilogue: vec![],
        entries: vec![],
        outputs: vec![],
        output_gradients: vec![],
        inputs: vec![],
        input_gradients: vec![],
        parameters: vec![],
        gradients: vec![],
        running: vec![],
        ranges: vec![],
    };
    if let Some(reason) = images::joined(graph, shapes) {
        return Err(GraphError::Batch { name: graph.name.clone(), reason });
    }
    let mut recorder = Recorder { graph, leaves, config, facts, record, forms: HashMap::new(), next: 0 };
    for (i, info) in graph.inputs.iter().enumerate() {
        let fact = Fact::new(info.dtype, &shapes[i]);
        let v = recorder.record.add(fact, true, Home::Input(i));
        recorder.record.inputs.push(v);
        recorder.define(&info.name, v);
    }
    let mut swallowed = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        recorder.next = i;
        let known = node.outputs.iter().all(|o| recorder.facts.get(o).is_some_and(|f| f.value.is_some()));
        if known || swallowed[i] {
            continue;
        }
        match &node.op {
            Op::BatchNormalization(_) => {
                if let Some(activation) = recorder.normalization(node)? {
                    swallowed[activation] = true;
                }
            }
            Op::Identity(_) | Op::Dropout(_) => recorder.rename(node),
            _ => recorder.node(node)?,
        }
    }
    for info in &graph.outputs {
        let v = recorder.need(&info.name, Layout::Plain, None);
        recorder.record.outputs.push(v);
        let Value { fact, rows, .. } = recorder.record.values[v].clone();
        let gradient = Home::OutputGradient(recorder.record.output_gradients.len());
        let v = recorder.record.add(fact, rows, gradient);
        recorder.record.output_gradients.push(v);
    }
    Ok(recorder.record)
}

struct Recorder<'a> {
    graph: &'a Graph,
    leaves: &'a Leaves,
    config: &'a Config,
    /// For the whole batch.
    facts: BTreeMap<String, Fact>,
    record: Record,
    /// The forms in which a tensor exists: what its readers read, so quantized if it has a quantizer.
    forms: HashMap<String, Vec<ValueId>>,
    /// The node being recorded.
    next: usize,
}

impl Recorder<'_> {
    fn fact(&self, v: ValueId) -> &Fact {
        &self.record.values[v].fact
    }

    /// Makes `v` known under `name`, behind the tensor's quantizer if it has one.
    fn define(&mut self, name: &str, v: ValueId) {
        let v = match self.config.quantizers.get(name) {
            Some(laid) if self.fact(v).dtype == DType::F32 => self.quantize_activation(name, &laid.clone(), v),
            _ => v,
        };
        self.forms.insert(name.to_string(), vec![v]);
    }

    /// The value of a parameter.
    fn parameter(&mut self, leaf: Leaf) -> ValueId {
        if let Some((_, v)) = self.record.parameters.iter().find(|(known, _)| known.name == leaf.name) {
            return *v;
        }
        let home = Home::Parameter(leaf.range.clone());
        let v = self.record.add(Fact::new(DType::F32, &leaf.dims), false, home);
        self.record.parameters.push((leaf, v));
        v
    }

    fn statistic(&mut self, leaf: &Leaf) -> ValueId {
        let home = Home::Statistic(leaf.range.clone());
        self.record.add(Fact::new(DType::F32, &leaf.dims), false, home)
    }

    /// The node's outputs are its input under another name.
    fn rename(&mut self, node: &Node) {
        let layout = self.layout_of(&node.inputs[0]);
        let v = self.need(&node.inputs[0], layout, None);
        let alias = Value { home: Home::Alias(v), ..self.record.values[v].clone() };
        self.record.values.push(alias);
        let v = self.record.values.len() - 1;
        self.define(node.output(), v);
    }

    fn layout_of(&self, name: &str) -> Layout {
        self.forms.get(name).map_or(Layout::Plain, |forms| self.fact(forms[0]).layout)
    }

    fn node(&mut self, node: &Node) -> Result<(), GraphError> {
        let layout = self.choose_layout(node);
        let op = node.op.def();
        let any = op.layout() == LayoutRule::Any;
        let rank = any.then(|| self.facts[node.output()].dims.len());
        let mut ins = Vec::new();
        for (i, name) in node.inputs.iter().enumerate() {
            ins.push(if name.is_empty() {
                None
            } else {
                let rank = if op.quant_rule().role(i) == Role::Data { rank } else { None };
                Some(self.need(name, layout::of_input(node, i, self.rank(name), layout), rank))
            });
        }
        let mut at_once = true;
        if self.config.fold && self.is_folded(node) {
            if self.config.statistics == Statistics::Batch {
                let (plain, _) = self.apply(node, layout, &ins, true)?;
                self.fold_by_float_layer(node, plain[0], &mut ins)?;
                at_once = !self.config.fold_batch;
            } else {
                self.fold(node, &mut ins)?;
            }
        }
        if let Some(Some(weight)) = ins.get(1).copied()
            && matches!(op.quant_rule().role(1), Role::Weight { .. })
            && let Some(laid) = self.config.quantizers.get(&node.inputs[1]).cloned()
        {
            ins[1] = Some(self.quantize_weight(&node.inputs[1], &laid, weight, at_once));
        }
        let (outs, ins) = self.apply(node, layout, &ins, at_once)?;
        self.record.entries.push(Entry::Node { node: self.next, ins, outs: outs.clone() });
        for (name, v) in node.outputs.iter().zip(outs) {
            if !name.is_empty() {
                self.define(name, v);
            }
        }
        Ok(())
    }

    /// Records the computation of `node` on `ins`; its outputs, and `ins` again. `at_once`: its parameters are known before the
    /// data is.
    fn apply(
        &mut self,
        node: &Node,
        layout: Layout,
        ins: &[Option<ValueId>],
        at_once: bool,
    ) -> Result<(Vec<ValueId>, Vec<Option<ValueId>>), GraphError> {
        let ins = ins.to_vec();
        let mut outs = Vec::new();
        for name in &node.outputs {
            let known = self.facts.get(name);
            let fact = known.map(|f| Fact { layout, value: None, ..f.clone() });
            let fact = fact.unwrap_or_else(|| Fact::new(DType::F32, &[0]));
            let fact = if fact.dims.len() < 3 { Fact { layout: Layout::Plain, ..fact } } else { fact };
            outs.push(self.record.add(fact, true, Home::Made));
        }
        let wrap = |source| GraphError::at(node, |name| self.facts.get(name), source);
        if self.record.values[outs[0]].fact.dtype != DType::F32 {
            let what = format!("training through tensors of {}", self.record.values[outs[0]].fact.dtype);
            return Err(wrap(OpError::Unsupported(what)));
        }
        let all_outs: Vec<Option<ValueId>> = outs.iter().map(|&v| Some(v)).collect();
        let (rowed_ins, rowed_outs) = (self.record.rowed(&ins), self.record.rowed(&all_outs));
        let op = node.op.clone();
        let build = move |images: usize| {
            let (ins, outs) = (facts_at(&rowed_ins, images), facts_at(&rowed_outs, images));
            let ins: Vec<Option<&Fact>> = ins.iter().map(Option::as_ref).collect();
            let outs: Vec<Fact> = outs.into_iter().flatten().collect();
            op.def().build_training(&ins, &outs)
        };
        let mut all_ins = ins.clone();
        if let Some(packing) = build(1).map_err(wrap)?.packing {
            let build = build.clone();
            let kernel: Build = Rc::new(move |_| {
                let packing = build(1)?.packing;
                packing.map(|p| p.kernel).ok_or_else(|| OpError::Unsupported("packing that comes and goes".into()))
            });
            all_ins.push(Some(self.record.pack(self.next, packing.len, &ins, kernel, at_once)));
        }
        let build: Build = Rc::new(move |images| Ok(build(images)?.kernel));
        let item = Item { node: Some(self.next), build, whole: false, ins: all_ins, outs: all_outs, stop: None };
        self.record.forward.push(item);
        Ok((outs, ins))
    }

    /// Adds an item that runs once: before everything if it depends on parameters alone.
    fn push_once(&mut self, item: Item, at_once: bool) {
        if at_once { self.record.prologue.push(item) } else { self.record.forward.push(item) }
    }

    fn choose_layout(&self, node: &Node) -> Layout {
        let last = |name: &str| self.layout_of(name) == Layout::ChannelsLast;
        layout::of_node(node, |name| self.rank(name), last)
    }

    fn rank(&self, name: &str) -> usize {
        self.facts.get(name).map_or(0, |fact| fact.dims.len())
    }
}
