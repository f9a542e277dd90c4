//! Published tables, found again on the user's data.
//!
//! What enters: a [`Table`], labelled images, perhaps a trained float network. What leaves: [`Results`], in a folder too, from which an
//! interrupted reproduction goes on, training by training. Numbers of another network or of other data than the paper's are named as
//! such: [`Setup::here`].

mod lsq_bn;
mod lsqplus;
mod plan;
pub mod post;
mod results;
mod table;

pub use plan::{Effort, Subject};
pub use results::{Float, Line, Results, Run, Setup};
pub use table::{Accuracy, Claim, POINT, Quantity, Relation, Row, Table, Way};

use crate::{
    Error, Model,
    evaluate::evaluate,
    progress::Progress,
    quantize::{self, quantize},
    stream::Source,
    summary, train,
};
use fewbits_data::{Dataset, Preprocess};
use fewbits_graph::{Graph, Grids, exec::Mode};
use fewbits_quant::{calibrate::Policy, placement::place, plan::model_sha256, target::Target};
use fewbits_train::recipe::Recipe;
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// Samples that rows without training are calibrated on.
const CALIBRATION_SAMPLES: usize = 256;
/// Batches that the time of a training is estimated from.
const PROBED_BATCHES: usize = 8;
/// Time of an image that is scored, in images trained on.
const SCORING_COST: f64 = 0.3;

/// Every table.
pub fn tables() -> Vec<Table> {
    lsqplus::tables().into_iter().chain([lsq_bn::table()]).collect()
}

/// What a reproduction is made of.
#[derive(Debug)]
pub struct Request<'a> {
    /// The table.
    pub table: &'a Table,
    /// The network that fits the data.
    pub subject: Subject,
    /// How much is trained.
    pub effort: Effort,
    /// The float network: trained, or with initial weights.
    pub model: &'a Model,
    /// Whether it is trained.
    pub pretrained: bool,
    /// Labelled images to train on.
    pub training: &'a Arc<Dataset>,
    /// Labelled images to score on.
    pub validation: &'a Arc<Dataset>,
    /// How images are prepared.
    pub preprocess: &'a Preprocess,
    /// The runtime that networks are deployed for.
    pub target: &'a Target,
    /// Seed of the float training and of the first run of each row.
    pub seed: u64,
    /// The command line.
    pub command: &'a str,
    /// Where results and run folders go.
    pub out: &'a Path,
    /// Worker threads, 0 for one per core.
    pub threads: usize,
}

/// What happens on the way.
#[derive(Debug)]
pub enum Event<'a> {
    /// Before the first training.
    Estimate {
        /// Trainings to come.
        trainings: usize,
        /// Measured on a few quantized steps.
        images_per_second: f64,
        /// All that is to come.
        seconds: f64,
    },
    /// The float network is there.
    Float(&'a Float),
    /// A run of a row is finished.
    Run(&'a Run),
}

/// Finds the rows of a table again; those that the folder holds already are not repeated.
///
/// # Errors
/// [`Error::Train`], [`Error::Usage`] if the folder is of another setup; errors of the data and of files.
pub fn run(request: &Request<'_>, progress: &dyn Progress, mut tell: impl FnMut(Event<'_>)) -> Result<Results, Error> {
    fs::create_dir_all(request.out).map_err(Error::io("create", request.out))?;
    let mut results = Results::open(request.out, request.setup())?;
    let to_come = request.to_come(&results);
    if let Some(rate) = request.probe(&to_come)? {
        let seconds = request.images_to_come(&results, &to_come) / rate;
        tell(Event::Estimate { trainings: to_come.len(), images_per_second: rate, seconds });
    }
    let trained;
    let model = if request.pretrained {
        request.model
    } else {
        trained = request.train_float(&mut results, progress)?;
        &trained
    };
    let float = match results.float.take() {
        Some(float) => float,
        None => {
            let top1 = request.score(&model.graph, Mode::Float, progress)?;
            Float { top1, seconds: None, recipe: serde_json::Value::Null }
        }
    };
    tell(Event::Float(results.float.insert(float)));
    results.save(request.out, request.table)?;
    for (row, seed) in to_come {
        let run = request.find(model, row, seed, progress)?;
        tell(Event::Run(&run));
        results.runs.push(run);
        results.save(request.out, request.table)?;
    }
    Ok(results)
}

impl Request<'_> {
    fn images(&self) -> usize {
        self.effort.limit.unwrap_or(usize::MAX).min(self.training.len())
    }

    fn validation_images(&self) -> usize {
        self.effort.validation_limit.unwrap_or(usize::MAX).min(self.validation.len())
    }

    fn setup(&self) -> Setup {
        Setup {
            fewbits: env!("CARGO_PKG_VERSION").into(),
            table: self.table.name.into(),
            here: self.subject.describe(),
            proxy: self.subject.is_proxy() || self.effort.limit.is_some(),
            model: self.pretrained.then(|| self.model.path.clone()),
            model_sha256: model_sha256(&self.model.graph),
            preprocess: self.preprocess.to_string(),
            data: self.training.path().into(),
            images: self.images(),
            validation: self.validation.path().into(),
            validation_images: self.validation_images(),
            epochs: self.effort.epochs,
            float_epochs: if self.pretrained { 0 } else { self.effort.float_epochs },
            batch: self.effort.batch,
            seed: self.seed,
        }
    }

    /// Rows and seeds that are not finished, all rows once before any row twice.
    fn to_come(&self, results: &Results) -> Vec<(&Row, u64)> {
        let runs = (0..self.effort.seeds.max(1) as u64).flat_map(|i| self.table.rows.iter().map(move |row| (row, i)));
        // What is not trained comes out the same each time.
        let differs = |(row, i): &(&Row, u64)| *i == 0 || matches!(row.way, Way::Train { .. });
        let seeded = runs.filter(differs).map(|(row, i)| (row, self.seed.wrapping_add(i)));
        seeded.filter(|(row, seed)| results.find(row, *seed).is_none()).collect()
    }

    /// Work to come, in images trained on.
    fn images_to_come(&self, results: &Results, to_come: &[(&Row, u64)]) -> f64 {
        let scored = SCORING_COST * self.validation_images() as f64;
        let training = |epochs: usize| epochs as f64 * (self.images() as f64 + scored) + 3.0 * scored;
        let row = |(row, _): &(&Row, u64)| match row.way {
            Way::Train { .. } => training(self.effort.epochs),
            Way::Quantize => 2.0 * scored,
        };
        let float = if results.float.is_some() || self.pretrained { 0.0 } else { training(self.effort.float_epochs) };
        float + to_come.iter().map(row).sum::<f64>()
    }

    /// Images that are trained on in a second, from the first steps of the first row to come; `None` if no row is trained.
    fn probe(&self, to_come: &[(&Row, u64)]) -> Result<Option<f64>, Error> {
        let few = Effort { epochs: 1, ..self.effort };
        let images = self.images().min(PROBED_BATCHES * self.effort.batch);
        let recipe = to_come.iter().find_map(|(row, seed)| plan::row_recipe(row, &few, images, *seed));
        let Some(recipe) = recipe else { return Ok(None) };
        let folder = self.out.join("probe");
        let request = train::Request {
            training_limit: Some(images),
            validation_limit: Some(self.validation_images().min(self.effort.batch)),
            resume: false,
            overwrite: true,
            ..self.training(self.model, &recipe, &folder)
        };
        let clock = Clock::default();
        train::train(&request, &clock)?;
        fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
        Ok(clock.steps_per_second().map(|rate| rate * self.effort.batch as f64))
    }

    fn training<'a>(&'a self, model: &'a Model, recipe: &'a Recipe, out: &'a Path) -> train::Request<'a> {
        train::Request {
            model,
            training: self.training,
            validation: self.validation,
            training_limit: self.effort.limit,
            validation_limit: self.effort.validation_limit,
            preprocess: self.preprocess,
            augment: plan::augment(&self.subject, self.training),
            batch: self.effort.batch,
            recipe,
            equalize: true,
            target: self.target,
            teacher: None,
            checkpoint_every: 200,
            resume: true,
            overwrite: false,
            out,
            output: None,
            threads: self.threads,
        }
    }

    /// The float network, trained here or before.
    fn train_float(&self, results: &mut Results, progress: &dyn Progress) -> Result<Model, Error> {
        let folder = self.out.join("float");
        let path = folder.join("float.onnx");
        if results.float.is_none() || !path.exists() {
            let recipe = plan::float_recipe(&self.subject, &self.effort, self.seed);
            let request = self.training(self.model, &recipe, &folder);
            let trained = train::train(&request, progress)?;
            let summary = &trained.summary;
            let recipe = train::describe(&request);
            results.float = Some(Float { top1: summary.fake_top1, seconds: Some(summary.seconds), recipe });
        }
        Model::load(&path)
    }

    fn find(&self, model: &Model, row: &Row, seed: u64, progress: &dyn Progress) -> Result<Run, Error> {
        let mut run = Run {
            row: row.name.into(),
            weights: row.weights,
            activations: row.activations,
            seed,
            fake_top1: 0.0,
            integer_top1: None,
            not_deployable: None,
            bytes: None,
            seconds: 0.0,
            recipe: serde_json::Value::Null,
            command: self.command.into(),
        };
        match plan::row_recipe(row, &self.effort, self.images(), seed) {
            Some(recipe) => self.train_row(model, &recipe, &mut run, progress)?,
            None => self.quantize_row(model, row, &mut run, progress)?,
        }
        Ok(run)
    }

    fn train_row(&self, model: &Model, recipe: &Recipe, run: &mut Run, progress: &dyn Progress) -> Result<(), Error> {
        let folder = self.out.join("runs").join(folder_name(run));
        let request = self.training(model, recipe, &folder);
        let trained = train::train(&request, progress)?;
        run.seconds = trained.summary.seconds;
        run.fake_top1 = trained.summary.fake_top1;
        run.integer_top1 = trained.summary.integer_top1;
        run.not_deployable = trained.summary.not_deployable;
        run.bytes = trained.deployed.map(|(graph, grids)| self.bytes(&graph, &grids));
        run.recipe = train::describe(&request);
        // It is as large as four networks, and of no more use.
        let state = folder.join("state.safetensors");
        if state.exists() { fs::remove_file(&state).map_err(Error::io("remove", &state)) } else { Ok(()) }
    }

    fn quantize_row(&self, model: &Model, row: &Row, run: &mut Run, progress: &dyn Progress) -> Result<(), Error> {
        let begun = Instant::now();
        let settings = quantize::Settings::new(
            self.target.clone(),
            Policy { per_channel: false, ..Policy::new(row.weights, row.activations, plan::EDGE_BITS) },
        );
        let indices = self.training.spread(CALIBRATION_SAMPLES.min(self.images()));
        let samples = indices.len();
        let source = Source { dataset: self.training, preprocess: self.preprocess, indices };
        let quantized = quantize(model, &source, &settings, self.threads, progress)?;
        run.fake_top1 = self.score(&quantized.graph, Mode::FakeQuant(&quantized.grids), progress)?;
        run.integer_top1 = Some(self.score(&quantized.graph, Mode::Integer(&quantized.grids), progress)?);
        run.bytes = Some(self.bytes(&quantized.graph, &quantized.grids));
        run.recipe = crate::plan::describe(&quantized, &settings, samples);
        run.seconds = begun.elapsed().as_secs_f64();
        Ok(())
    }

    fn score(&self, graph: &Graph, mode: Mode<'_>, progress: &dyn Progress) -> Result<f64, Error> {
        let indices = self.validation.subset(self.validation_images());
        let source = Source { dataset: self.validation, preprocess: self.preprocess, indices };
        Ok(evaluate(graph, mode, &source, self.threads, progress)?.main())
    }

    /// Bytes of the float network, normalization folded, and of the deployed one.
    fn bytes(&self, graph: &Graph, grids: &Grids) -> (u64, u64) {
        let placement = place(graph, self.target, &BTreeSet::new());
        (4 * summary::parameters(graph), summary::packed(graph, grids, &placement))
    }
}

/// Such as `configuration-4-w2a2-seed0`.
fn folder_name(run: &Run) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '+' { c.to_ascii_lowercase() } else { '-' };
    let name: String = run.row.chars().map(plain).collect();
    format!("{name}-w{}a{}-seed{}", run.weights, run.activations, run.seed)
}

/// Times the steps of a training.
#[derive(Debug, Default)]
struct Clock(Mutex<(bool, Vec<Instant>)>);

impl Clock {
    /// Without the first step, which prepares.
    fn steps_per_second(&self) -> Option<f64> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, last) = (state.1.first()?, state.1.last()?);
        let rate = (state.1.len() - 1) as f64 / last.duration_since(*first).as_secs_f64();
        (rate > 0.0 && rate.is_finite()).then_some(rate)
    }
}

impl Progress for Clock {
    fn begin(&self, what: &str, _: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = what == "training";
    }

    fn step(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 {
            state.1.push(Instant::now());
        }
    }

    fn end(&self) {}
}

#[cfg(test)]
mod tests;
