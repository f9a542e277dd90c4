//! `fewbits demo`: the main job on what is built in.

use super::{Verdict, output::Output, quantize::command_line};
use fewbits::{
    Error, demo,
    evaluate::{Scores, evaluate},
    export, plan,
    quantize::{Settings, quantize},
    report,
    stream::Source,
    summary::summarize,
};
use fewbits_data::Preprocess;
use fewbits_graph::exec::Mode;
use fewbits_quant::{calibrate::Policy, target::Target};
use fewbits_report::Mode as ReportMode;
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

/// Everything on the built-in network and images; needs no files and no network.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder for the ONNX files, plans and reports
    #[arg(long, default_value = "fewbits-demo", value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Serialize)]
struct Row {
    weights: u8,
    activations: u8,
    fake_top1: f64,
    integer_top1: f64,
    file: PathBuf,
    bytes: u64,
    report: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    float_top1: f64,
    samples: usize,
    seconds: f64,
    quantized: Vec<Row>,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    let start = Instant::now();
    std::fs::create_dir_all(&args.out).map_err(Error::io("create", &args.out))?;
    let model = demo::model()?;
    let preprocess: Preprocess = model.preprocess()?.unwrap_or_default();
    let (calibration, test) = (demo::calibration_set(), demo::test_set());
    let calibration = Source {
        indices: calibration.spread(demo::CALIBRATION_SAMPLES),
        dataset: &calibration,
        preprocess: &preprocess,
    };
    let test = Source { indices: test.first(None), dataset: &test, preprocess: &preprocess };
    let (threads, progress) = (out.global.threads, out.progress());
    let float = evaluate(&model.graph, Mode::Float, &test, threads, &*progress)?;
    let float_file = args.out.join("demo.onnx");
    export::write(&float_file, &model.graph)?;
    let mut rows = Vec::new();
    for (weights, activations) in [(8, 8), (4, 8)] {
        let target = "ort".parse::<Target>()?;
        let settings = Settings::new(target, Policy::new(weights, activations, 8));
        let begun = Instant::now();
        let quantized = quantize(&model, &calibration, &settings, threads, &*progress)?;
        let samples = calibration.indices.len();
        let described = plan::describe(&quantized, &settings, samples);
        let qdq = export::qdq(&quantized.graph, &quantized.grids, &settings.target, &described, Some(&preprocess))?;
        let stem = format!("demo.w{weights}a{activations}");
        let file = args.out.join(format!("{stem}.onnx"));
        let bytes = export::write(&file, &qdq)?;
        plan::of(&quantized, &settings, samples, out.global.seed, Some(&preprocess))
            .save(&args.out.join(format!("{stem}.plan.json")))?;
        let summary = summarize(&model, &quantized, &settings, samples, bytes, begun.elapsed());
        let accuracy = |mode: Mode<'_>| evaluate(&quantized.graph, mode, &test, threads, &*progress);
        let (fake, integer) =
            (accuracy(Mode::FakeQuant(&quantized.grids))?, accuracy(Mode::Integer(&quantized.grids))?);
        let page = args.out.join(format!("{stem}.html"));
        let subject = report::Subject {
            command: &command_line(),
            model: &model,
            quantized: &quantized,
            settings: &settings,
            source: &calibration,
            summary: &summary,
            scores: &[(ReportMode::Float, &float), (ReportMode::Fake, &fake), (ReportMode::Integer, &integer)],
        };
        report::write(&page, &report::of(subject, threads, &*progress)?)?;
        rows.push(Row {
            weights,
            activations,
            fake_top1: fake.main(),
            integer_top1: integer.main(),
            file,
            bytes,
            report: page,
        });
    }
    let samples = match float {
        Scores::Classification { samples, .. } | Scores::Detection { samples, .. } => samples,
    };
    let report = Report { float_top1: float.main(), samples, seconds: start.elapsed().as_secs_f64(), quantized: rows };
    out.result(&report, &text(&report, args));
    Ok(Verdict::Done)
}

fn text(report: &Report, args: &Args) -> String {
    let mut lines = vec![
        format!("{:<22} {:>8} {:>10} {:>10}", "network", "top-1", "fake", "size"),
        format!("{:<22} {:>6.2} %", "float", report.float_top1),
    ];
    for row in &report.quantized {
        let name = format!("W{}A{}, integer", row.weights, row.activations);
        lines.push(format!(
            "{name:<22} {:>6.2} % {:>8.2} % {:>7.1} kB",
            row.integer_top1,
            row.fake_top1,
            row.bytes as f64 / 1e3
        ));
    }
    lines.push(format!(
        "{} drawn test images, {:.1} s; files and reports are in {}",
        report.samples,
        report.seconds,
        args.out.display()
    ));
    lines.push(format!("next: fewbits inspect {}", args.out.join("demo.onnx").display()));
    lines.join("\n")
}
