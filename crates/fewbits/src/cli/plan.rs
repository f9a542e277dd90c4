//! Reading a model together with a plan.

use super::eval::Loaded;
use fewbits::{Error, Model, plan};
use std::path::Path;

/// The model at `model`; with a plan, its prepared graph under the plan's grids.
pub fn load(model: &Path, plan: Option<&Path>) -> Result<Loaded, Error> {
    let model = Model::load(model)?;
    let model = match plan {
        Some(path) => plan::apply(&model, path)?,
        None => model,
    };
    Ok(Loaded { model })
}
