//! `fewbits inspect`: what is in a model, and what will quantize badly.

use super::{Verdict, data::PreprocessArgs, output::Output};
use fewbits::{
    Error, Model,
    inspect::{Inspection, Layer, Port, Severity, Warning, inspect, observed_tensors, subject},
    observe::observe,
    stream::Source,
};
use fewbits_quant::{Stats, target::Target};
use std::{collections::BTreeMap, path::PathBuf};

/// What is in a model, what of it runs in integers, and what will quantize badly.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ONNX file, float or quantized
    model: PathBuf,
    /// The runtime that it is judged for: ort, tensorrt or generic
    #[arg(long, default_value = "ort", value_name = "TARGET")]
    target: String,
    /// Images to measure activation ranges on; without them only weights are judged
    #[arg(long, value_name = "DATA")]
    calib: Option<PathBuf>,
    /// How many of them, spread evenly over the data
    #[arg(long, default_value_t = 16, value_parser = super::count(), value_name = "N")]
    samples: usize,
    #[command(flatten)]
    preprocess: PreprocessArgs,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let target: Target = args.target.parse()?;
    let model = Model::load(&args.model)?;
    let stats = match &args.calib {
        None => Stats::default(),
        Some(path) => {
            let dataset = args.preprocess.open(path)?;
            let preprocess = args.preprocess.resolve(&model, &dataset, out)?;
            let source = Source { indices: dataset.spread(args.samples), dataset: &dataset, preprocess: &preprocess };
            let (graph, _) = subject(&model);
            let tensors = observed_tensors(&graph, &target);
            observe(
                &graph,
                tensors,
                &source,
                &std::collections::BTreeMap::new(),
                0,
                out.global.threads,
                &*out.progress(),
            )?
            .stats
        }
    };
    let inspection = inspect(&model, &target, &stats);
    out.result(&inspection, &text(&inspection, args.calib.is_some(), out.global.verbose));
    Ok(Verdict::Done)
}

/// Columns of a line.
const WIDTH: usize = 100;
/// Nodes named for one kind of warning without `-v`.
const NAMED: usize = 3;

fn text(seen: &Inspection, measured: bool, verbose: bool) -> String {
    let mut lines = summary(seen);
    if !seen.warnings.is_empty() {
        lines.push(String::new());
        lines.extend(warnings(&seen.warnings, measured, verbose));
    }
    lines.extend(floats(seen, verbose));
    lines.extend(table(seen, verbose));
    if verbose && !seen.metadata.is_empty() {
        lines.extend([String::new(), "metadata:".into()]);
        lines.extend(seen.metadata.iter().flat_map(|(key, value)| wrapped(&format!("{key} = {value}"), 2)));
    }
    lines.join("\n")
}

/// The five lines that come first.
fn summary(seen: &Inspection) -> Vec<String> {
    let totals = &seen.totals;
    let kind = if seen.quantized { "quantized" } else { "float" };
    let ports = |ports: &[Port]| ports.iter().map(port).collect::<Vec<_>>().join(", ");
    let mut ends = format!("{} -> {}", ports(&seen.inputs), ports(&seen.outputs));
    if ends.chars().count() > WIDTH {
        ends = shortened(
            &format!("{} -> {} outputs, {}", ports(&seen.inputs), seen.outputs.len(), ports(&seen.outputs)),
            WIDTH,
        );
    }
    let integer = seen.layers.iter().filter(|l| l.runtime == "integer");
    let integer_macs: u64 = integer.clone().map(|l| l.macs).sum();
    let count = |severity| seen.warnings.iter().filter(|w| w.severity == severity).count();
    let unknown = if seen.unknown_operators.is_empty() {
        String::new()
    } else {
        let names = seen.unknown_operators.iter().map(|u| u.op.as_str()).collect::<Vec<_>>().join(", ");
        format!("; unknown operators: {names}")
    };
    vec![
        shortened(&format!("{}: {kind}, opset {}, {} nodes", seen.model, seen.opset, seen.nodes), WIDTH),
        ends,
        format!(
            "{} parameters, {} MACs, {:.2} MB file, {:.2} MB of float activations at once (one image)",
            short(totals.parameters),
            short(totals.macs),
            totals.file_bytes as f64 / 1e6,
            totals.activation_bytes as f64 / 1e6,
        ),
        format!(
            "{}: {} of {} nodes in integers, {} of the MACs{}",
            seen.target,
            integer.count(),
            seen.layers.len(),
            percent(integer_macs, totals.macs),
            if seen.quantized { "" } else { " (once quantized)" },
        ),
        shortened(
            &format!(
                "{} errors, {} warnings, {} notes{unknown}",
                count(Severity::Error),
                count(Severity::Warning),
                count(Severity::Note)
            ),
            WIDTH,
        ),
    ]
}

fn port(port: &Port) -> String {
    let dims = port.dims.as_ref().map_or("any shape".into(), |dims| dims.join(", "));
    format!("{} {} [{dims}]", port.name, port.dtype)
}

/// One paragraph for each kind of warning: the first nodes with what was found, and what to do.
fn warnings(all: &[Warning], measured: bool, verbose: bool) -> Vec<String> {
    let mut kinds: Vec<(&str, Vec<&Warning>)> = Vec::new();
    for warning in all {
        match kinds.iter_mut().find(|(kind, _)| *kind == warning.kind) {
            Some((_, list)) => list.push(warning),
            None => kinds.push((warning.kind, vec![warning])),
        }
    }
    let mut lines = Vec::new();
    for (kind, list) in kinds {
        let severity = format!("{:?}", list[0].severity).to_lowercase();
        lines.push(format!("{severity}: {} ({})", kind.replace('_', " "), list.len()));
        let named = if verbose { list.len() } else { NAMED };
        lines.extend(list.iter().take(named).flat_map(|w| wrapped(&format!("{}: {}", w.node, w.message), 2)));
        if list.len() > named {
            lines.push(format!("  … and {} more (-v)", list.len() - named));
        }
        lines.extend(wrapped(&format!("hint: {}", list[0].hint), 2));
    }
    if !measured {
        lines.push("activations were not measured: --calib DATA looks at their ranges too".into());
    }
    lines
}

/// What stays float, by reason.
fn floats(seen: &Inspection, verbose: bool) -> Vec<String> {
    let mut reasons: BTreeMap<&str, Vec<&Layer>> = BTreeMap::new();
    for layer in seen.layers.iter().filter(|l| l.runtime == "float") {
        reasons.entry(&layer.reason).or_default().push(layer);
    }
    if reasons.is_empty() {
        return vec![];
    }
    let mut lines = vec![String::new(), "stays float:".to_string()];
    for (reason, layers) in reasons {
        let named = if verbose { layers.len() } else { NAMED };
        let names = layers.iter().take(named).map(|l| l.name.as_str()).collect::<Vec<_>>().join(", ");
        let more = if layers.len() > named { ", …" } else { "" };
        lines.extend(wrapped(&format!("{} nodes: {reason} ({names}{more})", layers.len()), 2));
    }
    lines
}

fn table(seen: &Inspection, verbose: bool) -> Vec<String> {
    let shown: Vec<&Layer> = seen.layers.iter().filter(|l| verbose || l.macs > 0 || l.parameters > 0).collect();
    let mut lines = vec![String::new()];
    if let Some(why) = &seen.shapes_unknown {
        lines.extend(wrapped(&format!("shapes and MACs are not known of {why}"), 0));
    }
    if !seen.preparation.is_empty() {
        lines.extend(wrapped(&format!("prepared: {}", seen.preparation.join(", ")), 0));
    }
    let rest = seen.layers.len() - shown.len();
    let more = if rest > 0 { format!("; {rest} nodes without weights are left out (-v)") } else { String::new() };
    lines.push(format!("{} nodes, shapes for batch 1{more}", shown.len()));
    let grid = if seen.quantized { "bits w/a" } else { "runs in" };
    lines.push(format!("{:<36} {:<18} {:<18} {:>7} {:>7} {grid}", "node", "op", "output", "params", "MACs"));
    for layer in shown {
        let shape = layer
            .shape
            .as_ref()
            .map_or("?".into(), |s| s.iter().map(ToString::to_string).collect::<Vec<_>>().join("×"));
        let bits = |bits: Option<u8>| bits.map_or("-".into(), |b| b.to_string());
        let last = match seen.quantized {
            true => format!("{}/{}", bits(layer.weight_bits), bits(layer.activation_bits)),
            false => layer.runtime.into(),
        };
        let (name, op) = (shortened(&layer.name, 36), shortened(&layer.op, 18));
        let (params, macs) = (short(layer.parameters), short(layer.macs));
        lines.push(format!("{name:<36} {op:<18} {shape:<18} {params:>7} {macs:>7} {last}"));
        if verbose {
            let grids = [("weight", &layer.weight_grid), ("output", &layer.activation_grid)];
            lines.extend(grids.iter().filter_map(|(what, grid)| Some(format!("    {what} {}", (*grid).as_ref()?))));
        }
    }
    lines
}

/// `text` broken at spaces into lines of at most [`WIDTH`] columns; all but the first are indented by two more.
fn wrapped(text: &str, indent: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = " ".repeat(indent);
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent + 2)));
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push(line);
    lines
}

/// `text` in at most `columns` columns: the middle of long names goes.
pub fn shortened(text: &str, columns: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= columns {
        return text.into();
    }
    let head = (columns - 1) / 2;
    let tail = columns - 1 - head;
    chars[..head].iter().chain(&['…']).chain(&chars[chars.len() - tail..]).collect()
}

/// A count in at most five characters and a unit.
fn short(count: u64) -> String {
    match count as f64 {
        n if n >= 1e9 => format!("{:.2}G", n / 1e9),
        n if n >= 1e6 => format!("{:.2}M", n / 1e6),
        n if n >= 1e4 => format!("{:.1}k", n / 1e3),
        _ if count == 0 => "-".into(),
        _ => count.to_string(),
    }
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "none".into() } else { format!("{:.1} %", 100.0 * part as f64 / whole as f64) }
}
