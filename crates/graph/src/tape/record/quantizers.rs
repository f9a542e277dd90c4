//! Quantizers while recording: those of activations, behind what makes the tensor, and those of weights.

use super::{Entry, Recorder, item};
use crate::{
    op::Kernel,
    tape::{
        Laid,
        item::{Home, Join, Value, ValueId},
        laid::{activation_forward, weight_forward},
        leaves::quantizer_leaf,
    },
};

impl Recorder<'_> {
    pub(super) fn quantize_activation(&mut self, name: &str, laid: &Laid, x: ValueId) -> ValueId {
        let Value { fact, rows, .. } = self.record.values[x].clone();
        let Some(leaf) = self.leaves.parameter(&quantizer_leaf(name)).cloned() else { return x };
        let parameters = self.parameter(leaf);
        if laid.quantizer.follows_range() {
            let seen = self.record.vector(2, Home::Joined(Join::Max));
            let kernel = || {
                Kernel::new(|io| {
                    let x = io.f32(0);
                    let most = |m: f32, x: &f32| if *x > m { *x } else { m };
                    let least = x.iter().fold(f32::INFINITY, |m, x| if *x < m { *x } else { m });
                    let most = x.iter().fold(f32::NEG_INFINITY, most);
                    let out = io.out_f32(0);
                    out[0] = out[0].max(-least);
                    out[1] = out[1].max(most);
                })
            };
            self.record.forward.push(item(Some(self.next), false, kernel, vec![Some(x)], vec![Some(seen)]));
            self.record.ranges.push((name.into(), seen));
        }
        let y = self.record.add(fact, rows, Home::Made);
        let laid_here = laid.clone();
        let kernel = move || activation_forward(&laid_here);
        let mut quantize = item(Some(self.next), false, kernel, vec![Some(x), Some(parameters)], vec![Some(y)]);
        quantize.stop = self.config.stops.then(|| name.to_string());
        self.record.forward.push(quantize);
        self.record.entries.push(Entry::Quantize { laid: laid.clone(), x, y, parameters });
        y
    }

    pub(super) fn quantize_weight(&mut self, name: &str, laid: &Laid, x: ValueId, at_once: bool) -> ValueId {
        let Some(leaf) = self.leaves.parameter(&quantizer_leaf(name)).cloned() else { return x };
        let parameters = self.parameter(leaf);
        let fact = self.fact(x).clone();
        let (dims, laid_here) = (fact.dims.clone(), laid.clone());
        let y = self.record.add(fact, false, Home::Made);
        let kernel = move || weight_forward(&laid_here, &dims);
        let ins = vec![Some(x), Some(parameters)];
        self.push_once(item(Some(self.next), true, kernel, ins, vec![Some(y)]), at_once);
        self.record.entries.push(Entry::Quantize { laid: laid.clone(), x, y, parameters });
        y
    }
}
