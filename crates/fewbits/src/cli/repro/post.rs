//! `fewbits repro` for tables of methods without training: rows of equal size on the user's own network.

use super::{Args, aligned};
use crate::cli::{Verdict, data::PreprocessArgs, output::Output, quantize::command_line};
use fewbits::{
    Error, Model,
    repro::post::{self, Measured, PostLine, PostRequest, PostTable},
    stream::Source,
};
use serde::Serialize;
use std::fmt::Write;

/// Calibration samples, and those that damage is measured on.
const SAMPLES: (usize, usize) = (256, 64);
/// Assignments that a search tries; with `--quick`.
const EVALUATIONS: (usize, usize) = (600, 40);
/// Bits that rows may take in the mean, and bits of activations.
const WEIGHTS: u8 = 4;
const ACTIVATIONS: u8 = 8;
/// What flags of a training go with.
const TRAIN: &str = "tables that train";

#[derive(Serialize)]
struct Report<'a> {
    source: &'a str,
    published: &'a [&'a str],
    rows: Vec<PostLine>,
}

pub fn run(table: &PostTable, args: &Args, out: &Output) -> Result<Verdict, Error> {
    crate::cli::check_idle(&[
        (args.seeds.is_some(), "--seeds", TRAIN),
        (args.epochs.is_some(), "--epochs", TRAIN),
        (args.float_epochs.is_some(), "--float-epochs", TRAIN),
        (args.batch.is_some(), "--batch", TRAIN),
    ])?;
    let model = Model::load(args.model.as_deref().ok_or_else(|| Error::Usage {
        what: format!("`{}` is found on a trained float network", table.name),
        hint: "give it as --model".into(),
    })?)?;
    if model.grids.is_some() {
        return Err(Error::Model {
            path: model.path,
            what: "it is quantized already".into(),
            hint: "give the float model that it was made from",
        });
    }
    // Labels are those of --val.
    let unlabelled = PreprocessArgs { labels: None, ..args.preprocess.clone() };
    let calibration = unlabelled.open(&args.data)?;
    let labelled = PreprocessArgs {
        labels: args.val_labels.clone().or(args.preprocess.labels.clone()),
        images: args.val_images.clone().or(args.preprocess.images.clone()),
        ..args.preprocess.clone()
    };
    let validation = labelled.open_held_out(&args.val)?;
    let preprocess = args.preprocess.resolve(&model, &calibration, out)?;
    let limit = args.limit.unwrap_or(SAMPLES.0);
    let request = PostRequest {
        table,
        model: &model,
        calibration: &Source { indices: calibration.spread(limit), dataset: &calibration, preprocess: &preprocess },
        validation: &Source {
            indices: validation.spread(args.val_limit.unwrap_or(validation.len())),
            dataset: &validation,
            preprocess: &preprocess,
        },
        target: &"ort".parse()?,
        weights: args.weights.unwrap_or(WEIGHTS),
        activations: args.activations.unwrap_or(ACTIVATIONS),
        evaluations: args.evaluations.unwrap_or(if args.quick { EVALUATIONS.1 } else { EVALUATIONS.0 }),
        samples: SAMPLES.1.min(limit),
        seed: out.global.seed,
        threads: out.global.threads,
        command: &command_line(),
        out: &args.out,
    };
    out.note(&format!("{}: {} rows on {}", table.source, table.rows.len(), model.path.display()));
    let results = post::run(&request, &*out.progress(), |row| out.note(&told(row)))?;
    let report = Report { source: table.source, published: table.published, rows: results.lines(table) };
    let mut text = text(&report);
    let _ = writeln!(text, "{}/results.json holds every row", args.out.display());
    out.result(&report, &text);
    Ok(Verdict::Done)
}

fn told(row: &Measured) -> String {
    format!("{}: {:.2}; {:.0} s", row.row, row.score, row.seconds)
}

fn text(report: &Report<'_>) -> String {
    let mut text = format!("{}\n", report.source);
    for line in report.published {
        let _ = writeln!(text, "published: {line}");
    }
    let detects = report.rows.iter().any(|line| line.ap50.is_some());
    let score = if detects { "AP (AP50)" } else { "top-1" };
    let mut rows =
        vec![["row", "bytes", score, "loss", "gain", "better:worse, probability"].map(String::from).to_vec()];
    for line in &report.rows {
        let none = || "–".to_string();
        rows.push(vec![
            line.row.clone(),
            if line.deployable {
                line.bytes.map_or_else(none, |bytes| bytes.to_string())
            } else {
                "not deployable".into()
            },
            line.ap50.map_or(format!("{:.2}", line.score), |ap50| format!("{:.2} ({ap50:.2})", line.score)),
            format!("{:.2}", line.loss),
            line.gain.map_or_else(none, |gain| format!("{gain:+.2}")),
            line.paired.map_or_else(none, |p| format!("{}:{}, {:.3}", p.better, p.worse, p.probability)),
        ]);
    }
    text.push_str(&aligned(&rows));
    text.push_str("gain: over the strongest of the rows above that have none; another network or data than the paper's: compare gains\n");
    text
}
