//! `fewbits eval`: accuracy on labelled data.

use super::{Verdict, data::PreprocessArgs, output::Output};
use clap::ValueEnum;
use fewbits::{
    Error, Model,
    evaluate::{Scores, evaluate},
    stream::Source,
};
use fewbits_graph::exec::Mode;
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

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

/// Accuracy of a model on labelled data.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ONNX file
    model: PathBuf,
    /// Labelled data: class folders, csv list, npz, CIFAR-10 batches, COCO json
    #[arg(long)]
    data: PathBuf,
    /// Plan of the float model; without it a quantized file brings its own grids
    #[arg(long, value_name = "P.json")]
    plan: Option<PathBuf>,
    /// How it is computed [default: integer for quantized models, float for others]
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// Evaluate the first N samples only
    #[arg(long, value_parser = super::count(), value_name = "N")]
    limit: Option<usize>,
    /// Exit with 1 if top-1 (or AP) is below this many percent
    #[arg(long, value_name = "PERCENT")]
    at_least: Option<f64>,
    #[command(flatten)]
    preprocess: PreprocessArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    mode: &'static str,
    #[serde(flatten)]
    scores: Scores,
    seconds: f64,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let loaded = super::plan::load(&args.model, args.plan.as_deref())?;
    let mode = loaded.mode(args.mode)?;
    let dataset = args.preprocess.open(&args.data)?;
    let preprocess = args.preprocess.resolve(&loaded.model, &dataset, out)?;
    let source = Source { indices: dataset.first(args.limit), dataset: &dataset, preprocess: &preprocess };
    let start = Instant::now();
    let scores = evaluate(&loaded.model.graph, mode, &source, out.global.threads, &*out.progress())?;
    let report = Report {
        model: args.model.display().to_string(),
        mode: mode_name(mode),
        seconds: start.elapsed().as_secs_f64(),
        scores,
    };
    out.result(&report, &text(&report));
    let missed = args.at_least.is_some_and(|least| report.scores.main() < least);
    Ok(if missed { Verdict::Missed } else { Verdict::Done })
}

/// The name of a mode on the command line.
pub fn mode_name(mode: Mode<'_>) -> &'static str {
    match mode {
        Mode::Float => "float",
        Mode::FakeQuant(_) => "fake",
        Mode::Integer(_) => "integer",
    }
}

fn text(report: &Report) -> String {
    let line = match &report.scores {
        Scores::Classification { top1, top5, samples } => {
            format!("top-1 {top1:.2} %   top-5 {top5:.2} %   {samples} samples")
        }
        Scores::Detection { ap, ap50, samples } => format!("AP {ap:.2}   AP50 {ap50:.2}   {samples} images"),
    };
    format!("{}, {}: {line}, {:.1} s", report.model, report.mode, report.seconds)
}

/// A model as the commands see it.
#[derive(Debug)]
pub struct Loaded {
    /// The network under the grids.
    pub model: Model,
}

impl Loaded {
    /// The mode that was asked for; by default integer if there are grids, else float.
    ///
    /// # Errors
    /// [`Error::Usage`] if grids are needed and there are none.
    pub fn mode(&self, asked: Option<ModeArg>) -> Result<Mode<'_>, Error> {
        let none = || Error::Usage {
            what: format!("`{}` is a float model", self.model.path.display()),
            hint: "give a plan with --plan, or a quantized file".into(),
        };
        match (asked, &self.model.grids) {
            (Some(ModeArg::Float), _) | (None, None) => Ok(Mode::Float),
            (Some(ModeArg::Fake), grids) => grids.as_ref().map(Mode::FakeQuant).ok_or_else(none),
            (Some(ModeArg::Integer) | None, grids) => grids.as_ref().map(Mode::Integer).ok_or_else(none),
        }
    }
}
