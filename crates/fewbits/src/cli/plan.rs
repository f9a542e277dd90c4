//! Reading a model together with a plan.

use super::eval::Loaded;
use fewbits::{Error, Model, plan};
use fewbits_graph::passes;
use std::path::Path;

/// The model at `model`; with a plan, its prepared graph under the plan's grids.
pub fn load(model: &Path, plan: Option<&Path>) -> Result<Loaded, Error> {
    let model = Model::load(model)?;
    let model = match plan {
        Some(path) => plan::apply(&model, path)?,
        // Folded as runtimes do it; a graph that cannot be folded is reported when it runs.
        None if model.grids.is_none() => match passes::fold(&model.graph) {
            Ok((graph, _)) => Model { graph, ..model },
            Err(_) => model,
        },
        None => model,
    };
    Ok(Loaded { model })
}
