//! Plans as the facade uses them: made from a quantization, laid over a model again.

use crate::{
    Error, Model,
    quantize::{Quantized, Settings, laid_out},
    refine,
};
use fewbits_data::Preprocess;
use fewbits_graph::{Node, passes};
use fewbits_quant::{Plan, Step};
use serde_json::json;
use std::{collections::BTreeMap, path::Path};

/// The plan of a quantization, with its settings and what it measured.
pub fn of(
    quantized: &Quantized,
    settings: &Settings,
    samples: usize,
    seed: u64,
    preprocess: Option<&Preprocess>,
) -> Plan {
    let preprocess = serde_json::to_value(preprocess).expect("numbers and names are valid JSON");
    let mut plan = Plan::new(&quantized.prepared, &settings.target.name, preprocess);
    plan.tensors = quantized.grids.clone();
    plan.patches = quantized.patches.clone();
    // Plans do not depend on the clock.
    let steps: Vec<_> = quantized.steps.iter().map(|step| refine::Step { seconds: 0.0, ..step.clone() }).collect();
    plan.history.push(Step {
        method: "ptq".into(),
        config: describe(quantized, settings, samples),
        metrics: json!({ "trials": quantized.trials, "steps": steps }),
        seed,
    });
    plan
}

/// Every setting of a quantization, resolved.
pub fn describe(quantized: &Quantized, settings: &Settings, samples: usize) -> serde_json::Value {
    json!({
        "fewbits": env!("CARGO_PKG_VERSION"),
        "target": settings.target.name,
        "policy": settings.policy,
        "ranges": settings.ranges.to_string(),
        "range_rule": quantized.rule,
        "method": settings.methods.to_string(),
        "iterations": settings.iterations,
        "mirrors": settings.mirrors,
        "keep_float": settings.keep_float,
        "samples": samples,
    })
}

/// Bits of weights, and of what layers multiply, by name, in the plan at `path` of `model`.
///
/// # Errors
/// [`Error::Quant`] if the plan cannot be read or is for another model.
pub fn layer_bits(model: &Model, path: &Path) -> Result<[BTreeMap<String, u8>; 2], Error> {
    let Model { graph, grids, .. } = apply(model, path)?;
    let grids = grids.unwrap_or_default();
    let is_layer = |node: &&Node| node.input(1).is_some_and(|weight| graph.constant(weight).is_some());
    let bits = |input: usize| {
        let of_layer = |node: &Node| {
            let name = node.input(input)?;
            Some((grids.owner(name).to_string(), grids.params(name)?.grid.bits))
        };
        graph.nodes.iter().filter(is_layer).filter_map(of_layer).collect()
    };
    Ok([bits(1), bits(0)])
}

/// `model`, prepared, under the plan in the file `path`.
///
/// # Errors
/// [`Error::Quant`] if the plan cannot be read or is for another model.
pub fn apply(model: &Model, path: &Path) -> Result<Model, Error> {
    let plan = Plan::load(path)?;
    let (graph, _) = passes::prepare(&model.graph).map_err(Error::graph(&model.path))?;
    plan.check(&graph)?;
    let mut graph = laid_out(&graph, &plan.patches, &plan.tensors);
    let stated = (!plan.preprocess.is_null()).then(|| plan.preprocess.to_string());
    graph.metadata.extend(stated.map(|text| (fewbits_data::preprocess::METADATA_KEY.to_string(), text)));
    Ok(Model { path: model.path.clone(), graph, grids: Some(plan.tensors) })
}
