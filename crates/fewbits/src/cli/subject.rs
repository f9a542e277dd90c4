//! The model that a command computes, the plan laid over it, and the mode.

use clap::ValueEnum;
use fewbits::{Error, Model, plan};
use fewbits_graph::{exec::Mode, passes};
use std::path::{Path, PathBuf};

/// How a quantized model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Grids are ignored
    Float,
    /// Float arithmetic on values rounded to their grids
    Fake,
    /// The integers that the target computes
    Integer,
}

/// Flags of every command that computes one model.
#[derive(Clone, Debug, clap::Args)]
pub struct SubjectArgs {
    /// The ONNX file
    pub model: PathBuf,
    /// Plan of the float model; without it a quantized file brings its own grids
    #[arg(long, value_name = "P.json")]
    plan: Option<PathBuf>,
    /// How it is computed [default: integer for quantized models, float for others]
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
}

impl SubjectArgs {
    /// The model, with its plan's grids.
    pub fn load(&self) -> Result<Model, Error> {
        load(&self.model, self.plan.as_deref())
    }

    /// The files that are read.
    pub fn files(&self) -> [Option<&Path>; 2] {
        [Some(&self.model), self.plan.as_deref()]
    }

    /// The mode that was asked for.
    pub fn mode<'m>(&self, model: &'m Model) -> Result<Mode<'m>, Error> {
        mode(model, self.mode)
    }
}

/// The model at `model`; with a plan, its prepared graph under the plan's grids.
pub fn load(model: &Path, plan: Option<&Path>) -> Result<Model, Error> {
    let model = Model::load(model)?;
    match plan {
        Some(path) => plan::apply(&model, path),
        // Folded as runtimes do it; a graph that cannot be folded is reported when it runs.
        None if model.grids.is_none() => Ok(match passes::fold(&model.graph) {
            Ok((graph, _)) => Model { graph, ..model },
            Err(_) => model,
        }),
        None => Ok(model),
    }
}

/// The mode that was asked for; by default integer if `model` has grids, else float.
pub fn mode(model: &Model, asked: Option<ModeArg>) -> Result<Mode<'_>, Error> {
    let none = || Error::Usage {
        what: format!("`{}` is a float model", model.path.display()),
        hint: "give a plan with --plan, or a quantized file".into(),
    };
    match (asked, &model.grids) {
        (Some(ModeArg::Float), _) | (None, None) => Ok(Mode::Float),
        (Some(ModeArg::Fake), grids) => grids.as_ref().map(Mode::FakeQuant).ok_or_else(none),
        (Some(ModeArg::Integer) | None, grids) => grids.as_ref().map(Mode::Integer).ok_or_else(none),
    }
}

/// The name of a mode on the command line.
pub fn mode_name(mode: Mode<'_>) -> &'static str {
    match mode {
        Mode::Float => "float",
        Mode::FakeQuant(_) => "fake",
        Mode::Integer(_) => "integer",
    }
}
