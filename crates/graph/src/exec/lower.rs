//! Turns a graph into steps: decides for each node between float and integer arithmetic and between memory orders, and inserts
//! the conversions that follow from it.

use super::{
    Mode, constant,
    group::{self, Group},
};
use crate::{
    error::{GraphError, OpError},
    graph::{Graph, Node},
    grid::Grids,
    op::{Fact, Fused, Kernel, Layout, LayoutRule, Role, Slice},
    tensor::{DType, Tensor},
};
use fewbits_kernels::{
    Threads,
    float::Activation,
    int::{self, quantize},
    movement::Transpose,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

/// Index into [`Lowered::values`].
pub(super) type ValueId = usize;

/// Who provides a value.
#[derive(Debug)]
pub(super) enum Home {
    Input(usize),
    Constant(Arc<Tensor>),
    Step,
}

/// One form (memory order, codes or floats) of a tensor.
#[derive(Debug)]
pub(super) struct Value {
    pub fact: Fact,
    pub home: Home,
}

/// One kernel call.
#[derive(Debug)]
pub(super) struct Step {
    pub kernel: Kernel,
    pub ins: Vec<Option<ValueId>>,
    pub outs: Vec<ValueId>,
    /// Grids that the outputs are rounded to afterwards (fake quantization).
    pub fake: Vec<Option<int::GridParams>>,
    /// Observed tensors that are complete after this step.
    pub taps: Vec<(String, ValueId)>,
}

/// Steps over values.
#[derive(Debug)]
pub(super) struct Lowered {
    pub steps: Vec<Step>,
    pub values: Vec<Value>,
    pub outputs: Vec<ValueId>,
}

/// Types, shapes and known values of every tensor.
pub(super) fn infer(graph: &Graph, shapes: &[Vec<usize>]) -> Result<BTreeMap<String, Fact>, GraphError> {
    let threads = Threads::new(1);
    let mut facts: BTreeMap<String, Fact> =
        graph.constants.iter().map(|(name, tensor)| (name.clone(), Fact::constant(tensor.clone()))).collect();
    for (info, dims) in graph.inputs.iter().zip(shapes) {
        facts.insert(info.name.clone(), Fact::new(info.dtype, dims));
    }
    for node in &graph.nodes {
        let ins = inputs_of(node, &facts)?;
        let wrap = |source| node_error(node, &ins, source);
        let mut outs = node.op.def().infer(&ins).map_err(wrap)?;
        if outs.iter().any(|f| f.value.is_none())
            && !node.inputs.is_empty()
            && let Some(values) = constant::fold(&node.op, &ins, &outs, &threads).map_err(wrap)?
        {
            outs = values.into_iter().map(|t| Fact::constant(Arc::new(t))).collect();
        }
        for (name, fact) in node.outputs.iter().zip(outs) {
            facts.insert(name.clone(), fact);
        }
    }
    Ok(facts)
}

fn inputs_of<'f>(node: &Node, facts: &'f BTreeMap<String, Fact>) -> Result<Vec<Option<&'f Fact>>, GraphError> {
    let find = |name: &String| match (name.is_empty(), facts.get(name)) {
        (true, _) => Ok(None),
        (false, Some(fact)) => Ok(Some(fact)),
        (false, None) => Err(GraphError::Dangling { tensor: name.clone(), node: node.name.clone() }),
    };
    node.inputs.iter().map(find).collect()
}

fn node_error(node: &Node, ins: &[Option<&Fact>], source: OpError) -> GraphError {
    let describe = |(name, fact): (&String, &Option<&Fact>)| match fact {
        Some(fact) => format!("{name}: {} {:?}", fact.dtype, fact.dims),
        None => "none".into(),
    };
    let inputs = node.inputs.iter().zip(ins).map(describe).collect::<Vec<_>>().join(", ");
    GraphError::Node { node: node.name.clone(), op: node.op.name().into(), inputs, source: source.into() }
}

/// Lowers `graph` for one mode and one set of input shapes.
pub(super) fn lower(
    graph: &Graph,
    mode: Mode,
    shapes: &[Vec<usize>],
    observed: &BTreeSet<String>,
) -> Result<Lowered, GraphError> {
    let facts = infer(graph, shapes)?;
    let (groups, swallowed) = group::groups(graph, mode, observed);
    let mut lowering = Lowering { graph, mode, observed, facts, values: vec![], steps: vec![], forms: HashMap::new() };
    for (i, info) in graph.inputs.iter().enumerate() {
        let fact = Fact::new(info.dtype, &lowering.facts[&info.name].dims);
        lowering.add_input(&info.name, fact, i);
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        match groups.get(&i) {
            _ if swallowed.contains(&i) => {}
            Some(group) if lowering.lower_group(group)? => {}
            Some(group) => group.members.iter().try_for_each(|&m| lowering.lower_node(&graph.nodes[m]))?,
            None => lowering.lower_node(node)?,
        }
    }
    let outputs = graph.outputs.iter().map(|o| lowering.need(&o.name, Layout::Plain, false, None)).collect();
    Ok(Lowered { steps: lowering.steps, values: lowering.values, outputs })
}

struct Lowering<'a> {
    graph: &'a Graph,
    mode: Mode<'a>,
    observed: &'a BTreeSet<String>,
    /// Logical facts of every tensor.
    facts: BTreeMap<String, Fact>,
    values: Vec<Value>,
    steps: Vec<Step>,
    /// The forms in which each tensor exists already.
    forms: HashMap<String, Vec<ValueId>>,
}

/// A node together with what is fused behind it.
struct Job<'a> {
    node: &'a Node,
    /// Tensor added to the result.
    residual: Option<&'a str>,
    activation: Activation,
    outputs: Vec<&'a str>,
}

impl<'a> Lowering<'a> {
    fn lower_node(&mut self, node: &'a Node) -> Result<(), GraphError> {
        let outputs: Vec<&str> = node.outputs.iter().map(String::as_str).collect();
        if outputs.iter().all(|name| self.facts.get(*name).is_some_and(|f| f.value.is_some())) {
            return Ok(());
        }
        let job = Job { node, residual: None, activation: Activation::Identity, outputs };
        if !self.lower_integer(&job)? {
            self.lower_float(&job)?;
        }
        Ok(())
    }

    /// Whether the group could be lowered as one step.
    fn lower_group(&mut self, group: &'a Group) -> Result<bool, GraphError> {
        let job = Job {
            node: &self.graph.nodes[group.head],
            residual: group.residual.as_deref(),
            activation: group.activation,
            outputs: vec![&group.output],
        };
        let clamps = matches!(job.activation, Activation::Clamp { .. } | Activation::Identity);
        if job.residual.is_none() && clamps && self.lower_integer(&job)? {
            return Ok(true);
        }
        self.lower_float(&job)
    }

    /// Lowers `job` to integer arithmetic if its tensors have grids and the operator can.
    fn lower_integer(&mut self, job: &Job<'a>) -> Result<bool, GraphError> {
        let Mode::Integer(grids) = self.mode else { return Ok(false) };
        let op = job.node.op.def();
        let rule = op.quant_rule();
        let codes: Vec<bool> = (0..job.node.inputs.len())
            .map(|i| job.node.input(i).is_some_and(|name| self.is_data(rule.role(i), name)))
            .collect();
        let fits =
            |(i, name): (usize, &String)| !codes[i] || name.is_empty() || constant::stored_grid(grids, name).is_some();
        if !codes.contains(&true) || !job.node.inputs.iter().enumerate().all(fits) {
            return Ok(false);
        }
        let layout = self.choose_layout(job.node);
        let rank = self.rank_of_output(job.node);
        let mut ins = Vec::new();
        for (i, name) in job.node.inputs.iter().enumerate() {
            ins.push(match (name.is_empty(), codes[i]) {
                (true, _) => None,
                (false, true) => Some(self.need(name, self.input_layout(job.node, i, layout), true, rank)),
                (false, false) => Some(self.raw_constant(name, grids)),
            });
        }
        let mut outs = Vec::new();
        for name in &job.outputs {
            let mut fact = Fact { layout, value: None, ..self.facts[*name].clone() };
            if let Some((params, _)) = constant::stored_grid(grids, name) {
                fact.dtype = DType::U8;
                fact.grid = Some(params.clone());
            }
            outs.push(fact);
        }
        let in_facts: Vec<Option<&Fact>> = ins.iter().map(|v| v.map(|v: ValueId| &self.values[v].fact)).collect();
        let built = op.build_integer(&in_facts, &outs, job.activation);
        let built = built.map_err(|source| node_error(job.node, &in_facts, source))?;
        let Some(kernel) = built else { return Ok(false) };
        self.finish(kernel, ins, outs, job, vec![]);
        Ok(true)
    }

    /// Lowers `job` to float arithmetic; `false` if the operator cannot compute what is fused behind it.
    fn lower_float(&mut self, job: &Job<'a>) -> Result<bool, GraphError> {
        let op = job.node.op.def();
        let rule = op.quant_rule();
        let layout = self.choose_layout(job.node);
        let rank = self.rank_of_output(job.node);
        let mut ins: Vec<Option<ValueId>> = Vec::new();
        for (i, name) in job.node.inputs.iter().enumerate() {
            let expand = if rule.role(i) == Role::Data { rank } else { None };
            let order = self.input_layout(job.node, i, layout);
            ins.push((!name.is_empty()).then(|| self.need(name, order, false, expand)));
        }
        if let Some(residual) = job.residual {
            if self.facts[residual].dims != self.facts[job.outputs[0]].dims {
                return Ok(false);
            }
            ins.push(Some(self.need(residual, layout, false, None)));
        }
        let out_fact = |name: &&str| Fact { layout, value: None, ..self.facts[*name].clone() };
        let mut outs: Vec<Fact> = job.outputs.iter().map(out_fact).collect();
        let in_facts: Vec<Option<&Fact>> = ins.iter().map(|v| v.map(|v| &self.values[v].fact)).collect();
        let fused = Fused { residual: job.residual.is_some(), activation: job.activation };
        let kernel = if fused.residual || fused.activation != Activation::Identity {
            op.build_fused(&in_facts, &outs, fused)
        } else {
            op.build(&in_facts, &outs).map(Some)
        };
        let Some(kernel) = kernel.map_err(|source| node_error(job.node, &in_facts, source))? else { return Ok(false) };
        let fake = match self.mode {
            Mode::FakeQuant(grids) => {
                job.outputs.iter().map(|name| constant::stored_grid(grids, name).map(|(_, grid)| grid)).collect()
            }
            Mode::Float | Mode::Integer(_) => vec![],
        };
        for fact in &mut outs {
            fact.grid = None;
        }
        self.finish(kernel, ins, outs, job, fake);
        Ok(true)
    }

    /// Adds the step and makes its outputs known under their names; quantizes float outputs that have a grid (integer mode).
    fn finish(
        &mut self,
        kernel: Kernel,
        ins: Vec<Option<ValueId>>,
        outs: Vec<Fact>,
        job: &Job<'a>,
        fake: Vec<Option<int::GridParams>>,
    ) {
        let ids: Vec<ValueId> = outs.into_iter().map(|fact| self.add_value(fact, Home::Step)).collect();
        self.steps.push(Step { kernel, ins, outs: ids.clone(), fake, taps: vec![] });
        for (name, id) in job.outputs.iter().zip(ids) {
            if name.is_empty() {
                continue;
            }
            let grid = match self.mode {
                Mode::Integer(grids) if self.values[id].fact.dtype == DType::F32 => constant::stored_grid(grids, name),
                _ => None,
            };
            let id = match grid {
                Some((params, grid)) => self.quantize(id, params.clone(), grid),
                None => id,
            };
            self.forms.insert(name.to_string(), vec![id]);
            if self.observed.contains(*name) {
                let step = self.steps.last_mut().expect("a step was just added");
                step.taps.push((name.to_string(), id));
            }
        }
    }

    /// Whether input `name` with `role` is quantized as data (a weight that is no constant is data).
    fn is_data(&self, role: Role, name: &str) -> bool {
        match role {
            Role::Data => true,
            Role::Weight { .. } => self.graph.constant(name).is_none(),
            Role::Bias | Role::Other => false,
        }
    }

    fn rank_of_output(&self, node: &Node) -> Option<usize> {
        let any = node.op.def().layout() == LayoutRule::Any;
        any.then(|| self.facts[node.output()].dims.len())
    }

    /// The memory order of the node's main input and its outputs.
    fn choose_layout(&self, node: &Node) -> Layout {
        let rank_of = |name: &str| self.facts[name].dims.len();
        let exists_channels_last = |name: &str| {
            self.forms.get(name).is_some_and(|f| f.iter().any(|&v| self.values[v].fact.layout == Layout::ChannelsLast))
        };
        match node.op.def().layout() {
            LayoutRule::ChannelsLast if rank_of(&node.inputs[0]) >= 3 => Layout::ChannelsLast,
            LayoutRule::Any => {
                let rank = rank_of(node.output());
                let spatial = |name: &str| rank_of(name) == rank && exists_channels_last(name);
                if rank >= 3 && node.present_inputs().any(spatial) { Layout::ChannelsLast } else { Layout::Plain }
            }
            LayoutRule::ChannelsLast | LayoutRule::Plain => Layout::Plain,
        }
    }

    /// The memory order that input `i` takes when the node works in `layout`.
    fn input_layout(&self, node: &Node, i: usize, layout: Layout) -> Layout {
        let name = &node.inputs[i];
        let rank = self.facts.get(name).map_or(0, |f| f.dims.len());
        let follows = match node.op.def().layout() {
            LayoutRule::Plain => false,
            LayoutRule::ChannelsLast => i == 0,
            LayoutRule::Any => rank >= 3 || node.op.def().quant_rule().role(i) == Role::Data,
        };
        if follows { layout } else { Layout::Plain }
    }

    /// The value of tensor `name` in memory order `layout`, as codes or as real numbers, with leading ones up to rank `rank`.
    fn need(&mut self, name: &str, layout: Layout, codes: bool, rank: Option<usize>) -> ValueId {
        let fact = &self.facts[name];
        let rank = rank.unwrap_or(0).max(fact.dims.len());
        // One element has the same form in every order.
        let layout = if rank < 3 || fact.len() == 1 { Layout::Plain } else { layout };
        if !self.forms.contains_key(name) {
            let value = fact.value.clone().expect("a tensor without a form is a constant");
            self.add_constant(name, value);
        }
        let matches = |v: &ValueId, codes: Option<bool>, layout: Option<Layout>| {
            let fact = &self.values[*v].fact;
            fact.dims.len() == rank
                && codes.is_none_or(|c| c == fact.grid.is_some())
                && layout.is_none_or(|l| l == fact.layout)
        };
        let forms = &self.forms[name];
        let exact = forms.iter().find(|v| matches(v, Some(codes), Some(layout)));
        if let Some(&id) = exact {
            return id;
        }
        // Quantize before reordering and reorder before dequantizing: bytes are cheaper to move.
        let same_kind = forms.iter().copied().find(|v| matches(v, Some(codes), None));
        let same_order = forms.iter().copied().find(|v| matches(v, None, Some(layout)));
        let id = match (same_kind, same_order) {
            (Some(id), _) => self.reorder(id, layout),
            (None, Some(id)) => self.recode(name, id, codes),
            (None, None) => {
                if let Some(id) = forms.iter().copied().find(|v| matches(v, None, None)) {
                    let first = if codes { self.recode(name, id, codes) } else { self.reorder(id, layout) };
                    self.add_known_form(name, first);
                } else {
                    let own_rank = self.facts[name].dims.len();
                    let plain = self.need(name, Layout::Plain, codes, Some(own_rank));
                    let wide = self.expand(plain, rank);
                    self.add_known_form(name, wide);
                }
                return self.need(name, layout, codes, Some(rank));
            }
        };
        self.add_known_form(name, id);
        id
    }

    fn add_value(&mut self, fact: Fact, home: Home) -> ValueId {
        self.values.push(Value { fact, home });
        self.values.len() - 1
    }

    fn add_known_form(&mut self, name: &str, id: ValueId) {
        self.forms.entry(name.to_string()).or_default().push(id);
    }

    fn add_form(&mut self, name: &str, fact: Fact, home: Home) -> ValueId {
        let id = self.add_value(fact, home);
        self.add_known_form(name, id);
        id
    }

    /// A graph input; with a grid, every reader sees it rounded.
    fn add_input(&mut self, name: &str, fact: Fact, index: usize) {
        let raw = self.add_value(fact.clone(), Home::Input(index));
        let grid = self.mode.grids().and_then(|grids| constant::stored_grid(grids, name));
        let id = match (self.mode, grid) {
            (Mode::Integer(_), Some((params, grid))) if fact.dtype == DType::F32 => {
                self.quantize(raw, params.clone(), grid)
            }
            (Mode::FakeQuant(_), Some((_, grid))) if fact.dtype == DType::F32 => {
                let rounded = self.convert(transpose_kernel(Transpose::new(&[fact.len()], &[0])), raw, fact);
                self.steps.last_mut().expect("a step was just added").fake = vec![Some(grid)];
                rounded
            }
            _ => raw,
        };
        self.add_known_form(name, id);
    }

    /// The constant `name` as the mode sees it: rounded to its grid unless in float mode.
    fn add_constant(&mut self, name: &str, value: Arc<Tensor>) {
        let value = match self.mode.grids() {
            Some(grids) => constant::rounded_constant(name, &value, grids),
            None => value,
        };
        self.add_form(name, Fact::constant(value.clone()), Home::Constant(value));
    }

    /// The constant `name` as it is, with its grid noted in the fact.
    fn raw_constant(&mut self, name: &str, grids: &Grids) -> ValueId {
        match self.facts[name].value.clone() {
            Some(value) => {
                let fact = Fact { grid: grids.params(name).cloned(), ..Fact::constant(value.clone()) };
                self.add_value(fact, Home::Constant(value))
            }
            None => self.need(name, Layout::Plain, false, None),
        }
    }

    /// Converts between codes and real numbers.
    fn recode(&mut self, name: &str, id: ValueId, codes: bool) -> ValueId {
        if codes {
            let grids = self.mode.grids().expect("codes exist only with grids");
            let (params, grid) = constant::stored_grid(grids, name).expect("the caller checked the grid");
            let params = params.clone();
            return self.quantize(id, params, grid);
        }
        let from = &self.values[id].fact;
        let params = from.grid.clone().expect("only codes are dequantized");
        let grid = crate::ops::codes::stored(&params).expect("codes have a per-tensor grid");
        let fact = Fact { dtype: DType::F32, grid: None, ..from.clone() };
        let kernel = Kernel::new(move |io| {
            in_chunks(io.threads, io.u8(0), io.out_f32(0), |q, x| quantize::dequantize(q, grid.scale, grid.zero, x));
        });
        self.convert(kernel, id, fact)
    }

    fn quantize(&mut self, id: ValueId, params: crate::grid::QuantParams, grid: int::GridParams) -> ValueId {
        let from = &self.values[id].fact;
        let fact = Fact { dtype: DType::U8, grid: Some(params), value: None, ..from.clone() };
        if let (Home::Constant(tensor), Layout::Plain) = (&self.values[id].home, from.layout)
            && let Some(quantized) = constant::quantized(tensor, &grid)
        {
            return self.add_value(fact, Home::Constant(Arc::new(quantized)));
        }
        let kernel = Kernel::new(move |io| {
            in_chunks(io.threads, io.f32(0), io.out_u8(0), |x, q| quantize::quantize(x, &grid, q));
        });
        self.convert(kernel, id, fact)
    }

    /// Converts between memory orders.
    fn reorder(&mut self, id: ValueId, layout: Layout) -> ValueId {
        let from = &self.values[id].fact;
        if from.layout == layout {
            return id;
        }
        let fact = Fact { layout, ..from.clone() };
        if let (Home::Constant(tensor), Layout::ChannelsLast) = (&self.values[id].home, layout) {
            let shaped = Tensor { dims: from.dims.clone(), data: tensor.data.clone() };
            let permuted = constant::channels_last(&shaped);
            return self.add_value(fact, Home::Constant(Arc::new(permuted)));
        }
        let (dims, rank) = (from.physical_dims(), from.dims.len());
        let permutation: Vec<usize> = match layout {
            Layout::ChannelsLast => std::iter::once(0).chain(2..rank).chain([1]).collect(),
            Layout::Plain => [0, rank - 1].into_iter().chain(1..rank - 1).collect(),
        };
        let kernel = transpose_kernel(Transpose::new(&dims, &permutation));
        self.convert(kernel, id, fact)
    }

    /// The same elements under dimensions with leading ones.
    fn expand(&mut self, id: ValueId, rank: usize) -> ValueId {
        let from = &self.values[id].fact;
        let mut dims = vec![1; rank - from.dims.len()];
        dims.extend(&from.dims);
        let reshaped = |t: &Arc<Tensor>| Arc::new(Tensor { dims: dims.clone(), data: t.data.clone() });
        let fact = Fact { value: from.value.as_ref().map(reshaped), dims: dims.clone(), ..from.clone() };
        if let Home::Constant(tensor) = &self.values[id].home {
            let wide = reshaped(tensor);
            return self.add_value(fact, Home::Constant(wide));
        }
        let kernel = transpose_kernel(Transpose::new(&[fact.len()], &[0]));
        self.convert(kernel, id, fact)
    }

    fn convert(&mut self, kernel: Kernel, from: ValueId, fact: Fact) -> ValueId {
        let to = self.add_value(fact, Home::Step);
        self.steps.push(Step { kernel, ins: vec![Some(from)], outs: vec![to], fake: vec![], taps: vec![] });
        to
    }
}

/// Moves elements of any type.
fn transpose_kernel(plan: Transpose) -> Kernel {
    Kernel::new(move |io| match io.ins[0] {
        Slice::F32(x) => plan.run(io.threads, x, io.out_f32(0)),
        Slice::I64(x) => plan.run(io.threads, x, io.out_i64(0)),
        Slice::I32(x) => plan.run(io.threads, x, io.out_i32(0)),
        Slice::U8(x) => plan.run(io.threads, x, io.out_u8(0)),
        Slice::I8(x) => plan.run(io.threads, x, io.out_i8(0)),
        Slice::Bool(x) => plan.run(io.threads, x, io.out_bool(0)),
        Slice::Absent => {}
    })
}

/// Calls `map` on matching chunks of `x` and `y`, on all threads.
fn in_chunks<X: Sync, Y: Send>(threads: &Threads, x: &[X], y: &mut [Y], map: impl Fn(&[X], &mut [Y]) + Sync + Send) {
    const CHUNK: usize = 1 << 16;
    let chunks: Vec<_> = x.chunks(CHUNK).zip(y.chunks_mut(CHUNK).map(Mutex::new)).collect();
    threads.run(chunks.len(), |i| {
        let (x, y) = &chunks[i];
        map(x, &mut y.lock().unwrap_or_else(PoisonError::into_inner));
    });
}
