//! The report of a search: what was found and the quantization that it led to enter, a [`Report`] leaves.

use super::{Found, Point, Row, Sort};
use crate::{
    Error,
    progress::Progress,
    report::{self, Subject},
};
use fewbits_report::{Candidate, CandidateKind, LayerBits, LayerDamage, Quality, Report, Search, Sensitivity};
use fewbits_search::{Level, Metric};

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
        search: Some(search(found)),
        ..report
    })
}

fn sensitivity(found: &Found) -> Sensitivity {
    let layer = |row: &Row| LayerDamage { name: row.layer.clone(), damage: row.damage.clone(), bits: Some(row.bits) };
    let seen_in = match found.level {
        Level::Local => "in the layer's own output",
        Level::Block => "in the outputs of the layer's block",
        Level::Network => "in the outputs of the network",
        Level::Weighted => "in the layer's own output, times what that comes to in the outputs of the network",
    };
    let damage = match found.layer_metric {
        Some(metric) => format!("{} {seen_in}", in_words(metric)),
        None => "mean trace of the Hessian of the loss times squared change of the weight".into(),
    };
    Sensitivity {
        damage: format!("{damage}, on {} samples", found.layer_samples),
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

fn search(found: &Found) -> Search {
    let layer = |row: &Row| LayerBits {
        name: row.layer.clone(),
        weights: Some(row.bits),
        activations: Some(row.input_bits),
        bytes: row.bytes,
    };
    let candidate = |point: &Point| {
        let kind = match point.sort {
            Sort::Uniform(bits) => CandidateKind::Uniform(bits),
            Sort::Tried | Sort::Front => CandidateKind::Tried,
        };
        Candidate { kind, bytes: point.bytes, values: vec![Some(point.damage), point.agreement] }
    };
    let values = vec![Some(found.damage), found.agreement];
    let own = Candidate { kind: CandidateKind::Found, bytes: found.bytes, values };
    let damage = Quality::Damage(format!("damage at the outputs, {}", in_words(found.metric)));
    let agreement = found.agreement.map(|_| Quality::Accuracy("classes that stay".into()));
    Search {
        strategy: found.strategy.to_string(),
        budget: found.budget.clone(),
        kept: found.kept,
        bytes: found.bytes,
        average_bits: found.average_bits,
        bops: found.bops,
        layers: found.layers.iter().map(layer).collect(),
        qualities: [damage].into_iter().chain(agreement).collect(),
        candidates: found.points.iter().map(candidate).chain([own]).collect(),
        rewards: if found.strategy.is_sampling() { found.history.iter().map(|d| -d).collect() } else { vec![] },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        demo,
        methods::Methods,
        progress::Silent,
        quantize::{Ranges, Settings},
        search::{self, Strategy},
        stream::Source,
        summary::summarize,
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
        let asked = search::Settings {
            widths: vec![2, 4, 8],
            samples: 4,
            evaluations: 5,
            ..search::Settings::new(Strategy::Random, vec![Budget::AvgBits(4.5)])
        };
        let (found, quantized) = search::search(&model, &source, &mut settings, &asked, 2, &Silent).unwrap();
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
        assert_eq!((sensitivity.widths, sensitivity.layers.len()), (vec![2, 4, 8], found.layers.len()));
        assert!(sensitivity.layers.iter().zip(&search.layers).all(|(a, b)| a.bits == b.weights && a.name == b.name));
        assert!(search.layers.iter().all(|layer| layer.activations == Some(8)));
        let of_kind = |kind: CandidateKind| search.candidates.iter().filter(move |candidate| candidate.kind == kind);
        // Uniform bits are tried first.
        assert_eq!((of_kind(CandidateKind::Tried).count(), search.rewards.len()), (6, 6));
        assert_eq!(of_kind(CandidateKind::Uniform(4)).count(), 1);
        assert_eq!(of_kind(CandidateKind::Found).next().map(|own| own.bytes), Some(found.bytes));
        assert!(report.sizes.iter().all(|size| size.bytes > 0), "no file was written: {:?}", report.sizes);
        assert!(report.to_html().contains("under avg-bits=4.5"));
    }
}
