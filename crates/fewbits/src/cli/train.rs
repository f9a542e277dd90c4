//! `fewbits train`: a float model and labelled images in, a trained low-bit model out.

use super::{
    Verdict,
    data::PreprocessArgs,
    output::{Output, check_folders},
    quantize::command_line,
};
use fewbits::{
    Error, Model, export, plan, report,
    train::{Request, Trained, describe, is_result, train},
};
use fewbits_data::Augment;
use fewbits_graph::DType;
use fewbits_quant::{calibrate::Policy, target::Target};
use fewbits_train::{
    loss::Objective,
    network::Goal,
    optimizer::{Moments, Rule},
    quantizers::{Configuration, Method, Offset, PactWeights, Settings, init::Start},
    recipe::{Fold, Phase, Recipe},
    schedule::Decay,
};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
    str::FromStr,
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
    /// Bits of weights
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "N")]
    weights: u8,
    /// Bits of the activations that layers multiply; others keep 8
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "N")]
    activations: u8,
    /// Bits of single layers as a plan of this model has them, in place of --weights and --activations
    #[arg(long, value_name = "PLAN.json")]
    plan: Option<PathBuf>,
    /// Bits of weights and inputs of first and last layers, if more than the above
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8), value_name = "N")]
    edge_bits: u8,
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

/// How the network is trained.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Recipe")]
pub struct RecipeArgs {
    /// Epochs (of each phase, with --progressive)
    #[arg(long, default_value_t = 10, value_parser = super::count(), value_name = "N")]
    pub epochs: usize,
    /// Images of a batch
    #[arg(long, default_value_t = 128, value_parser = super::count(), value_name = "N")]
    pub batch: usize,
    /// Largest learning rate [default: by method and bits]
    #[arg(long, value_parser = super::positive, value_name = "X")]
    pub learning_rate: Option<f64>,
    /// sgd, nesterov, adam or adamw
    #[arg(long, default_value = "nesterov", value_parser = ["sgd", "nesterov", "adam", "adamw"], value_name = "NAME")]
    pub optimizer: String,
    /// Momentum of SGD
    #[arg(long, default_value_t = 0.9, value_parser = super::part, value_name = "X")]
    pub momentum: f64,
    /// Weight decay of weights
    #[arg(long, default_value_t = 1e-4, value_parser = super::amount, value_name = "X")]
    pub weight_decay: f64,
    /// Multiplies the learning rate for scales and offsets [default: 1; 0.01 for qil, as its paper has it]
    #[arg(long, value_parser = super::amount, value_name = "X")]
    pub scale_rate: Option<f64>,
    /// Weight decay of scales and offsets
    #[arg(long, default_value_t = 0.0, value_parser = super::amount, value_name = "X")]
    pub scale_decay: f64,
    /// constant, cosine, cosine:FLOOR or step:30,60:0.1, over the epochs of a phase
    #[arg(long, default_value = "cosine", value_name = "SCHEDULE")]
    pub schedule: String,
    /// Epochs of linear warm-up (of each phase, with --progressive)
    #[arg(long, default_value_t = 0.0, value_parser = super::amount, value_name = "EPOCHS")]
    pub warmup: f64,
    /// Random changes to training images: none, or a list of crop4, rrc224, flip, jitter0.4
    /// [default: crop4,flip; none for arrays of float numbers]
    #[arg(long, value_name = "LIST")]
    pub augment: Option<String>,
    /// Label smoothing
    #[arg(long, default_value_t = 0.0, value_parser = super::part, value_name = "X")]
    pub label_smoothing: f64,
    /// Learn from this float model too, or from the model itself (`self`)
    #[arg(long, value_name = "TEACHER.onnx|self")]
    pub distill: Option<String>,
    /// Weight of the teacher in the loss
    #[arg(long, default_value_t = 1.0, value_parser = super::amount, value_name = "X")]
    pub distill_weight: f64,
    /// Temperature of the distillation
    #[arg(long, default_value_t = 1.0, value_parser = super::positive, value_name = "X")]
    pub temperature: f64,
    /// How BatchNormalization and quantized weights go together: none, batch, corrected, running or merged
    /// [default: corrected for lsq-bn, else none]
    #[arg(long, value_name = "FOLD")]
    pub fold: Option<String>,
    /// Share of a phase's epochs after which normalizations keep their running statistics
    #[arg(long, value_parser = super::share, value_name = "SHARE")]
    pub freeze_at: Option<f64>,
    /// Share of a phase's epochs after which offsets are whole steps, as integer zero points are
    #[arg(long, default_value_t = 0.5, value_parser = super::share, value_name = "SHARE")]
    pub snap_at: f64,
    /// Train with these bits one after the other, widest first, before the bits asked for: e.g. 8,4. Weights go on, scales start
    /// anew in each phase
    #[arg(long, value_delimiter = ',', value_name = "BITS,…")]
    pub progressive: Vec<u8>,
    /// Largest norm of the gradient; 0 for any
    #[arg(long, default_value_t = 0.0, value_parser = super::amount, value_name = "X")]
    pub clip_norm: f64,
    /// Batches whose gradients make one step
    #[arg(long, default_value_t = 1, value_parser = super::count(), value_name = "N")]
    pub accumulate: usize,
    /// Compute most layers again in the backward pass: less memory, more time, the same result
    #[arg(long)]
    pub recompute: bool,
    /// Decay of a moving average of the parameters, which is what is scored and shipped; 0 for none
    #[arg(long, default_value_t = 0.0, value_parser = super::part, value_name = "X")]
    pub ema: f64,
    /// Strength of the kurtosis regulariser KURE
    #[arg(long, default_value_t = 0.0, value_parser = super::amount, value_name = "X")]
    pub kure: f64,
    /// LSQ+ configuration: 1 unsigned, 2 signed, 3 signed with offset, 4 unsigned with offset [default: 4, but 1 behind a Relu,
    /// where zero is the least element]
    #[arg(long, value_name = "1|2|3|4")]
    pub configuration: Option<String>,
    /// Offsets of LSQ+: none, minimum or learned
    #[arg(long, default_value = "learned", value_parser = ["none", "minimum", "learned"], value_name = "OFFSET")]
    pub offset: String,
    /// Where scales start: method, lsq, lsq+, lsq+abs, mse or minmax
    #[arg(long, default_value = "method", value_name = "RULE")]
    pub start: String,
    /// Count the images of the batch in LSQ's gradient scale
    #[arg(long)]
    pub include_batch: bool,
    /// Weights that go with PACT: dorefa or sawb
    #[arg(long, default_value = "dorefa", value_parser = ["dorefa", "sawb"], value_name = "NAME")]
    pub pact_weights: String,
    /// Batches that `qat` watches before it rounds activations
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub delay: u32,
}

/// `text` as a `T`, or a usage error.
fn parse<T: FromStr>(flag: &str, text: &str) -> Result<T, Error>
where
    T::Err: std::fmt::Display,
{
    let hint = || format!("`fewbits help train` says what {flag} takes");
    text.parse().map_err(|e: T::Err| Error::Usage { what: format!("{flag} {text}: {e}"), hint: hint() })
}

impl RecipeArgs {
    fn settings(&self) -> Result<Settings, Error> {
        let start: Start = parse("--start", &self.start)?;
        let configuration = match &self.configuration {
            Some(text) => parse("--configuration", text)?,
            None => Configuration::default(),
        };
        Ok(Settings {
            configuration,
            offset: match self.offset.as_str() {
                "none" => Offset::None,
                "minimum" => Offset::FixedAtMinimum,
                _ => Offset::Learned,
            },
            counted_images: if self.include_batch { self.batch } else { 1 },
            weight_start: start,
            activation_start: start,
            pact_weights: if self.pact_weights == "sawb" { PactWeights::Sawb } else { PactWeights::DoReFa },
            delay: self.delay,
            ..Settings::default()
        })
    }

    /// Refuses widths that do not fall, phase by phase, to those of `policy`.
    fn check_progressive(&self, policy: &Policy) -> Result<(), Error> {
        let single = policy.weight_bits_of.values().chain(policy.activation_bits_of.values());
        let asked = single.copied().fold(policy.weight_bits.min(policy.activation_bits), u8::min);
        let what = if let Some(wide) = self.progressive.iter().find(|bits| !(2..=8).contains(*bits)) {
            format!("--progressive {wide}: widths are 2 to 8 bits")
        } else if !self.progressive.iter().chain([&asked]).is_sorted_by(|wide, next| wide > next) {
            let list = self.progressive.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
            format!("--progressive {list}: widths do not fall to the {asked} bits asked for")
        } else {
            return Ok(());
        };
        Err(Error::Usage { what, hint: "e.g. --progressive 8,6 before --weights 4 --activations 4".into() })
    }

    /// The recipe for `method` (`None` trains in float).
    pub fn recipe(&self, method: Option<Method>, policy: &Policy, seed: u64) -> Result<Recipe, Error> {
        self.check_progressive(policy)?;
        let decay: Decay = parse("--schedule", &self.schedule)?;
        let fold = match &self.fold {
            None => Fold::of(method),
            Some(name) => {
                Fold::ALL.iter().find(|(n, _)| n == name).map(|(_, fold)| *fold).ok_or_else(|| Error::Usage {
                    what: format!("--fold {name}: no such option"),
                    hint: "options are none, batch, corrected, running and merged".into(),
                })?
            }
        };
        // Of a phase in which nothing has fewer bits than `least`.
        let goal = |least: u8| -> Result<Option<Goal>, Error> {
            let Some(method) = method else { return Ok(None) };
            let offsets_everywhere = self.configuration.is_some();
            Ok(Some(Goal { method, settings: self.settings()?, policy: policy.from_bits(least), offsets_everywhere }))
        };
        let mut phases = Vec::new();
        for &wide in &self.progressive {
            phases.push(Phase { epochs: self.epochs, goal: goal(wide)? });
        }
        phases.push(Phase { epochs: self.epochs, goal: goal(0)? });
        let moments = Moments::default();
        Ok(Recipe {
            phases,
            fold,
            freeze_at: self.freeze_at.unwrap_or(fold.freeze_at()),
            snap_at: self.snap_at,
            rule: match self.optimizer.as_str() {
                "adam" => Rule::Adam(moments),
                "adamw" => Rule::AdamW(moments),
                name => Rule::Sgd { momentum: self.momentum as f32, nesterov: name == "nesterov" },
            },
            learning_rate: self.learning_rate.unwrap_or(match (method, self.optimizer.as_str()) {
                (_, "adam" | "adamw") => 1e-3,
                (None, _) => 0.1,
                // Without normalization, large steps diverge.
                _ if fold == Fold::Merged => 0.0005,
                (Some(_), _) if !policy.is_low() => 0.001,
                (Some(_), _) => 0.01,
            }),
            quantizer_rate: self.scale_rate.unwrap_or(method.map_or(1.0, Method::quantizer_rate)),
            weight_decay: self.weight_decay,
            quantizer_decay: self.scale_decay,
            decay,
            warmup: self.warmup,
            objective: Objective {
                label_smoothing: self.label_smoothing,
                teacher_weight: if self.distill.is_some() { self.distill_weight } else { 0.0 },
                temperature: self.temperature,
                ..Objective::default()
            },
            kure: self.kure,
            clip_norm: self.clip_norm,
            accumulate: self.accumulate,
            recompute: self.recompute,
            average: self.ema,
            seed,
        })
    }
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let target: Target = args.target.parse()?;
    let method = match args.method.as_str() {
        "float" => None,
        name => Some(parse::<Method>("--method", name)?),
    };
    let path = args.output.clone().unwrap_or_else(|| args.out.join("model.onnx"));
    check_folders([args.output.as_deref(), args.report.as_deref()])?;
    let read = [Some(&*args.model), args.plan.as_deref(), args.recipe.distill.as_deref().map(Path::new)];
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
    let policy = Policy {
        per_channel: args.granularity == "channel",
        weight_bits_of,
        activation_bits_of,
        ..Policy::new(args.weights, args.activations, args.edge_bits)
    };
    let recipe = args.recipe.recipe(method, &policy, out.global.seed)?;
    if method.is_some() && args.edge_bits > args.weights.min(args.activations) {
        out.note(&format!("first and last layers keep {} bits (--edge-bits)", args.edge_bits));
    }
    let teacher = match args.recipe.distill.as_deref() {
        None => None,
        Some("self") => Some(model.graph.clone()),
        Some(path) => Some(Model::load(path.as_ref())?.graph),
    };
    if teacher.as_ref().is_some_and(|graph| graph.outputs.first().is_none_or(|info| info.dtype != DType::F32)) {
        return Err(Error::Usage {
            what: "the teacher's first output is not float32".into(),
            hint: "--distill needs a network that puts out scores of classes".into(),
        });
    }
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
        threads: out.global.threads,
    };
    let trained = train(&request, &*out.progress())?;
    let stated = (!training.is_prepared()).then_some(&preprocess);
    match &trained.deployed {
        Some((graph, grids)) => {
            let qdq = export::qdq(graph, grids, &target, &describe(&request), stated)?;
            export::write(&path, &qdq)?;
        }
        None if method.is_none() => {
            let mut float = trained.float.clone();
            if let Some(preprocess) = stated {
                let text = serde_json::to_string(preprocess).expect("numbers and names are valid JSON");
                float.metadata.insert(fewbits_data::preprocess::METADATA_KEY.into(), text);
            }
            fewbits_onnx::write(&path, &float, float.opset)?;
        }
        None => {}
    }
    if let Some(path) = &args.report {
        report::write(path, &report::of_training(&request, &trained, &command_line())?)?;
    }
    out.result(&trained.summary, &text(&trained, &path));
    let result = trained.summary.integer_top1.unwrap_or(trained.summary.fake_top1);
    let missed = args.at_least.is_some_and(|least| result < least);
    Ok(if missed { Verdict::Missed } else { Verdict::Done })
}

fn text(trained: &Trained, path: &Path) -> String {
    let s = &trained.summary;
    let mut text = String::new();
    let _ = writeln!(text, "before training   top-1 {:.2} %", s.start_top1);
    let _ = match (s.integer_top1, &s.not_deployable) {
        (Some(integer), _) => writeln!(
            text,
            "trained           top-1 {:.2} %; deployed {:.2} % (fake quantization), {integer:.2} % (integers); epoch {}",
            s.trained_top1,
            s.fake_top1,
            s.best_epoch + 1
        ),
        (None, Some(reason)) => {
            writeln!(
                text,
                "trained           top-1 {:.2} % (fake quantization); no integer network: {reason}",
                s.fake_top1
            )
        }
        (None, None) => writeln!(text, "trained           top-1 {:.2} %; epoch {}", s.fake_top1, s.best_epoch + 1),
    };
    if s.not_deployable.is_none() {
        let _ = writeln!(text, "{}: {:.1} s", path.display(), s.seconds);
    }
    text
}
