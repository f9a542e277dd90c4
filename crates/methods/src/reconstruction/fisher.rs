//! What an element of a block's output counts: the diagonal of the Fisher information, by how much the outputs of the whole network
//! depend on it.
//!
//! It must not know how roundings are learned.

use crate::{
    MethodError, Walk,
    weighting::{Outputs, Weighting},
};
use fewbits_graph::{
    Graph, Tensor,
    tape::{Config as TapeConfig, Leaves, Statistics, Tape},
};
use fewbits_train::random::Random;
use std::sync::Arc;

/// The most samples that are looked at.
const SAMPLES: usize = 32;

/// `E[g²]` for each element of one image of each output of the walk's block, in the order of [`crate::walk::Block::outputs`] and with a
/// mean of 1. With `J` the derivatives of the network's outputs by the block's and `B·Bᵀ` the Hessian of the loss at the float network's
/// outputs ([`Weighting::curvature`]), `g = Jᵀ·B·z` for random signs `z`: the mean of `g²` is the diagonal of `Jᵀ·B·Bᵀ·J`. `None` if what
/// is behind the block has no derivative, or nothing depends on it.
///
/// Source: Li et al., "BRECQ" (ICLR 2021), equation 10, averaged over samples.
///
/// # Errors
/// Errors of the walk and of the network.
pub(crate) fn importance(walk: &Walk<'_>, seed: u64) -> Result<Option<Vec<Vec<f32>>>, MethodError> {
    let Some(mut rest) = Rest::new(walk)? else { return Ok(None) };
    let count = walk.samples().min(SAMPLES);
    let samples: Vec<usize> = (0..count).map(|i| i * walk.samples() / count).collect();
    let mut seen = Outputs::default();
    for &sample in &samples {
        seen.add(&rest.forward(sample)?);
    }
    let weightings = seen.weightings();
    let mut sums: Vec<Vec<f64>> = vec![];
    for &sample in &samples {
        let mut random = Random::keyed(&[seed, sample as u64]);
        let mut sign = || if random.next_u64() >> 63 == 1 { 1.0 } else { -1.0 };
        let of_output = |(weighting, output): (&Weighting, &Tensor)| {
            weighting.curvature(output.as_f32().unwrap_or_default(), &mut sign)
        };
        let directions: Vec<Vec<f32>> = weightings.iter().zip(&rest.forward(sample)?).map(of_output).collect();
        let gradients = rest.back(sample, &directions)?;
        sums.resize(gradients.len(), vec![]);
        for (sums, gradient) in sums.iter_mut().zip(&gradients) {
            let values = gradient.as_f32().unwrap_or_default();
            let image = gradient.dims.iter().skip(1).product::<usize>().max(1);
            sums.resize(image, 0.0);
            for of_image in values.chunks(image) {
                sums.iter_mut().zip(of_image).for_each(|(sum, g)| *sum += f64::from(*g).powi(2));
            }
        }
    }
    let elements: usize = sums.iter().map(Vec::len).sum();
    let mean = sums.iter().flatten().sum::<f64>() / elements.max(1) as f64;
    let shared = |sums: Vec<f64>| sums.into_iter().map(|sum| (sum / mean) as f32).collect();
    Ok((mean > 0.0 && mean.is_finite()).then(|| sums.into_iter().map(shared).collect()))
}

/// The float network behind the walk's block, there and back.
struct Rest<'w> {
    walk: &'w Walk<'w>,
    graph: Graph,
    leaves: Leaves,
    /// Nothing behind the last block.
    tape: Option<Tape>,
    /// Which of the block's outputs the network puts out.
    own: Vec<usize>,
}

impl<'w> Rest<'w> {
    /// `None` if it has no derivative.
    fn new(walk: &'w Walk<'_>) -> Result<Option<Self>, MethodError> {
        let Some(block) = walk.block() else { return Ok(None) };
        let graph = walk.rest()?;
        let leaves = Leaves::new(&graph, &Default::default());
        let shapes: Vec<Vec<usize>> = walk.leading_on(0)?.iter().map(|tensor| tensor.dims.clone()).collect();
        let config = TapeConfig { input_gradients: true, statistics: Statistics::Running, ..Default::default() };
        let tape = (!graph.outputs.is_empty()).then(|| Tape::compile(&graph, &leaves, &shapes, &config));
        let Ok(tape) = tape.transpose() else { return Ok(None) };
        let is_own = |k: &usize| walk.is_float_output(&block.outputs[*k]);
        let own = (0..block.outputs.len()).filter(is_own).collect();
        Ok(Some(Rest { walk, graph, leaves, tape, own }))
    }

    /// The network's outputs for a sample, from the block on: those made behind it, then its own.
    fn forward(&mut self, sample: usize) -> Result<Vec<Tensor>, MethodError> {
        let facts = self.walk.ground().facts;
        let mut outputs = vec![];
        if let Some(tape) = &mut self.tape {
            tape.forward(&mut self.leaves, &slices(&self.walk.leading_on(sample)?), self.walk.threads());
            outputs.extend(self.graph.outputs.iter().enumerate().map(|(o, info)| {
                let dims = facts.get(&info.name).map_or(&[][..], |fact| &fact.dims);
                Tensor::f32(dims, tape.output(o).to_vec())
            }));
        }
        let targets = self.walk.targets(sample)?;
        outputs.extend(self.own.iter().map(|&k| Tensor::clone(&targets[k])));
        Ok(outputs)
    }

    /// Gradients of the block's outputs, from `directions` of what [`Rest::forward`] has just given for the same sample.
    fn back(&mut self, sample: usize, directions: &[Vec<f32>]) -> Result<Vec<Tensor>, MethodError> {
        let (behind, of_own) = directions.split_at(self.graph.outputs.len());
        if let Some(tape) = &mut self.tape {
            let inputs = self.walk.leading_on(sample)?;
            let directions: Vec<&[f32]> = behind.iter().map(Vec::as_slice).collect();
            let mut none = vec![0.0; self.leaves.values.len()];
            tape.backward(&self.leaves, &slices(&inputs), &directions, &mut none, self.walk.threads());
        }
        let names = self.walk.block().map_or(&[][..], |block| &block.outputs);
        let of_output = |(k, (name, target)): (usize, (&String, Arc<Tensor>))| {
            let mut gradient = vec![0f32; target.len()];
            let place = self.graph.inputs.iter().position(|info| info.name == *name);
            let behind = place.zip(self.tape.as_ref()).map_or(&[][..], |(place, tape)| tape.input_gradient(place));
            let direct = self.own.iter().position(|&own| own == k).map_or(&[][..], |place| &of_own[place]);
            for part in [behind, direct] {
                gradient.iter_mut().zip(part).for_each(|(sum, g)| *sum += g);
            }
            Tensor::f32(&target.dims, gradient)
        };
        Ok(names.iter().zip(self.walk.targets(sample)?).enumerate().map(of_output).collect())
    }
}

fn slices(tensors: &[Arc<Tensor>]) -> Vec<&[f32]> {
    tensors.iter().map(|tensor| tensor.as_f32().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use fewbits_graph::{Attrs, DType, Node, Op, ValueInfo};
    use fewbits_kernels::Threads;

    /// Four convolutions of two channels, none of which mixes them, and perhaps their means: two blocks.
    fn importance_of(
        factors: [[f32; 2]; 4],
        is_classifier: bool,
        more_outputs: &[&str],
    ) -> (Vec<Vec<f32>>, Vec<Vec<Tensor>>) {
        let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
        let mut graph = Graph { inputs: vec![value("x")], outputs: vec![value("y")], ..Graph::default() };
        let node = |op: &str, inputs: &[&str], output: &str| Node {
            name: output.into(),
            op: Op::from_attrs(op, &Attrs::default()).unwrap(),
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            outputs: vec![output.into()],
        };
        let names = ["x", "a", "b", "c", "d"];
        for (i, [first, second]) in factors.into_iter().enumerate() {
            let weight = format!("w{i}");
            graph.nodes.push(node("Conv", &[names[i], &weight], names[i + 1]));
            let tensor = Tensor::f32(&[2, 2, 1, 1], vec![first, 0.0, 0.0, second]);
            graph.constants.insert(weight, Arc::new(tensor));
        }
        graph.nodes.push(node(if is_classifier { "GlobalAveragePool" } else { "Relu" }, &["d"], "y"));
        graph.outputs.extend(more_outputs.iter().map(|name| value(name)));
        let network = testing::quantized(&graph, &[1, 2, 3, 3], 4, 8);
        let samples = testing::images(8, &network.shape);
        let threads = Threads::new(2);
        let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
        assert_eq!(walk.position(), (0, 2));
        let first = importance(&walk, 5).unwrap().unwrap();
        walk.advance(&network.draft).unwrap();
        let last = importance(&walk, 5).unwrap().unwrap();
        (first.into_iter().chain(last).collect(), samples)
    }

    #[test]
    fn channels_of_a_classifier_count_by_the_square_of_what_leads_to_its_scores() {
        // `g = p₁p₂(…)·[a, −b]` at each place, whatever the signs.
        let (found, _) = importance_of([[1.0; 2], [1.0; 2], [3.0, 1.0], [1.0, 0.5]], true, &[]);
        let (first, second) = (found[0][0], found[0][9]);
        assert!((first / second - 36.0).abs() < 1e-3, "{first}, {second}");
        assert!(found[0][..9].iter().all(|w| (w - first).abs() < 1e-4 * first), "{found:?}");
        assert!((found[0].iter().sum::<f32>() / 18.0 - 1.0).abs() < 1e-5);
        // The scores themselves count the same: two of them differ in one way only.
        assert!((found[1][0] - 1.0).abs() < 1e-5 && (found[1][1] - 1.0).abs() < 1e-5, "{found:?}");
    }

    #[test]
    fn elements_that_a_relu_hides_count_for_nothing() {
        let (found, samples) = importance_of([[1.0; 2], [1.0; 2], [2.0, 1.0], [1.0, 1.0]], false, &[]);
        let shown = |i: usize| samples.iter().filter(|s| s[0].as_f32().unwrap()[i] > 0.0).count() as f32;
        let shown: Vec<f32> = (0..18).map(shown).collect();
        // Within a channel, in proportion to the samples in which the element shows.
        for (weights, shown) in found[0].chunks(9).zip(shown.chunks(9)) {
            let each = weights.iter().sum::<f32>() / shown.iter().sum::<f32>();
            assert!(weights.iter().zip(shown).all(|(w, n)| (w - each * n).abs() < 1e-4), "{weights:?}, {shown:?}");
        }
    }
    #[test]
    fn a_block_counts_for_what_the_network_puts_out_in_and_behind_it() {
        // Of the second channel nothing is left behind the block, whose output `b` is one of three.
        let (found, _) = importance_of([[1.0; 2], [1.0; 2], [2.0, 0.0], [1.0; 2]], false, &["b", "d"]);
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [18, 18, 18]);
        let (first, second) = found[0].split_at(9);
        assert!(second[0] > 0.0 && second.iter().all(|w| (w - second[0]).abs() < 1e-5), "{second:?}");
        assert!(first.iter().any(|w| (w - first[0]).abs() > 1e-3), "through the Relu, too: {first:?}");
    }
}
