//! What differences of a block's output count for the outputs of the network: the diagonal of their Hessian there.
//!
//! What enters: the walk before a block. What leaves: for every sample, a number for each element of the block's outputs. With `J` the
//! derivatives of the network's outputs by the block's, and `B·Bᵀ` the Hessian of the loss with respect to the former
//! ([`Weighting::curvature`]), the diagonal of `Jᵀ·B·Bᵀ·J` is the mean of `(Jᵀ·B·z)²` over random signs `z`. One `z` per sample: one
//! way forward and back through the rest of the float network. The loss itself, the divergence from the float network's own classes, is
//! least there and has no gradient; that of the cross entropy with the likeliest class would be next to nothing where the network is
//! sure, and with sampled classes has the same mean as here and a larger variance.

use crate::{
    MethodError, Walk,
    reconstruction::{Examples, pick},
    walk::{LANES, Side, Store, try_run},
    weighting::Weighting,
};
use fewbits_graph::{
    Graph, Tensor,
    tape::{Config, Leaves, Tape},
};
use fewbits_kernels::Threads;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Share of the importance that all elements have in equal parts. The rest is an estimate from a single `z`.
const EQUAL: f32 = 0.5;

/// A block's samples with what their differences count.
pub struct Weighed<'a> {
    walk: &'a Walk<'a>,
    names: &'a [String],
    store: Store,
}

impl<'a> Weighed<'a> {
    /// The importance of what `walk`'s block puts out as `names`; `None` where the rest of the network has no derivative, or where there
    /// is no rest.
    ///
    /// # Errors
    /// Errors of the walk and of the network.
    pub fn of(walk: &'a Walk<'a>, names: &'a [String], seed: u64) -> Result<Option<Self>, MethodError> {
        let rest = walk.rest()?;
        if rest.nodes.is_empty() || walk.samples() == 0 {
            return Ok(None);
        }
        let leaves = Leaves::new(&rest, &BTreeMap::new());
        let shapes: Vec<Vec<usize>> = walk.live(0)?.into_iter().map(|tensor| tensor.dims).collect();
        let config = Config { input_gradients: true, ..Config::default() };
        let lane = || Tape::compile(&rest, &leaves, &shapes, &config).ok().map(|tape| (tape, leaves.clone()));
        let Some(lanes) = (0..LANES.min(walk.samples())).map(|_| lane()).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let lanes: Vec<Mutex<(Tape, Leaves)>> = lanes.into_iter().map(Mutex::new).collect();
        let mut store = walk.store(walk.samples());
        names.iter().for_each(|name| store.open(name));
        let weighed = Weighed { walk, names, store };
        try_run(walk.threads(), lanes.len(), |lane| {
            let mut lane_state = lanes[lane].lock().unwrap_or_else(PoisonError::into_inner);
            let (tape, leaves) = &mut *lane_state;
            (lane..walk.samples()).step_by(lanes.len()).try_for_each(|sample| {
                let key = pick(seed, sample, 0, usize::MAX) as u64;
                weighed.weigh(&rest, (tape, leaves), sample, key)
            })
        })?;
        Ok(Some(weighed))
    }

    /// Keeps the importance for one sample.
    fn weigh(
        &self,
        rest: &Graph,
        (tape, leaves): (&mut Tape, &mut Leaves),
        sample: usize,
        key: u64,
    ) -> Result<(), MethodError> {
        let live = self.walk.live(sample)?;
        let facts = self.walk.ground().facts;
        let dims: Vec<&[usize]> =
            rest.outputs.iter().map(|info| facts.get(&info.name).map_or(&[][..], |fact| &fact.dims)).collect();
        let gradients = toward_inputs((tape, leaves), &live, &dims, key);
        for name in self.names {
            let Some(i) = rest.inputs.iter().position(|info| info.name == *name) else { continue };
            self.store.put(name, sample, Tensor::f32(&live[i].dims, shares(&gradients[i], live[i].len())))?;
        }
        Ok(())
    }
}

/// `Jᵀ·B·z` for each of `inputs`, `z` from `key`; `outputs` are the dimensions of the outputs.
fn toward_inputs(
    (tape, leaves): (&mut Tape, &mut Leaves),
    inputs: &[Tensor],
    outputs: &[&[usize]],
    key: u64,
) -> Vec<Vec<f32>> {
    let one = Threads::new(1);
    let given: Vec<&[f32]> = inputs.iter().map(|tensor| tensor.as_f32().unwrap_or_default()).collect();
    tape.forward(leaves, &given, &one);
    let mut place = 0;
    let mut sign = || {
        place += 1;
        if pick(key, place, 1, 2) == 0 { 1.0 } else { -1.0 }
    };
    let output = |(i, dims): (usize, &&[usize])| Tensor::f32(dims, tape.output(i).to_vec());
    let targets: Vec<Tensor> = outputs.iter().enumerate().map(output).collect();
    let weightings = Weighting::of(std::slice::from_ref(&targets));
    let probe = |(weighting, target): (&Weighting, &Tensor)| {
        weighting.curvature(target.as_f32().unwrap_or_default(), &mut sign)
    };
    let probes: Vec<Vec<f32>> = weightings.iter().zip(&targets).map(probe).collect();
    let probes: Vec<&[f32]> = probes.iter().map(Vec::as_slice).collect();
    tape.backward(leaves, &given, &probes, &mut vec![0.0; leaves.values.len()], &one);
    (0..inputs.len()).map(|i| tape.input_gradient(i).to_vec()).collect()
}

/// Squares of `gradient` in units of their mean, brought nearer to 1 by [`EQUAL`]; all 1 where nothing depends on the tensor.
fn shares(gradient: &[f32], len: usize) -> Vec<f32> {
    let mean = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>() / len.max(1) as f64;
    if gradient.len() != len || mean.is_nan() || mean <= f64::from(f32::MIN_POSITIVE) {
        return vec![1.0; len];
    }
    gradient.iter().map(|g| EQUAL + (1.0 - EQUAL) * (f64::from(*g).powi(2) / mean) as f32).collect()
}

impl Examples for Weighed<'_> {
    fn inputs(&self, side: Side, sample: usize) -> Result<Vec<Tensor>, MethodError> {
        self.walk.inputs(side, sample)
    }

    fn targets(&self, sample: usize) -> Result<Vec<Tensor>, MethodError> {
        self.walk.targets(sample)
    }

    fn importance(&self, sample: usize) -> Result<Vec<Tensor>, MethodError> {
        self.names.iter().map(|name| self.store.get(name, sample)).collect()
    }
}

#[cfg(test)]
mod tests;
