//! Functions through which activations are read: an error counts behind them.

use super::{Placer, Site};
use crate::ranges::Reader;
use fewbits_graph::Op;

impl Placer<'_> {
    /// Notes for each activation through which function it is read.
    pub(super) fn mark_readers(&mut self) {
        let names: Vec<String> = self.sites.keys().cloned().collect();
        for name in names {
            let found = self.reader_of(&name);
            if let Some(Site::Activation { reader, .. }) = self.sites.get_mut(&name) {
                *reader = found;
            }
        }
    }

    fn reader_of(&self, name: &str) -> Reader {
        let integer = |i: usize| self.integer.contains_key(&i);
        let activation = |i: usize| {
            use fewbits_graph::op::Activation;
            match self.graph.nodes[i].op.def().activation(&[]) {
                Some(Activation::LeakyRelu { alpha }) => Reader::LeakyRelu { alpha },
                Some(Activation::Sigmoid) => Reader::Sigmoid,
                Some(Activation::HardSwish) => Reader::HardSwish,
                _ => Reader::Identity,
            }
        };
        match *self.readers(name) {
            _ if self.graph.is_output(name) => Reader::Identity,
            [one] if integer(one) => activation(one),
            [gate, product] if integer(gate) && integer(product) => {
                let (gate, product) = (&self.graph.nodes[gate], &self.graph.nodes[product]);
                let inputs_fit = product.inputs.iter().all(|input| input == name || input == gate.output());
                let gate_only = self.readers(gate.output()).len() == 1;
                match (&gate.op, &product.op) {
                    (Op::Sigmoid(_), Op::Mul(_)) if inputs_fit && gate_only => Reader::Silu,
                    (Op::HardSigmoid(_), Op::Mul(_)) if inputs_fit && gate_only => Reader::HardSwish,
                    _ => Reader::Identity,
                }
            }
            _ => Reader::Identity,
        }
    }
}
