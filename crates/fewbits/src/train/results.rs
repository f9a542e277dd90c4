//! What a finished training leaves: plan, trained float network, the network that ships, and a summary, in this order.

use super::{
    Request, Summary, Trained, describe,
    folder::{FLOAT, PLAN, SUMMARY},
};
use crate::{Error, export};
use fewbits_data::{Preprocess, preprocess::METADATA_KEY};
use fewbits_graph::{Graph, Grids, passes};
use fewbits_quant::{Plan, Step};
use fewbits_train::{network::Goal, trainer::Outcome};
use std::path::Path;

/// Writes all of it. `stated` is how images are prepared, unless they came so.
pub(super) fn write(request: &Request<'_>, trained: &Trained, stated: Option<&Preprocess>) -> Result<(), Error> {
    if let Some(plan) = &trained.plan {
        plan.save(&request.out.join(PLAN))?;
    }
    fewbits_onnx::write(&request.out.join(FLOAT), &trained.float, trained.float.opset)?;
    if let Some(path) = request.output {
        ship(request, trained, stated, path)?;
    }
    // It comes last: a folder with it is that of a finished run.
    let path = request.out.join(SUMMARY);
    let found = serde_json::json!({
        "summary": trained.summary,
        "seed": request.recipe.seed,
        "data": [request.training.path(), request.validation.path()],
        "preprocess": request.preprocess,
        "settings": describe(request),
    });
    fewbits_files::replace(&path, format!("{found:#}\n").as_bytes()).map_err(Error::io("write", &path))
}

/// Writes the network that ships to `path`, with how its images are prepared.
fn ship(request: &Request<'_>, trained: &Trained, stated: Option<&Preprocess>, path: &Path) -> Result<(), Error> {
    if let Some((graph, grids)) = &trained.deployed {
        export::write(path, &export::qdq(graph, grids, request.target, &describe(request), stated)?)?;
        return Ok(());
    }
    if trained.summary.not_deployable.is_some() {
        return Ok(());
    }
    let mut float = trained.float.clone();
    if let Some(preprocess) = stated {
        let text = serde_json::to_string(preprocess).expect("numbers and names are valid JSON");
        float.metadata.insert(METADATA_KEY.into(), text);
    }
    Ok(fewbits_onnx::write(path, &float, float.opset)?)
}

/// The plan that makes the deployed network of the trained float network.
pub(super) fn plan(
    request: &Request<'_>,
    goal: &Goal,
    outcome: &Outcome,
    float: &Graph,
    (graph, grids): (&Graph, &Grids),
    summary: &Summary,
) -> Result<Plan, Error> {
    let (prepared, _) = passes::prepare(float).map_err(Error::graph(&request.model.path))?;
    let preprocess = serde_json::to_value(request.preprocess).expect("numbers and names are valid JSON");
    let mut plan = Plan::new(&prepared, &request.target.name, preprocess);
    plan.tensors = grids.clone();
    let changed = |name: &&String| prepared.constants.get(*name).is_some_and(|old| *old != graph.constants[*name]);
    plan.patches =
        graph.constants.keys().filter(changed).map(|name| (name.clone(), graph.constants[name].clone())).collect();
    plan.history.push(Step {
        method: goal.method.name().into(),
        config: describe(request),
        metrics: serde_json::json!({
            "best_epoch": outcome.best.1 + 1,
            "fake_top1": summary.fake_top1,
            "integer_top1": summary.integer_top1,
        }),
        seed: request.recipe.seed,
    });
    Ok(plan)
}
