//! `fewbits search`: a float model, images and a budget in, a plan with bits for every weight out.

use super::{
    Verdict,
    data::PreprocessArgs,
    output::{Output, check_files},
    quantize::command_line,
};
use fewbits::{
    Error, Model,
    evaluate::{Scores, evaluate},
    latency,
    methods::{Method, Methods},
    plan, quantize, report,
    search::{self, Figure, Found, Row, Settings, Strategy, search},
    stream::Source,
    summary::summarize,
};
use fewbits_files::write_atomically;
use fewbits_graph::exec::Mode;
use fewbits_quant::{calibrate::Policy, target::Target};
use fewbits_search::{Budget, Level, Metric, allocate::Allocator};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    io::Write,
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
    /// Labelled data on which the result is evaluated; --labels are its own
    #[arg(long, value_name = "DATA")]
    val: Option<PathBuf>,
    /// Images of a COCO file in --val; --images are those of --calib
    #[arg(long, value_name = "DIR")]
    val_images: Option<PathBuf>,
    /// What the network may cost, all of it: size=1.67MiB, avg-bits=4 (first and last layers not counted), bops=34G, latency=12ms
    #[arg(long, value_parser = budget, value_delimiter = ',', required_unless_present = "max_drop", value_name = "KIND=AMOUNT,…")]
    budget: Vec<Budget>,
    /// Look for the smallest network in which at most this many percent of the samples change their class
    #[arg(long, value_parser = super::amount, value_name = "PERCENT")]
    max_drop: Option<f64>,
    /// Times of layers for a latency budget, as `fewbits bench --latency-table` writes them
    #[arg(long, value_name = "FILE.json")]
    latency_table: Option<PathBuf>,
    /// How bits are searched for: ofm, kl, hessian, greedy, rl, evolution or random
    #[arg(long, default_value = "ofm", value_name = "NAME")]
    strategy: Strategy,
    /// Bits that a weight may have
    #[arg(long, default_value = "2,3,4,5,6,8", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(2..=8), value_name = "BITS,…")]
    bits: Vec<u8>,
    /// Bits that the input of a layer may have [default: --activations for all]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(2..=8), value_name = "BITS,…")]
    activation_bits: Vec<u8>,
    /// What damage is: cosine, snr, mse, kl, pearson or top1 [default: by strategy]
    #[arg(long, value_parser = metric, value_name = "NAME")]
    metric: Option<Metric>,
    /// Where the damage of a layer is looked at: local, block, network, or weighted, which is local scaled to the network [default: by strategy]
    #[arg(long, value_parser = level, value_name = "NAME")]
    level: Option<Level>,
    /// How ofm, kl and hessian spend the budget: dp (one budget of weights), ilp, greedy or greedy-remeasure [default: dp or ilp]
    #[arg(long, value_parser = allocator, value_name = "NAME")]
    allocator: Option<Allocator>,
    /// Samples that damage is measured on
    #[arg(long, default_value_t = 64, value_parser = super::count(), value_name = "N")]
    damage_samples: usize,
    /// The most assignments of bits that are tried on the whole network
    #[arg(long, visible_alias = "episodes", default_value_t = 600, value_parser = super::count(), value_name = "N")]
    evaluations: usize,
    /// Judge assignments with weights rounded by this method, e.g. mixed-clipping or comq, not to the nearest codes
    #[arg(long, value_name = "NAME")]
    inside: Option<Method>,
    /// Let rl and evolution begin with random assignments, not with what the sensitivities of single layers say
    #[arg(long)]
    cold_start: bool,
    /// Exchanges of bits in a row that may fail before the last search on the whole network is over; 0 leaves it out [default: 8; 0 for rl,
    /// evolution and random]
    #[arg(long, value_name = "N")]
    patience: Option<usize>,
    /// When no further assignment is tried, e.g. 90s or 10m; the quantization with what was found has as much again, 10 minutes at most
    #[arg(long, default_value = "30m", value_parser = super::duration, value_name = "TIME")]
    time_budget: Duration,
    /// Go on from the assignments in OUT.search.jsonl
    #[arg(long)]
    resume: bool,
    /// Bits of the activations that layers multiply
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "BITS")]
    activations: u8,
    /// Bits that the first and last layers keep; with the fewest of --bits, theirs are searched too
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "BITS")]
    edge_bits: u8,
    /// What is done against the damage of rounding: basic, auto, none, or a list as `quantize` takes it, without zeroq-data
    #[arg(long, default_value = "auto", value_name = "NAME[,NAME…]")]
    method: Methods,
    /// The runtime that the result is for: ort, tensorrt or generic
    #[arg(long, default_value = "ort", value_name = "TARGET")]
    target: String,
    /// Where the plan goes [default: MODEL.plan.json beside the model]
    #[arg(short, long, value_name = "OUT.plan.json")]
    output: Option<PathBuf>,
    /// Also write a report, one self-contained file; .md and .json are Markdown and JSON
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
    pareto: PathBuf,
    #[serde(flatten)]
    found: Found,
    scores: Option<Scores>,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let start = Instant::now();
    let target: Target = args.target.parse()?;
    if args.method.demands(Method::ZeroqData) {
        return Err(Error::Usage {
            what: "a search needs calibration images: --method zeroq-data makes none here".into(),
            hint: "leave out zeroq-data".into(),
        });
    }
    check(args)?;
    let read = [Some(&*args.model), Some(&*args.calib), args.val.as_deref(), args.latency_table.as_deref()];
    check_files([args.output.as_deref(), args.report.as_deref()], read)?;
    let model = Model::load(&args.model)?;
    // Labels are those of --val.
    let unlabelled = PreprocessArgs { labels: None, ..args.preprocess.clone() };
    let dataset = unlabelled.open(&args.calib)?;
    let of_val = PreprocessArgs {
        images: args.val_images.clone().or(args.preprocess.images.clone()),
        ..args.preprocess.clone()
    };
    let labelled = args.val.as_deref().map(|val| of_val.open_held_out(val)).transpose()?;
    let preprocess = args.preprocess.resolve(&model, &dataset, out)?;
    let source = Source { indices: dataset.spread(args.samples), dataset: &dataset, preprocess: &preprocess };
    let path = args.output.clone().unwrap_or_else(|| args.model.with_extension("plan.json"));
    let beside = |what: &str| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.strip_suffix(".json").unwrap_or(&name);
        path.with_file_name(format!("{}.{what}", stem.strip_suffix(".plan").unwrap_or(stem)))
    };
    let default = Settings::new(args.strategy, args.budget.clone());
    let asked = Settings {
        max_drop: args.max_drop,
        widths: ascending(&args.bits),
        input_widths: ascending(&args.activation_bits),
        metric: args.metric,
        level: args.level,
        allocator: args.allocator,
        patience: args.patience.unwrap_or(default.patience),
        samples: args.damage_samples,
        evaluations: args.evaluations,
        cold_start: args.cold_start,
        inside: args.inside,
        time_budget: args.time_budget,
        latency: args.latency_table.as_deref().map(latency::load).transpose()?,
        journal: Some(beside("search.jsonl")),
        resume: args.resume,
        ..default
    };
    let mut settings = quantize::Settings {
        methods: args.method.clone(),
        seed: out.global.seed,
        ..quantize::Settings::new(target, Policy::new(8, args.activations, args.edge_bits))
    };
    settings.time_budget = settings.time_budget.min(args.time_budget);
    let threads = out.global.threads;
    let (found, quantized) = search(&model, &source, &mut settings, &asked, threads, &*out.progress())?;
    let mut plan = plan::of(&quantized, &settings, source.indices.len(), out.global.seed, source.stated());
    // The last step is the quantization: files are made again from it.
    plan.history.insert(0, found.step(&asked, out.global.seed));
    plan.save(&path)?;
    let front = beside("pareto.json");
    let json = serde_json::to_string_pretty(&found.front()).expect("numbers and names are valid JSON");
    write_atomically(&front, |file| file.write_all(json.as_bytes())).map_err(Error::io("write", &front))?;
    let scores = match &labelled {
        None => None,
        Some(labelled) => {
            let source = Source { indices: labelled.first(None), dataset: labelled, preprocess: &preprocess };
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
        report::write(path, &search::report::of(&found, subject, threads, &*out.progress())?)?;
    }
    let report = Report { seconds: start.elapsed().as_secs_f64(), plan: path, pareto: front, found, scores };
    out.result(&report, &text(&report, args));
    Ok(if report.found.kept { Verdict::Done } else { Verdict::Missed })
}

/// Flags that the strategy or the budgets would not look at, and methods that cannot round while they search.
fn check(args: &Args) -> Result<(), Error> {
    let by_layer = matches!(args.strategy, Strategy::Ofm | Strategy::Kl | Strategy::Hessian);
    let learns = matches!(args.strategy, Strategy::Rl | Strategy::Evolution);
    let timed = args.budget.iter().any(|budget| matches!(budget, Budget::Latency(_)));
    super::check_idle(&[
        (args.level.is_some() && args.strategy == Strategy::Hessian, "--level", "strategies other than hessian"),
        (args.allocator.is_some() && !by_layer, "--allocator", "--strategy ofm, kl or hessian"),
        (args.cold_start && !learns, "--cold-start", "--strategy rl or evolution"),
        (args.latency_table.is_some() && !timed, "--latency-table", "--budget latency=…"),
    ])?;
    search::check_inside(args.inside)?;
    match args.inside {
        Some(inside) if args.method != Methods::Auto && !args.method.demands(inside) => Err(Error::Usage {
            what: format!("--inside {inside} rounds weights in another way than --method {}", args.method),
            hint: format!("search for what ships: --method auto, or a list with {inside}"),
        }),
        _ => Ok(()),
    }
}

fn ascending(widths: &[u8]) -> Vec<u8> {
    widths.iter().copied().collect::<BTreeSet<u8>>().into_iter().collect()
}

fn text(report: &Report, args: &Args) -> String {
    let Report { found, .. } = report;
    let widest = found.layers.iter().map(|row| row.layer.len()).max().unwrap_or(0);
    let head: String = found.widths.iter().map(|width| format!("{:>9}", format!("{width} bits"))).collect();
    let mut lines = vec![format!("{:widest$}    bits     bytes  {head}", "layer")];
    let line = |row: &Row| {
        let damage: String = row.damage.iter().map(|damage| format!("{damage:>9.2e}")).collect();
        format!("{:widest$}  {:>6}{:>10}  {damage}", row.layer, format!("{}/{}", row.bits, row.input_bits), row.bytes)
    };
    lines.extend(found.layers.iter().map(line));
    lines.push(format!(
        "{}: {:.3} bits on average, {} bytes ({:.3} MiB), {:.2} Gbops, {} assignments tried, {:.1} s",
        report.plan.display(),
        found.average_bits,
        found.bytes,
        found.bytes as f64 / 1_048_576.0,
        found.bops as f64 / 1e9,
        found.history.len(),
        report.seconds,
    ));
    for Figure { budget, stated, kept, .. } in &found.budgets {
        lines.push(format!("budget {budget}: {stated}{}", if *kept { "" } else { "  MISSED" }));
    }
    let uniform = found.uniform.map(|(bits, damage)| format!(" ({damage:.4} with {bits} bits everywhere)"));
    let agreement = found
        .agreement
        .map(|share| format!("; {:.1} % of {} samples keep their class in integers", 100.0 * share, found.samples));
    lines.push(format!(
        "damage of rounding ({}): {:.4}{}{}",
        found.metric,
        found.damage,
        uniform.unwrap_or_default(),
        agreement.unwrap_or_default()
    ));
    match report.scores {
        Some(Scores::Classification { top1, top5, samples }) => {
            lines.push(format!("top-1 {top1:.2} %   top-5 {top5:.2} %   {samples} samples"));
        }
        Some(Scores::Detection { coco, samples, .. }) => {
            let [ap, ap50] = [coco.ap, coco.ap50].map(|ap| ap.unwrap_or(0.0));
            lines.push(format!("AP {ap:.2}   AP50 {ap50:.2}   {samples} images"));
        }
        None => {}
    }
    lines.push(format!("next: fewbits export {} --plan {} -o OUT.onnx", args.model.display(), report.plan.display()));
    lines.join("\n")
}
