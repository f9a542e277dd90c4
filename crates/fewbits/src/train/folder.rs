//! The run folder while a training goes by: its log and its checkpoint. Reports of steps and epochs enter; it knows no network.

use super::{EpochRow, Request};
use crate::progress::Progress;
use fewbits_files::write_atomically;
use fewbits_quant::Plan;
use fewbits_train::{
    TrainError,
    checkpoint::Checkpoint,
    trainer::{EpochReport, StepReport, Watcher},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Instant,
};

pub const STATE: &str = "state.safetensors";
pub const FLOAT: &str = "float.onnx";
pub const PLAN: &str = "plan.json";
/// A folder with it is that of a finished run.
pub const SUMMARY: &str = "summary.json";
/// The quantized file, unless it goes elsewhere.
const MODEL: &str = "model.onnx";
const EPOCHS: &str = "epochs.csv";
const STEPS: &str = "steps.jsonl";
const SCALES: &str = "scales.jsonl";
const EPOCHS_HEADER: &str = "epoch,loss,training_top1,top1,seconds";
/// Steps between lines of the log.
const LOGGED_EVERY: usize = 10;

/// The run folder: the log goes there while the training goes by.
pub struct Folder<'a> {
    out: PathBuf,
    checkpoint_every: usize,
    steps_per_epoch: usize,
    /// `steps.jsonl`, once the training has begun.
    steps: Option<BufWriter<File>>,
    progress: &'a dyn Progress,
    begun: Instant,
    /// What the epochs took that were there before.
    pub seconds_before: f64,
    first_step: usize,
    /// Of the epoch that is on: its begin, and its images so far.
    epoch_begun: Instant,
    images: usize,
    top1: Option<f64>,
    /// What each epoch found.
    pub rows: Vec<EpochRow>,
}

#[derive(Serialize)]
struct StepLine {
    step: usize,
    epoch: usize,
    loss: f64,
    top1: f64,
    learning_rate: f64,
}

/// Scales after an epoch, a line of `scales.jsonl`.
#[derive(Deserialize, Serialize)]
struct ScaleLine {
    epoch: usize,
    scales: BTreeMap<String, f32>,
}

/// Whether `path` is a file that a training into the folder `out` removes or replaces.
pub fn is_result(out: &Path, path: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(path).is_some_and(|path| {
        [FLOAT, PLAN, MODEL, SUMMARY].iter().any(|name| real(&out.join(name)).as_ref() == Some(&path))
    })
}

impl<'a> Folder<'a> {
    /// Nothing is written before [`Watcher::begin`].
    pub fn new(request: &Request<'_>, progress: &'a dyn Progress) -> Self {
        let images = request.training_limit.unwrap_or(usize::MAX).min(request.training.len());
        let steps_per_epoch = images / request.batch.max(1) / request.recipe.accumulate.max(1);
        Self::at(request.out, request.checkpoint_every, steps_per_epoch, progress)
    }

    fn at(out: &Path, checkpoint_every: usize, steps_per_epoch: usize, progress: &'a dyn Progress) -> Self {
        Folder {
            out: out.into(),
            checkpoint_every,
            steps_per_epoch,
            steps: None,
            progress,
            begun: Instant::now(),
            seconds_before: 0.0,
            first_step: 0,
            epoch_begun: Instant::now(),
            images: 0,
            top1: None,
            rows: vec![],
        }
    }

    /// Whether the folder is of a run that was interrupted.
    pub fn is_unfinished(&self) -> bool {
        self.out.join(STATE).exists() && !self.is_summed_up()
    }

    /// Whether there is a summary that a run has written: others have files of this name, too.
    fn is_summed_up(&self) -> bool {
        let text = fs::read_to_string(self.out.join(SUMMARY)).unwrap_or_default();
        let found: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        found["settings"]["fewbits"].is_string()
    }

    /// Begins the log; of a run that goes on, what came after `step` is cut off.
    fn open(&mut self, step: usize) -> io::Result<()> {
        let [steps, epochs, scales] = [STEPS, EPOCHS, SCALES].map(|name| self.out.join(name));
        fs::create_dir_all(&self.out)?;
        // Files of these names in a folder that no run has been in are somebody else's.
        let is_run = epochs.exists() || self.out.join(STATE).exists();
        if is_run && step == 0 {
            // An earlier run's state would not go with the new log, nor would what it made.
            [STATE, SCALES, MODEL].iter().try_for_each(|name| remove(&self.out.join(name)))?;
        }
        if is_run {
            Plan::remove(&self.out.join(PLAN));
            [SUMMARY, FLOAT].iter().try_for_each(|name| remove(&self.out.join(name)))?;
        }
        if step == 0 {
            fs::write(&steps, "")?;
            fs::write(&epochs, format!("{EPOCHS_HEADER}\n"))?;
        } else {
            let over = |epoch: usize| epoch * self.steps_per_epoch <= step;
            keep_lines(&steps, |line| number(line, "\"step\":").is_some_and(|s| s < step))?;
            let before = |line: &str| line.split(',').next().and_then(|e| e.parse().ok());
            keep_lines(&epochs, |line| before(line).is_none_or(over))?;
            let mut known = BTreeMap::new();
            if scales.exists() {
                keep_lines(&scales, |line| number(line, "\"epoch\":").is_some_and(over))?;
                let lines = fs::read_to_string(&scales)?;
                let read = lines.lines().filter_map(|line| serde_json::from_str::<ScaleLine>(line).ok());
                known.extend(read.map(|line| (line.epoch, line.scales)));
            }
            for (mut row, seconds) in fs::read_to_string(&epochs)?.lines().filter_map(row) {
                row.scales = known.remove(&row.epoch).unwrap_or_default().into_iter().collect();
                self.rows.push(row);
                self.seconds_before = seconds;
            }
            self.top1 = self.rows.last().map(|row| row.top1);
        }
        self.steps = Some(BufWriter::new(OpenOptions::new().append(true).open(steps)?));
        (self.begun, self.epoch_begun) = (Instant::now(), Instant::now());
        self.first_step = step;
        Ok(())
    }

    /// Adds a line to `file`.
    fn append(&self, file: &str, line: &str) -> Result<(), TrainError> {
        let opened = OpenOptions::new().create(true).append(true).open(self.out.join(file));
        opened.and_then(|mut f| writeln!(f, "{line}")).map_err(self.failed(file))
    }

    /// An error of `file` in the folder.
    fn failed(&self, file: &str) -> impl Fn(io::Error) -> TrainError + use<> {
        let path = self.out.join(file);
        move |source| TrainError::Log { path: path.clone(), source }
    }

    fn flush(&mut self) -> Result<(), TrainError> {
        let failed = self.failed(STEPS);
        self.steps.as_mut().map_or(Ok(()), BufWriter::flush).map_err(failed)
    }
}

/// A line of `epochs.csv` but for the header, and its seconds.
fn row(line: &str) -> Option<(EpochRow, f64)> {
    let (epoch, rest) = line.split_once(',')?;
    let mut numbers = rest.split(',').map_while(|number| number.parse().ok());
    let [loss, training_top1, top1, seconds] = [numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?];
    Some((EpochRow { epoch: epoch.parse().ok()?, loss, training_top1, top1, scales: vec![] }, seconds))
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

fn number(line: &str, key: &str) -> Option<usize> {
    let rest = &line[line.find(key)? + key.len()..];
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn keep_lines(path: &Path, keep: impl Fn(&str) -> bool) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let kept: String = text.lines().filter(|line| keep(line)).map(|line| format!("{line}\n")).collect();
    write_atomically(path, |w| w.write_all(kept.as_bytes()))
}

impl Watcher for Folder<'_> {
    fn begin(&mut self, step: usize) -> Result<(), TrainError> {
        self.open(step).map_err(self.failed(""))
    }

    fn step(&mut self, report: &StepReport) -> Result<(), TrainError> {
        self.images += report.images;
        if report.step == self.first_step {
            // Steps made before say nothing of the time left.
            self.progress.begin("training", report.steps - self.first_step);
        }
        let rate = self.images as f64 / self.epoch_begun.elapsed().as_secs_f64().max(1e-9);
        let batch_top1 = 100.0 * report.loss.hits as f64 / report.images.max(1) as f64;
        let scored = self.top1.map_or(String::new(), |t| format!("  top-1 {t:.2} %"));
        self.progress.say(&format!(
            "epoch {}  loss {:.4}  batch {batch_top1:.1} %{scored}  {rate:.0} images/s",
            report.epoch + 1,
            report.loss.total
        ));
        self.progress.step();
        if !report.step.is_multiple_of(LOGGED_EVERY) && report.step + 1 < report.steps {
            return Ok(());
        }
        let line = StepLine {
            step: report.step,
            epoch: report.epoch + 1,
            loss: report.loss.total,
            top1: batch_top1,
            learning_rate: report.learning_rate,
        };
        let text = serde_json::to_string(&line).expect("numbers are valid JSON");
        let failed = self.failed(STEPS);
        self.steps.as_mut().map_or(Ok(()), |file| writeln!(file, "{text}")).map_err(failed)
    }

    fn scoring(&mut self, epoch: usize) {
        self.progress.say(&format!("epoch {}  scoring", epoch + 1));
    }

    fn epoch(&mut self, report: &EpochReport) -> Result<(), TrainError> {
        let EpochReport { loss, training_top1, top1, scales, .. } = report.clone();
        let epoch = report.epoch + 1;
        self.top1 = Some(top1);
        let seconds = self.seconds_before + self.begun.elapsed().as_secs_f64();
        self.append(EPOCHS, &format!("{epoch},{loss:.6},{training_top1:.3},{top1:.3},{seconds:.1}"))?;
        if !scales.is_empty() {
            let line = ScaleLine { epoch, scales: scales.iter().cloned().collect() };
            self.append(SCALES, &serde_json::to_string(&line).expect("names and numbers are valid JSON"))?;
        }
        self.progress.line(&format!(
            "epoch {epoch:>3}  loss {loss:.4}  training top-1 {training_top1:.2} %  top-1 {top1:.2} %{}",
            match (report.best, report.not_final) {
                (true, _) => "  best".into(),
                (false, Some(reason)) => format!("  ({reason})"),
                (false, None) => String::new(),
            }
        ));
        self.rows.push(EpochRow { epoch, loss, training_top1, top1, scales });
        (self.epoch_begun, self.images) = (Instant::now(), 0);
        self.flush()
    }

    fn wants_checkpoint(&mut self, step: usize) -> bool {
        self.checkpoint_every > 0 && step.is_multiple_of(self.checkpoint_every)
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        self.flush()?;
        checkpoint.write(&self.out.join(STATE))
    }
}

#[cfg(test)]
mod tests;
