//! One step: the gradient of a batch, and what the optimizer makes of it.

use super::run::Run;
use crate::{
    TrainError,
    loss::{Loss, LossError},
    network::scale_rows,
    optimizer::clip_global_norm,
    quantizers::kure,
};
use fewbits_data::LabelledBatch;
use fewbits_graph::{
    Tensor,
    tape::{Kind, Tape, quantizer_leaf},
};
use std::ops::Range;

impl<'a> Run<'a> {
    /// Where the tape for batches of `shape` is; it is made if there is none.
    pub(super) fn tape(&mut self, shape: &[usize]) -> Result<usize, TrainError> {
        if let Some(position) = self.tapes.iter().position(|(own, _)| own == shape) {
            return Ok(position);
        }
        let config = self.config();
        let tape = Tape::compile(self.network.graph(), &self.leaves, &[shape.to_vec()], &config)?;
        self.tapes.push((shape.to_vec(), tape));
        Ok(self.tapes.len() - 1)
    }

    /// Loss of a batch; its gradient is in `self.gradients`.
    pub(super) fn gradient(&mut self, batch: &LabelledBatch) -> Result<Loss, TrainError> {
        let (recipe, threads, step) = (self.setup.recipe, self.setup.threads, self.step);
        let position = self.tape(&batch.shape)?;
        let unrounded = self.network.round_biases(&self.quantizers, &mut self.leaves);
        let tape = &mut self.tapes[position].1;
        tape.forward(&mut self.leaves, &[&batch.data], threads);
        let taught = match &mut self.teacher {
            Some(teacher) => Some(teacher.run(&[Tensor::f32(&batch.shape, batch.data.clone())])?.swap_remove(0)),
            None => None,
        };
        let mut gradient = vec![0.0; tape.output(0).len()];
        let taught = taught.as_ref().and_then(|t| t.as_f32());
        let loss = recipe.objective.evaluate(tape.output(0), &batch.labels, taught, &mut gradient);
        let loss = match loss {
            Ok(loss) => loss,
            Err(LossError::NotFinite { of: "network's", .. }) => {
                let tensor = self.first_not_finite(batch);
                return Err(TrainError::NotFinite { step, what: "an element", tensor });
            }
            Err(source) => return Err(TrainError::Loss { step, source }),
        };
        // Further outputs take no part in the loss.
        let others: Vec<Vec<f32>> =
            (1..self.setup.graph.outputs.len()).map(|i| vec![0.0; tape.output(i).len()]).collect();
        let gradients: Vec<&[f32]> = std::iter::once(&gradient[..]).chain(others.iter().map(|g| &g[..])).collect();
        tape.backward(&self.leaves, &[&batch.data], &gradients, &mut self.gradients, threads);
        unrounded.restore(&mut self.leaves);
        let ranges: Vec<(String, [f32; 2])> = tape.ranges().map(|(name, range)| (name.into(), range)).collect();
        for (name, range) in ranges {
            let numbers = self.leaves.get_mut(&quantizer_leaf(&name));
            if let (Some(numbers), Some(laid)) = (numbers, self.quantizers.all.get(&name)) {
                laid.quantizer.follow(numbers, range);
            }
        }
        Ok(loss)
    }

    /// One step of the optimizer.
    pub(super) fn update(&mut self, learning_rate: f64) -> Result<(), TrainError> {
        let recipe = self.setup.recipe;
        if recipe.kure > 0.0 {
            let weights: Vec<_> = self.leaves.parameters.iter().filter(|leaf| leaf.kind == Kind::Weight).collect();
            let factor = recipe.kure / weights.len().max(1) as f64;
            for leaf in &weights {
                // What is rounded is what is to be flat.
                let folding = self.network.folding(&leaf.name, &self.leaves);
                let mut weight = self.leaves.values[leaf.range.clone()].to_vec();
                let mut gradient = vec![0.0; weight.len()];
                folding.iter().for_each(|factors| scale_rows(&mut weight, factors));
                kure::penalty(&weight, kure::UNIFORM, factor, &mut gradient);
                folding.iter().for_each(|factors| scale_rows(&mut gradient, factors));
                self.gradients[leaf.range.clone()].iter_mut().zip(&gradient).for_each(|(g, own)| *g += own);
            }
        }
        self.check(&self.gradients, "a gradient")?;
        // Scaled parameters learn as if they were not: with `w' = f·w`, `∂L/∂w = f·∂L/∂w'`.
        let scaled = self.scaled();
        for (range, factors) in &scaled {
            self.gradients[range.clone()].iter_mut().zip(*factors).for_each(|(g, f)| *g *= f);
            self.leaves.values[range.clone()].iter_mut().zip(*factors).for_each(|(w, f)| *w /= f);
        }
        if recipe.clip_norm > 0.0 {
            clip_global_norm(&mut self.gradients, recipe.clip_norm);
        }
        let before = self.quantizers.learned(&self.leaves);
        self.optimizer.step(learning_rate as f32, &mut self.leaves.values, &self.gradients, self.setup.threads);
        for (range, factors) in scaled {
            self.leaves.values[range].iter_mut().zip(factors).for_each(|(w, f)| *w *= f);
        }
        self.quantizers.limit(&before, &mut self.leaves);
        self.quantizers.project(&mut self.leaves);
        if !recipe.fold.on_folded() {
            self.network.project(&mut self.leaves);
        }
        self.check(&self.leaves.values, "a value")?;
        if let Some([values, statistics]) = &mut self.average {
            values.update(&self.leaves.values);
            statistics.update(&self.leaves.statistics);
        }
        Ok(())
    }

    /// Parameters that came scaled, and by what each element.
    fn scaled(&self) -> Vec<(Range<usize>, &'a [f32])> {
        let own = |(name, factors): (&String, &'a Vec<f32>)| {
            let leaf = self.leaves.parameter(name).filter(|leaf| leaf.range.len() == factors.len())?;
            Some((leaf.range.clone(), &factors[..]))
        };
        self.setup.scaled.iter().filter_map(own).collect()
    }
}
