//! The network that is trained, its channels equalized where folded weights have one scale each. A request enters; a network, and what its
//! constants were multiplied by, leave.
//!
//! One scale for all channels of a folded weight rounds those that BatchNormalization made small to zero, and what is zero has no way
//! back: such a network is lost before its first step. Scaled channels leave the float network as it is, but for channels below a Clip that
//! come to its ceiling in other images than those looked at (Nagel et al. 2019, §4.1).

use super::Request;
use crate::{
    Error,
    observe::{Observation, observe},
    progress::Progress,
    quantize::output_sqnr,
    stream::Source,
};
use fewbits_graph::{Graph, Node, Op, Tensor, exec::Mode, passes};
use fewbits_methods::equalization::{self, Config, Group, groups};
use fewbits_train::recipe::Fold;
use std::{collections::BTreeMap, sync::Arc};

/// Images that show what reaches the ceilings of Clips, and as many more on which outputs are compared.
const SAMPLES: usize = 32;
/// How close the outputs must stay, dB.
const CLOSE_DB: f64 = 20.0;

/// A network, and what elements of its constants were multiplied by.
pub(super) type Equalized = (Graph, BTreeMap<String, Vec<f32>>);

/// Whether anything is equalized for `request`. Weights that are not folded when they are rounded are left alone: their channels are alike,
/// and the normalization behind gives each a scale.
pub(super) fn applies(request: &Request<'_>) -> bool {
    let mut goals = request.recipe.phases.iter().filter_map(|phase| phase.goal.as_ref());
    let is_norm = |node: &Node| matches!(node.op, Op::BatchNormalization(_));
    let folded = request.recipe.fold != Fold::None || !request.model.graph.nodes.iter().any(is_norm);
    request.equalize && folded && goals.any(|goal| !goal.policy.per_channel)
}

/// The float network of `request`, equalized if that [`applies`] and leaves the outputs as they are.
pub(super) fn equalized(request: &Request<'_>, progress: &dyn Progress) -> Result<Equalized, Error> {
    let model = request.model;
    let as_it_is = (model.graph.clone(), BTreeMap::new());
    if !applies(request) {
        return Ok(as_it_is);
    }
    let graph =
        passes::trainable(&model.graph, request.recipe.fold == Fold::Merged).map_err(Error::graph(&model.path))?;
    let (folded, _) = passes::prepare(&graph).map_err(Error::graph(&model.path))?;
    let tensors: Vec<String> = groups(&folded).iter().flat_map(Group::observed).cloned().collect();
    let numbers = request.training.subset((2 * SAMPLES).min(request.training_limit.unwrap_or(usize::MAX)));
    let (even, odd) = numbers.iter().partition::<Vec<usize>, _>(|number| **number % 2 == 0);
    let source = |indices| Source { indices, dataset: request.training, preprocess: request.preprocess };
    let (threads, none) = (request.threads, BTreeMap::new());
    let Observation { stats, .. } = observe(&folded, tensors, &source(even), &none, 0, threads, progress)?;
    let config = Config { per_channel: false, ..Config::default() };
    let moved = equalization::equalize(&folded, &stats, config).moved;
    let scaled = scaled(graph, &folded, &moved);
    let others = source(odd);
    let Observation { references, .. } = observe(&model.graph, vec![], &others, &none, usize::MAX, threads, progress)?;
    let close = output_sqnr(&scaled.0, Mode::Float, &others, &references, threads, progress)?;
    Ok(if close >= CLOSE_DB { scaled } else { as_it_is })
}

/// `graph`, whose folded form is `folded`, with the channels of `moved` scaled.
fn scaled(mut graph: Graph, folded: &Graph, moved: &[(Group, Vec<f64>)]) -> Equalized {
    let mut factors = BTreeMap::new();
    for (name, own) in equalization::unfolded_factors(&graph, folded, moved) {
        let old = &graph.constants[&name];
        let (Some(values), Some(own)) = (old.as_f32(), own.as_f32()) else { continue };
        let scaled = values.iter().zip(own).map(|(value, factor)| value * factor).collect();
        let scaled = Arc::new(Tensor::f32(&old.dims, scaled));
        graph.constants.insert(name.clone(), scaled);
        factors.insert(name, own.to_vec());
    }
    (graph, factors)
}
