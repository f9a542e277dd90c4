//! The damage of a whole assignment: every weight at its width at once.

use crate::{Metric, Rounding, SearchError};
use fewbits_graph::{
    Graph, Grids, Tensor,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;
use fewbits_methods::{Ground, MethodError, Samples, layers};
use fewbits_quant::placement::Site;
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

/// A network whose weights can be given widths. Weights once rounded are kept.
#[derive(Debug)]
pub struct Whole<'a> {
    ground: Ground<'a>,
    activations: Option<Grids>,
    metric: Metric,
    rounding: Rounding,
    threads: &'a Threads,
    inputs: Vec<Vec<Tensor>>,
    references: Vec<Vec<Tensor>>,
    rounded: BTreeMap<(String, u8), Arc<Tensor>>,
}

impl<'a> Whole<'a> {
    /// Computes what the float network makes of `samples`. With `activations`, activations are on their grids wherever damage is measured.
    ///
    /// # Errors
    /// Those of the samples and the network.
    pub fn new(
        ground: Ground<'a>,
        samples: &dyn Samples,
        activations: Option<&Grids>,
        metric: Metric,
        rounding: Rounding,
        threads: &'a Threads,
    ) -> Result<Self, SearchError> {
        let inputs = inputs(samples, threads)?;
        let references = outputs(ground.float, Mode::Float, &inputs, threads)?;
        let activations = activations.map(|grids| {
            let of_weights = |name: &String| {
                matches!(ground.placement.sites.get(name), Some(Site::Weight { .. } | Site::Bias { .. }))
            };
            Grids(grids.0.iter().filter(|(name, _)| !of_weights(name)).map(|(n, q)| (n.clone(), q.clone())).collect())
        });
        Ok(Whole { ground, activations, metric, rounding, threads, inputs, references, rounded: BTreeMap::new() })
    }

    /// Damage at the outputs of the network with these bits by weight name; weights that are not named stay float.
    ///
    /// # Errors
    /// Those of the weights and the network.
    pub fn damage(&mut self, bits: &BTreeMap<String, u8>) -> Result<f64, SearchError> {
        let mut graph = self.ground.float.clone();
        for layer in layers(self.ground.float, self.ground.placement) {
            let Some(&bits) = bits.get(&layer.weight) else { continue };
            let weight = self.ground.float.constant(&layer.weight).expect("a layer's weight is a constant");
            let key = (layer.weight.clone(), bits);
            if !self.rounded.contains_key(&key) {
                self.rounded.insert(key.clone(), self.rounding.apply(&layer.weight, weight, layer.axis, bits)?);
            }
            graph.constants.insert(layer.weight, self.rounded[&key].clone());
        }
        let mode = self.activations.as_ref().map_or(Mode::Float, Mode::FakeQuant);
        let found = outputs(&graph, mode, &self.inputs, self.threads)?;
        let names: Vec<&str> = graph.outputs.iter().map(|info| info.name.as_str()).collect();
        let of_sample = |(wanted, found): (&Vec<Tensor>, Vec<Tensor>)| {
            let wanted: Vec<(&str, Tensor)> = names.iter().copied().zip(wanted.iter().cloned()).collect();
            damage(self.metric, &wanted, &names.iter().copied().zip(found).collect())
        };
        let sum: f64 = self.references.iter().zip(found).map(of_sample).sum();
        Ok(sum / self.inputs.len().max(1) as f64)
    }
}

/// The mean damage over the float tensors of `wanted`; those that are not among `changed` are as they were.
pub(crate) fn damage(metric: Metric, wanted: &[(&str, Tensor)], changed: &BTreeMap<&str, Tensor>) -> f64 {
    let floats = wanted.iter().filter(|(_, tensor)| tensor.as_f32().is_some());
    let of =
        |(name, tensor): &(&str, Tensor)| changed.get(name).and_then(|new| metric.damage(tensor, new)).unwrap_or(0.0);
    let (sum, count) = floats.fold((0.0, 0), |(sum, count), wanted| (sum + of(wanted), count + 1));
    sum / f64::from(count.max(1))
}

/// All samples.
pub(crate) fn inputs(samples: &dyn Samples, threads: &Threads) -> Result<Vec<Vec<Tensor>>, MethodError> {
    in_order(samples.count(), threads, |i| {
        samples.inputs(i).map_err(|source| MethodError::Sample { sample: i, source })
    })
}

/// What `graph` makes of each of `inputs`.
pub(crate) fn outputs(
    graph: &Graph,
    mode: Mode<'_>,
    inputs: &[Vec<Tensor>],
    threads: &Threads,
) -> Result<Vec<Vec<Tensor>>, MethodError> {
    // Each thread has a stretch of samples and one program for it; what it computes does not depend on how many there are.
    let stretch = inputs.len().div_ceil(threads.count()).max(1);
    let stretches: Vec<&[Vec<Tensor>]> = inputs.chunks(stretch).collect();
    let parts = in_order(stretches.len(), threads, |i| {
        let one = Threads::new(1);
        let mut executor = Executor::new(graph, mode, &one);
        stretches[i].iter().map(|inputs| Ok(executor.run(inputs)?)).collect::<Result<Vec<_>, MethodError>>()
    })?;
    Ok(parts.into_iter().flatten().collect())
}

/// `task(0..count)` on all threads; the error of the lowest number, if any.
pub(crate) fn in_order<T: Send + Sync, E: Send + Sync>(
    count: usize,
    threads: &Threads,
    task: impl Fn(usize) -> Result<T, E> + Sync + Send,
) -> Result<Vec<T>, E> {
    let slots: Vec<OnceLock<Result<T, E>>> = (0..count).map(|_| OnceLock::new()).collect();
    threads.run(count, |i| {
        slots[i].get_or_init(|| task(i));
    });
    slots.into_iter().map(|slot| slot.into_inner().expect("every slot was filled")).collect()
}
