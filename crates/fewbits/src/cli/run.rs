//! `fewbits run`: outputs of a model on data; `fewbits bench`: how fast that is.

use super::{
    Verdict,
    data::PreprocessArgs,
    eval::{ModeArg, mode_name},
    output::Output,
};
use fewbits::{
    Error,
    bench::{Timing, time},
    stream::{Run, Source, stream},
};
use fewbits_data::{npy, npz};
use serde::Serialize;
use std::path::PathBuf;

/// Outputs of a model on data, as an .npz file with one array per output.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ONNX file
    model: PathBuf,
    /// Images or prepared arrays
    #[arg(long)]
    data: PathBuf,
    /// Plan of the float model; without it a quantized file brings its own grids
    #[arg(long, value_name = "P.json")]
    plan: Option<PathBuf>,
    /// How it is computed [default: integer for quantized models, float for others]
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// The first N samples only
    #[arg(long, value_parser = super::count(), value_name = "N")]
    limit: Option<usize>,
    /// Where the outputs go
    #[arg(short, long, value_name = "OUT.npz")]
    output: PathBuf,
    #[command(flatten)]
    preprocess: PreprocessArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    mode: &'static str,
    samples: usize,
    outputs: Vec<(String, Vec<usize>)>,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let loaded = super::plan::load(&args.model, args.plan.as_deref())?;
    let mode = loaded.mode(args.mode)?;
    let graph = &loaded.model.graph;
    let dataset = args.preprocess.open(&args.data)?;
    let preprocess = args.preprocess.resolve(&loaded.model, &dataset, out)?;
    let source = Source { indices: dataset.first(args.limit), dataset: &dataset, preprocess: &preprocess };
    let mut arrays: Vec<(Vec<usize>, Vec<f32>)> = vec![(vec![], vec![]); graph.outputs.len()];
    let progress = out.progress();
    progress.begin("running", source.indices.len());
    stream(
        &Run { graph, mode, observed: vec![] },
        &source,
        out.global.threads,
        &*progress,
        |_| (),
        |(), _| {},
        |(), seen| Ok(seen),
        |seen| {
            for ((dims, values), output) in arrays.iter_mut().zip(&seen.outputs) {
                let batch = output.dims.first().copied().unwrap_or(1).max(1);
                let samples = seen.batch.indices.len().min(batch);
                let kept = output.as_f32().map_or(&[][..], |v| &v[..v.len() / batch * samples]);
                values.extend(kept);
                let total = dims.first().copied().unwrap_or(0) + samples;
                *dims = std::iter::once(total).chain(output.dims.iter().skip(1).copied()).collect();
            }
            Ok(())
        },
    )?;
    progress.end();
    let names = graph.outputs.iter().map(|o| o.name.as_str());
    let named: Vec<_> =
        names.zip(&arrays).map(|(name, (dims, values))| (name, &dims[..], npy::Elements::F32(values))).collect();
    npz::save(&args.output, &named)?;
    let report = Report {
        model: args.model.display().to_string(),
        mode: mode_name(mode),
        samples: source.indices.len(),
        outputs: graph.outputs.iter().zip(&arrays).map(|(o, (dims, _))| (o.name.clone(), dims.clone())).collect(),
    };
    let text = report.outputs.iter().map(|(name, dims)| format!("{name}: {dims:?}")).collect::<Vec<_>>().join("\n");
    out.result(&report, &format!("{text}\nwritten to {}", args.output.display()));
    Ok(Verdict::Done)
}

/// Speed of the engine on this machine.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// The ONNX file
    model: PathBuf,
    /// Plan of the float model
    #[arg(long, value_name = "P.json")]
    plan: Option<PathBuf>,
    /// How it is computed [default: integer for quantized models, float for others]
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// Images per run
    #[arg(long, default_value_t = 1, value_parser = super::count(), value_name = "N")]
    batch: usize,
    /// Runs that are timed
    #[arg(long, default_value_t = 20, value_parser = super::count(), value_name = "N")]
    runs: usize,
}

pub fn bench(args: &BenchArgs, out: &Output) -> Result<Verdict, Error> {
    let loaded = super::plan::load(&args.model, args.plan.as_deref())?;
    let mode = loaded.mode(args.mode)?;
    let timing: Timing = time(&loaded.model, mode, args.batch, args.runs, out.global.threads)?;
    let text = format!(
        "{}, {}, batch {}, {} threads: {:.2} ms per run (fastest {:.2}), {:.1} images/s, {:.1} MB of buffers",
        args.model.display(),
        mode_name(mode),
        args.batch,
        timing.threads,
        1e3 * timing.median_seconds,
        1e3 * timing.fastest_seconds,
        args.batch as f64 / timing.median_seconds,
        timing.buffer_bytes as f64 / 1e6,
    );
    out.result(&timing, &text);
    Ok(Verdict::Done)
}
