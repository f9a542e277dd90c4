//! Grids on inputs of layers, as TensorRT wants them.

use super::{Placer, Site};
use fewbits_graph::Op;

impl Placer<'_> {
    pub(super) fn layer_inputs(&mut self) {
        for i in 0..self.graph.nodes.len() {
            let node = &self.graph.nodes[i];
            if self.is_layer(i) {
                self.sites.entry(node.inputs[0].clone()).or_insert(Site::activation(None));
                self.place_weight(i);
                self.integer.insert(i, "integer kernel (fused with what follows it)".into());
            } else if let (Op::Add(_), false) = (&node.op, self.keep_float.contains(&node.name)) {
                self.place_residual(i);
            } else if self.before_layer[i] && self.behind_layer[i] && self.has_integer_kernel(i) {
                self.sites.entry(node.inputs[0].clone()).or_insert(Site::activation(None));
                self.integer.insert(i, "integer kernel".into());
            }
        }
    }

    /// Of an addition behind a layer, the other (shortcut) input gets the grid: between the layer and the addition there is none.
    fn place_residual(&mut self, i: usize) {
        let node = &self.graph.nodes[i];
        let from_layer = |name: &String| {
            self.producers.get(name.as_str()).is_some_and(|&p| self.is_layer(p)) && self.readers(name).len() == 1
        };
        let Some(main) = node.inputs.iter().rposition(from_layer) else { return };
        let shortcut = &node.inputs[1 - main];
        if self.graph.constant(shortcut).is_none() {
            self.sites.entry(shortcut.clone()).or_insert(Site::activation(None));
            self.integer.insert(i, "fused into the layer before it".into());
        }
    }
}
