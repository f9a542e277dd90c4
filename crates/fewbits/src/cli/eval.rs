//! `fewbits eval`: accuracy on labelled data.

use super::{
    Verdict,
    data::PreprocessArgs,
    output::Output,
    subject::{SubjectArgs, mode_name},
};
use fewbits::{
    Error,
    evaluate::{Boxes, Scores, evaluate_boxes},
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
    #[arg(long, value_parser = super::amount, value_name = "PERCENT")]
    at_least: Option<f64>,
    /// Of a detector: candidates at or below this score are no boxes [default: 0.005]
    #[arg(long, value_parser = super::share, value_name = "X")]
    score_threshold: Option<f64>,
    /// Of a detector: candidates that overlap a better one of their class by more than this IoU are no boxes [default: 0.45 for YOLOv3, 0.65
    /// for YOLOX]
    #[arg(long, value_parser = super::share, value_name = "X")]
    nms_iou: Option<f64>,
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
    let dataset = args.preprocess.open_held_out(&args.data)?;
    if dataset.coco().is_none() && (args.score_threshold.is_some() || args.nms_iou.is_some()) {
        return Err(Error::Usage {
            what: "--score-threshold and --nms-iou do nothing here".into(),
            hint: "they go with detectors on COCO annotations".into(),
        });
    }
    let preprocess = args.preprocess.resolve(&model, &dataset, out)?;
    let source = Source { indices: dataset.first(args.limit), dataset: &dataset, preprocess: &preprocess };
    let start = Instant::now();
    let chosen = Boxes { score_threshold: args.score_threshold.map(|x| x as f32), nms_iou: args.nms_iou };
    let scores = evaluate_boxes(&model.graph, mode, &source, chosen, out.global.threads, &*out.progress())?;
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
    let (line, more) = match &report.scores {
        Scores::Classification { top1, top5, samples } => {
            (format!("top-1 {top1:.2} %   top-5 {top5:.2} %   {samples} samples"), String::new())
        }
        Scores::Detection { coco, selection, samples } => {
            let list = |scores: &[Option<f64>]| {
                let shown = scores.iter().map(|score| score.map_or("none".into(), |s| format!("{s:.2}")));
                shown.collect::<Vec<String>>().join(" / ")
            };
            let more = format!(
                "\nAP75 {}   AP small / medium / large {}\nAR at 1 / 10 / 100 boxes {}   AR small / medium / large {}\n\
                 boxes: score above {}, suppressed within a class from IoU {}",
                list(&[coco.ap75]),
                list(&[coco.ap_small, coco.ap_medium, coco.ap_large]),
                list(&[coco.ar1, coco.ar10, coco.ar100]),
                list(&[coco.ar_small, coco.ar_medium, coco.ar_large]),
                selection.score_threshold,
                selection.nms_iou,
            );
            (format!("AP {}   AP50 {}   {samples} images", list(&[coco.ap]), list(&[coco.ap50])), more)
        }
    };
    format!("{}, {}: {line}, {:.1} s{more}", report.model, report.mode, report.seconds)
}
