//! `fewbits bench`: how fast the engine is with a model.

use super::{
    Verdict,
    output::{Output, check_files},
    subject::{SubjectArgs, mode_name},
};
use fewbits::{
    Error,
    bench::{Timing, latency_table, time},
    latency,
};
use std::path::PathBuf;

/// Speed of the engine on this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Images per run, if the network leaves that open
    #[arg(long, default_value_t = 1, value_parser = super::count(), value_name = "N")]
    batch: usize,
    /// Runs that are timed
    #[arg(long, default_value_t = 20, value_parser = super::count(), value_name = "N")]
    runs: usize,
    /// Also write the times of the layers of a quantized model, for `fewbits search --budget latency=…`
    #[arg(long, value_name = "FILE.json")]
    latency_table: Option<PathBuf>,
}

pub fn run(args: &Args, out: &Output) -> Result<Verdict, Error> {
    check_files([args.latency_table.as_deref()], args.subject.files())?;
    let model = args.subject.load()?;
    let mode = args.subject.mode(&model)?;
    if let Some(path) = &args.latency_table {
        latency::save(&latency_table(&model, args.runs, out.global.threads)?, path)?;
    }
    let timing: Timing = time(&model, mode, args.batch, args.runs, out.global.threads)?;
    let text = format!(
        "{}, {}, batch {}, {} threads: {:.2} ms per run (fastest {:.2}), {:.1} images/s, {:.1} MB of buffers",
        args.subject.model.display(),
        mode_name(mode),
        timing.batch,
        timing.threads,
        1e3 * timing.median_seconds,
        1e3 * timing.fastest_seconds,
        timing.batch as f64 / timing.median_seconds,
        timing.buffer_bytes as f64 / 1e6,
    );
    out.result(&timing, &text);
    Ok(Verdict::Done)
}
