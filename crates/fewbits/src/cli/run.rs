//! `fewbits run`: outputs of a model on data.

use super::{
    Verdict,
    data::PreprocessArgs,
    output::{Output, check_files},
    subject::{SubjectArgs, mode_name},
};
use fewbits::{
    Error, Model,
    stream::{Source, outputs},
};
use fewbits_data::{npy, npz};
use fewbits_graph::{DType, ValueInfo};
use serde::Serialize;
use std::path::PathBuf;

/// Outputs of a model on data, as an .npz file with one array per output.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Images or prepared arrays
    #[arg(long)]
    data: PathBuf,
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
    check_files([Some(&*args.output)], args.subject.files().into_iter().chain([Some(&*args.data)]))?;
    let model = args.subject.load()?;
    let mode = args.subject.mode(&model)?;
    let graph = &model.graph;
    let dataset = args.preprocess.open(&args.data)?;
    let preprocess = args.preprocess.resolve(&model, &dataset, out)?;
    let source = Source { indices: dataset.first(args.limit), dataset: &dataset, preprocess: &preprocess };
    let not_float = |info: &&ValueInfo| info.dtype != DType::F32;
    if let Some(info) = graph.outputs.iter().find(not_float) {
        return Err(Error::Usage {
            what: format!("output `{}` is {}, and only float32 is stored", info.name, info.dtype),
            hint: "cut the model before it".into(),
        });
    }
    let mut arrays: Vec<(Vec<usize>, Vec<f32>)> = vec![(vec![], vec![]); graph.outputs.len()];
    let size = Model::fixed_batch(graph).unwrap_or(1);
    let progress = out.progress();
    progress.begin("running", source.indices.len());
    outputs(graph, mode, &source, out.global.threads, &*progress, |seen| {
        for ((dims, values), output) in arrays.iter_mut().zip(&seen.outputs) {
            // Where axis 0 is not the batch, the whole tensor belongs to one sample.
            let (batch, of_sample) = match &output.dims[..] {
                [first, rest @ ..] if *first == size => (size, rest),
                whole => (1, whole),
            };
            let samples = seen.batch.indices.len().min(batch);
            let kept = output.as_f32().map_or(&[][..], |v| &v[..v.len() / batch * samples]);
            values.extend(kept);
            if dims.get(1..).is_some_and(|known| known != of_sample) {
                return Err(Error::Usage {
                    what: format!(
                        "outputs of `{}` have the shape {of_sample:?}, those before {:?}",
                        source.dataset.name(seen.batch.indices[0]).display(),
                        &dims[1..]
                    ),
                    hint: "bring all images to one size with --crop, --resize-to or --letterbox".into(),
                });
            }
            let total = dims.first().copied().unwrap_or(0) + samples;
            *dims = std::iter::once(total).chain(of_sample.iter().copied()).collect();
        }
        Ok(())
    })?;
    progress.end();
    let names = graph.outputs.iter().map(|o| o.name.as_str());
    let named: Vec<_> =
        names.zip(&arrays).map(|(name, (dims, values))| (name, &dims[..], npy::Elements::F32(values))).collect();
    npz::save(&args.output, &named)?;
    let report = Report {
        model: args.subject.model.display().to_string(),
        mode: mode_name(mode),
        samples: source.indices.len(),
        outputs: graph.outputs.iter().zip(&arrays).map(|(o, (dims, _))| (o.name.clone(), dims.clone())).collect(),
    };
    let text = report.outputs.iter().map(|(name, dims)| format!("{name}: {dims:?}")).collect::<Vec<_>>().join("\n");
    out.result(&report, &format!("{text}\nwritten to {}", args.output.display()));
    Ok(Verdict::Done)
}
