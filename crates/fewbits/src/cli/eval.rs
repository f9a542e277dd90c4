//! `fewbits eval`: accuracy on labelled data.

use super::{
    Verdict,
    data::PreprocessArgs,
    output::Output,
    subject::{SubjectArgs, mode_name},
};
use fewbits::{
    Error,
    evaluate::{Scores, evaluate},
    stream::Source,
};
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

/// Accuracy of a model on labelled data.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Labelled data: class folders, csv list, npz, CIFAR-10 batches, COCO json
    #[arg(long)]
    data: PathBuf,
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
    let model = args.subject.load()?;
    let mode = args.subject.mode(&model)?;
    let dataset = args.preprocess.open(&args.data)?;
    let preprocess = args.preprocess.resolve(&model, &dataset, out)?;
    let source = Source { indices: dataset.first(args.limit), dataset: &dataset, preprocess: &preprocess };
    let start = Instant::now();
    let scores = evaluate(&model.graph, mode, &source, out.global.threads, &*out.progress())?;
    let report = Report {
        model: args.subject.model.display().to_string(),
        mode: mode_name(mode),
        seconds: start.elapsed().as_secs_f64(),
        scores,
    };
    out.result(&report, &text(&report));
    let missed = args.at_least.is_some_and(|least| report.scores.main() < least);
    Ok(if missed { Verdict::Missed } else { Verdict::Done })
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
