//! `fewbits search`: a float model, images and a budget in, a plan with bits for every weight out.

use super::{Verdict, data::PreprocessArgs, output::Output, quantize::command_line};
use fewbits::{
    Error, Model,
    evaluate::{Scores, evaluate},
    methods::Methods,
    plan, quantize, report,
    search::{Found, Row, Settings, Strategy, search},
    search_report,
    stream::Source,
    summary::summarize,
};
use fewbits_graph::exec::Mode;
use fewbits_quant::{calibrate::Policy, target::Target};
use fewbits_search::{Budget, Level, Metric, allocate::Allocator};
use serde::Serialize;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// Find how many bits each weight needs under a budget, and quantize with them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The float ONNX file
    model: PathBuf,
    /// Calibration images: a folder, a csv list, or arrays; no labels needed
    #[arg(long, value_name = "DATA")]
    calib: PathBuf,
    /// How many samples to calibrate on, spread evenly over the data
    #[arg(long, default_value_t = 256, value_parser = super::count(), value_name = "N")]
    samples: usize,
    /// Labelled data on which the result is evaluated
    #[arg(long, value_name = "DATA")]
    val: Option<PathBuf>,
    /// The most that the network may cost: size=1.67MiB, avg-bits=4 (first and last layers not counted) or bops=34G
    #[arg(long, value_parser = budget)]
    budget: Budget,
    /// How bits are searched for: ofm
    #[arg(long, default_value = "ofm", value_name = "NAME")]
    strategy: Strategy,
    /// Bits that a weight may have
    #[arg(long, default_value = "2,3,4,5,6,8", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(2..=8), value_name = "BITS,…")]
    bits: Vec<u8>,
    /// What damage is: cosine, snr, mse, kl, pearson or top1
    #[arg(long, default_value = "snr", value_parser = metric, value_name = "NAME")]
    metric: Metric,
    /// Where the damage of a layer is looked at: local, block, network, or weighted, which is local scaled to the network
    #[arg(long, default_value = "weighted", value_parser = level, value_name = "NAME")]
    level: Level,
    /// How the budget is spent: knapsack, greedy or greedy-remeasure
    #[arg(long, default_value = "knapsack", value_parser = allocator, value_name = "NAME")]
    allocator: Allocator,
    /// Samples that damage is measured on
    #[arg(long, default_value_t = 64, value_parser = super::count(), value_name = "N")]
    damage_samples: usize,
    /// Exchanges of bits in a row that may fail before the last search on the whole network is over; 0 leaves it out
    #[arg(long, default_value_t = 8, value_name = "N")]
    patience: usize,
    /// Bits of the activations that layers multiply
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "BITS")]
    activations: u8,
    /// Bits that the first and last layers keep; with the fewest of --bits, theirs are searched too
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "BITS")]
    edge_bits: u8,
    /// What is done against the damage of rounding: auto, none, or a list of methods
    #[arg(long, default_value = "auto", value_name = "NAME[,NAME…]")]
    method: Methods,
    /// When `--method auto` begins no further step, e.g. 90s or 10m
    #[arg(long, default_value = "10m", value_parser = super::duration, value_name = "TIME")]
    time_budget: Duration,
    /// The runtime that the result is for: ort, tensorrt or generic
    #[arg(long, default_value = "ort", value_name = "TARGET")]
    target: String,
    /// Where the plan goes [default: MODEL.plan.json beside the model]
    #[arg(short, long, value_name = "OUT.plan.json")]
    output: Option<PathBuf>,
    /// Also write a report, one self-contained file
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    preprocess: PreprocessArgs,
}

/// An error of this room with its hint, as the command line tells it.
macro_rules! parsed {
    ($name:ident, $type:ty) => {
        fn $name(text: &str) -> Result<$type, String> {
            text.parse().map_err(|error: fewbits_search::SearchError| match error.hint() {
                Some(hint) => format!("{error}; {hint}"),
                None => error.to_string(),
            })
        }
    };
}
parsed!(budget, Budget);
parsed!(metric, Metric);
parsed!(level, Level);
parsed!(allocator, Allocator);

#[derive(Debug, Serialize)]
struct Report {
    seconds: f64,
    plan: PathBuf,
    #[serde(flatten)]
    found: Found,
    scores: Option<Scores>,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let start = Instant::now();
    let target: Target = args.target.parse().map_err(|what| Error::Usage { what, hint: String::new() })?;
    let model = Model::load(&args.model)?;
    let dataset = args.preprocess.open(&args.calib)?;
    let preprocess = args.preprocess.resolve(&model, &dataset, out)?;
    let source = Source { indices: dataset.spread(args.samples), dataset: &dataset, preprocess: &preprocess };
    let mut widths = args.bits.clone();
    widths.sort_unstable();
    widths.dedup();
    let asked = Settings {
        strategy: args.strategy,
        widths,
        metric: args.metric,
        level: args.level,
        allocator: args.allocator,
        patience: args.patience,
        samples: args.damage_samples,
        ..Settings::new(args.budget)
    };
    let mut settings = quantize::Settings {
        methods: args.method.clone(),
        time_budget: args.time_budget,
        seed: out.global.seed,
        ..quantize::Settings::new(target, Policy::new(8, args.activations, args.edge_bits))
    };
    let threads = out.global.threads;
    let (found, quantized) = search(&model, &source, &mut settings, &asked, threads, &*out.progress())?;
    let stated = (!dataset.is_prepared()).then_some(&preprocess);
    let path = args.output.clone().unwrap_or_else(|| args.model.with_extension("plan.json"));
    plan::of(&quantized, &settings, source.indices.len(), out.global.seed, stated).save(&path)?;
    let scores = match &args.val {
        None => None,
        Some(val) => {
            let labelled = args.preprocess.open(val)?;
            let source = Source { indices: labelled.first(None), dataset: &labelled, preprocess: &preprocess };
            Some(evaluate(&quantized.graph, Mode::Integer(&quantized.grids), &source, threads, &*out.progress())?)
        }
    };
    if let Some(path) = &args.report {
        let subject = report::Subject {
            command: &command_line(),
            model: &model,
            quantized: &quantized,
            settings: &settings,
            source: &source,
            summary: &summarize(&model, &quantized, &settings, source.indices.len(), 0, start.elapsed()),
            scores: &scores.iter().map(|scores| (fewbits_report::Mode::Integer, scores)).collect::<Vec<_>>(),
        };
        report::write(path, &search_report::of(&found, subject, threads, &*out.progress())?)?;
    }
    let report = Report { seconds: start.elapsed().as_secs_f64(), plan: path, found, scores };
    out.result(&report, &text(&report, args));
    Ok(if report.found.kept { Verdict::Done } else { Verdict::Missed })
}

fn text(report: &Report, args: &Args) -> String {
    let Report { found, .. } = report;
    let widest = found.layers.iter().map(|row| row.layer.len()).max().unwrap_or(0);
    let head: String = found.widths.iter().map(|width| format!("{:>9}", format!("{width} bits"))).collect();
    let mut lines = vec![format!("{:widest$}  bits     bytes  {head}", "layer")];
    let line = |row: &Row| {
        let damage: String = row.damage.iter().map(|damage| format!("{damage:>9.2e}")).collect();
        format!("{:widest$}  {:>4}{:>10}  {damage}", row.layer, row.bits, row.bytes)
    };
    lines.extend(found.layers.iter().map(line));
    lines.push(format!(
        "{}: {:.3} bits on average, {} bytes ({:.3} MiB), {:.2} Gbops, budget {}{}, {:.1} s",
        report.plan.display(),
        found.average_bits,
        found.bytes,
        found.bytes as f64 / 1_048_576.0,
        found.bops as f64 / 1e9,
        found.budget,
        if found.kept { "" } else { " MISSED" },
        report.seconds,
    ));
    let uniform = found.uniform.map(|(bits, damage)| format!(" ({damage:.4} with {bits} bits everywhere)"));
    lines.push(format!("damage of rounding ({}): {:.4}{}", found.metric, found.damage, uniform.unwrap_or_default()));
    match report.scores {
        Some(Scores::Classification { top1, top5, samples }) => {
            lines.push(format!("top-1 {top1:.2} %   top-5 {top5:.2} %   {samples} samples"));
        }
        Some(Scores::Detection { ap, ap50, samples }) => {
            lines.push(format!("AP {ap:.2}   AP50 {ap50:.2}   {samples} images"));
        }
        None => {}
    }
    lines.push(format!("next: fewbits export {} --plan {} -o OUT.onnx", args.model.display(), report.plan.display()));
    lines.join("\n")
}
