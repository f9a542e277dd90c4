//! `fewbits export`: the ONNX file of a model and a plan.

use super::{
    Verdict,
    output::{Output, check_files},
};
use fewbits::{Error, Model, export, plan};
use fewbits_quant::{Plan, target::Target};
use serde::Serialize;
use std::path::PathBuf;

/// Write the ONNX file of a model and a plan.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The float ONNX file that the plan was made for
    model: PathBuf,
    /// The plan
    #[arg(long, value_name = "P.json")]
    plan: PathBuf,
    /// The runtime that the file is for [default: the plan's]
    #[arg(long, value_name = "ort|tensorrt|generic")]
    target: Option<String>,
    /// Where the model goes
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    output: String,
    target: String,
    bytes: u64,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    check_files([Some(&*args.output)], [Some(&*args.model), Some(&*args.plan)])?;
    let model = Model::load(&args.model)?;
    let stored = Plan::load(&args.plan)?;
    let name = args.target.clone().unwrap_or_else(|| stored.target.clone());
    if name != stored.target {
        return Err(Error::Usage {
            what: format!("the plan places its grids for target `{}`, not `{name}`", stored.target),
            hint: format!("make a plan with `fewbits quantize … --target {name}`"),
        });
    }
    let target: Target = name.parse()?;
    let planned = plan::apply(&model, &args.plan)?;
    let settings = stored.history.last().map_or(serde_json::Value::Null, |step| step.config.clone());
    let grids = planned.grids.as_ref().expect("a plan brings grids");
    let preprocess = planned.preprocess()?;
    let qdq = export::qdq(&planned.graph, grids, &target, &settings, preprocess.as_ref())?;
    let bytes = export::write(&args.output, &qdq)?;
    let report = Report { output: args.output.display().to_string(), target: target.name, bytes };
    out.result(&report, &format!("{} ({:.2} MB) for {}", report.output, bytes as f64 / 1e6, target.runtime));
    Ok(Verdict::Done)
}
