//! The damage of a whole assignment: every weight and every input of a layer at its width at once.

use crate::{Bits, InputDamage, Metric, Rounding, SearchError, stretch::Stretch};
use fewbits_graph::{
    Graph, Grids, Tensor, TensorQuant,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;
use fewbits_methods::{Ground, MethodError, Progress, Samples, layers};
use fewbits_quant::placement::Site;
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// By name of a weight and bits: the constants that a layer has with these bits, its weight on the grid among them.
pub type Prepared = BTreeMap<(String, u8), Vec<(String, Arc<Tensor>)>>;

/// A network whose weights and inputs of layers can be given widths. Weights once rounded are kept, and what the first stretches of the
/// network made of the samples with the last assignment: one that differs only further back begins there.
#[derive(Debug)]
pub struct Whole<'a> {
    ground: Ground<'a>,
    activations: Option<Grids>,
    /// Grids of inputs of layers by width.
    inputs_at: BTreeMap<u8, Grids>,
    metric: Metric,
    rounding: Rounding,
    threads: &'a Threads,
    inputs: Vec<Vec<Tensor>>,
    references: Vec<Vec<Tensor>>,
    rounded: Prepared,
    stretches: Vec<Stretch>,
    /// Damage by run of the best assignment that [`Whole::compared`] has seen.
    best: Option<Vec<f64>>,
}

/// Shares of the runs after which [`Whole::compared`] looks whether there is hope.
const STAGES: [f64; 3] = [0.125, 0.375, 1.0];
/// Fewest runs that a test is made on.
const LEAST_RUNS: usize = 4;
/// Standard errors by which a hopeless assignment is worse.
const HOPELESS: f64 = 3.0;

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
        Ok(Whole {
            ground,
            activations,
            inputs_at: BTreeMap::new(),
            metric,
            rounding,
            threads,
            stretches: Stretch::all(&ground, images(&ground, &inputs)),
            inputs,
            references,
            rounded: Prepared::new(),
            best: None,
        })
    }

    /// The same with grids for inputs of layers by width, from which assignments choose.
    #[must_use]
    pub fn with_inputs_at(mut self, inputs_at: BTreeMap<u8, Grids>) -> Self {
        self.stretches.iter_mut().for_each(Stretch::forget);
        Whole { inputs_at, ..self }
    }

    /// The same with weights that a method has rounded. What is not among them is rounded to the nearest codes.
    #[must_use]
    pub fn with_rounded(mut self, rounded: Prepared) -> Self {
        self.stretches.iter_mut().for_each(Stretch::forget);
        Whole { rounded, ..self }
    }

    /// Damage at the outputs of the network with these bits; weights and inputs that are not named stay as they are.
    ///
    /// # Errors
    /// Those of the weights and the network.
    pub fn damage(&mut self, bits: &Bits) -> Result<f64, SearchError> {
        Ok(mean(&self.runs(bits, 0..self.inputs.len())?))
    }

    /// As [`Whole::damage`], by another metric.
    ///
    /// # Errors
    /// Those of the weights and the network.
    pub fn damage_by(&mut self, metric: Metric, bits: &Bits) -> Result<f64, SearchError> {
        let usual = std::mem::replace(&mut self.metric, metric);
        let damage = self.damage(bits);
        self.metric = usual;
        damage
    }

    /// As [`Whole::damage`], but an assignment that is hopeless beside the best one seen here is given up early: when on the runs so far
    /// it is worse by three standard errors of the difference, run by run. What is returned then is the best one's damage and that
    /// difference.
    ///
    /// # Errors
    /// Those of the weights and the network.
    pub fn compared(&mut self, bits: &Bits) -> Result<f64, SearchError> {
        let mut seen: Vec<f64> = vec![];
        for share in STAGES {
            let end = (share * self.inputs.len() as f64).ceil() as usize;
            seen.extend(self.runs(bits, seen.len()..end)?);
            let Some(best) = self.best.as_ref().filter(|_| seen.len() >= LEAST_RUNS && end < self.inputs.len()) else {
                continue;
            };
            let worse: Vec<f64> = seen.iter().zip(best).map(|(now, best)| now - best).collect();
            let by = mean(&worse);
            let variance = worse.iter().map(|d| (d - by).powi(2)).sum::<f64>() / (worse.len() - 1) as f64;
            if by > HOPELESS * (variance / worse.len() as f64).sqrt() {
                return Ok(mean(best) + by);
            }
        }
        let damage = mean(&seen);
        if !damage.is_nan() && self.best.as_ref().is_none_or(|best| damage < mean(best)) {
            self.best = Some(seen);
        }
        Ok(damage)
    }

    /// Damage of every input of layers at each of `widths`, nothing else rounded.
    ///
    /// # Errors
    /// Those of the network.
    pub fn input_damages(&mut self, widths: &[u8], progress: &dyn Progress) -> Result<Vec<InputDamage>, SearchError> {
        let mut edges: Vec<(String, bool)> = vec![];
        for layer in layers(self.ground.float, self.ground.placement) {
            let tensor = self.ground.placement.owner(&layer.input);
            match edges.iter_mut().find(|(known, _)| known == tensor) {
                Some((_, edge)) => *edge |= layer.edge,
                None => edges.push((tensor.into(), layer.edge)),
            }
        }
        progress.begin("sensitivity of inputs", edges.len());
        let mut found = vec![];
        for (tensor, edge) in edges {
            let mut damage = vec![];
            for &width in widths {
                let inputs = BTreeMap::from([(tensor.clone(), width)]);
                damage.push(self.damage(&Bits { inputs, ..Bits::default() })?);
            }
            found.push(InputDamage { tensor, edge, damage });
            progress.step();
        }
        progress.end();
        Ok(found)
    }

    /// Damage with these bits, run by run.
    fn runs(&mut self, bits: &Bits, runs: Range<usize>) -> Result<Vec<f64>, SearchError> {
        let mut constants: Vec<(String, Arc<Tensor>)> = vec![];
        for layer in layers(self.ground.float, self.ground.placement) {
            let Some(&bits) = bits.weights.get(&layer.weight) else { continue };
            let weight = self.ground.float.constant(&layer.weight).expect("a layer's weight is a constant");
            let key = (layer.weight.clone(), bits);
            if !self.rounded.contains_key(&key) {
                let rounded = self.rounding.apply(&layer.weight, weight, layer.axis, bits)?;
                self.rounded.insert(key.clone(), vec![(layer.weight, rounded)]);
            }
            constants.extend(self.rounded[&key].iter().cloned());
        }
        let mut grids = self.activations.clone().unwrap_or_default();
        for (name, bits) in &bits.inputs {
            let params = self.inputs_at.get(bits).and_then(|grids| grids.params(name)).cloned();
            grids.0.extend(params.map(|params| (name.clone(), TensorQuant::Quantized(params))));
        }
        let mode = if grids.0.is_empty() { Mode::Float } else { Mode::FakeQuant(&grids) };
        let found = self.outputs(bits, constants, mode, &runs)?;
        let names: Vec<&str> = self.ground.float.outputs.iter().map(|info| info.name.as_str()).collect();
        let of_run = |(wanted, found): (&Vec<Tensor>, Vec<Tensor>)| {
            let wanted: Vec<(&str, Tensor)> = names.iter().copied().zip(wanted.iter().cloned()).collect();
            damage(self.metric, &wanted, &names.iter().copied().zip(found).collect())
        };
        Ok(self.references[runs].iter().zip(found).map(of_run).collect())
    }

    /// What the network with these bits, hence with `constants`, puts out.
    fn outputs(
        &mut self,
        bits: &Bits,
        constants: Vec<(String, Arc<Tensor>)>,
        mode: Mode<'_>,
        runs: &Range<usize>,
    ) -> Result<Vec<Vec<Tensor>>, SearchError> {
        let known = self.stretches.iter().rposition(|stretch| stretch.entries(bits, runs).is_some());
        let (mut made, mut brought): (_, Option<Vec<Vec<Tensor>>>) = (vec![], None);
        for i in known.unwrap_or(0)..self.stretches.len() {
            let [stretch, rest @ ..] = &mut self.stretches[i..] else { break };
            let brought_before = brought.take();
            let entries = match &brought_before {
                Some(entries) => entries,
                None => stretch.entries(bits, runs).unwrap_or(&self.inputs[runs.clone()]),
            };
            let mut graph = stretch.graph.clone();
            for (name, constant) in &constants {
                graph.constants.entry(name.clone()).and_modify(|old| old.clone_from(constant));
            }
            made = outputs(&graph, mode, entries, self.threads)?;
            if let Some(next) = rest.first_mut() {
                let pairs = entries.iter().zip(made.drain(..));
                let entries: Vec<Vec<Tensor>> = pairs.map(|(given, made)| next.entry(stretch, given, made)).collect();
                next.keep(bits, runs, &entries);
                brought = Some(entries);
            }
        }
        Ok(made)
    }
}

/// How many times the shapes that are known of the network the runs hold.
fn images(ground: &Ground<'_>, inputs: &[Vec<Tensor>]) -> usize {
    let known = ground.float.inputs.first().and_then(|info| ground.facts.get(&info.name)).map_or(1, |fact| fact.len());
    inputs.iter().filter_map(|tensors| tensors.first()).map(|first| first.len().div_ceil(known.max(1))).sum()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
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
    let read = |i: usize| samples.inputs(i).map_err(|source| MethodError::Sample { sample: i, source });
    threads.map(samples.count(), read).into_iter().collect()
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
    let part = |i: usize| {
        let one = Threads::new(1);
        let mut executor = Executor::new(graph, mode, &one);
        stretches[i].iter().map(|inputs| Ok(executor.run(inputs)?)).collect::<Result<Vec<_>, MethodError>>()
    };
    let parts = threads.map(stretches.len(), part).into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(parts.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use fewbits_graph::{Grid, QuantParams};
    use fewbits_methods::progress::Silent;

    fn all_at(network: &testing::Network, bits: u8) -> Bits {
        let weights = network.layers().into_iter().map(|layer| (layer.weight, bits)).collect();
        Bits { weights, ..Bits::default() }
    }

    #[test]
    fn the_hopeless_is_given_up_and_the_better_is_computed_to_the_end() {
        let (network, images, threads) = (testing::network(), testing::images(40), Threads::new(2));
        let new = || Whole::new(network.ground(), &images, None, Metric::Snr, Rounding::default(), &threads).unwrap();
        let (mut whole, mut plain) = (new(), new());
        let [two, four, eight] = [2, 4, 8].map(|bits| all_at(&network, bits));
        // Nothing to compare with, then better, then worse.
        assert_eq!(whole.compared(&four).unwrap(), plain.damage(&four).unwrap());
        assert_eq!(whole.compared(&eight).unwrap(), plain.damage(&eight).unwrap());
        let given_up = whole.compared(&two).unwrap();
        let first = |bits: &Bits| mean(&new().runs(bits, 0..5).unwrap());
        let expected = plain.damage(&eight).unwrap() + first(&two) - first(&eight);
        assert!((given_up - expected).abs() < 1e-12, "{given_up}, expected {expected}");
        assert_ne!(given_up, plain.damage(&two).unwrap());
    }

    #[test]
    fn what_is_shared_with_the_assignment_before_is_not_computed_again_and_changes_nothing() {
        let (images, threads) = (testing::images(6), Threads::new(2));
        // The second one reads an early tensor once more at its end.
        for network in [testing::network(), testing::branching()] {
            let owners = network.placement.sites.iter().filter(|(_, site)| matches!(site, Site::Activation { .. }));
            let owners: Vec<&String> = owners.map(|(name, _)| name).collect();
            let at = |bits: u8, scale: f32| {
                let params = QuantParams::per_tensor(Grid::activations(bits), scale, 1 << (bits - 1));
                Grids(owners.iter().map(|name| ((*name).clone(), TensorQuant::Quantized(params.clone()))).collect())
            };
            let (wide, narrow) = (at(8, 0.03), BTreeMap::from([(3, at(3, 0.8))]));
            let new = || {
                let (ground, metric) = (network.ground(), Metric::Snr);
                let whole = Whole::new(ground, &images, Some(&wide), metric, Rounding::default(), &threads).unwrap();
                whole.with_inputs_at(narrow.clone())
            };
            let by_definition = |bits: &Bits| {
                let mut plain = new();
                plain.stretches = Stretch::all(&network.ground(), usize::MAX);
                assert_eq!(plain.stretches.len(), 1, "nothing can be kept");
                plain.damage(bits).unwrap()
            };
            let (mut whole, mut bits, mut reused) = (new(), all_at(&network, 4), vec![]);
            // From the last layer to the first: weights, then inputs.
            for layer in network.layers().iter().rev() {
                bits.weights.insert(layer.weight.clone(), 2);
                reused.push(whole.stretches.iter().skip(1).any(|s| s.entries(&bits, &(0..6)).is_some()));
                assert_eq!(whole.damage(&bits).unwrap(), by_definition(&bits), "{}", layer.weight);
            }
            for layer in network.layers().iter().rev() {
                bits.inputs.insert(network.placement.owner(&layer.input).into(), 3);
                reused.push(whole.stretches.iter().skip(1).any(|s| s.entries(&bits, &(0..6)).is_some()));
                assert_eq!(whole.damage(&bits).unwrap(), by_definition(&bits), "{}", layer.input);
            }
            let half = reused.len() / 2;
            assert!(!reused[0] && reused[1] && !reused[half - 1] && reused[half], "{reused:?}");
        }
    }

    #[test]
    fn inputs_are_rounded_one_by_one_to_the_grids_given() {
        let (network, images, threads) = (testing::network(), testing::images(3), Threads::new(2));
        let at = |bits: u8| {
            let grid = Grid::activations(bits);
            let params = QuantParams::per_tensor(grid, 8.0 / f32::from((1u16 << bits) - 1), 1 << (bits - 1));
            let owners = network.placement.sites.iter().filter(|(_, site)| matches!(site, Site::Activation { .. }));
            Grids(owners.map(|(name, _)| (name.clone(), TensorQuant::Quantized(params.clone()))).collect())
        };
        let mut whole = Whole::new(network.ground(), &images, None, Metric::Snr, Rounding::default(), &threads)
            .unwrap()
            .with_inputs_at([2, 8].map(|bits| (bits, at(bits))).into());
        let found = whole.input_damages(&[2, 8], &Silent).unwrap();
        let mut owners: Vec<String> =
            network.layers().iter().map(|layer| network.placement.owner(&layer.input).to_string()).collect();
        owners.dedup();
        assert_eq!(found.iter().map(|input| input.tensor.clone()).collect::<Vec<_>>(), owners);
        for input in &found {
            // The definition: one grid, the network in fake quantization.
            let grids = Grids([(input.tensor.clone(), at(2).0[&input.tensor].clone())].into());
            let rounded = outputs(&network.graph, Mode::FakeQuant(&grids), &images, &threads).unwrap();
            let float = outputs(&network.graph, Mode::Float, &images, &threads).unwrap();
            let damages = float.iter().zip(&rounded).map(|(a, b)| Metric::Snr.damage(&a[0], &b[0]).unwrap());
            assert!((damages.sum::<f64>() / 3.0 - input.damage[0]).abs() < 1e-12, "{}", input.tensor);
            assert!(input.damage[1] < input.damage[0], "{}", input.tensor);
        }
    }
}
