//! Published results of methods without training, found again on the user's network: rows of equal size, compared image by image.
//!
//! What enters: a [`PostTable`], a float network, calibration and labelled images. What leaves: [`PostResults`], in a folder too, from
//! which an interrupted reproduction goes on, row by row.

mod paired;
mod results;
mod tables;

pub use paired::Paired;
pub use results::{Measured, PostLine, PostResults, PostSetup};
pub use tables::{BitsBy, PostRow, PostTable, post_tables};

use crate::{
    Error, Model,
    evaluate::{Scores, evaluate, top1_hits},
    progress::Progress,
    quantize::{self, Quantized, quantize},
    search::{self, Strategy},
    stream::Source,
    summary::packed,
};
use fewbits_graph::{Graph, exec::Mode};
use fewbits_quant::{calibrate::Policy, plan::model_sha256, target::Target};
use fewbits_search::Budget;
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// What a reproduction is made of.
#[derive(Debug)]
pub struct PostRequest<'a> {
    /// The table.
    pub table: &'a PostTable,
    /// The float network.
    pub model: &'a Model,
    /// Images without labels, to calibrate on and to search with.
    pub calibration: &'a Source<'a>,
    /// Labelled images to score on.
    pub validation: &'a Source<'a>,
    /// The runtime that networks are for.
    pub target: &'a Target,
    /// Bits of weights whose bytes no row may exceed; first and last layers keep 8.
    pub weights: u8,
    /// Bits of activations.
    pub activations: u8,
    /// Assignments that a search tries.
    pub evaluations: usize,
    /// Samples that damage is measured on.
    pub samples: usize,
    /// Start of everything random.
    pub seed: u64,
    /// Worker threads, 0 for one per core.
    pub threads: usize,
    /// The command line.
    pub command: &'a str,
    /// Where results go.
    pub out: &'a Path,
}

/// Finds the rows of a table again; those that the folder holds already are not repeated.
///
/// # Errors
/// [`Error::Usage`] if the folder is of another setup; errors of the data, the network and of files.
pub fn run(
    request: &PostRequest<'_>,
    progress: &dyn Progress,
    mut tell: impl FnMut(&Measured),
) -> Result<PostResults, Error> {
    fs::create_dir_all(request.out).map_err(Error::io("create", request.out))?;
    let mut results = PostResults::open(request.out, request.setup())?;
    if results.float.is_none() {
        results.float = Some(request.measured("float", &request.model.graph, Mode::Float, progress)?);
        results.save(request.out)?;
    }
    for row in &request.table.rows {
        if results.rows.iter().all(|measured| measured.row != row.name) {
            let measured = request.row(row, &mut results, progress)?;
            tell(&measured);
            results.rows.push(measured);
            results.save(request.out)?;
        }
    }
    Ok(results)
}

impl PostRequest<'_> {
    fn setup(&self) -> PostSetup {
        PostSetup {
            fewbits: env!("CARGO_PKG_VERSION").into(),
            table: self.table.name.into(),
            model: self.model.path.display().to_string(),
            model_sha256: model_sha256(&self.model.graph),
            calibration_data: self.calibration.dataset.path().display().to_string(),
            calibration: self.calibration.indices.len(),
            validation_data: self.validation.dataset.path().display().to_string(),
            validation: self.validation.indices.len(),
            preprocess: self.calibration.preprocess.to_string(),
            weights: self.weights,
            activations: self.activations,
            evaluations: self.evaluations,
            samples: self.samples,
            seed: self.seed,
            command: self.command.into(),
        }
    }

    fn settings(&self, row: &PostRow) -> quantize::Settings {
        let policy = Policy {
            weight_rule: row.weight_rule,
            per_channel: row.per_channel,
            ..Policy::new(self.weights, self.activations, 8)
        };
        quantize::Settings {
            ranges: row.ranges,
            methods: row.methods.clone(),
            seed: self.seed,
            ..quantize::Settings::new(self.target.clone(), policy)
        }
    }

    fn row(&self, row: &PostRow, results: &mut PostResults, progress: &dyn Progress) -> Result<Measured, Error> {
        let begun = Instant::now();
        let mut settings = self.settings(row);
        if let BitsBy::Search { strategy, inside, cold_start } = row.bits {
            let key = row.search_key();
            settings.policy.weight_bits_of = match results.searched.get(&key) {
                Some(bits) => bits.clone(),
                None => {
                    let budget = Budget::Size(self.uniform_bytes(results, progress)?);
                    let asked = search::Settings {
                        inside,
                        cold_start,
                        evaluations: self.evaluations,
                        samples: self.samples,
                        patience: if strategy == Strategy::Ofm { 8 } else { 0 },
                        // What is found must not depend on the machine.
                        time_budget: Duration::MAX,
                        journal: Some(self.out.join(format!("{key}.search.jsonl"))),
                        resume: true,
                        ..search::Settings::new(strategy, vec![budget])
                    };
                    let mut searching = quantize::Settings { methods: row.searched_with.clone(), ..settings.clone() };
                    searching.policy.weight_bits = 8;
                    search::search(self.model, self.calibration, &mut searching, &asked, self.threads, progress)?;
                    results.searched.insert(key, searching.policy.weight_bits_of.clone());
                    results.save(self.out)?;
                    searching.policy.weight_bits_of
                }
            };
        }
        let quantized = quantize(self.model, self.calibration, &settings, self.threads, progress)?;
        // Without integer kernels there is nothing to deploy; the bits are those of the same row without shifts.
        let bytes = row.methods.deployable().then(|| bytes(&quantized));
        let measured = self.measured(row.name, &quantized.graph, Mode::Integer(&quantized.grids), progress)?;
        Ok(Measured { bytes, seconds: begun.elapsed().as_secs_f64(), ..measured })
    }

    /// Bytes of the network with the bits asked for everywhere.
    fn uniform_bytes(&self, results: &mut PostResults, progress: &dyn Progress) -> Result<u64, Error> {
        if let Some(bytes) = results.uniform_bytes {
            return Ok(bytes);
        }
        let quantized =
            quantize(self.model, self.calibration, &self.settings(&PostRow::default()), self.threads, progress)?;
        Ok(*results.uniform_bytes.insert(bytes(&quantized)))
    }

    fn measured(&self, row: &str, graph: &Graph, mode: Mode<'_>, progress: &dyn Progress) -> Result<Measured, Error> {
        let begun = Instant::now();
        let mut measured = Measured { row: row.into(), ..Measured::default() };
        if self.validation.dataset.coco().is_some() {
            let scores = evaluate(graph, mode, self.validation, self.threads, progress)?;
            measured.score = scores.main();
            if let Scores::Detection { coco, .. } = scores {
                measured.ap50 = coco.ap50;
            }
        } else {
            measured.hits = top1_hits(graph, mode, self.validation, self.threads, progress)?;
            let right = measured.hits.iter().filter(|hit| **hit).count();
            measured.score = 100.0 * right as f64 / measured.hits.len().max(1) as f64;
        }
        Ok(Measured { seconds: begun.elapsed().as_secs_f64(), ..measured })
    }
}

fn bytes(quantized: &Quantized) -> u64 {
    packed(&quantized.graph, &quantized.grids, &quantized.placement)
}

#[cfg(test)]
mod tests;
