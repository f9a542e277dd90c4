//! The report of a quantization or of a training: what was decided and measured enters, a [`Report`] leaves, and a file if one is
//! wanted.
//!
//! The one thing measured here is the error of each layer: the float network and the integer network run side by side on a few calibration samples. Everything else was known before.

use crate::{
    Error, Model,
    compare::{QUANTIZED_THRESHOLD_DB, Side, compare},
    evaluate::Scores,
    inspect::{self, Inspection, Severity, inspect},
    plan,
    progress::Progress,
    quantize::{CANDIDATES, Quantized, Settings},
    refine,
    stream::Source,
    summary::{self, Summary, parameters},
    train::{self, Trained},
};
use fewbits_graph::{Graph, exec, passes};
use fewbits_quant::{
    Mapping, RangeRule, Stats,
    placement::{Site, place},
};
use fewbits_report::{
    Accuracy, Curve, Layer, Mode, Model as Facts, Report, Runtime, Size, Step, TensorRange, Training, Trial,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

/// Calibration samples on which the error of each layer is measured.
const COMPARED_SAMPLES: usize = 8;
/// What is counted in [`summary::Sizes::packed`].
const PACKED: &str =
    "deployed: weights packed at their bits, 32-bit biases, scales and zero points, normalization folded";
/// Nodes named for one kind of warning.
const NAMED: usize = 4;

/// What a report is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The command line.
    pub command: &'a str,
    /// The float model.
    pub model: &'a Model,
    /// What became of it.
    pub quantized: &'a Quantized,
    /// What was asked for.
    pub settings: &'a Settings,
    /// What it was calibrated on.
    pub source: &'a Source<'a>,
    /// Rows and sizes.
    pub summary: &'a Summary,
    /// Accuracies, if they were measured.
    pub scores: &'a [(Mode, &'a Scores)],
}

/// The report of `subject`.
///
/// # Errors
/// Errors of the data and of the networks.
pub fn of(subject: Subject<'_>, threads: usize, progress: &dyn Progress) -> Result<Report, Error> {
    let Subject { model, quantized, settings, summary, .. } = subject;
    let sqnr = layer_sqnr(subject, threads, progress)?;
    // The original with its grids: warnings that the grids settle are left out.
    let seen = Model { path: model.path.clone(), graph: quantized.graph.clone(), grids: Some(quantized.grids.clone()) };
    let seen = inspect(&seen, &settings.target, &quantized.stats);
    let name = file_name(model);
    let (weights, activations) = (settings.policy.weight_bits, settings.policy.activation_bits);
    let described = plan::describe(quantized, settings, summary.samples);
    let mut resolved = BTreeMap::new();
    flatten("", &described, &mut resolved);
    if !subject.source.dataset.is_prepared() {
        resolved.insert("preprocessing".into(), subject.source.preprocess.to_string());
    }
    Ok(Report {
        title: format!("{name} in {weights}-bit weights and {activations}-bit activations"),
        command: subject.command.into(),
        settings: resolved,
        model: facts(model, &quantized.prepared, quantized.graph.nodes.len(), &seen),
        preparation: preparation(quantized),
        trials: trials(quantized),
        steps: quantized.steps.iter().map(step).collect(),
        accuracy: subject.scores.iter().flat_map(|(mode, scores)| accuracies(*mode, scores)).collect(),
        sizes: sizes(subject),
        layers: layers(summary, &seen, quantized, &sqnr),
        tensors: ranges(quantized, settings),
        warnings: warnings(&seen, quantized),
        seconds: Some(summary.seconds),
        images: Some(summary.samples as u64),
        ..Report::default()
    })
}

/// The report of a training, `command`.
///
/// # Errors
/// [`Error::Graph`] if the network cannot be prepared.
pub fn of_training(request: &train::Request<'_>, trained: &Trained, command: &str) -> Result<Report, Error> {
    let (model, summary) = (request.model, &trained.summary);
    let (prepared, _) = passes::prepare(&model.graph).map_err(Error::graph(&model.path))?;
    let mut settings = BTreeMap::new();
    flatten("", &train::describe(request), &mut settings);
    if !request.training.is_prepared() {
        settings.insert("preprocessing".into(), request.preprocess.to_string());
    }
    let goal = request.recipe.phases.last().and_then(|phase| phase.goal.as_ref());
    let count = |len: usize, limit: Option<usize>| limit.unwrap_or(usize::MAX).min(len) as u64;
    let samples = count(request.validation.len(), request.validation_limit);
    let after = if goal.is_some() { Mode::Fake } else { Mode::Float };
    let top1 = [(Mode::Float, "top-1 before training", Some(summary.start_top1))]
        .into_iter()
        .chain([(after, "top-1", Some(summary.fake_top1)), (Mode::Integer, "top-1", summary.integer_top1)]);
    let accuracy = |(mode, metric, percent): (Mode, &str, Option<f64>)| {
        percent.map(|percent| Accuracy { mode, metric: metric.into(), value: percent / 100.0, samples })
    };
    let size = trained.deployed.as_ref().map(|(graph, grids)| {
        let placement = place(graph, request.target, &BTreeSet::new());
        Size {
            convention: PACKED.into(),
            float_bytes: 4 * parameters(graph),
            bytes: summary::packed(graph, grids, &placement),
        }
    });
    let name = file_name(model);
    Ok(Report {
        title: match goal {
            Some(goal) => {
                let (weights, activations) = (goal.policy.weight_bits, goal.policy.activation_bits);
                format!("{name} trained with {weights}-bit weights and {activations}-bit activations ({})", goal.method)
            }
            None => format!("{name} trained in float"),
        },
        command: command.into(),
        settings,
        model: facts(model, &prepared, prepared.nodes.len(), &inspect(model, request.target, &Stats::default())),
        training: Some(training(trained)),
        accuracy: top1.filter_map(accuracy).collect(),
        sizes: size.into_iter().collect(),
        warnings: summary.not_deployable.iter().map(|reason| format!("no integer network: {reason}")).collect(),
        seconds: Some(summary.seconds),
        images: Some(count(request.training.len(), request.training_limit)),
        ..Report::default()
    })
}

fn training(trained: &Trained) -> Training {
    let rows = || trained.log.iter().map(|row| (row.epoch as u64, row));
    let curve = |name: &str, value: fn(&train::EpochRow) -> f64| Curve {
        name: name.into(),
        points: rows().map(|(epoch, row)| (epoch, value(row))).collect(),
    };
    let mut scales: BTreeMap<&str, Vec<(u64, f64)>> = BTreeMap::new();
    for (epoch, row) in rows() {
        for (name, scale) in &row.scales {
            scales.entry(name).or_default().push((epoch, f64::from(*scale)));
        }
    }
    Training {
        loss: vec![curve("training loss", |row| row.loss)],
        accuracy: vec![
            curve("top-1 of training images", |row| row.training_top1 / 100.0),
            curve("top-1 of validation images", |row| row.top1 / 100.0),
        ],
        scales: scales.into_iter().map(|(name, points)| Curve { name: name.into(), points }).collect(),
    }
}

fn file_name(model: &Model) -> String {
    model.path.file_name().unwrap_or(model.path.as_os_str()).to_string_lossy().into_owned()
}

/// What is known of `model`, which preparation makes `prepared`.
fn facts(model: &Model, prepared: &Graph, nodes: usize, seen: &Inspection) -> Facts {
    Facts {
        name: file_name(model),
        sha256: fewbits_quant::plan::model_sha256(prepared),
        nodes: nodes as u64,
        parameters: parameters(&model.graph),
        macs: seen.totals.macs,
        inputs: seen.inputs.iter().map(port).collect(),
        outputs: seen.outputs.iter().map(port).collect(),
    }
}

/// Writes `report` as Markdown or JSON if `path` ends in `.md` or `.json`, else as a page that loads nothing else; the file appears only
/// when it is complete.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn write(path: &Path, report: &Report) -> Result<(), Error> {
    let text = match path.extension().and_then(|extension| extension.to_str()) {
        Some("md") => report.to_markdown(),
        Some("json") => report.to_json(),
        _ => report.to_html(),
    };
    fewbits_files::replace(path, text.as_bytes()).map_err(Error::io("write", path))
}

/// SQNR in dB by tensor name, of the integer network against the float network.
fn layer_sqnr(subject: Subject<'_>, threads: usize, progress: &dyn Progress) -> Result<HashMap<String, f64>, Error> {
    let Subject { model, quantized, source, .. } = subject;
    let count = source.indices.len().min(COMPARED_SAMPLES);
    let few = Source { indices: source.indices[..count].to_vec(), ..*source };
    let float = Side { path: &model.path, graph: &quantized.float, mode: exec::Mode::Float };
    let integer = Side { path: &model.path, graph: &quantized.graph, mode: exec::Mode::Integer(&quantized.grids) };
    let found = compare(float, integer, &few, QUANTIZED_THRESHOLD_DB, threads, progress)?;
    Ok(found.tensors.into_iter().map(|t| (t.name, t.sqnr_db)).collect())
}

fn layers(summary: &Summary, seen: &Inspection, quantized: &Quantized, sqnr: &HashMap<String, f64>) -> Vec<Layer> {
    let rows = summary.layers.iter().zip(&seen.layers).zip(&quantized.graph.nodes);
    let row = |((row, facts), node): ((&crate::summary::Layer, &inspect::Layer), &fewbits_graph::Node)| Layer {
        name: row.name.clone(),
        op: row.op.clone(),
        weight_bits: row.weight_bits,
        activation_bits: row.activation_bits,
        runtime: if row.runtime == "integer" { Runtime::Integer } else { Runtime::Float },
        reason: row.reason.clone(),
        sqnr_db: sqnr.get(node.output()).copied(),
        macs: facts.macs,
        parameters: facts.parameters,
    };
    rows.map(row).collect()
}

/// Every activation with a grid of its own, in graph order.
fn ranges(quantized: &Quantized, settings: &Settings) -> Vec<TensorRange> {
    let graph = &quantized.graph;
    let mapping = if settings.target.symmetric_activations { Mapping::Symmetric } else { Mapping::Affine };
    let rules: Vec<RangeRule> = CANDIDATES.iter().copied().filter(|rule| *rule != quantized.rule).collect();
    let made = graph.nodes.iter().flat_map(|n| &n.outputs);
    let names = graph.inputs.iter().map(|input| &input.name).chain(made);
    let range = |name: &String| {
        let Some(Site::Activation { reader, .. }) = quantized.placement.sites.get(name) else { return None };
        let (stats, params) = (quantized.stats.0.get(name)?, quantized.grids.params(name)?);
        let tensor = TensorRange::new(name, &quantized.rule.to_string(), stats, params);
        Some(tensor.with_others(&rules, |rule| rule.range_behind(stats, params.grid, mapping, *reader)))
    };
    names.filter_map(range).collect()
}

fn preparation(quantized: &Quantized) -> Vec<String> {
    let repaired = Some(quantized.patches.len()).filter(|n| *n > 0);
    let repaired = repaired.map(|n| format!("weights and biases changed to make up for rounding ({n})"));
    quantized.changes.iter().map(ToString::to_string).chain(repaired).collect()
}

fn trials(quantized: &Quantized) -> Vec<Trial> {
    let trial = |t: &crate::quantize::Trial| Trial {
        rule: t.rule.to_string(),
        sqnr_db: t.sqnr_db,
        chosen: t.rule == quantized.rule,
    };
    quantized.trials.iter().map(trial).collect()
}

fn step(step: &refine::Step) -> Step {
    Step {
        methods: step.methods.clone(),
        before_db: step.before_db,
        after_db: step.after_db,
        kept: step.kept,
        seconds: step.seconds,
        findings: step.findings.clone(),
    }
}

fn accuracies(mode: Mode, scores: &Scores) -> Vec<Accuracy> {
    let (metrics, samples) = match *scores {
        Scores::Classification { top1, top5, samples } => ([("top-1", top1), ("top-5", top5)], samples),
        Scores::Detection { coco, samples, .. } => {
            ([("AP", coco.ap.unwrap_or(0.0)), ("AP50", coco.ap50.unwrap_or(0.0))], samples)
        }
    };
    let accuracy = |(metric, percent): (&str, f64)| Accuracy {
        mode,
        metric: metric.into(),
        value: percent / 100.0,
        samples: samples as u64,
    };
    metrics.map(accuracy).into()
}

/// The conventions, the one that is deployed last.
fn sizes(subject: Subject<'_>) -> Vec<Size> {
    let sizes = &subject.summary.size_bytes;
    let size = |convention: &str, float_bytes, bytes| Size { convention: convention.into(), float_bytes, bytes };
    let folded = 4 * parameters(&subject.quantized.graph);
    let file = std::fs::metadata(&subject.model.path).map_or(sizes.float, |m| m.len());
    // A search writes a plan alone.
    let written = Some(sizes.file).filter(|bytes| *bytes > 0);
    let written = written.map(|bytes| size("the ONNX file, whose integers take a byte each", file, bytes));
    let counted = [
        size("every parameter at its bits (as ZeroQ and HAWQ count)", sizes.float, sizes.all_parameters),
        size("weights at their bits, the rest at 32 (as HAQ counts)", sizes.float, sizes.weights_only),
        size(PACKED, folded, sizes.packed),
    ];
    written.into_iter().chain(counted).collect()
}

/// Warnings of each kind, worst first, at most [`NAMED`] of a kind.
fn warnings(seen: &Inspection, quantized: &Quantized) -> Vec<String> {
    let mut kinds: Vec<Vec<&inspect::Warning>> = Vec::new();
    for warning in seen.warnings.iter().filter(|w| w.severity != Severity::Note) {
        match kinds.iter_mut().find(|kind| kind[0].kind == warning.kind) {
            Some(kind) => kind.push(warning),
            None => kinds.push(vec![warning]),
        }
    }
    let sentences = |kind: Vec<&inspect::Warning>| {
        let more = (kind.len() > NAMED).then(|| format!("… and {} more like the last", kind.len() - NAMED));
        let found: Vec<String> = kind.iter().take(NAMED).map(|w| format!("`{}`: {}", w.node, w.message)).collect();
        found.into_iter().chain(more)
    };
    let names = quantized.guarded.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let guarded =
        (!names.is_empty()).then(|| format!("scales raised for channels whose bias dwarfs their weights: {names}"));
    let shared = quantized.channel_bits.iter().map(|found| format!("bits by channel: {found}"));
    kinds.into_iter().flat_map(sentences).chain(guarded).chain(shared).collect()
}

fn port(port: &inspect::Port) -> String {
    let dims = port.dims.as_ref().map_or("any shape".into(), |dims| format!("[{}]", dims.join(", ")));
    format!("{}: {} {dims}", port.name, port.dtype)
}

/// Settings by dotted names; what is in a list is counted from 1.
fn flatten(prefix: &str, value: &Value, found: &mut BTreeMap<String, String>) {
    let text = match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&name, value, found);
            }
            return;
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().enumerate().for_each(|(i, item)| flatten(&format!("{prefix}.{}", i + 1), item, found));
            return;
        }
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".into(),
        other => other.to_string(),
    };
    found.insert(prefix.into(), text);
}
