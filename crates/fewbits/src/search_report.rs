//! The report of a search: what was found and the quantization that it led to enter, a [`Report`] leaves.

use crate::{
    Error,
    progress::Progress,
    quantize::Quantized,
    report::{self, Subject},
    search::{Found, Row},
};
use fewbits_graph::Node;
use fewbits_report::{Candidate, CandidateKind, LayerBits, LayerDamage, Quality, Report, Search, Sensitivity};
use fewbits_search::{
    Level, Metric,
    cost::{weight_axis, weight_bytes},
};

/// The report of `subject`, with how its bits were found.
///
/// # Errors
/// Errors of [`report::of`].
pub fn of(found: &Found, subject: Subject<'_>, threads: usize, progress: &dyn Progress) -> Result<Report, Error> {
    let report = report::of(subject, threads, progress)?;
    let name = &report.model.name;
    Ok(Report {
        title: format!("{name} under {}", found.budget),
        sensitivity: Some(sensitivity(found)),
        search: Some(search(found, subject.quantized, subject.settings.policy.edge_bits)),
        ..report
    })
}

fn sensitivity(found: &Found) -> Sensitivity {
    let layer = |row: &Row| LayerDamage { name: row.layer.clone(), damage: row.damage.clone(), bits: Some(row.bits) };
    let seen = match found.level {
        Level::Local => "in the layer's own output",
        Level::Block => "in the outputs of the layer's block",
        Level::Network => "in the outputs of the network",
        Level::Weighted => "in the layer's own output, times what that comes to in the outputs of the network",
    };
    Sensitivity {
        damage: format!("{} {seen}, on {} samples", in_words(found.metric), found.samples),
        widths: found.widths.clone(),
        layers: found.layers.iter().map(layer).collect(),
    }
}

fn in_words(metric: Metric) -> &'static str {
    match metric {
        Metric::Cosine => "1 − cosine",
        Metric::Snr => "noise by signal",
        Metric::Mse => "mean squared error",
        Metric::Kl => "Kullback-Leibler divergence",
        Metric::Pearson => "1 − correlation",
        Metric::TopOne => "share of changed largest scores",
    }
}

fn search(found: &Found, quantized: &Quantized, edge_bits: u8) -> Search {
    let nodes = |row: &Row| quantized.graph.nodes.iter().find(|node| node.input(1) == Some(row.weight.as_str()));
    let input_bits = |node: &Node| quantized.grids.params(node.input(0)?).map(|params| params.grid.bits);
    let layer = |row: &Row| LayerBits {
        name: row.layer.clone(),
        weights: Some(row.bits),
        activations: nodes(row).and_then(input_bits),
        bytes: row.bytes,
    };
    let uniform = found.uniform.map(|(bits, value)| Candidate {
        kind: CandidateKind::Uniform(bits),
        bytes: uniform_bytes(found, quantized, edge_bits, bits),
        value,
    });
    let own = Candidate { kind: CandidateKind::Found, bytes: found.bytes, value: found.damage };
    Search {
        strategy: format!("{} with {}", found.strategy, found.allocator),
        budget: found.budget.clone(),
        kept: found.kept,
        bytes: found.bytes,
        average_bits: found.average_bits,
        bops: found.bops,
        layers: found.layers.iter().map(layer).collect(),
        quality: Quality::Damage(format!("damage at the outputs, {}", in_words(found.metric))),
        candidates: uniform.into_iter().chain([own]).collect(),
        rewards: vec![],
    }
}

/// Bytes of the network that was found if every weight whose bits were searched had `bits`.
fn uniform_bytes(found: &Found, quantized: &Quantized, edge_bits: u8, bits: u8) -> u64 {
    let Quantized { graph, grids, placement, .. } = quantized;
    let pinned = |row: &Row| row.edge && found.widths.iter().any(|width| *width < edge_bits);
    let alike = |row: &Row| {
        let (weight, params) = (graph.constant(&row.weight)?, grids.params(&row.weight)?);
        Some(weight_bytes(&weight.dims, weight_axis(graph, placement, &row.weight), bits, params.scale.len()))
    };
    let searched = || found.layers.iter().filter(|row| !pinned(row));
    let now: u64 = searched().map(|row| row.bytes).sum();
    found.bytes - now + searched().map(|row| alike(row).unwrap_or(row.bytes)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        demo,
        methods::Methods,
        progress::Silent,
        quantize::{Ranges, Settings},
        search,
        stream::Source,
        summary::{packed, summarize},
    };
    use fewbits_quant::{RangeRule, calibrate::Policy};
    use fewbits_search::Budget;
    use std::time::Duration;

    #[test]
    fn what_a_search_found_is_reported_and_uniform_bits_take_what_they_take() {
        let model = demo::model().unwrap();
        let preprocess = model.preprocess().unwrap().unwrap();
        let dataset = demo::calibration_set();
        let source = Source { dataset: &dataset, preprocess: &preprocess, indices: dataset.spread(8) };
        let mut settings = Settings {
            ranges: Ranges::Rule(RangeRule::MinMax),
            methods: Methods::List(vec![]),
            ..Settings::new("ort".parse().unwrap(), Policy::new(8, 8, 8))
        };
        let mut of = |budget: f64, widths: &[u8]| {
            let asked = search::Settings {
                widths: widths.to_vec(),
                patience: 0,
                samples: 4,
                ..search::Settings::new(Budget::AvgBits(budget))
            };
            search::search(&model, &source, &mut settings, &asked, 2, &Silent).unwrap()
        };
        let (four, quantized) = of(4.0, &[4, 8]);
        let exact = packed(&quantized.graph, &quantized.grids, &quantized.placement);
        let (found, quantized) = of(4.5, &[2, 4, 8]);
        let summary = summarize(&model, &quantized, &settings, 8, 0, Duration::ZERO);
        let subject = Subject {
            command: "fewbits search",
            model: &model,
            quantized: &quantized,
            settings: &settings,
            source: &source,
            summary: &summary,
            scores: &[],
        };
        let report = super::of(&found, subject, 2, &Silent).unwrap();
        let (sensitivity, search) = (report.sensitivity.clone().unwrap(), report.search.clone().unwrap());
        assert_eq!((sensitivity.widths, sensitivity.layers.len()), (vec![2, 4, 8], four.layers.len()));
        assert!(sensitivity.layers.iter().zip(&search.layers).all(|(a, b)| a.bits == b.weights && a.name == b.name));
        assert!(search.layers.iter().all(|layer| layer.activations == Some(8)));
        let [uniform, own] = &search.candidates[..] else { panic!("{:?}", search.candidates) };
        assert_eq!((uniform.kind, uniform.bytes, own.bytes), (CandidateKind::Uniform(4), exact, found.bytes));
        assert!(own.value < uniform.value);
        assert!(report.sizes.iter().all(|size| size.bytes > 0), "no file was written: {:?}", report.sizes);
        assert!(report.to_html().contains("under avg-bits=4.5"));
    }
}
