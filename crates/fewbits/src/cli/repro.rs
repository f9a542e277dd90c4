//! `fewbits repro`: a published table, found again on the user's data, beside the published numbers.

mod post;

use super::{Verdict, data::PreprocessArgs, output::Output, quantize::command_line};
use fewbits::{
    Error, Model,
    repro::{self, Effort, Event, Line, Request, Results, Run, Subject, Table, post::post_tables},
};
use fewbits_graph::Graph;
use serde::Serialize;
use std::{fmt::Write, path::PathBuf, sync::Arc};

/// Find a published table again on your data.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// lsqplus-table2, lsqplus-table3, lsqplus-table4, lsqplus-table5, lsqplus-table6 or lsq-bn-table4, which train; zero-point or
    /// mixed-clipping, which do not
    table: String,
    /// Images to train on, with labels: for small ones (up to 64x64) a proxy network is trained, for others the paper's. Or images to
    /// calibrate on, if the table does not train
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// Labelled images to score on
    #[arg(long, value_name = "DATA")]
    val: PathBuf,
    /// Labels of an .npy file of images in --val; --labels are those of --data
    #[arg(long, value_name = "FILE.npy")]
    val_labels: Option<PathBuf>,
    /// Images of a COCO file in --val; --images are those of --data
    #[arg(long, value_name = "DIR")]
    val_images: Option<PathBuf>,
    /// A trained float network of the table's architecture or its proxy; without it one is trained first
    #[arg(long, value_name = "MODEL.onnx")]
    model: Option<PathBuf>,
    /// Fewer images, epochs and runs: the whole table in minutes, with numbers that say little
    #[arg(long)]
    quick: bool,
    /// Runs of each row [default: as in the paper; at most 2 with --quick]
    #[arg(long, value_parser = super::count(), value_name = "N")]
    seeds: Option<usize>,
    /// Epochs of each quantized training [default: 10 for small images, else 30; 2 with --quick]
    #[arg(long, value_parser = super::count(), value_name = "N")]
    epochs: Option<usize>,
    /// Epochs of the float training [default: 60 for small images, else 90; 12 with --quick]
    #[arg(long, value_parser = super::count(), value_name = "N")]
    float_epochs: Option<usize>,
    /// Train on N images of --data only, drawn at random, always the same ones [default: all; 3000 with --quick]. Of zero-point and
    /// mixed-clipping: calibrate on N, spread evenly [default: 256]
    #[arg(long, value_parser = super::count(), value_name = "N")]
    limit: Option<usize>,
    /// Score on N images of --val only, drawn likewise [default: all; 500 with --quick, but all for zero-point and mixed-clipping]
    #[arg(long, value_parser = super::count(), value_name = "N")]
    val_limit: Option<usize>,
    /// Images of a batch [default: 128 for small images, else 64; 64 with --quick]
    #[arg(long, value_parser = super::count(), value_name = "N")]
    batch: Option<usize>,
    /// Bits whose bytes no row of zero-point and mixed-clipping exceeds [default: 4]
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "N")]
    weights: Option<u8>,
    /// Bits of activations in zero-point and mixed-clipping [default: 8]
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "N")]
    activations: Option<u8>,
    /// Assignments of bits that a search of zero-point and mixed-clipping tries [default: 600; 40 with --quick]
    #[arg(long, value_parser = super::count(), value_name = "N")]
    evaluations: Option<usize>,
    /// Folder of the results and runs; what is finished there is not repeated
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    preprocess: PreprocessArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    source: &'a str,
    published: String,
    here: &'a str,
    proxy: bool,
    /// Images that are scored.
    images: usize,
    float_published: f64,
    float_top1: Option<f64>,
    rows: Vec<Line>,
    claims: Vec<Verified>,
}

#[derive(Serialize)]
struct Verified {
    claim: String,
    /// Nothing if a row is missing.
    holds: Option<bool>,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    if let Some(table) = post_tables().iter().find(|table| table.name == args.table) {
        return post::run(table, args, out);
    }
    let table = find(&args.table)?;
    let posts = post_tables().iter().map(|table| table.name).collect::<Vec<_>>().join(" and ");
    super::check_idle(&[
        (args.weights.is_some(), "--weights", &posts),
        (args.activations.is_some(), "--activations", &posts),
        (args.evaluations.is_some(), "--evaluations", &posts),
        (args.val_images.is_some(), "--val-images", &posts),
    ])?;
    let training = Arc::new(args.preprocess.open(&args.data)?);
    let labelled = PreprocessArgs { labels: args.val_labels.clone(), ..args.preprocess.clone() };
    let validation = Arc::new(labelled.open_held_out(&args.val)?);
    let subject = Subject::of(&table, &training, args.quick)?;
    let default = Effort::of(&table, &subject, args.quick);
    let limit = args.limit.or(default.limit);
    let batch = args.batch.unwrap_or(default.batch).min(limit.unwrap_or(usize::MAX)).min(training.len());
    let effort = Effort {
        epochs: args.epochs.unwrap_or(default.epochs),
        float_epochs: args.float_epochs.unwrap_or(default.float_epochs),
        seeds: args.seeds.unwrap_or(default.seeds),
        limit,
        validation_limit: args.val_limit.or(default.validation_limit),
        batch,
    };
    let model = match &args.model {
        Some(path) => pretrained(path, &subject)?,
        None => {
            let path = PathBuf::from(format!("{}.onnx", subject.architecture));
            Model { path, graph: subject.build(out.global.seed)?, grids: None }
        }
    };
    let request = Request {
        table: &table,
        subject,
        effort,
        model: &model,
        pretrained: args.model.is_some(),
        training: &training,
        validation: &validation,
        preprocess: &args.preprocess.resolve(&model, &training, out)?,
        target: &"ort".parse()?,
        seed: out.global.seed,
        command: &command_line(),
        out: &args.out,
        threads: out.global.threads,
    };
    out.note(&format!("{} on {}: {}", table.source, request.subject.describe(), recipe(&request)));
    let results = repro::run(&request, &*out.progress(), |event| out.note(&told(&event)))?;
    let report = Report {
        source: table.source,
        published: published(&table),
        here: &results.setup.here,
        proxy: results.setup.proxy,
        images: results.setup.validation_images,
        float_published: table.float,
        float_top1: results.float.as_ref().map(|float| float.top1),
        rows: results.lines(&table),
        claims: verify(&table, &results),
    };
    let mut text = text(&table, &report);
    let _ = writeln!(text, "{0}/results.csv and {0}/results.json hold every run", args.out.display());
    out.result(&report, &text);
    Ok(Verdict::Done)
}

fn find(name: &str) -> Result<Table, Error> {
    let mut tables = repro::tables();
    let of_post = post_tables();
    let names: Vec<&str> = tables.iter().map(|t| t.name).chain(of_post.iter().map(|t| t.name)).collect();
    match tables.iter().position(|table| table.name == name) {
        Some(i) => Ok(tables.swap_remove(i)),
        None => {
            Err(Error::Usage { what: format!("no table `{name}`"), hint: format!("tables are {}", names.join(", ")) })
        }
    }
}

/// The float network at `path`, unless it says that it is another architecture, or, where it says nothing, has other weights.
fn pretrained(path: &std::path::Path, subject: &Subject) -> Result<Model, Error> {
    let model = Model::load(path)?;
    let refuse = |what: String| {
        let hint = "give a float network of the table's architecture, or of its proxy for small images";
        Err(Error::Model { path: path.into(), what, hint })
    };
    match model.graph.metadata.get("architecture") {
        _ if model.grids.is_some() => refuse("it is quantized already".into()),
        Some(name) if name != subject.architecture => refuse(format!("it is {name}, not {}", subject.architecture)),
        Some(_) => Ok(model),
        None => match [weights(&model.graph), weights(&subject.build(0)?)] {
            [found, expected] if found == expected => Ok(model),
            [found, expected] => refuse(format!("it has {found} weights, {} has {expected}", subject.architecture)),
        },
    }
}

/// Elements of convolutions' and matrix products' weights, which no folding changes.
fn weights(graph: &Graph) -> usize {
    graph.constants.values().filter(|t| t.as_f32().is_some() && t.dims.len() >= 2).map(|t| t.len()).sum()
}

fn recipe(request: &Request<'_>) -> String {
    let Effort { epochs, float_epochs, seeds, limit, batch, .. } = request.effort;
    let images = limit.unwrap_or(usize::MAX).min(request.training.len());
    let float = match &request.pretrained {
        true => format!("float network {}", request.model.path.display()),
        false => format!("float network: {float_epochs} epochs from initial weights"),
    };
    format!(
        "{images} images; {float}; rows: {epochs} epochs from the float network, SGD with Nesterov momentum 0.9, cosine, \
         learning rate 0.01 (8/8: 0.001; folded 0.0025) for batches of 128, batch {batch}, runs {seeds}, one scale per \
         weight tensor, first and last layer 8 bits"
    )
}

fn told(event: &Event<'_>) -> String {
    match event {
        Event::Estimate { trainings, images_per_second, seconds } => {
            format!("{trainings} runs to come, about {}: {images_per_second:.0} images/s", time(*seconds))
        }
        Event::Float(float) => format!("float: top-1 {:.2} %", float.top1),
        Event::Run(run) => finished(run),
    }
}

fn finished(run: &Run) -> String {
    let integer = match (run.integer_top1, &run.not_deployable) {
        (Some(top1), _) => format!(", {top1:.2} % in integers"),
        (None, Some(reason)) => format!(" by fake quantization only: {reason}"),
        (None, None) => String::new(),
    };
    let Run { row, weights, activations, seed, fake_top1, seconds, .. } = run;
    format!("{row} W{weights}A{activations} seed {seed}: top-1 {fake_top1:.2} %{integer}; {}", time(*seconds))
}

fn time(seconds: f64) -> String {
    match seconds {
        5400.0.. => format!("{:.1} h", seconds / 3600.0),
        90.0.. => format!("{:.0} min", seconds / 60.0),
        _ => format!("{seconds:.0} s"),
    }
}

fn published(table: &Table) -> String {
    format!("ImageNet, {}", table.network)
}

fn verify(table: &Table, results: &Results) -> Vec<Verified> {
    let verified = |claim: &repro::Claim| Verified {
        claim: claim.to_string(),
        holds: claim.holds(|row, bits| results.fake(row, bits)),
    };
    table.claims.iter().map(verified).collect()
}

fn text(table: &Table, report: &Report<'_>) -> String {
    let accuracy = |value: Option<(f64, Option<f64>)>| match value {
        Some((mean, Some(spread))) => format!("{mean:.2} ± {spread:.2}"),
        Some((mean, None)) => format!("{mean:.2}"),
        None => "–".into(),
    };
    let loss = |float: f64, top1: Option<f64>| top1.map_or("–".into(), |top1| format!("{:.2}", float - top1));
    let mut head = vec![
        "row".to_string(),
        "W/A".into(),
        format!("published ({})", report.published),
        format!("here ({})", report.here),
        "here, in integers".into(),
    ];
    if table.sizes {
        head.extend(["published loss", "loss here", "compression", "exact"].map(String::from));
    }
    let mut rows = vec![head];
    let mut float = vec![
        "float".into(),
        "32/32".into(),
        format!("{:.1}", report.float_published),
        accuracy(report.float_top1.map(|top1| (top1, None))),
        "–".into(),
    ];
    if table.sizes {
        float.extend(["–", "–", "1x", "1x"].map(String::from));
    }
    rows.push(float);
    for line in &report.rows {
        let mark = if line.runs > 0 && line.integer.is_none() { " *" } else { "" };
        let found = match line.published {
            (mean, Some(spread)) => format!("{mean:.1} ± {spread:.1}"),
            (mean, None) => format!("{mean:.1}"),
        };
        let bits = format!("{}/{}", line.weights, line.activations);
        let here = format!("{}{mark}", accuracy(line.fake));
        let mut row = vec![line.row.into(), bits, found, here, accuracy(line.integer)];
        if table.sizes {
            let here = report.float_top1.map_or("–".into(), |float| loss(float, line.fake.map(|f| f.0)));
            let exact = line.compression.1.map_or("–".into(), |ratio| format!("{ratio:.2}x"));
            let nominal = format!("{}x", line.compression.0);
            row.extend([loss(report.float_published, Some(line.published.0)), here, nominal, exact]);
        }
        rows.push(row);
    }
    let mut text = format!("{}; top-1, percent\n", report.source);
    text.push_str(&aligned(&rows));
    if report.rows.iter().any(|line| line.runs > 0 && line.integer.is_none()) {
        text.push_str("* by fake quantization only: there is no integer network; results.json says why\n");
    }
    if report.proxy {
        text.push_str("Another network or other data than the paper's: orderings compare, numbers do not.\n");
    }
    let found = report.rows.iter().filter_map(|line| Some(line.fake?.0));
    if let Some(top1) = found.min_by(|a, b| (a - 50.0).abs().total_cmp(&(b - 50.0).abs())) {
        let _ = writeln!(
            text,
            "{} images to score on: by the images alone, rows less than {:.1} points apart may be equal (two standard errors)",
            report.images,
            chance(top1, report.images)
        );
    }
    for Verified { claim, holds } in &report.claims {
        let verdict = match holds {
            Some(true) => "holds",
            Some(false) => "does not hold",
            None => "is not known yet",
        };
        let _ = writeln!(text, "{claim}: {verdict}");
    }
    text
}

/// Two standard errors of the difference of two accuracies near `top1`, each of so many images, in points: `2·√(2·p·(1 − p)/n)`.
fn chance(top1: f64, images: usize) -> f64 {
    2.0 * (2.0 * top1 * (100.0 - top1) / images.max(1) as f64).sqrt()
}

/// Columns of equal width, the first to the left.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if i == 0 { write!(text, "{cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn chance_falls_with_the_root_of_the_images() {
        assert!((super::chance(50.0, 500) - 6.32).abs() < 0.01);
        assert!((super::chance(50.0, 50_000) - 0.632).abs() < 0.001);
        assert!((super::chance(90.0, 10_000) - 0.849).abs() < 0.001);
    }
}
