//! The backward pass: what was recorded, walked from its end.
//!
//! A value's gradient is a value itself. The first reader (from the end) writes it, further readers add to it. Both summands of an
//! addition share the gradient of the sum where nothing adds to it while the other still needs it. Gradients of parameters are
//! added up over images and lanes.

mod again;

use super::{
    Config, Laid,
    item::{Build, Home, Item, Join, Rowed, ValueId, facts_at},
    laid::{activation_backward, weight_backward},
    normalization::{Normalization, multiply_rows},
    record::{Entry, Record, item, reorder_item},
};
use crate::{
    error::{GraphError, OpError},
    graph::Graph,
    op::{Fact, Kernel, Op, Pass, Want},
};
use again::{Cheap, cheap};
use std::{collections::HashMap, rc::Rc};

/// Adds the items of the backward pass to `record`.
pub(super) fn reverse(graph: &Graph, record: &mut Record, config: &Config) -> Result<(), GraphError> {
    let entries = std::mem::take(&mut record.entries);
    let mut needs = vec![false; record.values.len()];
    let parameters = record.parameters.iter().map(|(_, v)| *v).filter(|_| !config.input_gradients);
    let inputs = record.inputs.iter().copied().filter(|_| config.input_gradients);
    parameters.chain(inputs).for_each(|v| needs[v] = true);
    let spread = |needs: &mut Vec<bool>, record: &Record, from: &[Option<ValueId>], to: &[ValueId]| {
        let any = from.iter().flatten().any(|&v| needs[record.resolve(v)]);
        to.iter().for_each(|&v| needs[v] |= any);
    };
    let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
    let mut writers: HashMap<ValueId, usize> = HashMap::new();
    for (at, entry) in entries.iter().enumerate() {
        let (ins, outs) = entry.ends();
        spread(&mut needs, record, &ins, &outs);
        for v in ins.into_iter().flatten() {
            readers.entry(record.resolve(v)).or_default().push(at);
        }
        writers.extend(outs.iter().map(|&v| (v, at)));
    }
    let cheap = cheap(graph, record, &entries, config.recompute);
    let (gradients, copies) = (HashMap::new(), HashMap::new());
    let outputs: Vec<_> = record.outputs.iter().copied().zip(record.output_gradients.clone()).collect();
    let mut reverse = Reverse { graph, record, needs, readers, writers, gradients, cheap, copies, barriers: 0 };
    outputs.into_iter().for_each(|(output, given)| reverse.give(output, given));
    for (at, entry) in entries.iter().enumerate().rev() {
        reverse.entry(at, entry)?;
    }
    let Reverse { gradients, .. } = reverse;
    if config.input_gradients {
        record.input_gradients = record.inputs.iter().map(|v| gradients.get(v).copied()).collect();
        return Ok(());
    }
    for (leaf, v) in record.parameters.clone() {
        if let Some(&gradient) = gradients.get(&v) {
            record.gradients.push((leaf, gradient));
        }
    }
    Ok(())
}

impl Entry {
    /// What is read that may need a gradient, and what is written.
    fn ends(&self) -> (Vec<Option<ValueId>>, Vec<ValueId>) {
        match self {
            Entry::Node { ins, outs, .. } => (ins.clone(), outs.clone()),
            Entry::Normalize { x, y, scale, bias, .. } => (vec![Some(*x), Some(*scale), Some(*bias)], vec![*y]),
            Entry::Fold { whole, folded, .. } => (vec![Some(*whole)], vec![*folded]),
            Entry::Quantize { x, y, parameters, .. } => (vec![Some(*x), Some(*parameters)], vec![*y]),
            Entry::Reorder { x, y } => (vec![Some(*x)], vec![*y]),
        }
    }
}

struct Reverse<'a> {
    graph: &'a Graph,
    record: &'a mut Record,
    /// Whether something a gradient is wanted of comes before the value.
    needs: Vec<bool>,
    /// Which entries read a value, and which one writes it.
    readers: HashMap<ValueId, Vec<usize>>,
    writers: HashMap<ValueId, usize>,
    /// Value → its gradient, as far as it is known.
    gradients: HashMap<ValueId, ValueId>,
    /// Values that are computed again where they are read, and how.
    cheap: HashMap<ValueId, Cheap>,
    /// Value → the same, computed again, and behind which barrier.
    copies: HashMap<ValueId, (ValueId, usize)>,
    /// Items of the backward pass that all images wait for, so far.
    barriers: usize,
}

impl Reverse<'_> {
    fn needed(&self, v: ValueId) -> bool {
        self.needs.get(self.record.resolve(v)).copied().unwrap_or(false)
    }

    fn gradient(&self, v: ValueId) -> Option<ValueId> {
        self.gradients.get(&self.record.resolve(v)).copied()
    }

    /// Begins with the gradient of an output that the caller gives. What is given is only read; others may add to it, so it is
    /// copied.
    fn give(&mut self, output: ValueId, given: ValueId) {
        let output = self.record.resolve(output);
        if !self.record.values[output].rows {
            self.gradients.insert(output, given);
            return;
        }
        let (target, want) = self.target(output);
        match want {
            Want::Add => self.add(None, given, target),
            _ => {
                let copy = || {
                    Kernel::new(|io| {
                        let x = io.f32(0);
                        io.out_f32(0).copy_from_slice(x)
                    })
                };
                self.push(item(None, false, copy, vec![Some(given)], vec![Some(target)]));
            }
        }
    }

    /// Where the gradient of `v` goes, and whether it is added to what is there.
    fn target(&mut self, v: ValueId) -> (ValueId, Want) {
        let v = self.record.resolve(v);
        if let Some(&known) = self.gradients.get(&v) {
            return (known, Want::Add);
        }
        let (fact, rows) = (self.record.values[v].fact.clone(), self.record.values[v].rows);
        let home = if rows { Home::Made } else { Home::Joined(Join::Sum) };
        let gradient = self.record.add(Fact { value: None, ..fact }, rows, home);
        self.gradients.insert(v, gradient);
        (gradient, if rows { Want::Write } else { Want::Add })
    }

    /// As [`Reverse::target`] for an item that can only write: what it writes may have to be added afterwards.
    fn fresh(&mut self, v: ValueId) -> (ValueId, Option<ValueId>) {
        let v = self.record.resolve(v);
        let (fact, rows) = (self.record.values[v].fact.clone(), self.record.values[v].rows);
        let gradient = self.record.add(Fact { value: None, ..fact }, rows, Home::Made);
        match self.gradients.get(&v) {
            Some(&known) => (gradient, Some(known)),
            None => {
                self.gradients.insert(v, gradient);
                (gradient, None)
            }
        }
    }

    fn push(&mut self, item: Item) {
        if item.whole { self.record.epilogue.push(item) } else { self.record.backward.push(item) }
    }

    /// Adds `part` to the gradient `sum`.
    fn add(&mut self, node: Option<usize>, part: ValueId, sum: ValueId) {
        let kernel = || {
            Kernel::new(|io| {
                let part = io.f32(0);
                io.out_f32(0).iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            })
        };
        let whole = !self.record.values[sum].rows;
        self.push(item(node, whole, kernel, vec![Some(part)], vec![Some(sum)]));
    }

    fn entry(&mut self, at: usize, entry: &Entry) -> Result<(), GraphError> {
        match entry {
            Entry::Node { node, ins, outs } => match self.graph.nodes[*node].op {
                Op::Add(_) if self.share(at, ins, outs[0]) => Ok(()),
                _ => self.node(*node, ins, outs),
            },
            Entry::Normalize { spec, x, y, all, scale, bias } => {
                self.normalize(*spec, [*x, *y, *all, *scale, *bias]);
                Ok(())
            }
            Entry::Fold { whole, factors, folded } => {
                if let Some(gradient) = self.gradient(*folded).filter(|_| self.needed(*whole)) {
                    let (target, sum) = self.fresh(*whole);
                    let channels = self.record.values[*factors].fact.len() / 2;
                    let ins = vec![Some(gradient), Some(*factors)];
                    let kernel = move || multiply_rows(channels);
                    self.push(item(None, true, kernel, ins, vec![Some(target)]));
                    if let Some(sum) = sum {
                        self.add(None, target, sum);
                    }
                }
                Ok(())
            }
            Entry::Quantize { laid, x, y, parameters } => {
                self.quantize(laid, *x, *y, *parameters);
                Ok(())
            }
            Entry::Reorder { x, y } => {
                if let Some(gradient) = self.gradient(*y).filter(|_| self.needed(*x)) {
                    let source = self.record.values[*y].clone();
                    let fact = Rowed { fact: Fact { value: None, ..source.fact }, rows: source.rows };
                    let to = self.record.values[*x].fact.layout;
                    let (target, sum) = self.fresh(*x);
                    self.push(reorder_item(None, fact, to, gradient, target));
                    if let Some(sum) = sum {
                        self.add(None, target, sum);
                    }
                }
                Ok(())
            }
        }
    }

    /// Lets the summands of an addition without broadcasting share the gradient of the sum; `false` if they cannot.
    fn share(&mut self, at: usize, ins: &[Option<ValueId>], out: ValueId) -> bool {
        let Some(gradient) = self.gradient(out) else { return true };
        let [Some(a), Some(b)] = *ins else { return false };
        let [a, b] = [a, b].map(|v| self.record.resolve(v));
        let fits = |v: ValueId| {
            let (v, out) = (&self.record.values[v], &self.record.values[out]);
            v.rows && v.fact.dims == out.fact.dims && v.fact.layout == out.fact.layout
        };
        if a == b || !fits(a) || !fits(b) || !self.needed(a) || !self.needed(b) {
            return false;
        }
        let taken = [a, b].map(|v| self.gradients.contains_key(&v));
        let sharing: Vec<ValueId> = [a, b].into_iter().zip(taken).filter(|(_, taken)| !taken).map(|(v, _)| v).collect();
        let held = self.gradients.iter().filter(|(v, g)| **g == gradient && **v != self.record.resolve(out));
        let holders: Vec<ValueId> = held.map(|(v, _)| *v).chain(sharing.iter().copied()).collect();
        // Readers of `v` before this one add to its gradient; that of `other` must have been read by then, by its writer.
        let disturbs = |v: ValueId, other: ValueId| {
            let read = self.writers.get(&other).copied().unwrap_or(0);
            v != other && self.readers[&v].iter().any(|&reader| reader < at && reader >= read)
        };
        let among = |v: &ValueId| holders.iter().any(|&other| disturbs(*v, other) || disturbs(other, *v));
        if sharing.iter().any(among) {
            return false;
        }
        for (v, taken) in [a, b].into_iter().zip(taken) {
            if taken {
                self.add(None, gradient, self.gradients[&v]);
            } else {
                self.gradients.insert(v, gradient);
            }
        }
        true
    }

    fn node(&mut self, node: usize, ins: &[Option<ValueId>], outs: &[ValueId]) -> Result<(), GraphError> {
        let given: Vec<Option<ValueId>> = outs.iter().map(|&v| self.gradient(v)).collect();
        if given.iter().all(Option::is_none) || !ins.iter().flatten().any(|&v| self.needed(v)) {
            return Ok(());
        }
        let graph_node = &self.graph.nodes[node];
        let wrap = |source| GraphError::at(graph_node, |_| None, source);
        if given.iter().any(Option::is_none) {
            let what = "training through a node of which only some outputs lead to the network's output";
            return Err(wrap(OpError::Unsupported(what.into())));
        }
        let mut wants = vec![Want::No; ins.len()];
        let mut targets: Vec<Option<ValueId>> = vec![None; ins.len()];
        for (i, v) in ins.iter().enumerate() {
            if let Some(v) = v.filter(|&v| self.needed(v)) {
                let (target, want) = self.target(v);
                (wants[i], targets[i]) = (want, Some(target));
            }
        }
        let all_outs: Vec<Option<ValueId>> = outs.iter().map(|&v| Some(v)).collect();
        let (rowed_ins, rowed_outs) = (self.record.rowed(ins), self.record.rowed(&all_outs));
        let op = graph_node.op.clone();
        let build = move |images: usize| -> Result<Pass, OpError> {
            let (ins, outs) = (facts_at(&rowed_ins, images), facts_at(&rowed_outs, images));
            let ins: Vec<Option<&Fact>> = ins.iter().map(Option::as_ref).collect();
            let outs: Vec<Fact> = outs.into_iter().flatten().collect();
            let pass = op.def().build_backward(&ins, &outs, &wants)?;
            pass.ok_or_else(|| OpError::Unsupported(format!("{} has no derivative", op.name())))
        };
        let pass = build(1).map_err(wrap)?;
        let read = |reads: &[bool], i: usize| reads.get(i).copied().unwrap_or(false);
        let read_ins = ins.iter().enumerate().map(|(i, v)| v.filter(|_| read(&pass.reads_ins, i)));
        let read_outs = outs.iter().enumerate().map(|(i, &v)| Some(v).filter(|_| read(&pass.reads_outs, i)));
        let mut inputs: Vec<Option<ValueId>> = Vec::new();
        for v in read_ins.chain(read_outs) {
            inputs.push(v.map(|v| self.again(v)));
        }
        inputs.extend(given);
        if let Some(packing) = &pass.packing {
            let build = build.clone();
            let kernel: Build = Rc::new(move |_| {
                let packing = build(1)?.packing;
                packing.map(|p| p.kernel).ok_or_else(|| OpError::Unsupported("packing that comes and goes".into()))
            });
            let at_once = self.known_ahead(ins);
            inputs.push(Some(self.record.pack(node, packing.len, ins, kernel, at_once)));
        }
        let mut unpack = None;
        if let Some(form) = &pass.gradient
            && let Some(target) = targets[form.input]
        {
            // The sum is made in the kernel's form; the gradient proper follows from it.
            let sum = self.record.vector(form.len, Home::Joined(Join::Sum));
            targets[form.input] = Some(sum);
            self.record.values[target].home = Home::Made;
            let build = build.clone();
            let kernel: Build = Rc::new(move |_| {
                let form = build(1)?.gradient;
                form.map(|f| f.kernel).ok_or_else(|| OpError::Unsupported("a form that comes and goes".into()))
            });
            unpack = Some(Item {
                node: Some(node),
                build: kernel,
                whole: true,
                ins: vec![Some(sum)],
                outs: vec![Some(target)],
                stop: None,
            });
        }
        let build: Build = Rc::new(move |images| Ok(build(images)?.kernel));
        self.push(Item { node: Some(node), build, whole: false, ins: inputs, outs: targets, stop: None });
        unpack.into_iter().for_each(|item| self.push(item));
        Ok(())
    }

    /// Whether the parameters among `ins` are known before the data is.
    fn known_ahead(&self, ins: &[Option<ValueId>]) -> bool {
        let made = |item: &Item, v: ValueId| item.outs.iter().flatten().any(|&out| self.record.resolve(out) == v);
        ins.iter().flatten().map(|&v| self.record.resolve(v)).filter(|&v| !self.record.values[v].rows).all(|v| {
            !matches!(self.record.values[v].home, Home::Made) || self.record.prologue.iter().any(|item| made(item, v))
        })
    }

    fn normalize(&mut self, spec: Normalization, [x, y, all, scale, bias]: [ValueId; 5]) {
        let Some(dy) = self.gradient(y) else { return };
        if !spec.through && !self.needed(scale) && !self.needed(bias) {
            return self.normalize_input(spec, [x, all], dy);
        }
        let sums = self.record.vector(2 * spec.channels, Home::Joined(Join::Sum));
        let ins = vec![Some(self.again(x)), Some(all), Some(dy)];
        self.record.backward.push(item(None, false, move || spec.gradient_sums(), ins, vec![Some(sums)]));
        let coefficients = self.record.vector(3 * spec.channels, Home::Made);
        let (d_scale, scale_sum) = self.fresh(scale);
        let (d_bias, bias_sum) = self.fresh(bias);
        let outs = vec![Some(d_scale), Some(d_bias), Some(coefficients)];
        let ins = vec![Some(all), Some(sums)];
        self.record.backward.push(item(None, true, move || spec.finish_gradient(), ins, outs));
        self.barriers += 1;
        for (part, sum) in [(d_scale, scale_sum), (d_bias, bias_sum)] {
            if let Some(sum) = sum {
                self.add(None, part, sum);
            }
        }
        if self.needed(x) {
            let (dx, want) = self.target(x);
            let ins = vec![Some(self.again(x)), Some(all), Some(dy), Some(coefficients)];
            let kernel = move || spec.input_gradient(want == Want::Add);
            self.record.backward.push(item(None, false, kernel, ins, vec![Some(dx)]));
        }
    }

    /// The gradient of a normalization's input where nothing else is wanted: there is no sum over the batch to wait for.
    fn normalize_input(&mut self, spec: Normalization, [x, all]: [ValueId; 2], dy: ValueId) {
        if self.needed(x) {
            let (dx, want) = self.target(x);
            let ins = vec![Some(self.again(x)), Some(all), Some(dy)];
            let kernel = move || spec.input_gradient_of_running(want == Want::Add);
            self.push(item(None, false, kernel, ins, vec![Some(dx)]));
        }
    }

    fn quantize(&mut self, laid: &Laid, x: ValueId, y: ValueId, parameters: ValueId) {
        let Some(dy) = self.gradient(y) else { return };
        let value = self.record.values[x].clone();
        let (dx, sum) = match self.needed(x) {
            true => self.fresh(x),
            // The kernel writes it, nobody reads it.
            false => (self.record.add(Fact { value: None, ..value.fact.clone() }, value.rows, Home::Made), None),
        };
        let laid = laid.clone();
        let x = if value.rows { self.again(x) } else { x };
        let ins = vec![Some(x), Some(parameters), Some(dy)];
        if value.rows {
            let (d_parameters, _) = self.target(parameters);
            let kernel = move || activation_backward(&laid);
            self.push(item(None, false, kernel, ins, vec![Some(dx), Some(d_parameters)]));
        } else {
            let (d_parameters, parameter_sum) = self.fresh(parameters);
            let kernel = move || weight_backward(&laid, &value.fact.dims);
            self.push(item(None, true, kernel, ins, vec![Some(dx), Some(d_parameters)]));
            if let Some(sum) = parameter_sum {
                self.add(None, d_parameters, sum);
            }
        }
        if let Some(sum) = sum {
            self.add(None, dx, sum);
        }
    }
}
