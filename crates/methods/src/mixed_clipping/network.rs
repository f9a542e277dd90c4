//! Rules chosen by what the whole network puts out.

use super::{Choice, MixedClipping};
use crate::{
    Draft, Ground, Part, Progress,
    clipping::{Weights, with_scales},
    draft::layers,
    moments::Shape,
};
use fewbits_kernels::Threads;
use std::sync::PoisonError;

impl MixedClipping {
    /// Gives the weights of each layer of `draft` the rule with the least `loss`, in graph order, those behind as they are; with every change
    /// the mean that rounding adds to the outputs is taken off the biases, from statistics. Returns whether the result was kept: whether
    /// the loss on other samples agrees. `loss` is lower where outputs are closer.
    ///
    /// # Errors
    /// Those of `loss`.
    pub fn tune<E>(
        &self,
        ground: Ground<'_>,
        draft: &mut Draft,
        threads: &Threads,
        loss: &dyn Fn(&Draft, Part) -> Result<f64, E>,
        progress: &dyn Progress,
    ) -> Result<bool, E> {
        let layers = layers(ground.float, ground.placement);
        let shapes = Shape::all(ground, &layers);
        let weights = Weights::all(ground, draft, &layers, &shapes);
        let mut scales: Vec<Vec<f32>> = weights.iter().map(|weights| weights.params.scale.clone()).collect();
        let mut choices = vec![];
        progress.begin("mixed-clipping-network", weights.len());
        for (i, own) in weights.iter().enumerate() {
            let mut tried = vec![];
            for &clip in &self.config.clips {
                let Some(scale) = own.scales(clip, threads) else { continue };
                if tried.iter().all(|(_, known, _)| *known != scale) {
                    scales[i].clone_from(&scale);
                    tried.push((clip, scale, loss(&with_scales(ground, draft, &weights, &scales), Part::Fit)?));
                }
            }
            if let Some((clip, scale, _)) = tried.into_iter().min_by(|a, b| a.2.total_cmp(&b.2)) {
                scales[i] = scale;
                choices.push(Choice { weight: own.layer.weight.clone(), bits: own.bits(), clip });
            }
            progress.step();
        }
        progress.end();
        let result = with_scales(ground, draft, &weights, &scales);
        let kept = loss(&result, Part::Held)? <= loss(draft, Part::Held)?;
        if kept {
            *draft = result;
            *self.choices.lock().unwrap_or_else(PoisonError::into_inner) = choices;
        }
        Ok(kept)
    }
}
