//! `fewbits compare`: where two models part.

use super::{
    Verdict,
    data::PreprocessArgs,
    output::Output,
    subject::{self, ModeArg, mode_name},
};
use fewbits::{
    Error,
    compare::{
        Ablation, Comparison, FLOAT_THRESHOLD_DB, QUANTIZED_THRESHOLD_DB, Side, TensorDifference, Without, ablations,
        compare,
    },
    stream::Source,
};
use fewbits_graph::exec::Mode;
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

/// Where two models part: both run on the same samples, every tensor that both have is compared by name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The reference
    a: PathBuf,
    /// The model that is measured against it
    b: PathBuf,
    /// Images or prepared arrays; no labels needed
    #[arg(long)]
    data: PathBuf,
    /// Plan of B, if B is a float model
    #[arg(long, value_name = "P.json")]
    plan: Option<PathBuf>,
    /// How B is computed [default: integer for quantized models, float for others]
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// Compare on the first N samples only
    #[arg(long, value_parser = super::count(), value_name = "N")]
    limit: Option<usize>,
    /// SQNR below which a tensor counts as diverged [default: 20 for a quantized model, 100 for float against float]
    #[arg(long, value_name = "DB", allow_hyphen_values = true)]
    threshold: Option<f64>,
    /// Also say how close the outputs would come without the grids of one kind of activation
    #[arg(long)]
    ablate: bool,
    #[command(flatten)]
    preprocess: PreprocessArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    a: String,
    b: String,
    modes: [&'static str; 2],
    seconds: f64,
    #[serde(flatten)]
    comparison: Comparison,
    #[serde(skip_serializing_if = "Option::is_none")]
    ablations: Option<Vec<Ablation>>,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let a = subject::load(&args.a, None)?;
    let b = subject::load(&args.b, args.plan.as_deref())?;
    let (mode_a, mode_b) = (subject::mode(&a, None)?, subject::mode(&b, args.mode)?);
    let dataset = args.preprocess.open(&args.data)?;
    // A file that was quantized by Fewbits says how images are prepared, whichever of the two it is.
    let says = if args.preprocess.stated(&a)?.is_some() { &a } else { &b };
    let preprocess = args.preprocess.resolve(says, &dataset, out)?;
    let source = Source { indices: dataset.first(args.limit), dataset: &dataset, preprocess: &preprocess };
    let both_float = matches!((mode_a, mode_b), (Mode::Float, Mode::Float));
    let usual = if both_float { FLOAT_THRESHOLD_DB } else { QUANTIZED_THRESHOLD_DB };
    let start = Instant::now();
    let sides =
        [Side { path: &args.a, graph: &a.graph, mode: mode_a }, Side { path: &args.b, graph: &b.graph, mode: mode_b }];
    let (threads, progress) = (out.global.threads, out.progress());
    let threshold_db = args.threshold.unwrap_or(usual);
    let comparison = compare(sides[0], sides[1], &source, threshold_db, threads, &*progress)?;
    let ablate = || ablations(sides[0], sides[1], &source, threads, &*progress);
    let ablations = args.ablate.then(ablate).transpose()?;
    let report = Report {
        a: args.a.display().to_string(),
        b: args.b.display().to_string(),
        modes: [mode_name(mode_a), mode_name(mode_b)],
        seconds: start.elapsed().as_secs_f64(),
        comparison,
        ablations,
    };
    out.result(&report, &text(&report, out.global.verbose));
    Ok(Verdict::Done)
}

/// Rows that are shown without `-v`.
const SHOWN: usize = 8;

fn text(report: &Report, verbose: bool) -> String {
    let Comparison { samples, max_abs_diff, sqnr_db, cosine, threshold_db, tensors, explanations, .. } =
        &report.comparison;
    let mut lines = vec![
        format!("A {} ({}), B {} ({})", report.a, report.modes[0], report.b, report.modes[1]),
        format!("{samples} samples, {:.1} s, {} tensors in common", report.seconds, tensors.len()),
        format!("outputs: SQNR {sqnr_db:.1} dB, cosine {cosine:.6}, largest difference {max_abs_diff:.3e}"),
    ];
    if let Some(agreement) = report.comparison.top1_agreement {
        lines.push(format!("top-1 agreement: {:.2} % of the samples", 100.0 * agreement));
    }
    lines.push(match &report.comparison.first_divergence {
        Some(name) => format!("first divergence (below {threshold_db} dB): {name}"),
        None => format!("no divergence: every tensor reaches {threshold_db} dB"),
    });
    let named = |name: &Option<String>| tensors.iter().find(|t| Some(&t.name) == name.as_ref());
    if let Some(t) = named(&report.comparison.most_noise_added) {
        let percent = 100.0 * t.noise_added;
        lines.push(format!("most noise added by: {} ({}), {percent:.3} % of its signal power", t.name, t.op));
    }
    if sqnr_db < &200.0 && !tensors.is_empty() {
        lines.push(String::new());
        lines.extend(table(tensors, verbose));
        let rescaled = tensors.iter().filter(|t| t.rescaled).count();
        if rescaled > 0 {
            lines.push(format!("* channels have other scales in B, as equalization leaves them ({rescaled} tensors): A's are measured on those"));
        }
    }
    if !explanations.is_empty() {
        lines.extend([String::new(), "why:".into()]);
        lines.extend(explanations.iter().map(|why| format!("  {}: {}", why.tensor, why.message)));
    }
    if let Some(ablations) = &report.ablations {
        lines
            .extend([String::new(), "outputs, by fake quantization, without the grids of activations that are".into()]);
        lines.extend(ablations.iter().map(ablation));
    }
    lines.join("\n")
}

fn ablation(of: &Ablation) -> String {
    let (grids, all) = (of.grids, if of.grids == 1 { "grid" } else { "grids" });
    let what = match &of.without {
        Without::Nothing => "(with all of them)".into(),
        Without::Activations => format!("any ({grids} {all}): weights alone"),
        Without::Input => "the input".into(),
        Without::LayerInputs => format!("rounded for layers alone ({grids} {all})"),
        Without::Op(op) => format!("written by {op} ({grids} {all})"),
    };
    format!("  {what:<48} {:7.1} dB", of.sqnr_db)
}

fn table(tensors: &[TensorDifference], verbose: bool) -> Vec<String> {
    let mut shown: Vec<&TensorDifference> = tensors.iter().collect();
    let title = if verbose || shown.len() <= SHOWN {
        "tensors in graph order".to_string()
    } else {
        shown.sort_by(|x, y| y.noise_added.total_cmp(&x.noise_added));
        shown.truncate(SHOWN);
        format!("the {SHOWN} that add most noise (-v: all {} in graph order)", tensors.len())
    };
    let row = |t: &&TensorDifference| {
        let (name, added) = (super::inspect::shortened(&t.name, 44), 100.0 * t.noise_added);
        let mark = if t.rescaled { " *" } else { "" };
        format!("  {name:<44} {:<18} {:7.1} dB {:9.2e} {added:8.3} %{mark}", t.op, t.sqnr_db, t.max_abs_diff)
    };
    let head = format!("  {:<44} {:<18} {:>10} {:>9} {:>10}", "tensor", "written by", "SQNR", "max diff", "noise +");
    [format!("{title}:"), head].into_iter().chain(shown.iter().map(row)).collect()
}
