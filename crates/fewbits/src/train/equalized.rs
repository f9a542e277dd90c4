//! The network that is trained, its channels equalized where folded weights have one scale each.
//!
//! One scale for all channels of a folded weight rounds those that BatchNormalization made small to zero, and what is zero has no way
//! back: such a network is lost before its first step. Scaled channels leave the float network as it is (Nagel et al. 2019, §4.1).

use super::Request;
use crate::{
    Error,
    observe::{Observation, observe},
    progress::Progress,
    stream::Source,
};
use fewbits_graph::{Graph, Node, Op, Tensor, passes};
use fewbits_methods::equalization::{self, Config, Group, groups};
use fewbits_quant::target::Style;
use fewbits_train::recipe::Fold;
use std::{collections::BTreeMap, sync::Arc};

/// Images that show what reaches the ceilings of Clips.
const SAMPLES: usize = 32;

/// Whether anything is equalized for `request`. Weights that are not folded when they are rounded are left alone: their channels are alike,
/// and the normalization behind gives each a scale.
pub(super) fn applies(request: &Request<'_>) -> bool {
    let mut goals = request.recipe.phases.iter().filter_map(|phase| phase.goal.as_ref());
    let is_norm = |node: &Node| matches!(node.op, Op::BatchNormalization(_));
    let folded = request.recipe.fold != Fold::None || !request.model.graph.nodes.iter().any(is_norm);
    request.equalize && folded && goals.any(|goal| !goal.policy.per_channel)
}

/// The float network of `request`, equalized if that [`applies`], and what its constants were multiplied by.
pub(super) fn equalized(
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<(Graph, BTreeMap<String, Vec<f32>>), Error> {
    let model = request.model;
    if !applies(request) {
        return Ok((model.graph.clone(), BTreeMap::new()));
    }
    let mut graph =
        passes::trainable(&model.graph, request.recipe.fold == Fold::Merged).map_err(Error::graph(&model.path))?;
    let (folded, _) = passes::prepare(&graph).map_err(Error::graph(&model.path))?;
    let tensors: Vec<String> = groups(&folded).iter().flat_map(Group::observed).cloned().collect();
    let indices = request.training.subset(SAMPLES.min(request.training_limit.unwrap_or(SAMPLES)));
    let source = Source { indices, dataset: request.training, preprocess: request.preprocess };
    let Observation { stats, .. } = observe(&folded, tensors, &source, &BTreeMap::new(), 0, request.threads, progress)?;
    let config = Config {
        per_channel: false,
        rounds_between: request.target.style == Style::InputsAndOutputs,
        ..Config::default()
    };
    let moved = equalization::equalize(&folded, &stats, config).moved;
    let mut factors = BTreeMap::new();
    for (name, own) in equalization::unfolded(&graph, &folded, &moved) {
        let old = &graph.constants[&name];
        let (Some(values), Some(own)) = (old.as_f32(), own.as_f32()) else { continue };
        let scaled = values.iter().zip(own).map(|(value, factor)| value * factor).collect();
        let scaled = Arc::new(Tensor::f32(&old.dims, scaled));
        graph.constants.insert(name.clone(), scaled);
        factors.insert(name, own.to_vec());
    }
    Ok((graph, factors))
}
