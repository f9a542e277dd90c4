//! What has been found so far, on disk: `results.json`, from which an interrupted reproduction goes on, and `results.csv`.

use super::table::{Accuracy, Row, Table};
use crate::Error;
use fewbits_files::write_atomically;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// What every row has in common. Rows found under another setup are never mixed with these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Version of the program.
    #[serde(default)]
    pub fewbits: String,
    /// The table's name.
    pub table: String,
    /// The network and the data in words, such as `10 classes of 32x32, swishnet proxy`.
    pub here: String,
    /// Whether another network, other data or a part of them stand in for the paper's.
    pub proxy: bool,
    /// The pretrained float network, if one was given.
    pub model: Option<PathBuf>,
    /// Of the graph that the float network begins with ([`model_sha256`](fewbits_quant::plan::model_sha256)).
    pub model_sha256: String,
    /// How images are prepared.
    pub preprocess: String,
    /// Training images.
    pub data: PathBuf,
    /// How many.
    pub images: usize,
    /// Images that are scored.
    pub validation: PathBuf,
    /// How many.
    pub validation_images: usize,
    /// Epochs of each quantized training.
    pub epochs: usize,
    /// Epochs of the float training.
    pub float_epochs: usize,
    /// Images of a batch.
    pub batch: usize,
    /// Of the float training, and of the first run of each row.
    pub seed: u64,
}

/// The float network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Float {
    /// Top-1, percent.
    pub top1: f64,
    /// Wall time of its training.
    pub seconds: Option<f64>,
    /// How it was trained; `null` if it was given.
    pub recipe: serde_json::Value,
}

/// One run of one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the row.
    pub row: String,
    /// Bits of weights.
    pub weights: u8,
    /// Bits of activations.
    pub activations: u8,
    /// Seed.
    pub seed: u64,
    /// Top-1 by fake quantization, percent.
    pub fake_top1: f64,
    /// Top-1 in integers, percent.
    pub integer_top1: Option<f64>,
    /// Why there is no integer network.
    pub not_deployable: Option<String>,
    /// Bytes of the float network, normalization folded, and of the deployed one.
    pub bytes: Option<(u64, u64)>,
    /// Wall time.
    pub seconds: f64,
    /// Every setting.
    pub recipe: serde_json::Value,
    /// The command that made it.
    pub command: String,
}

/// Everything found so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// What rows have in common.
    pub setup: Setup,
    /// The float network, when it is there.
    pub float: Option<Float>,
    /// Finished runs, in the order in which they finished.
    pub runs: Vec<Run>,
}

/// A row of the table with what its runs found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Name of the row.
    pub row: &'static str,
    /// Bits of weights.
    pub weights: u8,
    /// Bits of activations.
    pub activations: u8,
    /// Top-1 that the paper found, percent, and its spread.
    pub published: (f64, Option<f64>),
    /// Runs so far.
    pub runs: usize,
    /// Top-1 by fake quantization, percent, and its spread.
    pub fake: Option<(f64, Option<f64>)>,
    /// The same in integers, if every run has a deployed network.
    pub integer: Option<(f64, Option<f64>)>,
    /// 32-bit bytes over bytes: by the bits of weights alone, and exactly.
    pub compression: (f64, Option<f64>),
}

/// Results.
pub(super) const JSON: &str = "results.json";
const CSV: &str = "results.csv";

/// What the file at `path` holds, if there is one.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Usage`] if it is not of the same setup.
pub(super) fn earlier<T: DeserializeOwned>(path: &Path, is_same: impl Fn(&T) -> bool) -> Result<Option<T>, Error> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let broken = |e: serde_json::Error| Error::io("read", path)(io::Error::new(io::ErrorKind::InvalidData, e));
    match serde_json::from_str(&text).map_err(broken)? {
        found if is_same(&found) => Ok(Some(found)),
        _ => Err(Error::Usage {
            what: format!("`{}` holds results of another setup, or of another version", path.display()),
            hint: "repeat the flags it was made with, or choose another --out".into(),
        }),
    }
}

impl Results {
    /// What `folder` holds of `setup`, or nothing yet.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Usage`] if it is of another setup.
    pub fn open(folder: &Path, setup: Setup) -> Result<Self, Error> {
        let found = earlier(&folder.join(JSON), |found: &Results| found.setup == setup)?;
        Ok(found.unwrap_or(Results { setup, float: None, runs: vec![] }))
    }

    /// Writes both files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, folder: &Path, table: &Table) -> Result<(), Error> {
        let json = serde_json::to_string_pretty(self).expect("results have text keys only");
        for (name, text) in [(JSON, json), (CSV, self.csv(table))] {
            let path = folder.join(name);
            write_atomically(&path, |w| w.write_all(text.as_bytes())).map_err(Error::io("write", &path))?;
        }
        Ok(())
    }

    /// The run of `row` with `seed`, if it is finished.
    pub fn find(&self, row: &Row, seed: u64) -> Option<&Run> {
        self.of(row.name, (row.weights, row.activations)).find(|run| run.seed == seed)
    }

    fn of<'a>(&'a self, row: &'a str, bits: (u8, u8)) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().filter(move |run| run.row == row && (run.weights, run.activations) == bits)
    }

    /// Top-1 by fake quantization over the runs of a row, as the papers measure.
    pub fn fake(&self, row: &str, bits: (u8, u8)) -> Option<Accuracy> {
        mean(&self.of(row, bits).map(|run| run.fake_top1).collect::<Vec<_>>())
    }

    /// Every row of `table` with what was found.
    pub fn lines(&self, table: &Table) -> Vec<Line> {
        let pair = |a: Accuracy| (a.mean, a.spread);
        let line = |row: &Row| {
            let bits = (row.weights, row.activations);
            let integer: Option<Vec<f64>> = self.of(row.name, bits).map(|run| run.integer_top1).collect();
            let bytes = self.of(row.name, bits).find_map(|run| run.bytes);
            Line {
                row: row.name,
                weights: row.weights,
                activations: row.activations,
                published: pair(row.published),
                runs: self.of(row.name, bits).count(),
                fake: self.fake(row.name, bits).map(pair),
                integer: integer.and_then(|all| mean(&all)).map(pair),
                compression: (
                    32.0 / f64::from(row.weights),
                    bytes.map(|(float, own)| float as f64 / own.max(1) as f64),
                ),
            }
        };
        table.rows.iter().map(line).collect()
    }

    fn csv(&self, table: &Table) -> String {
        let head = "row,weights,activations,seed,published_imagenet,published_spread,fake_top1,integer_top1,\
                    float_bytes,bytes,seconds\n";
        let cell = |value: Option<String>| value.unwrap_or_default();
        let line = |run: &Run| {
            let published = table.published(&run.row, (run.weights, run.activations));
            format!(
                "{},{},{},{},{},{},{},{},{},{},{:.1}\n",
                run.row,
                run.weights,
                run.activations,
                run.seed,
                cell(published.map(|p| p.mean.to_string())),
                cell(published.and_then(|p| p.spread).map(|s| s.to_string())),
                run.fake_top1,
                cell(run.integer_top1.map(|x| x.to_string())),
                cell(run.bytes.map(|b| b.0.to_string())),
                cell(run.bytes.map(|b| b.1.to_string())),
                run.seconds,
            )
        };
        std::iter::once(head.to_string()).chain(self.runs.iter().map(line)).collect()
    }
}

/// Mean, and the standard deviation of a sample of several.
fn mean(values: &[f64]) -> Option<Accuracy> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (!values.is_empty())
        .then(|| Accuracy { mean, spread: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()) })
}
