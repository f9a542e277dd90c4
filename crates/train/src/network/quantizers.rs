//! Which quantizer each tensor of the trained form gets: a placement and a goal enter, quantizers by tensor leave.

use super::{Goal, Network, signs::signs};
use crate::{
    TrainError,
    quantizers::{
        Configuration, Deployable, Method, NotDeployable, Offset, QuantizerError, Settings, Signs,
        activation_quantizer, weight_quantizer,
    },
};
use fewbits_graph::{
    exec::infer,
    tape::{Laid, Leaves, quantizer_leaf},
};
use fewbits_quant::placement::Site;
use std::{collections::BTreeMap, sync::Arc};

/// Quantizers, ready for the tape, and what they become.
#[derive(Clone, Debug, Default)]
pub struct Quantizers {
    /// By tensor of the trained graph.
    pub all: BTreeMap<String, Laid>,
    pub(super) deployable: BTreeMap<String, Arc<dyn Deployable>>,
}

impl Network {
    /// The quantizers of `goal` for this network, for images of the dimensions `image` (without the batch axis).
    ///
    /// # Errors
    /// [`TrainError::Quantizer`] if the method has no rule for a width; [`TrainError::Graph`] for shapes.
    pub fn quantizers(&self, goal: &Goal, image: &[usize]) -> Result<Quantizers, TrainError> {
        let facts = infer(&self.graph, &[[&[1], image].concat()])?;
        let signs = signs(&self.graph, &facts);
        let mut found = Quantizers::default();
        for (name, site) in &self.placement.sites {
            let Site::Activation { bounds, feeds_layer, edge, .. } = site else { continue };
            let fact = facts.get(name).ok_or_else(|| TrainError::Lost { tensor: name.clone() })?;
            let positive = bounds.is_some_and(|(min, _)| min >= 0.0);
            let signs = match signs.get(name) {
                // Codes without sign would need a zero point.
                _ if self.target.symmetric_activations => Signs::Both,
                _ if positive => Signs::Positive,
                known => known.copied().unwrap_or(Signs::Both),
            };
            // Edges, and what no layer multiplies, are rounded so finely that LSQ+ serves for all methods.
            let own = *feeds_layer && !*edge;
            // So does it where codes without sign would cut off the lobe of a SiLU.
            let serves = keeps_ranges(goal.method) && (signs != Signs::Lobe || goal.method.has_zero_points());
            let method = if own || serves { goal.method } else { Method::LsqPlus };
            let bits = goal.policy.activation_bits(name, site);
            let mut settings = goal.settings.clone();
            if !own {
                settings = Settings {
                    snapped: settings.snapped,
                    counted_images: settings.counted_images,
                    delay: settings.delay,
                    decay: settings.decay,
                    ..Settings::default()
                };
            }
            if self.target.symmetric_activations {
                settings.configuration = Configuration::SignedSymmetric;
            }
            if signs == Signs::Positive && !(goal.offsets_everywhere && own) {
                settings.offset = Offset::None;
                if matches!(method, Method::LsqPlus) && settings.configuration == Default::default() {
                    settings.configuration = Configuration::UnsignedSymmetric;
                }
            }
            if self.target.symmetric_activations && method.has_zero_points() {
                let target = self.target.name.clone();
                return Err(QuantizerError::ZeroPoints { method: method.name(), target }.into());
            }
            let quantizer = activation_quantizer(method, bits, signs, &settings, fact.len())?;
            found.add(name, quantizer, 1, 0);
        }
        for layer in &self.layers {
            let weight = self.graph.constant(&layer.trained).map_or(0, |t| t.len());
            let bits = goal.policy.weight_bits(&layer.deployed, layer.edge);
            let method = match layer.edge && !keeps_ranges(goal.method) {
                true => Method::Lsq,
                false => goal.method,
            };
            let groups = if goal.policy.per_channel { layer.channels } else { 1 };
            let quantizer = weight_quantizer(method, bits, &goal.settings, weight / groups)?;
            found.add(&layer.trained, quantizer, groups, layer.axis);
        }
        Ok(found)
    }
}

impl Quantizers {
    fn add(&mut self, name: &str, quantizer: Arc<dyn Deployable>, groups: usize, axis: usize) {
        self.all.insert(name.into(), Laid { quantizer: quantizer.clone(), groups, axis });
        self.deployable.insert(name.into(), quantizer);
    }

    /// The quantizer on `tensor`.
    pub fn get(&self, tensor: &str) -> Option<&Arc<dyn Deployable>> {
        self.deployable.get(tensor)
    }

    /// Whether some still watch ranges and round nothing, or have offsets that are not whole steps yet.
    pub fn unsettled(&self, leaves: &Leaves) -> bool {
        let unsettled = |(name, quantizer): (&String, &Arc<dyn Deployable>)| {
            let numbers = leaves.get(&quantizer_leaf(name)).unwrap_or_default();
            let refused = |why| matches!(why, NotDeployable::Observing { .. } | NotDeployable::FreeOffset);
            quantizer.learned() > 0 && quantizer.grid(numbers).is_err_and(refused)
        };
        self.deployable.iter().any(unsettled)
    }

    /// The learned numbers of every quantizer.
    pub fn learned(&self, leaves: &Leaves) -> BTreeMap<&str, Vec<f32>> {
        let own = |name: &String| leaves.get(&quantizer_leaf(name)).map(<[f32]>::to_vec).unwrap_or_default();
        self.deployable.keys().map(|name| (name.as_str(), own(name))).collect()
    }

    /// Shortens steps from `before`, as [`Deployable::limit`] says.
    pub fn limit(&self, before: &BTreeMap<&str, Vec<f32>>, leaves: &mut Leaves) {
        for (name, quantizer) in &self.deployable {
            let learned = quantizer.learned();
            let numbers = leaves.get_mut(&quantizer_leaf(name)).filter(|_| learned > 0);
            if let (Some(numbers), Some(before)) = (numbers, before.get(name.as_str())) {
                let groups = numbers.chunks_exact_mut(learned).zip(before.chunks_exact(learned));
                groups.for_each(|(group, before)| quantizer.limit(before, group));
            }
        }
    }

    /// Brings every quantizer's numbers back to where it is defined.
    pub fn project(&self, leaves: &mut Leaves) {
        for (name, laid) in &self.all {
            let learned = laid.quantizer.learned();
            if let Some(numbers) = leaves.get_mut(&quantizer_leaf(name)).filter(|_| learned > 0) {
                numbers.chunks_exact_mut(learned).for_each(|group| laid.quantizer.project(group));
            }
        }
    }
}

/// Whether the method's own quantizers serve 8-bit tensors of any sign too.
fn keeps_ranges(method: Method) -> bool {
    matches!(method, Method::Lsq | Method::LsqPlus | Method::LsqBn | Method::Qat | Method::Tqt)
}
