//! BatchNormalizations while recording: statistics, what is folded into the layer before them, and the clamp behind them.

use super::{Entry, Recorder, item};
use crate::{
    error::{GraphError, OpError},
    graph::Node,
    op::{Activation, Fact, Layout, Op},
    tape::{
        Statistics,
        item::{Home, Join, ValueId},
        leaves::Leaf,
        normalization::{Normalization, PARTS, multiply_rows},
    },
};

impl Recorder<'_> {
    /// Whether `node` is a layer whose only reader is a BatchNormalization.
    pub(super) fn is_folded(&self, node: &Node) -> bool {
        let mut readers = self.graph.nodes.iter().filter(|n| n.present_inputs().any(|i| i == node.output()));
        let first = readers.next();
        matches!(node.op, Op::Conv(_))
            && first.is_some_and(|n| matches!(n.op, Op::BatchNormalization(_)))
            && readers.next().is_none()
            && !self.graph.is_output(node.output())
            && self.leaves.parameter(&node.inputs[1]).is_some()
    }

    /// Multiplies weight and bias with the factors of the BatchNormalization behind, from its running statistics.
    pub(super) fn fold(&mut self, node: &Node, ins: &mut [Option<ValueId>]) -> Result<(), GraphError> {
        let Some(bn) = self.graph.nodes.iter().find(|n| n.input(0) == Some(node.output())) else { return Ok(()) };
        let (spec, [scale, _, mean, variance]) = self.normalization_parts(bn, 1)?;
        self.fold_with(node, spec, [scale, mean, variance], ins, true);
        Ok(())
    }

    /// The statistics of `plain`, what the layer computes with float weights: the normalization behind uses them, and running averages
    /// follow them. With [`Config::fold_batch`](crate::tape::Config::fold_batch) weights are folded with them, too.
    pub(super) fn fold_by_float_layer(
        &mut self,
        node: &Node,
        plain: ValueId,
        ins: &mut [Option<ValueId>],
    ) -> Result<(), GraphError> {
        let Some(bn) = self.graph.nodes.iter().find(|n| n.input(0) == Some(node.output())) else { return Ok(()) };
        let fact = self.fact(plain).clone();
        let count = fact.len() / fact.dims.get(1).copied().unwrap_or(1).max(1);
        let (spec, [scale, bias, mean, variance]) = self.normalization_parts(bn, count)?;
        let at = Some(self.next);
        let sums = self.record.vector(2 * spec.channels, Home::Joined(Join::Sum));
        let inputs = vec![Some(plain), Some(mean)];
        self.record.forward.push(item(at, false, move || spec.moments(), inputs, vec![Some(sums)]));
        // The running averages follow as without folding.
        let all = self.record.vector(PARTS * spec.channels, Home::Made);
        let inputs = vec![Some(scale), Some(bias), Some(mean), Some(variance), Some(sums), None];
        self.record.forward.push(item(at, true, move || spec.finish(), inputs, vec![Some(all)]));
        self.follow_batch(bn, all, spec.channels);
        let of_batch = [(); 2].map(|()| self.record.vector(spec.channels, Home::Made));
        let outs = of_batch.map(Some).to_vec();
        let inputs = vec![Some(sums), Some(mean)];
        self.record.forward.push(item(at, true, move || spec.batch_statistics(), inputs, outs));
        self.forms.insert(statistics_name(node.output()), of_batch.to_vec());
        if self.config.fold_batch {
            self.fold_with(node, spec, [scale, of_batch[0], of_batch[1]], ins, false);
        } else {
            self.fold_with(node, spec, [scale, mean, variance], ins, true);
        }
        Ok(())
    }

    /// Multiplies weight and bias with the factors that follow from γ, mean and variance.
    fn fold_with(
        &mut self,
        node: &Node,
        spec: Normalization,
        statistics: [ValueId; 3],
        ins: &mut [Option<ValueId>],
        at_once: bool,
    ) {
        let factors = self.record.vector(2 * spec.channels, Home::Made);
        let inputs = statistics.map(Some).to_vec();
        let at = Some(self.next);
        self.push_once(item(at, true, move || spec.factors(), inputs, vec![Some(factors)]), at_once);
        self.forms.insert(factors_name(node.output()), vec![factors]);
        for input in [1, 2] {
            let Some(Some(whole)) = ins.get(input).copied() else { continue };
            let folded = self.record.add(self.fact(whole).clone(), false, Home::Made);
            let kernel = move || multiply_rows(spec.channels);
            let inputs = vec![Some(whole), Some(factors)];
            self.push_once(item(at, true, kernel, inputs, vec![Some(folded)]), at_once);
            self.record.entries.push(Entry::Fold { whole, factors, folded });
            ins[input] = Some(folded);
        }
    }

    /// Notes that running averages are in `all` after a step.
    fn follow_batch(&mut self, node: &Node, all: ValueId, channels: usize) {
        let leaf = |i: usize| self.leaves.running.iter().find(|leaf| Some(&*leaf.name) == node.input(i)).cloned();
        if let (Some(mean), Some(variance)) = (leaf(3), leaf(4)) {
            self.record.running.push(([mean, variance], all, channels));
        }
    }

    /// Description and leaves (γ, β, running mean, running variance) of a BatchNormalization.
    fn normalization_parts(&mut self, node: &Node, count: usize) -> Result<(Normalization, [ValueId; 4]), GraphError> {
        let Op::BatchNormalization(bn) = &node.op else { unreachable!("called for BatchNormalization only") };
        let leaf = |list: &[Leaf], i: usize| list.iter().find(|leaf| Some(&*leaf.name) == node.input(i)).cloned();
        let missing = || {
            GraphError::at(
                node,
                |name| self.facts.get(name),
                OpError::Unsupported("normalization by tensors that are no constants".into()),
            )
        };
        let scale = leaf(&self.leaves.parameters, 1).ok_or_else(missing)?;
        let bias = leaf(&self.leaves.parameters, 2).ok_or_else(missing)?;
        let mean = leaf(&self.leaves.running, 3).ok_or_else(missing)?;
        let variance = leaf(&self.leaves.running, 4).ok_or_else(missing)?;
        let spec = Normalization {
            channels: scale.range.len(),
            epsilon: bn.epsilon,
            momentum: bn.momentum,
            count,
            clamp: [f32::NEG_INFINITY, f32::INFINITY],
            batch: self.config.statistics == Statistics::Batch,
            through: self.config.statistics == Statistics::Batch,
            fold: false,
        };
        let [mean, variance] = [mean, variance].map(|leaf| self.statistic(&leaf));
        Ok((spec, [self.parameter(scale), self.parameter(bias), mean, variance]))
    }

    /// Records a BatchNormalization; the position of the Relu or Clip that it does too.
    pub(super) fn normalization(&mut self, node: &Node) -> Result<Option<usize>, GraphError> {
        let name = &node.inputs[0];
        let layout = if self.facts[name].dims.len() >= 3 { Layout::ChannelsLast } else { Layout::Plain };
        let x = self.need(name, layout, None);
        let fact = self.fact(x).clone();
        let channels = fact.dims.get(1).copied().unwrap_or(1);
        let (mut spec, [scale, bias, mean, variance]) = self.normalization_parts(node, fact.len() / channels.max(1))?;
        let factors = self.forms.get(&factors_name(name)).map(|forms| forms[0]);
        spec.fold = factors.is_some();
        // Statistics of the layer with float weights serve as running ones do, but for gradients, which go through them as if they were
        // of the rounded layer.
        let (mut mean, mut variance) = (mean, variance);
        if let Some(of_batch) = self.forms.get(&statistics_name(name)) {
            (mean, variance, spec.batch) = (of_batch[0], of_batch[1], false);
        }
        let known = !self.forms.contains_key(&statistics_name(name)) && !spec.batch;
        let (activation, clamp) = self.absorbed(node);
        spec.clamp = clamp;
        let at = Some(self.next);
        let sums = spec.batch.then(|| {
            let sums = self.record.vector(2 * channels, Home::Joined(Join::Sum));
            let centre = factors.unwrap_or(mean);
            let ins = vec![Some(x), Some(centre)];
            self.record.forward.push(item(at, false, move || spec.moments(), ins, vec![Some(sums)]));
            sums
        });
        let all = self.record.vector(PARTS * channels, Home::Made);
        let ins = vec![Some(scale), Some(bias), Some(mean), Some(variance), sums, factors];
        let finish = item(at, true, move || spec.finish(), ins, vec![Some(all)]);
        // Running statistics are known before the data is.
        self.push_once(finish, known);
        let y = self.record.add(fact, true, Home::Made);
        let ins = vec![Some(x), Some(all)];
        self.record.forward.push(item(at, false, move || spec.normalize(), ins, vec![Some(y)]));
        self.record.entries.push(Entry::Normalize { spec, x, y, all, scale, bias });
        if spec.batch {
            self.follow_batch(node, all, channels);
        }
        let output = activation.map_or(node, |i| &self.graph.nodes[i]).output().to_string();
        self.define(&output, y);
        Ok(activation)
    }

    /// The Relu or Clip that alone reads the node's output, which has no quantizer, and its bounds.
    fn absorbed(&self, node: &Node) -> (Option<usize>, [f32; 2]) {
        let none = (None, [f32::NEG_INFINITY, f32::INFINITY]);
        let output = node.output();
        let mut readers =
            (0..self.graph.nodes.len()).filter(|&i| self.graph.nodes[i].present_inputs().any(|n| n == output));
        let (Some(i), None) = (readers.next(), readers.next()) else { return none };
        if self.graph.is_output(output) || self.config.quantizers.contains_key(output) {
            return none;
        }
        let reader = &self.graph.nodes[i];
        let facts: Vec<Option<&Fact>> = reader.inputs.iter().map(|n| self.facts.get(n)).collect();
        let is_clamp = matches!(reader.op, Op::Relu(_) | Op::Clip(_));
        match reader.op.def().activation(&facts) {
            Some(Activation::Clamp { min, max }) if is_clamp => (Some(i), [min, max]),
            _ => none,
        }
    }
}

fn statistics_name(tensor: &str) -> String {
    format!("{tensor}.statistics")
}

fn factors_name(tensor: &str) -> String {
    format!("{tensor}.factors")
}
