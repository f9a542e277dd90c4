//! What was measured, on disk.

use super::{
    super::results::{JSON, earlier},
    Paired, PostTable,
};
use crate::Error;
use fewbits_files::write_atomically;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io::Write, path::Path};

/// What results belong to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PostSetup {
    /// Version of the program.
    #[serde(default)]
    pub fewbits: String,
    /// Name of the table.
    pub table: String,
    /// The float model.
    pub model: String,
    /// Of its graph ([`model_sha256`](fewbits_quant::plan::model_sha256)).
    pub model_sha256: String,
    /// Data that it is calibrated on.
    pub calibration_data: String,
    /// How many of its images.
    pub calibration: usize,
    /// Labelled data.
    pub validation_data: String,
    /// How many of its images.
    pub validation: usize,
    /// How images are prepared.
    pub preprocess: String,
    /// Bits of weights whose bytes no row exceeds.
    pub weights: u8,
    /// Bits of activations.
    pub activations: u8,
    /// Assignments that a search tries.
    pub evaluations: usize,
    /// Samples that damage is measured on.
    pub samples: usize,
    /// Start of everything random.
    pub seed: u64,
    /// The command line.
    pub command: String,
}

/// One network on the labelled images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The row.
    pub row: String,
    /// Top-1 or AP, percent.
    pub score: f64,
    /// Of a detector.
    pub ap50: Option<f64>,
    /// Bytes to deploy.
    pub bytes: Option<u64>,
    /// Searching, quantizing and scoring.
    pub seconds: f64,
    /// Whether each image was classified right; of a classifier.
    pub hits: Vec<bool>,
}

/// A row as it is printed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PostLine {
    /// The row.
    pub row: String,
    /// Whether integer kernels compute it.
    pub deployable: bool,
    /// Bytes to deploy.
    pub bytes: Option<u64>,
    /// Top-1 or AP, percent.
    pub score: f64,
    /// Of a detector.
    pub ap50: Option<f64>,
    /// Points less than the float network.
    pub loss: f64,
    /// Points more than the strongest baseline.
    pub gain: Option<f64>,
    /// Compared with that baseline, image by image.
    pub paired: Option<Paired>,
}

/// Everything found so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PostResults {
    /// Of what.
    pub setup: PostSetup,
    /// The float network.
    pub float: Option<Measured>,
    /// Bytes that no row may exceed.
    pub uniform_bytes: Option<u64>,
    /// Bits that searches found, by search and weight.
    pub searched: BTreeMap<String, BTreeMap<String, u8>>,
    /// Rows, as they were finished.
    pub rows: Vec<Measured>,
}

impl PostResults {
    /// What `folder` holds of `setup`, or nothing yet. The command line itself may differ.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Usage`] if it is of another setup.
    pub fn open(folder: &Path, setup: PostSetup) -> Result<Self, Error> {
        let is_same =
            |found: &PostResults| (PostSetup { command: setup.command.clone(), ..found.setup.clone() }) == setup;
        let found = earlier(&folder.join(JSON), is_same)?;
        Ok(found.unwrap_or_else(|| PostResults { setup, ..PostResults::default() }))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let json = serde_json::to_string(self).expect("results have text keys only");
        let path = folder.join(JSON);
        write_atomically(&path, |w| w.write_all(json.as_bytes())).map_err(Error::io("write", &path))
    }

    /// Every row with what it gains over the strongest baseline of `table`.
    pub fn lines(&self, table: &PostTable) -> Vec<PostLine> {
        let is_baseline = |row: &Measured| table.rows.iter().any(|r| r.name == row.row && r.is_baseline);
        let baselines = self.rows.iter().filter(|row| is_baseline(row));
        let strongest = baselines.max_by(|a, b| a.score.total_cmp(&b.score));
        let float = self.float.as_ref().map_or(f64::NAN, |float| float.score);
        let line = |row: &Measured| {
            let reference = strongest.filter(|_| !is_baseline(row));
            let paired = reference.filter(|reference| !reference.hits.is_empty());
            PostLine {
                row: row.row.clone(),
                deployable: table.rows.iter().all(|r| r.name != row.row || r.methods.deployable()),
                bytes: row.bytes,
                score: row.score,
                ap50: row.ap50,
                loss: float - row.score,
                gain: reference.map(|reference| row.score - reference.score),
                paired: paired.map(|reference| Paired::of(&row.hits, &reference.hits)),
            }
        };
        self.float.iter().chain(&self.rows).map(line).collect()
    }
}
