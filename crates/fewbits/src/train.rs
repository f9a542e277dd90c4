//! Training a model file: data sets in, a folder with the run and the trained networks out.
//!
//! The run folder holds `epochs.csv`, `steps.jsonl` and `scales.jsonl` (the log), `state.safetensors` (the latest checkpoint), and at
//! the end `float.onnx` (the trained float network), `plan.json` (what makes the quantized file of it), and, when all is written,
//! `summary.json` (what was found, and how).

mod equalization;
mod folder;
mod results;

use crate::{Error, Model, evaluate::evaluate, progress::Progress, stream::Source};
use fewbits_data::{Augment, Dataset, Loader, LoaderOptions, Preprocess, RandomCrop};
use fewbits_graph::{Graph, Grids, exec::Mode};
use fewbits_kernels::Threads;
use fewbits_quant::{Plan, calibrate::Policy, target::Target};
use fewbits_train::{
    TrainError,
    checkpoint::Checkpoint,
    recipe::Recipe,
    trainer::{self, Setup},
};
pub use folder::is_result;
use folder::{Folder, STATE};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

/// Images of a batch when epochs are scored.
const SCORING_BATCH: usize = 100;
/// One thread prepares images for as many that compute; so many at most.
const THREADS_PER_WORKER: usize = 4;
const WORKERS: usize = 8;

/// Everything that a run is made of.
#[derive(Debug)]
pub struct Request<'a> {
    /// The float network.
    pub model: &'a Model,
    /// Labelled images to train on.
    pub training: &'a Arc<Dataset>,
    /// Labelled images to score on.
    pub validation: &'a Arc<Dataset>,
    /// How many of them; `None` for all.
    pub training_limit: Option<usize>,
    /// How many of those to score on.
    pub validation_limit: Option<usize>,
    /// How images are prepared.
    pub preprocess: &'a Preprocess,
    /// How training images are changed at random.
    pub augment: Augment,
    /// Images of a batch.
    pub batch: usize,
    /// How it is trained.
    pub recipe: &'a Recipe,
    /// Whether channels are equalized first, where folded weights have one scale for all of them.
    pub equalize: bool,
    /// The runtime that the result is for.
    pub target: &'a Target,
    /// A float network to learn from too.
    pub teacher: Option<&'a Graph>,
    /// Steps between checkpoints within an epoch, 0 for none.
    pub checkpoint_every: usize,
    /// Whether to go on from the folder's checkpoint.
    pub resume: bool,
    /// Whether to begin anew where the folder's run is not finished.
    pub overwrite: bool,
    /// The run folder.
    pub out: &'a Path,
    /// Where the network that ships goes; `None` for nowhere. There is none if what was trained cannot be deployed.
    pub output: Option<&'a Path>,
    /// Worker threads, 0 for one per core.
    pub threads: usize,
}

/// What a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Epochs trained.
    pub epochs: usize,
    /// Epoch that was kept, from 1.
    pub best_epoch: usize,
    /// Top-1 of the float network before training, percent.
    pub start_top1: f64,
    /// Top-1 of the trained network as it was trained, percent.
    pub trained_top1: f64,
    /// Top-1 of the deployed network by fake quantization, percent; as trained if it cannot be deployed or is float.
    pub fake_top1: f64,
    /// Top-1 of the deployed network in integers, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub integer_top1: Option<f64>,
    /// Why there is no integer network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_deployable: Option<String>,
    /// Wall time, that of earlier calls included if it is a run that went on.
    pub seconds: f64,
}

/// A trained network.
#[derive(Debug)]
pub struct Trained {
    /// What was found.
    pub summary: Summary,
    /// The trained float network.
    pub float: Graph,
    /// The network that ships, and its grids; `None` of a float training and of what has no integer form.
    pub deployed: Option<(Graph, Grids)>,
    /// The plan that makes it of `float`.
    pub plan: Option<Plan>,
    /// What each epoch found.
    pub log: Vec<EpochRow>,
}

/// A line of `epochs.csv`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpochRow {
    /// From 1.
    pub epoch: usize,
    /// Mean training loss.
    pub loss: f64,
    /// Of training images, percent.
    pub training_top1: f64,
    /// Of validation images, percent.
    pub top1: f64,
    /// Scale of each quantizer.
    pub scales: Vec<(String, f32)>,
}

/// Trains.
///
/// # Errors
/// [`Error::Train`]; errors of the data and of files.
pub fn train(request: &Request<'_>, progress: &dyn Progress) -> Result<Trained, Error> {
    let begun = Instant::now();
    let threads = Threads::new(request.threads);
    if Model::fixed_batch(&request.model.graph).is_some() {
        return Err(Error::Model {
            path: request.model.path.clone(),
            what: "its batch size is fixed".into(),
            hint: "export it with a symbolic batch dimension, e.g. `N`",
        });
    }
    check_images(request)?;
    let loader = |data: &Arc<Dataset>, augment: Augment, batch: usize, limit: Option<usize>, training: bool| {
        let options = LoaderOptions {
            batch,
            seed: request.recipe.seed,
            shuffle: training,
            drop_last: training,
            limit,
            workers: (threads.count() / THREADS_PER_WORKER).clamp(1, WORKERS),
        };
        Loader::new(data.clone(), request.preprocess.clone(), augment, options)
    };
    let training = loader(request.training, request.augment, request.batch, request.training_limit, true)?;
    let validation = loader(request.validation, Augment::default(), SCORING_BATCH, request.validation_limit, false)?;
    let state = request.out.join(STATE);
    let resumed = if request.resume && state.exists() { Some(Checkpoint::read(&state)?) } else { None };
    let mut folder = Folder::new(request, progress);
    if resumed.is_none() && !request.overwrite && folder.is_unfinished() {
        return Err(Error::Unfinished { folder: request.out.into() });
    }
    let (graph, scaled) = equalization::equalized(request, progress)?;
    let setup = Setup {
        graph: &graph,
        scaled: &scaled,
        target: request.target,
        recipe: request.recipe,
        training: &training,
        validation: &validation,
        teacher: request.teacher,
        threads: &threads,
    };
    progress.begin("scoring the float network", 1);
    let indices = request.validation.subset(request.validation_limit.unwrap_or(usize::MAX));
    let source = Source { indices, dataset: request.validation, preprocess: request.preprocess };
    let start = evaluate(&request.model.graph, Mode::Float, &source, request.threads, progress)?.main();
    let outcome = trainer::train(&setup, resumed, &mut folder);
    progress.end();
    let outcome = outcome?;
    let score = trainer::score(&outcome.network, &outcome.quantizers, &outcome.leaves, &validation, &threads)?;
    let mut summary = Summary {
        epochs: request.recipe.epochs(),
        best_epoch: outcome.best.1 + 1,
        start_top1: start,
        trained_top1: score,
        fake_top1: score,
        integer_top1: None,
        not_deployable: None,
        seconds: 0.0,
    };
    let float = outcome.network.float(&outcome.leaves);
    let goal = request.recipe.phases.last().and_then(|phase| phase.goal.as_ref());
    let (mut deployed, mut plan) = (None, None);
    if let Some(goal) = goal {
        match outcome.network.deploy(&outcome.quantizers, &outcome.leaves) {
            Ok((graph, grids)) => {
                let top1 = |mode| Ok::<_, Error>(evaluate(&graph, mode, &source, request.threads, progress)?.main());
                summary.fake_top1 = top1(Mode::FakeQuant(&grids))?;
                summary.integer_top1 = Some(top1(Mode::Integer(&grids))?);
                plan = Some(results::plan(request, goal, &outcome, &float, (&graph, &grids), &summary)?);
                deployed = Some((graph, grids));
            }
            Err(error @ TrainError::NotDeployable { .. }) => summary.not_deployable = Some(chain(&error)),
            Err(error) => return Err(error.into()),
        }
    }
    summary.seconds = folder.seconds_before + begun.elapsed().as_secs_f64();
    let trained = Trained { summary, float, deployed, plan, log: folder.rows };
    results::write(request, &trained, source.stated())?;
    Ok(trained)
}

/// Refuses images that the network is not for, and classes of the two data sets that are not the same.
fn check_images(request: &Request<'_>) -> Result<(), Error> {
    if let (RandomCrop::Resized(side), Some((height, width))) = (request.augment.crop, request.model.input_size())
        && [height, width] != [side; 2]
    {
        return Err(Error::Usage {
            what: format!("--augment rrc{side} makes images of {side}x{side}, the network takes {height}x{width}"),
            hint: format!("e.g. rrc{height}; or crop4,flip"),
        });
    }
    let [training, validation] = [request.training, request.validation].map(|data| data.class_names());
    match training.iter().zip(validation).find(|(own, other)| own != other) {
        Some((own, other)) => Err(Error::Usage {
            what: format!("the classes of --data and --val differ: `{own}` and `{other}` have the same number"),
            hint: "sorted names of sub-folders number the classes: both folders need the same".into(),
        }),
        None => Ok(()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

/// Every setting of a training, resolved.
pub fn describe(request: &Request<'_>) -> serde_json::Value {
    let recipe = request.recipe;
    let single = |policy: &Policy| -> BTreeMap<String, u8> {
        policy
            .weight_bits_of
            .iter()
            .chain(&policy.activation_bits_of)
            .map(|(name, bits)| (name.clone(), *bits))
            .collect()
    };
    let phase = |phase: &fewbits_train::recipe::Phase| {
        let policy = phase.goal.as_ref().map(|goal| &goal.policy);
        serde_json::json!({
            "epochs": phase.epochs,
            "method": phase.goal.as_ref().map_or("float", |goal| goal.method.name()),
            "weight_bits": policy.map(|policy| policy.weight_bits),
            "activation_bits": policy.map(|policy| policy.activation_bits),
            "edge_bits": policy.map(|policy| policy.edge_bits),
            "bits_of": policy.map(single).filter(|bits| !bits.is_empty()),
            "per_channel": policy.map(|policy| policy.per_channel),
            "quantizers": phase.goal.as_ref().map(|goal| &goal.settings),
        })
    };
    serde_json::json!({
        "fewbits": env!("CARGO_PKG_VERSION"),
        "target": request.target.name,
        "phases": recipe.phases.iter().map(phase).collect::<Vec<_>>(),
        "fold": recipe.fold.to_string(),
        "equalize": equalization::applies(request),
        "freeze_at": recipe.freeze_at,
        "snap_at": recipe.snap_at,
        "optimizer": recipe.rule,
        "learning_rate": recipe.learning_rate,
        "quantizer_rate": recipe.quantizer_rate,
        "weight_decay": recipe.weight_decay,
        "quantizer_decay": recipe.quantizer_decay,
        "schedule": recipe.decay.to_string(),
        "warmup": recipe.warmup,
        "objective": recipe.objective,
        "kure": recipe.kure,
        "clip_norm": recipe.clip_norm,
        "accumulate": recipe.accumulate,
        "average": recipe.average,
        "bn_reestimation": recipe.reestimation,
        "batch": request.batch,
        "limits": [request.training_limit, request.validation_limit],
        "teacher": request.teacher.map(fewbits_quant::plan::model_sha256),
        "augment": request.augment.to_string(),
    })
}
