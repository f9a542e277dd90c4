//! `fewbits zoo`: well-known architectures, initialised for training.

use super::{Verdict, output::Output};
use fewbits::{Error, export};
use fewbits_zoo::{Options, ZooError};
use serde::Serialize;
use std::path::PathBuf;

/// Write a well-known architecture with initial weights, ready to be trained.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// demo, efficientnet_b0, mixnet_s, mobilenet_v2, resnet18, resnet20, resnet50, swishnet, yolov3 or yolov3_tiny
    arch: String,
    /// Number of classes [default: 1000; 10 for images up to 64x64; 80 for detectors]
    #[arg(long, value_name = "N")]
    classes: Option<usize>,
    /// Channels, height and width of the input; up to 64x64, the first layers keep the size [default: the published one]
    #[arg(long, value_name = "3x32x32", value_parser = shape)]
    input: Option<[usize; 3]>,
    /// Factor of the channels, for mobilenet_v2
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    width: f32,
    /// Where the model goes
    #[arg(short, long, value_name = "MODEL.onnx")]
    output: PathBuf,
}

fn shape(text: &str) -> Result<[usize; 3], String> {
    let numbers: Option<Vec<usize>> = text.split('x').map(|n| n.parse().ok()).collect();
    let shape = numbers.and_then(|numbers| numbers.try_into().ok());
    shape.ok_or_else(|| "expected channels, height and width, such as 3x32x32".into())
}

#[derive(Debug, Serialize)]
struct Report {
    name: String,
    input: [usize; 3],
    parameters: usize,
    macs: u64,
    outputs: Vec<Shape>,
    output: PathBuf,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Shape {
    name: String,
    dims: Vec<String>,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let architecture = fewbits_zoo::find(&args.arch).map_err(misuse)?;
    let Args { classes, input, width, .. } = *args;
    let graph = architecture.build(&Options { classes, input, width, seed: out.global.seed }).map_err(misuse)?;
    let input = input.unwrap_or(architecture.input);
    let shape = |v: &fewbits_graph::ValueInfo| Shape {
        name: v.name.clone(),
        dims: v.dims.iter().flatten().map(ToString::to_string).collect(),
    };
    let report = Report {
        name: args.arch.clone(),
        input,
        parameters: fewbits_zoo::parameters(&graph),
        macs: fewbits_zoo::macs(&graph, input).map_err(Error::graph(&args.output))?,
        outputs: graph.outputs.iter().map(shape).collect(),
        bytes: export::write(&args.output, &graph)?,
        output: args.output.clone(),
    };
    out.result(&report, &text(&report));
    Ok(Verdict::Done)
}

fn misuse(error: ZooError) -> Error {
    Error::Usage { what: error.to_string(), hint: error.hint().unwrap_or_default() }
}

fn text(report: &Report) -> String {
    let [channels, height, width] = report.input;
    let (parameters, macs) = (report.parameters as f64 / 1e6, report.macs as f64 / 1e6);
    let mut lines = vec![format!(
        "{}: {parameters:.3} M parameters, {macs:.1} MMACs for an image of {channels}x{height}x{width}",
        report.name
    )];
    lines.extend(report.outputs.iter().map(|o| format!("output {} [{}]", o.name, o.dims.join(", "))));
    lines.push(format!("{} ({:.2} MB)", report.output.display(), report.bytes as f64 / 1e6));
    lines.join("\n")
}
