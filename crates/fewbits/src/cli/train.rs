//! `fewbits train`: a float model and labelled images in, a trained low-bit model out.

mod recipe;

use super::{
    Verdict,
    data::PreprocessArgs,
    output::{Output, check_folders, check_names},
    quantize::command_line,
};
use fewbits::{
    Error, Model, plan, report,
    train::{Request, Trained, is_result, train},
};
use fewbits_data::Augment;
use fewbits_graph::{DType, Graph};
use fewbits_quant::{calibrate::Policy, target::Target};
use fewbits_train::quantizers::Method;
use recipe::{LOW, RecipeArgs, parse};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Train a network in few bits, or in float.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The float ONNX file
    model: PathBuf,
    /// Labelled images to train on
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// Labelled images that epochs are scored on
    #[arg(long, value_name = "DATA")]
    val: PathBuf,
    /// Labels of an .npy file of images in --val; --labels are those of --data
    #[arg(long, value_name = "FILE.npy")]
    val_labels: Option<PathBuf>,
    /// Train on N images of --data only, drawn at random, always the same ones
    #[arg(long, value_parser = super::count(), value_name = "N")]
    limit: Option<usize>,
    /// Score on N images of --val only, drawn likewise
    #[arg(long, value_parser = super::count(), value_name = "N")]
    val_limit: Option<usize>,
    /// float, lsq, lsq+, lsq-bn, pact, dsq, qil, dorefa, tqt, sawb or qat
    #[arg(long, default_value = "lsq+", value_name = "NAME")]
    method: String,
    /// Bits of weights; the levels of pact, dsq, dorefa and sawb, none of which is zero, ship in grids of a bit more below 8
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "N")]
    weights: u8,
    /// Bits of the activations that layers multiply; others keep 8
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "N")]
    activations: u8,
    /// Bits of single layers as a plan of this model has them, in place of --weights, --activations and --edge-bits
    #[arg(long, conflicts_with_all = ["weights", "activations", "edge_bits"], value_name = "PLAN.json")]
    plan: Option<PathBuf>,
    /// Bits of weights and inputs of first and last layers, if more than the above [default: 8]
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "N")]
    edge_bits: Option<u8>,
    /// One weight scale per output channel, or one per tensor
    #[arg(long, default_value = "channel", value_parser = ["channel", "tensor"], value_name = "channel|tensor")]
    granularity: String,
    /// Leave channels as they are where folded weights have one scale (else they are equalized first)
    #[arg(long)]
    no_equalize: bool,
    /// The runtime that the result is for: ort, tensorrt or generic
    #[arg(long, default_value = "ort", value_name = "TARGET")]
    target: String,
    /// Folder of the run: log, checkpoint, trained float model, plan
    #[arg(long, value_name = "RUN_DIR")]
    out: PathBuf,
    /// Where the trained model goes [default: model.onnx in RUN_DIR]
    #[arg(short, long, value_name = "OUT.onnx")]
    output: Option<PathBuf>,
    /// Also write a report with loss and scale curves
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,
    /// Go on from the checkpoint in RUN_DIR, if there is one
    #[arg(long)]
    resume: bool,
    /// Begin anew in RUN_DIR although the run there is not finished
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Steps between checkpoints within an epoch; there is one after each epoch in any case
    #[arg(long, default_value_t = 200, value_name = "N")]
    checkpoint_every: usize,
    /// Exit with 1 if top-1 of the result is below this many percent
    #[arg(long, value_parser = super::amount, value_name = "PERCENT")]
    at_least: Option<f64>,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
}

/// Default of `--edge-bits`.
const EDGE_BITS: u8 = 8;

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let target: Target = args.target.parse()?;
    let method = match args.method.as_str() {
        "float" => None,
        name => Some(parse::<Method>("--method", name)?),
    };
    let is_float = method.is_none();
    super::check_idle(&[
        (is_float && args.weights.min(args.activations) < 8, "--weights or --activations", LOW),
        (is_float && args.plan.is_some(), "--plan", LOW),
        (is_float && args.edge_bits.is_some(), "--edge-bits", LOW),
        (is_float && args.granularity == "tensor", "--granularity", LOW),
        (is_float && args.no_equalize, "--no-equalize", LOW),
        (args.no_equalize && args.granularity == "channel", "--no-equalize", "--granularity tensor"),
    ])?;
    let path = args.output.clone().unwrap_or_else(|| args.out.join("model.onnx"));
    if let Some(method) = method.filter(|method| !method.is_deployable() && args.output.is_some()) {
        return Err(Error::Usage {
            what: format!("--output with --method {}, which has no integer form", method.name()),
            hint: "leave --output out: it is scored by fake quantization".into(),
        });
    }
    let read = [Some(&*args.model), args.plan.as_deref(), args.recipe.distill.as_deref().map(Path::new)];
    let data = [Some(&*args.data), Some(&*args.val), args.val_labels.as_deref(), args.preprocess.labels.as_deref()];
    // The run folder is made when all is known to be well.
    let outside = |file: &&Path| file.parent() != Some(&args.out);
    check_names([Some(&*path), args.report.as_deref()], read.into_iter().chain(data))?;
    check_folders([args.output.as_deref(), args.report.as_deref()].map(|file| file.filter(outside)))?;
    if let Some(path) = read.into_iter().flatten().find(|path| is_result(&args.out, path)) {
        return Err(Error::Usage {
            what: format!("`{}` would be replaced by what is trained", path.display()),
            hint: "give another folder as --out".into(),
        });
    }
    let model = Model::load(&args.model)?;
    if model.grids.is_some() {
        return Err(Error::Model {
            path: args.model.clone(),
            what: "it is quantized already".into(),
            hint: "train the float model it was made of",
        });
    }
    let training = Arc::new(args.preprocess.open(&args.data)?);
    let labelled = PreprocessArgs { labels: args.val_labels.clone(), ..args.preprocess.clone() };
    let validation = Arc::new(labelled.open_held_out(&args.val)?);
    let preprocess = args.preprocess.resolve(&model, &training, out)?;
    let planned = args.plan.as_deref().map(|path| plan::layer_bits(&model, path)).transpose()?;
    let [weight_bits_of, activation_bits_of] = planned.unwrap_or_default();
    // A plan says which tensors have few bits.
    let widths = if args.plan.is_some() { [8, 8] } else { [args.weights, args.activations] };
    let edge_bits = args.edge_bits.unwrap_or(EDGE_BITS);
    let policy = Policy {
        per_channel: args.granularity == "channel",
        weight_bits_of,
        activation_bits_of,
        ..Policy::new(widths[0], widths[1], edge_bits)
    };
    let recipe = args.recipe.recipe(method, &policy, out.global.seed)?;
    if method.is_some() && edge_bits > args.weights.min(args.activations) {
        out.note(&format!("first and last layers keep {edge_bits} bits (--edge-bits)"));
    }
    let teacher = teacher(args, &model)?;
    let usual = if training.is_prepared() { "none" } else { "crop4,flip" };
    let augment = args.recipe.augment.as_deref().unwrap_or(usual);
    let request = Request {
        model: &model,
        training: &training,
        validation: &validation,
        training_limit: args.limit,
        validation_limit: args.val_limit,
        preprocess: &preprocess,
        augment: parse::<Augment>("--augment", augment)?,
        batch: args.recipe.batch,
        recipe: &recipe,
        equalize: !args.no_equalize,
        target: &target,
        teacher: teacher.as_ref(),
        checkpoint_every: args.checkpoint_every,
        resume: args.resume,
        overwrite: args.overwrite,
        out: &args.out,
        output: Some(&path),
        threads: out.global.threads,
    };
    let trained = train(&request, &*out.progress())?;
    if let Some(path) = &args.report {
        report::write(path, &report::of_training(&request, &trained, &command_line())?)?;
    }
    out.result(&trained.summary, &text(&trained, &path));
    let result = trained.summary.integer_top1.unwrap_or(trained.summary.fake_top1);
    let missed = args.at_least.is_some_and(|least| result < least);
    Ok(if missed { Verdict::Missed } else { Verdict::Done })
}

/// The float network that is learned from too: `model` itself, or one of its own.
fn teacher(args: &Args, model: &Model) -> Result<Option<Graph>, Error> {
    let graph = match args.recipe.distill.as_deref() {
        None => return Ok(None),
        Some("self") => model.graph.clone(),
        Some(path) => {
            let teacher = Model::load(path.as_ref())?;
            if teacher.grids.is_some() {
                return Err(Error::Model {
                    path: path.into(),
                    what: "it is quantized".into(),
                    hint: "give a float network as --distill",
                });
            }
            teacher.graph
        }
    };
    if graph.outputs.first().is_none_or(|info| info.dtype != DType::F32) {
        return Err(Error::Usage {
            what: "the teacher's first output is not float32".into(),
            hint: "--distill needs a network that puts out scores of classes".into(),
        });
    }
    Ok(Some(graph))
}

fn text(trained: &Trained, path: &Path) -> String {
    let s = &trained.summary;
    let mut text = String::new();
    let _ = writeln!(text, "before training   top-1 {:.2} %", s.start_top1);
    let _ = match (s.integer_top1, &s.not_deployable) {
        (Some(integer), _) => writeln!(
            text,
            "trained           top-1 {:.2} %; deployed {:.2} % (fake quantization), {integer:.2} % (integers); epoch {}",
            s.trained_top1, s.fake_top1, s.best_epoch
        ),
        (None, Some(reason)) => {
            writeln!(
                text,
                "trained           top-1 {:.2} % (fake quantization); no integer network: {reason}",
                s.fake_top1
            )
        }
        (None, None) => writeln!(text, "trained           top-1 {:.2} %; epoch {}", s.fake_top1, s.best_epoch),
    };
    if s.not_deployable.is_none() {
        let _ = writeln!(text, "{}: {:.1} s", path.display(), s.seconds);
    }
    text
}
