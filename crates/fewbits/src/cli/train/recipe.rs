//! The flags that say how a network is trained.

use crate::cli;
use fewbits::Error;
use fewbits_quant::calibrate::Policy;
use fewbits_train::{
    loss::Objective,
    network::Goal,
    optimizer::{Moments, Rule},
    quantizers::{Configuration, Method, Offset, PactWeights, Settings, init::Start},
    recipe::{Fold, Phase, Recipe},
    schedule::Decay,
};
use std::str::FromStr;

/// How the network is trained.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Recipe")]
pub struct RecipeArgs {
    /// Epochs (of each phase, with --progressive)
    #[arg(long, default_value_t = 10, value_parser = cli::count(), value_name = "N")]
    pub epochs: usize,
    /// Images of a batch
    #[arg(long, default_value_t = 128, value_parser = cli::count(), value_name = "N")]
    pub batch: usize,
    /// Largest learning rate [default: by method and bits]
    #[arg(long, value_parser = cli::positive, value_name = "X")]
    pub learning_rate: Option<f64>,
    /// sgd, nesterov, adam or adamw
    #[arg(long, default_value = "nesterov", value_parser = ["sgd", "nesterov", "adam", "adamw"], value_name = "NAME")]
    pub optimizer: String,
    /// Momentum of SGD [default: 0.9]
    #[arg(long, value_parser = cli::part, value_name = "X")]
    pub momentum: Option<f64>,
    /// Weight decay of weights
    #[arg(long, default_value_t = 1e-4, value_parser = cli::amount, value_name = "X")]
    pub weight_decay: f64,
    /// Multiplies the learning rate for scales and offsets [default: 1; 0.01 for qil, as its paper has it]
    #[arg(long, value_parser = cli::amount, value_name = "X")]
    pub scale_rate: Option<f64>,
    /// Weight decay of scales and offsets [default: 0]
    #[arg(long, value_parser = cli::amount, value_name = "X")]
    pub scale_decay: Option<f64>,
    /// constant, cosine, cosine:FLOOR or step:30,60:0.1, over the epochs of a phase
    #[arg(long, default_value = "cosine", value_name = "SCHEDULE")]
    pub schedule: String,
    /// Epochs of linear warm-up (of each phase, with --progressive)
    #[arg(long, default_value_t = 0.0, value_parser = cli::amount, value_name = "EPOCHS")]
    pub warmup: f64,
    /// Random changes to training images: none, or a list of crop4, rrc224, flip, jitter0.4
    /// [default: crop4,flip; none for arrays of float numbers]
    #[arg(long, value_name = "LIST")]
    pub augment: Option<String>,
    /// Label smoothing
    #[arg(long, default_value_t = 0.0, value_parser = cli::part, value_name = "X")]
    pub label_smoothing: f64,
    /// Learn from this float model too, or from the model itself (`self`)
    #[arg(long, value_name = "TEACHER.onnx|self")]
    pub distill: Option<String>,
    /// Weight of the teacher in the loss
    #[arg(long, default_value_t = 1.0, value_parser = cli::amount, requires = "distill", value_name = "X")]
    pub distill_weight: f64,
    /// Temperature of the distillation
    #[arg(long, default_value_t = 1.0, value_parser = cli::positive, requires = "distill", value_name = "X")]
    pub temperature: f64,
    /// How BatchNormalization and quantized weights go together: none, batch, corrected, running or merged
    /// [default: corrected for lsq-bn, else none]
    #[arg(long, value_name = "FOLD")]
    pub fold: Option<String>,
    /// Share of a phase's epochs after which normalizations keep their running statistics
    #[arg(long, value_parser = cli::share, value_name = "SHARE")]
    pub freeze_at: Option<f64>,
    /// Share of a phase's epochs after which offsets are whole steps, as integer zero points are [default: 0.5]
    #[arg(long, value_parser = cli::share, value_name = "SHARE")]
    pub snap_at: Option<f64>,
    /// Train with these bits one after the other, widest first, before the bits asked for: e.g. 8,4. Weights go on, scales start
    /// anew in each phase
    #[arg(long, value_delimiter = ',', value_name = "BITS,…")]
    pub progressive: Vec<u8>,
    /// Largest norm of the gradient; 0 for any
    #[arg(long, default_value_t = 0.0, value_parser = cli::amount, value_name = "X")]
    pub clip_norm: f64,
    /// Batches whose gradients make one step
    #[arg(long, default_value_t = 1, value_parser = cli::count(), value_name = "N")]
    pub accumulate: usize,
    /// Compute most layers again in the backward pass: less memory, more time, the same result
    #[arg(long)]
    pub recompute: bool,
    /// Decay of a moving average of the parameters, which is what is scored and shipped; 0 for none
    #[arg(long, default_value_t = 0.0, value_parser = cli::part, value_name = "X")]
    pub ema: f64,
    /// Training batches that the statistics of BatchNormalizations are taken from anew before an epoch is scored; 0 leaves them running
    /// averages [default: 50; 0 where weights learn with running statistics: --fold batch, corrected or running, --freeze-at]
    #[arg(long, value_name = "N")]
    pub bn_reestimation: Option<usize>,
    /// Strength of the kurtosis regulariser KURE
    #[arg(long, default_value_t = 0.0, value_parser = cli::amount, value_name = "X")]
    pub kure: f64,
    /// LSQ+ configuration: 1 unsigned, 2 signed, 3 signed with offset, 4 unsigned with offset [default: 4, but 1 behind a Relu,
    /// where zero is the least element]
    #[arg(long, value_name = "1|2|3|4")]
    pub configuration: Option<String>,
    /// Offsets of LSQ+: none, minimum or learned [default: learned]
    #[arg(long, value_parser = ["none", "minimum", "learned"], value_name = "OFFSET")]
    pub offset: Option<String>,
    /// Where scales start: mse (least squared error), method (as its paper has it), lsq, lsq+, lsq+abs or minmax [default: mse]
    #[arg(long, value_name = "RULE")]
    pub start: Option<String>,
    /// Count the images of the batch in LSQ's gradient scale
    #[arg(long)]
    pub include_batch: bool,
    /// Weights that go with PACT: dorefa or sawb [default: dorefa]
    #[arg(long, value_parser = ["dorefa", "sawb"], value_name = "NAME")]
    pub pact_weights: Option<String>,
    /// Batches that `qat` watches before it rounds activations [default: 100]
    #[arg(long, value_name = "N")]
    pub delay: Option<u32>,
}

/// What flags of quantizers go with.
pub(super) const LOW: &str = "training in few bits, not with --method float";
/// Default of `--learning-rate` with Adam and AdamW.
const ADAM_RATE: f64 = 1e-3;
/// Default of `--momentum`.
const MOMENTUM: f64 = 0.9;
/// Default of `--bn-reestimation`.
const REESTIMATION: usize = 50;
/// Default of `--snap-at`.
const SNAP_AT: f64 = 0.5;
/// Default of `--delay`.
const DELAY: u32 = 100;

impl RecipeArgs {
    /// Refuses what `method` (`None` trains in float) would not look at.
    fn check_unused(&self, method: Option<Method>) -> Result<(), Error> {
        let is = |wanted| method == Some(wanted);
        let is_float = method.is_none();
        let bounded = matches!(self.configuration.as_deref(), Some("1" | "2"));
        let is_adam = matches!(self.optimizer.as_str(), "adam" | "adamw");
        cli::check_idle(&[
            (self.momentum.is_some() && is_adam, "--momentum", "--optimizer sgd or nesterov"),
            (self.configuration.is_some() && !is(Method::LsqPlus), "--configuration", "--method lsq+"),
            (self.offset.is_some() && !is(Method::LsqPlus), "--offset", "--method lsq+"),
            (self.offset.is_some() && bounded, "--offset", "--configuration 3 or 4"),
            (self.pact_weights.is_some() && !is(Method::Pact), "--pact-weights", "--method pact"),
            (self.delay.is_some() && !is(Method::Qat), "--delay", "--method qat"),
            // Where a method has no quantizer of its own, LSQ+ looks at these.
            (self.snap_at.is_some() && is_float, "--snap-at", LOW),
            (self.include_batch && is_float, "--include-batch", LOW),
            (self.start.is_some() && is_float, "--start", LOW),
            (self.fold.is_some() && is_float, "--fold", LOW),
            (self.scale_rate.is_some() && is_float, "--scale-rate", LOW),
            (self.scale_decay.is_some() && is_float, "--scale-decay", LOW),
            (!self.progressive.is_empty() && is_float, "--progressive", LOW),
        ])
    }

    fn settings(&self) -> Result<Settings, Error> {
        let start: Start = parse("--start", self.start.as_deref().unwrap_or("mse"))?;
        let configuration = match &self.configuration {
            Some(text) => parse("--configuration", text)?,
            None => Configuration::default(),
        };
        Ok(Settings {
            configuration,
            offset: match self.offset.as_deref() {
                Some("none") => Offset::None,
                Some("minimum") => Offset::FixedAtMinimum,
                _ => Offset::Learned,
            },
            counted_images: if self.include_batch { self.batch } else { 1 },
            weight_start: start,
            activation_start: start,
            pact_weights: if self.pact_weights.as_deref() == Some("sawb") {
                PactWeights::Sawb
            } else {
                PactWeights::DoReFa
            },
            delay: self.delay.unwrap_or(DELAY),
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
        self.check_unused(method)?;
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
        let freeze_at = self.freeze_at.unwrap_or(fold.freeze_at());
        // Else weights learn with the running statistics that are shipped.
        let last = self.epochs.saturating_sub(1) as f64 / self.epochs.max(1) as f64;
        let reestimates = !fold.on_folded() && last < freeze_at;
        cli::check_idle(&[(
            self.bn_reestimation.is_some_and(|batches| batches > 0) && !reestimates,
            "--bn-reestimation",
            "--fold none or merged, without --freeze-at",
        )])?;
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
            freeze_at,
            snap_at: self.snap_at.unwrap_or(SNAP_AT),
            rule: match self.optimizer.as_str() {
                "adam" => Rule::Adam(moments),
                "adamw" => Rule::AdamW(moments),
                name => Rule::Sgd { momentum: self.momentum.unwrap_or(MOMENTUM) as f32, nesterov: name == "nesterov" },
            },
            learning_rate: self.learning_rate.unwrap_or(match self.optimizer.as_str() {
                "adam" | "adamw" => ADAM_RATE,
                _ => Recipe::usual_rate(goal(0)?.as_ref(), fold),
            }),
            quantizer_rate: self.scale_rate.unwrap_or(method.map_or(1.0, Method::quantizer_rate)),
            weight_decay: self.weight_decay,
            quantizer_decay: self.scale_decay.unwrap_or(0.0),
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
            reestimation: self.bn_reestimation.unwrap_or(if reestimates { REESTIMATION } else { 0 }),
            seed,
        })
    }
}

/// `text` as a `T`, or a usage error.
pub(super) fn parse<T: FromStr>(flag: &str, text: &str) -> Result<T, Error>
where
    T::Err: std::fmt::Display,
{
    let hint = || format!("`fewbits help train` says what {flag} takes");
    text.parse().map_err(|e: T::Err| Error::Usage { what: format!("{flag} {text}: {e}"), hint: hint() })
}
