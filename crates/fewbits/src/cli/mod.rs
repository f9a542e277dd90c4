//! The command line. stdout carries the result, stderr progress and messages.

mod bar;
mod bench;
mod compare;
mod data;
mod demo;
mod eval;
mod export;
mod inspect;
mod output;
mod quantize;
mod repro;
mod run;
mod search;
mod subject;
mod train;
mod zoo;

use clap::{Parser, Subcommand, ValueEnum, builder::RangedU64ValueParser};
use fewbits::Error;
use output::Output;
use std::{error::Error as _, process::ExitCode, time::Duration};

/// Convolutional networks in few bits: ONNX in, ONNX out.
#[derive(Debug, Parser)]
#[command(name = "fewbits", version, about, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Global {
    /// Worker threads; 0 means one per core. Results do not depend on it
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Key of everything random: searches, learned roundings, made-up images; initial weights, order and changes of training images
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Print the result only
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print more
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// How the result is printed
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON object
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything on the built-in network and images; needs no files and no network
    Demo(demo::Args),
    /// What is in a model, and what will quantize badly
    Inspect(inspect::Args),
    /// Turn a float model into a low-bit one, from a few hundred images
    Quantize(quantize::Args),
    /// Find how many bits each weight needs under a budget
    Search(search::Args),
    /// Accuracy of a model on labelled data
    Eval(eval::Args),
    /// Where two models part
    Compare(compare::Args),
    /// Outputs of a model on data, as an .npz file
    Run(run::Args),
    /// Write the ONNX file of a model and a plan
    Export(export::Args),
    /// Train a network in few bits, or in float, from labelled images
    Train(Box<train::Args>),
    /// Write a well-known architecture with initial weights
    Zoo(zoo::Args),
    /// Find a published table again on your data
    Repro(repro::Args),
    /// Speed of the engine on this machine
    Bench(bench::Args),
}

/// What a command ends with when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done.
    Done,
    /// Done, but the result misses a threshold that was asked for.
    Missed,
}

/// Refuses the first flag that is given though nothing looks at it: whether that is so, the flag, and what it goes with.
///
/// # Errors
/// [`Error::Usage`].
fn check_idle(flags: &[(bool, &str, &str)]) -> Result<(), Error> {
    match flags.iter().find(|(is_idle, ..)| *is_idle) {
        None => Ok(()),
        Some((_, flag, with)) => {
            Err(Error::Usage { what: format!("{flag} does nothing here"), hint: format!("it goes with {with}") })
        }
    }
}

/// A count of at least one.
fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// A share from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|x| (0.0..=1.0).contains(x));
    found.ok_or_else(|| format!("`{text}` is no number from 0 to 1"))
}

/// A share that leaves something over.
fn part(text: &str) -> Result<f64, String> {
    share(text).ok().filter(|x| *x < 1.0).ok_or_else(|| format!("`{text}` is no number from 0 on and below 1"))
}

/// A number from 0 on.
fn amount(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0);
    found.ok_or_else(|| format!("`{text}` is no number from 0 on"))
}

/// A number above 0.
fn positive(text: &str) -> Result<f64, String> {
    amount(text).ok().filter(|x| *x > 0.0).ok_or_else(|| format!("`{text}` is no number above 0"))
}

/// A time such as `90s`, `10m` or `1.5h`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let factor = match unit {
        "h" => 3600.0,
        "m" => 60.0,
        _ => 1.0,
    };
    let seconds = number.parse::<f64>().ok().map(|n| n * factor).and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| format!("`{text}` is no time; write 90s, 10m or 1h"))
}

/// Parses the arguments, runs the command, prints errors; exit codes 0 done, 1 threshold missed, 2 error.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let out = Output::new(cli.global);
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args, &out),
        Command::Inspect(args) => inspect::run(&args, &out),
        Command::Quantize(args) => quantize::run(&args, &out),
        Command::Search(args) => search::run(&args, &out),
        Command::Eval(args) => eval::run(&args, &out),
        Command::Compare(args) => compare::run(&args, &out),
        Command::Run(args) => run::run(&args, &out),
        Command::Export(args) => export::run(&args, &out),
        Command::Train(args) => train::run(&args, &out),
        Command::Zoo(args) => zoo::run(&args, &out),
        Command::Repro(args) => repro::run(&args, &out),
        Command::Bench(args) => bench::run(&args, &out),
    };
    match result {
        Ok(Verdict::Done) => ExitCode::SUCCESS,
        Ok(Verdict::Missed) => ExitCode::from(1),
        Err(error) => {
            out.error(&describe(&error));
            ExitCode::from(2)
        }
    }
}

/// The error, what caused it, and a hint.
fn describe(error: &Error) -> String {
    let mut text = format!("error: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!("\n  caused by: {inner}"));
        cause = inner.source();
    }
    if let Some(hint) = error.hint() {
        text.push_str(&format!("\n\nhint: {hint}"));
    }
    text
}
