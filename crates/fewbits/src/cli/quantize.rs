//! `fewbits quantize`: a float model and images in, a low-bit model out.

use super::{
    Verdict,
    data::PreprocessArgs,
    output::{Output, check_files},
};
use fewbits::stream::Source;
use fewbits::{
    Error, Model, drawn, export,
    methods::{self, Method, Methods},
    plan,
    quantize::{Quantized, Ranges, Settings, TIME_BUDGET, quantize},
    report,
    summary::{Summary, summarize},
};
use fewbits_data::Dataset;
use fewbits_methods::{aciq::bits::MOST_SHARED, zeroq_data};
use fewbits_quant::{WeightRule, calibrate::Policy, target::Target};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Samples of calibration data by default.
const SAMPLES: usize = 256;

/// Turn a float model into a low-bit one, from a few hundred images.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The float ONNX file
    model: PathBuf,
    /// Calibration images: a folder, a csv list, or arrays; no labels needed. None with `--method zeroq-data`
    #[arg(long, value_name = "DATA")]
    calib: Option<PathBuf>,
    /// How many samples to calibrate on, spread evenly over the data, or how many images `--method zeroq-data` makes [default: 256; 64 made]
    #[arg(long, value_parser = super::count(), value_name = "N")]
    samples: Option<usize>,
    /// Steps for each group of images that `--method zeroq-data` makes [default: 80]
    #[arg(long, value_parser = super::count(), value_name = "N")]
    image_iterations: Option<usize>,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Nodes that stay float
    #[arg(long, value_delimiter = ',', value_name = "NODE,…")]
    keep_float: Vec<String>,
    /// The runtime that the result is for: ort, tensorrt or generic
    #[arg(long, default_value = "ort", value_name = "TARGET")]
    target: String,
    /// Where the model goes [default: MODEL.int8.onnx beside the model]
    #[arg(short, long, value_name = "OUT.onnx")]
    output: Option<PathBuf>,
    /// Also write the plan
    #[arg(long, value_name = "OUT.plan.json")]
    plan: Option<PathBuf>,
    /// Also write a report, one self-contained file; .md and .json are Markdown and JSON
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,
    /// Learn from the images as they are only, not mirrored too
    #[arg(long)]
    no_mirror: bool,
    /// Go on where a killed run of the same command was
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    preprocess: PreprocessArgs,
}

/// How many bits, and how ranges are chosen.
#[derive(Clone, Debug, clap::Args)]
pub struct PolicyArgs {
    /// Bits of weights
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "BITS")]
    weights: u8,
    /// Bits of the activations that layers multiply; what is added, pooled or put out keeps 8
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "BITS")]
    activations: u8,
    /// Bits of the first and last layers, if more than the others
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "BITS")]
    edge_bits: u8,
    /// Activation ranges: auto, minmax, mean-minmax, moving-average, percentile:P, mse, output-mse, kl or aciq; auto tries several and measures
    #[arg(long, default_value = "auto", value_name = "RULE")]
    ranges: Ranges,
    /// Weight ranges: minmax or mse
    #[arg(long, default_value = "mse", value_name = "RULE")]
    weight_ranges: WeightRule,
    /// One weight scale per output channel, or one per tensor; or, at 4 bits and fewer, also bits per channel, --weights on average (ACIQ),
    /// which integer kernels compute but files hold in 8 bits each
    #[arg(long, default_value = "channel", value_parser = ["channel", "tensor", "channel-bits"], value_name = "channel|tensor|channel-bits")]
    granularity: String,
    #[arg(long, value_name = "NAME[,NAME…]", help = method_help())]
    method: Option<Methods>,
    /// How long it may take with `--method auto`, e.g. 90s or 10m; a step under way then ends with what it has [default: 10m]
    #[arg(long, value_parser = super::duration, value_name = "TIME")]
    time_budget: Option<Duration>,
    /// Steps for each layer or block whose rounding is learned [default: 2000 with adaround, 500 with brecq and
    /// qdrop, with auto as many as time allows up to 2000]
    #[arg(long, value_parser = super::count(), value_name = "N")]
    iterations: Option<usize>,
}

fn method_help() -> String {
    let choice = "basic (little, fast), auto (all that measures better), none, or a list of";
    format!(
        "What is done against the damage of rounding: {choice} {} [default: basic at 8 bits and with bits by channel, auto below]",
        methods::names()
    )
}

impl PolicyArgs {
    fn methods(&self) -> Methods {
        let by_default = || if self.shares_bits() { Methods::Basic } else { Methods::by_default(&self.policy()) };
        self.method.clone().unwrap_or_else(by_default)
    }

    fn shares_bits(&self) -> bool {
        self.granularity == "channel-bits"
    }

    fn policy(&self) -> Policy {
        Policy {
            weight_rule: self.weight_ranges,
            per_channel: self.granularity != "tensor",
            channel_bits: self.shares_bits(),
            ..Policy::new(self.weights, self.activations, self.edge_bits)
        }
    }
}

/// Flags that the methods would not look at.
fn check(args: &Args) -> Result<(), Error> {
    let methods = args.policy.methods();
    let policy = args.policy.policy();
    let by_time = methods.explore(&policy) && policy.has_low_activations();
    let learns =
        by_time || [Method::AdaRound, Method::Brecq, Method::QDrop].iter().any(|method| methods.demands(*method));
    let steps = methods.refine(&policy);
    super::check_idle(&[
        (args.policy.iterations.is_some() && !learns, "--iterations", "--method adaround, brecq or qdrop"),
        (
            args.image_iterations.is_some() && !methods.demands(Method::ZeroqData),
            "--image-iterations",
            "--method zeroq-data",
        ),
        (args.policy.time_budget.is_some() && !methods.explore(&policy), "--time-budget", "--method auto"),
        (args.no_mirror && !steps, "--no-mirror", "--method auto or methods that learn from samples"),
        (args.resume && !steps, "--resume", "--method auto or methods that learn from samples"),
        (
            args.policy.shares_bits() && args.policy.weights > MOST_SHARED,
            "--granularity channel-bits",
            "--weights 4 or fewer",
        ),
    ])
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let start = Instant::now();
    let target: Target = args.target.parse()?;
    check(args)?;
    let written = [args.output.as_deref(), args.plan.as_deref(), args.report.as_deref()];
    check_files(written, [Some(&*args.model), args.calib.as_deref()])?;
    let model = Model::load(&args.model)?;
    let dataset = dataset(&model, args, out)?;
    let preprocess = args.preprocess.resolve(&model, &dataset, out)?;
    let samples = match args.calib {
        Some(_) => args.samples.unwrap_or(SAMPLES),
        None => dataset.len(),
    };
    let source = Source { indices: dataset.spread(samples), dataset: &dataset, preprocess: &preprocess };
    let path = args.output.clone().unwrap_or_else(|| args.model.with_extension("int8.onnx"));
    let settings = Settings {
        ranges: args.policy.ranges,
        methods: args.policy.methods(),
        keep_float: args.keep_float.iter().cloned().collect::<BTreeSet<_>>(),
        time_budget: args.policy.time_budget.unwrap_or(TIME_BUDGET),
        iterations: args.policy.iterations,
        mirrors: !args.no_mirror,
        seed: out.global.seed,
        partial: Some(path.clone()),
        resume: args.resume,
        ..Settings::new(target, args.policy.policy())
    };
    if settings.policy.edge_bits > settings.policy.weight_bits.min(settings.policy.activation_bits) {
        out.note(&format!("first and last layers keep {} bits (--edge-bits)", settings.policy.edge_bits));
    }
    let threads = out.global.threads;
    let quantized = quantize(&model, &source, &settings, threads, &*out.progress())?;
    let described = plan::describe(&quantized, &settings, source.indices.len());
    let qdq = export::qdq(&quantized.graph, &quantized.grids, &settings.target, &described, source.stated())?;
    let bytes = export::write(&path, &qdq)?;
    if let Some(path) = &args.plan {
        plan::of(&quantized, &settings, source.indices.len(), out.global.seed, source.stated()).save(path)?;
    }
    let summary = summarize(&model, &quantized, &settings, source.indices.len(), bytes, start.elapsed());
    if let Some(path) = &args.report {
        let subject = report::Subject {
            command: &command_line(),
            model: &model,
            quantized: &quantized,
            settings: &settings,
            source: &source,
            summary: &summary,
            scores: &[],
        };
        report::write(path, &report::of(subject, threads, &*out.progress())?)?;
    }
    out.result(&summary, &text(&summary, &quantized, &path, args));
    Ok(Verdict::Done)
}

/// The calibration data, or what `--method zeroq-data` makes in its place.
fn dataset(model: &Model, args: &Args, out: &Output) -> Result<Dataset, Error> {
    match (&args.calib, args.policy.methods().demands(Method::ZeroqData)) {
        (Some(path), false) => args.preprocess.open(path),
        (None, true) => {
            let usual = zeroq_data::Config::default();
            let config = zeroq_data::Config {
                images: args.samples.unwrap_or(usual.images),
                iterations: args.image_iterations.unwrap_or(usual.iterations),
                seed: out.global.seed,
                ..usual
            };
            let preprocess = args.preprocess.stated(model)?;
            drawn::dataset(model, preprocess.as_ref(), &config, out.global.threads, &*out.progress())
        }
        (Some(_), true) => Err(Error::Usage {
            what: "--method zeroq-data makes its own calibration data".into(),
            hint: "leave out --calib, or leave out zeroq-data".into(),
        }),
        (None, false) => Err(Error::Usage {
            what: "there is nothing to calibrate on".into(),
            hint: "give --calib DATA, or --method zeroq-data if the model still has its BatchNormalizations".into(),
        }),
    }
}

/// The command line, as a report shows it.
pub(super) fn command_line() -> String {
    let shown = |argument: String| if argument.contains(' ') { format!("'{argument}'") } else { argument };
    let arguments = std::env::args_os().skip(1).map(|a| shown(a.to_string_lossy().into_owned()));
    std::iter::once("fewbits".to_string()).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn text(summary: &Summary, quantized: &Quantized, path: &std::path::Path, args: &Args) -> String {
    let mut lines = vec![format!(
        "{}: {} of {} nodes in integers, {:.2} MB (float {:.2} MB), {:.1} s",
        path.display(),
        summary.layers.iter().filter(|l| l.runtime == "integer").count(),
        summary.layers.len(),
        summary.size_bytes.file as f64 / 1e6,
        summary.size_bytes.float as f64 / 1e6,
        summary.seconds,
    )];
    for change in &quantized.changes {
        lines.push(format!("prepared: {change}"));
    }
    lines.extend(quantized.channel_bits.iter().map(|found| format!("bits by channel: {found}")));
    for trial in &quantized.trials {
        let chosen = if trial.rule == quantized.rule { "  <- chosen" } else { "" };
        lines.push(format!("ranges {:<18} {:6.2} dB{chosen}", trial.rule.to_string(), trial.sqnr_db));
    }
    for step in &quantized.steps {
        lines.push(format!("step {step}"));
        lines.extend(step.findings.iter().map(|found| format!("     {found}")));
    }
    for layer in summary.layers.iter().filter(|l| l.runtime == "float") {
        lines.push(format!("float: {} ({}): {}", layer.name, layer.op, layer.reason));
    }
    for name in &quantized.guarded {
        lines.push(format!("bias guard: scales of `{name}` raised for channels whose bias dwarfs their weights"));
    }
    lines.push(format!("next: fewbits eval {} --data LABELLED_DATA", path.display()));
    if args.plan.is_none() {
        lines.push("      (--plan OUT.plan.json keeps the decisions, --report OUT.html shows them)".into());
    }
    lines.join("\n")
}
