//! Turns a graph into steps: decides for each node between float and integer arithmetic and between memory orders, and inserts
//! the conversions that follow from it.

mod forms;

use super::{
    Mode, constant,
    group::{self, Group},
};
use crate::{
    error::{GraphError, OpError},
    graph::{Graph, Node},
    layout,
    op::{Fact, Fused, Kernel, Layout, LayoutRule, Role, check_size},
    tensor::{DType, Tensor},
};
use fewbits_kernels::{
    Threads,
    float::Activation,
    int::{self},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
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
        let wrap = |source| GraphError::at(node, |name| facts.get(name), source);
        let mut outs = node.op.def().infer(&ins).map_err(wrap)?;
        outs.iter().try_for_each(|fact| check_size(&fact.dims)).map_err(wrap)?;
        if let Some(name) = node.outputs.iter().skip(outs.len()).find(|name| !name.is_empty()) {
            return Err(wrap(OpError::Unsupported(format!("output `{name}`: it computes only {}", outs.len()))));
        }
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
        // Names may be left empty, the last ones too.
        let named = node.outputs.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
        let outputs: Vec<&str> = node.outputs[..named].iter().map(String::as_str).collect();
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
        let built = built.map_err(|source| GraphError::at(job.node, |name| self.facts.get(name), source))?;
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
        let Some(kernel) = kernel.map_err(|source| GraphError::at(job.node, |name| self.facts.get(name), source))?
        else {
            return Ok(false);
        };
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

    fn choose_layout(&self, node: &Node) -> Layout {
        let last = |&v: &ValueId| self.values[v].fact.layout == Layout::ChannelsLast;
        let exists_last = |name: &str| self.forms.get(name).is_some_and(|forms| forms.iter().any(last));
        layout::of_node(node, |name| self.facts[name].dims.len(), exists_last)
    }

    fn input_layout(&self, node: &Node, i: usize, layout: Layout) -> Layout {
        let rank = self.facts.get(&node.inputs[i]).map_or(0, |fact| fact.dims.len());
        layout::of_input(node, i, rank, layout)
    }
}
