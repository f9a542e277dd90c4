//! Grids on inputs and outputs of what is computed in integers, as ONNX Runtime wants them.

use super::{Placer, Site};
use fewbits_graph::Op;

impl Placer<'_> {
    pub(super) fn inputs_and_outputs(&mut self) {
        for (i, joined) in self.joined().into_iter().enumerate() {
            if self.is_layer(i) {
                self.place_layer(i);
            } else if joined && self.has_integer_kernel(i) {
                let inputs: Vec<&str> = self.data_inputs(&self.graph.nodes[i]).collect();
                inputs.into_iter().for_each(|name| self.need_grid(name));
                self.place_output(i);
                self.integer.insert(i, "integer kernel".into());
            }
        }
        // ONNX Runtime rounds the weights of a float transposed convolution between Q and DQ by itself, if they are not rounded yet.
        for i in 0..self.graph.nodes.len() {
            let node = &self.graph.nodes[i];
            let one_group = matches!(&node.op, Op::ConvTranspose(conv) if conv.group == 1);
            let kept = self.keep_float.contains(&node.name);
            if one_group && !kept && self.sites.contains_key(&node.inputs[0]) && self.sites.contains_key(node.output())
            {
                self.place_weight(i);
            }
        }
    }

    /// Layers, and the operators between layers that the target computes in integers and whose neighbour on some side is one of
    /// these: among float operators a node would only be rounded. Activations that they absorb are among them.
    fn joined(&self) -> Vec<bool> {
        let count = self.graph.nodes.len();
        let between = |i: usize| self.before_layer[i] && self.behind_layer[i] && self.has_integer_kernel(i);
        let candidates: Vec<usize> = (0..count).filter(|&i| self.is_layer(i) || between(i)).collect();
        let mut joined = vec![false; count];
        let mut found = true;
        while std::mem::take(&mut found) {
            for &i in candidates.iter().chain(candidates.iter().rev()) {
                let absorbed = self.absorbed(i).map(|(r, _)| r);
                let mut outputs = self.graph.nodes[absorbed.unwrap_or(i)].outputs.iter();
                let joins = self.is_layer(i)
                    || self.data_inputs(&self.graph.nodes[i]).any(|name| self.holds_codes(name, &joined))
                    || outputs.any(|name| self.gives_codes(name, &joined));
                if joins && !joined[i] {
                    found = true;
                    absorbed.into_iter().chain([i]).for_each(|node| joined[node] = true);
                }
            }
        }
        joined
    }

    /// Whether `tensor` is a graph input or comes from a node of `joined`, moved about or not.
    fn holds_codes(&self, tensor: &str, joined: &[bool]) -> bool {
        match self.producers.get(tensor) {
            Some(&p) if self.moves(p) => self.holds_codes(&self.graph.nodes[p].inputs[0], joined),
            Some(&p) => joined[p],
            None => self.graph.constant(tensor).is_none(),
        }
    }

    /// Whether a node of `joined` reads `tensor`, moved about or not.
    fn gives_codes(&self, tensor: &str, joined: &[bool]) -> bool {
        self.readers(tensor).iter().any(|&r| {
            joined[r] || (self.moves(r) && self.graph.nodes[r].outputs.iter().any(|o| self.gives_codes(o, joined)))
        })
    }

    fn place_layer(&mut self, i: usize) {
        let node = &self.graph.nodes[i];
        let input = node.inputs[0].as_str();
        self.need_grid(input);
        self.place_weight(i);
        let writes_floats = self.target.float_output.iter().any(|op| op == node.op.name()) && !self.before_layer[i];
        if writes_floats {
            self.integer.insert(i, "integer sums, float output".into());
        } else {
            self.place_output(i);
            self.integer.insert(i, "integer kernel".into());
        }
    }

    /// Puts the grid of an integer operator's output on the output, or behind the activation that the target absorbs.
    fn place_output(&mut self, i: usize) {
        let node = &self.graph.nodes[i];
        let output = node.output();
        match self.absorbed(i) {
            Some((r, bounds)) => {
                let activation = &self.graph.nodes[r];
                self.sites.insert(activation.output().into(), Site::activation(Some(bounds)));
                self.integer.insert(r, format!("computed by the output grid of `{}`", node.name));
            }
            None => {
                self.sites.entry(output.into()).or_insert(Site::activation(None));
            }
        }
    }

    /// Makes sure that `tensor` has a grid: its own, or, behind operators that move elements, that of their input.
    fn need_grid(&mut self, tensor: &str) {
        if self.sites.contains_key(tensor) {
            return;
        }
        let mover = self.producers.get(tensor).copied().filter(|&p| self.moves(p));
        match mover {
            Some(p) => {
                let node = &self.graph.nodes[p];
                let from = node.inputs[0].clone();
                self.need_grid(&from);
                for output in node.outputs.iter().filter(|o| !o.is_empty()) {
                    self.sites.insert(output.clone(), Site::SameAs(from.clone()));
                }
            }
            None => {
                self.sites.insert(tensor.into(), Site::activation(None));
            }
        }
    }
}
