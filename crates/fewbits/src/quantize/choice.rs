//! Which range rule: what each makes of the network, and which one's outputs come closest to the float network's.

use super::{Patches, Settings, Trial, layout::patched, output_sqnr};
use crate::{Error, methods::Method, progress::Progress, refine::Step, stream::Source};
use fewbits_graph::{Graph, Grids, QuantParams, Tensor, exec::Mode, op::Fact};
use fewbits_methods::bias_correction;
use fewbits_quant::{Range, RangeRule, Stats, calibrate, placement::Placement};
use std::{collections::BTreeMap, time::Instant};

/// Grids under one rule, and the biases that go with them.
pub struct Choice {
    pub grids: Grids,
    pub biases: Patches,
    pub guarded: Vec<String>,
}

/// What grids are chosen from.
#[derive(Clone, Copy)]
pub struct Basis<'a> {
    pub graph: &'a Graph,
    pub placement: &'a Placement,
    pub facts: &'a BTreeMap<String, Fact>,
    pub stats: &'a Stats,
    /// Ranges that are given.
    pub ranges: &'a BTreeMap<String, Range>,
    pub weights: &'a BTreeMap<String, QuantParams>,
    /// `E[x]` by channel of what layers multiply, if biases are corrected.
    pub means: &'a BTreeMap<String, Vec<f64>>,
}

impl Basis<'_> {
    /// The grids that `rule` chooses.
    pub fn choose(&self, settings: &Settings, rule: RangeRule) -> Result<Choice, Error> {
        let Basis { graph, placement, facts, stats, ranges, weights, means } = *self;
        let ranges = calibrate::with_known(ranges, graph, placement, facts);
        let mut grids =
            calibrate::activations(graph, placement, stats, &settings.policy, &settings.target, rule, &ranges)?;
        let guarded = calibrate::add_weights(graph, placement, weights, &mut grids);
        let biases = bias_correction::corrections(graph, &grids, facts, means);
        Ok(Choice { grids, biases, guarded })
    }
}

/// Samples that choices are compared on, with the float network's outputs; without any, the first rule is taken.
pub struct Compared<'a> {
    pub source: Source<'a>,
    pub references: Vec<Vec<Tensor>>,
    pub threads: usize,
    pub progress: &'a dyn Progress,
}

impl Compared<'_> {
    fn sqnr_db(&self, graph: &Graph, grids: &Grids) -> Result<f64, Error> {
        output_sqnr(graph, Mode::Integer(grids), &self.source, &self.references, self.threads, self.progress)
    }
}

/// What was chosen.
pub struct Chosen {
    pub rule: RangeRule,
    pub trials: Vec<Trial>,
    /// Whether corrected biases bring the outputs closer, as far as that was asked.
    pub corrects: bool,
    /// What asking that found.
    pub step: Option<Step>,
}

/// Tries `rules`, and without its corrected biases the best of them.
pub fn choose_rule(
    basis: Basis<'_>,
    settings: &Settings,
    rules: &[RangeRule],
    compared: &Compared<'_>,
) -> Result<Chosen, Error> {
    let mut choices = Vec::new();
    let mut trials = Vec::new();
    compared.progress.begin("choosing ranges", compared.source.indices.len() * rules.len());
    for &rule in rules {
        let choice = basis.choose(settings, rule)?;
        if !compared.references.is_empty() {
            let sqnr_db = compared.sqnr_db(&patched(basis.graph, &choice.biases), &choice.grids)?;
            trials.push(Trial { rule, sqnr_db });
        }
        choices.push(choice);
    }
    compared.progress.end();
    // Of equals the first: the simpler rule.
    let best = (0..trials.len()).rev().max_by(|&a, &b| trials[a].sqnr_db.total_cmp(&trials[b].sqnr_db)).unwrap_or(0);
    let doubted = !choices[best].biases.is_empty() && settings.methods.are_measured();
    let step = match trials.get(best).filter(|_| doubted) {
        None => None,
        Some(&Trial { sqnr_db: after_db, .. }) => {
            let begun = Instant::now();
            let before_db = compared.sqnr_db(basis.graph, &choices[best].grids)?;
            let (methods, seconds) = (Method::BiasCorrection.to_string(), begun.elapsed().as_secs_f64());
            Some(Step { methods, before_db, after_db, kept: before_db <= after_db, findings: vec![], seconds })
        }
    };
    let corrects = step.as_ref().is_none_or(|step| step.kept);
    Ok(Chosen { rule: rules[best], trials, corrects, step })
}
