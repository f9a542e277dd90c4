//! The backward pass: what was recorded, walked from its end.
//!
//! A value's gradient is a value itself. The first reader (from the end) writes it, further readers add to it. Both summands of an
//! addition share the gradient of the sum where nothing adds to it while the other still needs it. Gradients of parameters are
//! added up over images and lanes.

use super::{
    Config, Laid,
    item::{Build, Home, Item, Join, Rowed, ValueId, facts_at},
    normalization::{Normalization, multiply_rows},
    record::{Entry, Record, item, node_error, reorder_item},
};
use crate::{
    error::{GraphError, OpError},
    graph::Graph,
    op::{Fact, Io, Kernel, Op, Pass, Role, Want},
};
use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

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

/// How a value follows from one that is kept.
#[derive(Clone)]
enum Cheap {
    Normalize { spec: Normalization, x: ValueId, all: ValueId },
    Quantize { laid: Laid, x: ValueId, parameters: ValueId },
    Node(Item),
}

/// Layers between two whose results are kept, if others are computed again.
const MOST_IN_A_ROW: usize = 2;

/// Values that the backward pass computes again, image by image, beside their reader. Always: results of normalizations and
/// quantizers that no later segment of the forward pass reads; kept, they would cost more memory traffic than that. With
/// `recompute`: all of them, and two layers in three.
fn cheap(graph: &Graph, record: &Record, entries: &[Entry], recompute: bool) -> HashMap<ValueId, Cheap> {
    let mut made: HashMap<ValueId, usize> = HashMap::new();
    let outputs: HashSet<ValueId> = record.outputs.iter().map(|&v| record.resolve(v)).collect();
    let mut late = outputs.clone();
    let mut segment = 0;
    for item in record.forward.iter().filter(|_| !recompute) {
        segment += usize::from(item.whole || item.stop.is_some());
        let read = item.ins.iter().flatten().map(|&v| record.resolve(v));
        late.extend(read.filter(|v| made.get(v).is_some_and(|&at| at != segment)));
        made.extend(item.outs.iter().flatten().map(|&v| (record.resolve(v), segment)));
        segment += usize::from(item.whole);
    }
    let mut items: HashMap<ValueId, &Item> = HashMap::new();
    for item in record.forward.iter().filter(|item| recompute && !item.whole) {
        if let [Some(out)] = item.outs[..] {
            items.insert(out, item);
        }
    }
    let mut found: HashMap<ValueId, Cheap> = HashMap::new();
    // How many layers lie between a value and one that is kept.
    let mut depths: HashMap<ValueId, usize> = HashMap::new();
    for entry in entries {
        let (ins, outs) = entry.ends();
        let [y] = outs[..] else { continue };
        let depth = ins.iter().flatten().filter_map(|&v| depths.get(&record.resolve(v))).max().copied().unwrap_or(0);
        let recipe = match entry {
            Entry::Normalize { spec, x, all, .. } => Some((depth, Cheap::Normalize { spec: *spec, x: *x, all: *all })),
            Entry::Quantize { laid, x, parameters, .. } if record.values[*x].rows => {
                Some((depth, Cheap::Quantize { laid: laid.clone(), x: *x, parameters: *parameters }))
            }
            Entry::Node { node, .. } => {
                let layer = matches!(graph.nodes[*node].op.def().quant_rule().role(1), Role::Weight { .. });
                let depth = depth + usize::from(layer);
                let size = |v: ValueId| record.values[v].fact.len();
                // A layer that makes little of much, as the end of a bottleneck, is a good place to begin again.
                let shrinks = ins.iter().flatten().any(|&v| record.values[v].rows && 2 * size(y) <= size(v));
                let again = items.get(&y).filter(|_| depth <= MOST_IN_A_ROW && !shrinks);
                again.map(|item| (depth, Cheap::Node((*item).clone())))
            }
            _ => None,
        };
        if let Some((depth, recipe)) = recipe.filter(|_| !late.contains(&y)) {
            found.insert(y, recipe);
            depths.insert(y, depth);
        }
    }
    found
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

    /// `v`, or the same computed again.
    fn again(&mut self, v: ValueId) -> ValueId {
        let of = self.record.resolve(v);
        let Some(recipe) = self.cheap.get(&of).cloned() else { return v };
        if let Some(&(copy, barrier)) = self.copies.get(&of)
            && barrier == self.barriers
        {
            return copy;
        }
        let fact = Fact { value: None, ..self.record.values[of].fact.clone() };
        let copy = self.record.add(fact, true, Home::Made);
        let item = match recipe {
            Cheap::Normalize { spec, x, all } => {
                let x = self.again(x);
                item(None, false, move || spec.normalize(), vec![Some(x), Some(all)], vec![Some(copy)])
            }
            Cheap::Quantize { laid, x, parameters } => {
                let x = self.again(x);
                let ins = vec![Some(x), Some(parameters)];
                item(None, false, move || activation_forward(&laid), ins, vec![Some(copy)])
            }
            Cheap::Node(forward) => {
                let ins = forward.ins.iter().map(|v| v.map(|v| self.again(v))).collect();
                Item { ins, outs: vec![Some(copy)], ..forward }
            }
        };
        self.record.backward.push(item);
        self.copies.insert(of, (copy, self.barriers));
        copy
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
        let wrap = |source| node_error(graph_node, source);
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
        if !spec.batch && !self.needed(scale) && !self.needed(bias) {
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
            let d_parameters = self.record.add(self.record.values[parameters].fact.clone(), false, Home::Made);
            self.gradients.insert(parameters, d_parameters);
            let kernel = move || weight_backward(&laid, &value.fact.dims);
            self.push(item(None, true, kernel, ins, vec![Some(dx), Some(d_parameters)]));
        }
        if let Some(sum) = sum {
            self.add(None, dx, sum);
        }
    }
}

/// `y = Q(x)`. Inputs: x, parameters.
pub(super) fn activation_forward(laid: &Laid) -> Kernel {
    let quantizer = laid.quantizer.clone();
    Kernel::new(move |io| {
        let (x, parameters) = (io.f32(0), io.f32(1));
        quantizer.forward(parameters, x, io.out_f32(0));
    })
}

/// Inputs: x, parameters, ∂Q(x). Output ∂x; adds to output 1, ∂parameters.
fn activation_backward(laid: &Laid) -> Kernel {
    let quantizer = laid.quantizer.clone();
    Kernel::new(move |io: &mut Io<'_>| {
        let (x, parameters, dy) = (io.f32(0), io.f32(1), io.f32(2));
        let mut sums = vec![0.0; quantizer.learned()];
        quantizer.backward(parameters, x, dy, io.out_f32(0), &mut sums);
        io.out_f32(1).iter_mut().zip(sums).for_each(|(total, sum)| *total += sum as f32);
    })
}

/// `y = Q(w)`, group by group. Inputs: w, parameters.
pub(super) fn weight_forward(laid: &Laid, dims: &[usize]) -> Kernel {
    let (laid, groups) = (laid.clone(), Groups::new(laid, dims));
    Kernel::new(move |io: &mut Io<'_>| {
        let (x, parameters) = (io.f32(0), io.f32(1));
        let (mut own, mut inside, mut outside) = groups.buffers(&laid);
        for g in 0..laid.groups {
            groups.gather(g, x, &mut inside);
            laid.numbers(g, parameters, &inside, &mut own);
            laid.quantizer.forward(&own, &inside, &mut outside);
            groups.scatter(g, &outside, io.out_f32(0));
        }
    })
}

/// Inputs: w, parameters, ∂Q(w). Outputs: ∂w, ∂parameters.
fn weight_backward(laid: &Laid, dims: &[usize]) -> Kernel {
    let (laid, groups) = (laid.clone(), Groups::new(laid, dims));
    Kernel::new(move |io: &mut Io<'_>| {
        let (x, parameters, dy) = (io.f32(0), io.f32(1), io.f32(2));
        let (mut own, mut inside, mut outside) = groups.buffers(&laid);
        let mut dx = vec![0.0; inside.len()];
        let learned = laid.quantizer.learned();
        for g in 0..laid.groups {
            groups.gather(g, x, &mut inside);
            groups.gather(g, dy, &mut outside);
            laid.numbers(g, parameters, &inside, &mut own);
            let mut sums = vec![0.0; learned];
            laid.quantizer.backward(&own, &inside, &outside, &mut dx, &mut sums);
            groups.scatter(g, &dx, io.out_f32(0));
            let d_parameters = &mut io.out_f32(1)[g * learned..][..learned];
            d_parameters.iter_mut().zip(sums).for_each(|(d, sum)| *d = sum as f32);
        }
    })
}

impl Laid {
    /// Learned, then derived numbers of group `g`.
    fn numbers(&self, g: usize, parameters: &[f32], x: &[f32], own: &mut [f32]) {
        let learned = self.quantizer.learned();
        let (first, rest) = own.split_at_mut(learned);
        first.copy_from_slice(&parameters[g * learned..][..learned]);
        self.quantizer.derive(x, rest);
    }

    /// The quantized values of the weight `x` of dimensions `dims`.
    pub fn apply(&self, parameters: &[f32], dims: &[usize], x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        let mut outs = [crate::op::SliceMut::F32(&mut y)];
        let ins = [crate::op::Slice::F32(x), crate::op::Slice::F32(parameters)];
        let threads = fewbits_kernels::Threads::new(1);
        weight_forward(self, dims).run(&mut Io { threads: &threads, ins: &ins, outs: &mut outs, scratch: &mut [] });
        y
    }
}

/// The elements of a weight that share parameters: those with the same index along one axis.
struct Groups {
    groups: usize,
    /// Products of the axes before and behind.
    outer: usize,
    inner: usize,
}

impl Groups {
    fn new(laid: &Laid, dims: &[usize]) -> Self {
        let whole = laid.groups == 1;
        let len: usize = dims.iter().product();
        match whole {
            true => Groups { groups: 1, outer: 1, inner: len },
            false => Groups {
                groups: laid.groups,
                outer: dims[..laid.axis].iter().product(),
                inner: dims[laid.axis + 1..].iter().product(),
            },
        }
    }

    fn buffers(&self, laid: &Laid) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let numbers = laid.quantizer.learned() + laid.quantizer.derived();
        let len = self.outer * self.inner;
        (vec![0.0; numbers], vec![0.0; len], vec![0.0; len])
    }

    fn gather(&self, g: usize, x: &[f32], group: &mut [f32]) {
        for (o, to) in group.chunks_exact_mut(self.inner.max(1)).enumerate() {
            to.copy_from_slice(&x[(o * self.groups + g) * self.inner..][..self.inner]);
        }
    }

    fn scatter(&self, g: usize, group: &[f32], y: &mut [f32]) {
        for (o, from) in group.chunks_exact(self.inner.max(1)).enumerate() {
            y[(o * self.groups + g) * self.inner..][..self.inner].copy_from_slice(from);
        }
    }
}
