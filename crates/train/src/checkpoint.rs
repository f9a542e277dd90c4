//! The state of a training in a file: enough to go on as if it had not been interrupted, to the last bit.
//!
//! A safetensors file: vectors as tensors, counters and the recipe's description in the metadata.

use crate::{TrainError, loss::Loss, optimizer};
use fewbits_files::write_atomically;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io::Write, path::Path};

/// Sums over the batches of an epoch so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Losses.
    pub loss: f64,
    /// Images classified right.
    pub hits: usize,
    /// Images.
    pub images: usize,
    /// Batches.
    pub batches: usize,
}

impl Tally {
    /// Counts a batch of `images`.
    pub fn add(&mut self, loss: &Loss, images: usize) {
        self.loss += loss.total;
        self.hits += loss.hits;
        self.images += images;
        self.batches += 1;
    }
}

/// What a run goes on with only if it is the same, in words and digests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Recipe, target, and how batches are made.
    pub settings: String,
    /// Names and labels of images, and how many batches they make.
    pub data: String,
    /// The network, with its weights as they are trained, and the teacher.
    pub network: String,
}

impl Identity {
    /// What is not the same in `other`.
    pub fn difference(&self, other: &Identity) -> Option<&'static str> {
        let parts = [
            (self.settings != other.settings, "other settings"),
            (self.data != other.data, "other data"),
            (self.network != other.network, "another network or teacher, or channels equalized in another way"),
        ];
        parts.into_iter().find(|(differs, _)| *differs).map(|(_, what)| what)
    }
}

/// What a training remembers between steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// What it belongs to.
    pub identity: Identity,
    /// Steps done.
    pub step: usize,
    /// [`fewbits_graph::tape::Leaves::values`].
    pub values: Vec<f32>,
    /// [`fewbits_graph::tape::Leaves::statistics`].
    pub statistics: Vec<f32>,
    /// The optimizer's.
    pub optimizer: optimizer::State,
    /// The moving averages of values and statistics, if there are any.
    pub average: [Vec<f32>; 2],
    /// How many steps it took in.
    pub average_updates: u64,
    /// Values and statistics of the best epoch so far.
    pub best: [Vec<f32>; 2],
    /// Its score and its number.
    pub best_score: Option<(f64, usize)>,
    /// Of the epoch that is not over.
    pub tally: Tally,
}

const COUNTERS: &str = "fewbits.training";

impl Checkpoint {
    /// Writes the file; it appears only when it is complete.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`].
    pub fn write(&self, path: &Path) -> Result<(), TrainError> {
        let counters = serde_json::json!({
            "identity": self.identity,
            "step": self.step,
            "optimizer_steps": self.optimizer.steps,
            "average_updates": self.average_updates,
            "best_score": self.best_score.map(|(score, _)| score),
            "best_epoch_from_0": self.best_score.map(|(_, epoch)| epoch),
            "loss": self.tally.loss,
            "hits": self.tally.hits,
            "images": self.tally.images,
            "batches": self.tally.batches,
        });
        let bytes: Vec<(&str, Vec<u8>)> = self.vectors().into_iter().map(|(name, v)| (name, to_bytes(v))).collect();
        let refuse = |what: String| TrainError::Checkpoint { path: path.into(), what };
        let views: Result<Vec<_>, _> =
            bytes.iter().map(|(n, b)| Ok((*n, TensorView::new(Dtype::F32, vec![b.len() / 4], b)?))).collect();
        let views = views.map_err(|e: safetensors::SafeTensorError| refuse(e.to_string()))?;
        let metadata = [(COUNTERS.to_string(), counters.to_string())].into();
        let file = safetensors::serialize(views, Some(metadata)).map_err(|e| refuse(e.to_string()))?;
        write_atomically(path, |w| w.write_all(&file)).map_err(|e| refuse(e.to_string()))
    }

    /// Reads a file back.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`].
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let refuse = |what: String| TrainError::Checkpoint { path: path.into(), what };
        let file = std::fs::read(path).map_err(|e| refuse(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&file).map_err(|e| refuse(e.to_string()))?;
        let text = header.metadata().as_ref().and_then(|m| m.get(COUNTERS)).cloned();
        let text = text.ok_or_else(|| refuse("it is no checkpoint of a training".into()))?;
        let counters: serde_json::Value = serde_json::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        let tensors = SafeTensors::deserialize(&file).map_err(|e| refuse(e.to_string()))?;
        let mut vectors = BTreeMap::new();
        for (name, view) in tensors.tensors() {
            vectors.insert(name, from_bytes(view.data()));
        }
        let mut take = |name: &str| vectors.remove(name).unwrap_or_default();
        let number = |key: &str| counters.get(key).and_then(serde_json::Value::as_u64);
        let missing = || refuse("a counter is missing".into());
        let fraction = |key: &str| counters.get(key).and_then(serde_json::Value::as_f64);
        let count = |key: &str| number(key).map(|n| n as usize).ok_or_else(missing);
        Ok(Checkpoint {
            identity: Identity::deserialize(&counters["identity"])
                .map_err(|_| refuse("it was written by another version".into()))?,
            step: count("step")?,
            values: take("values"),
            statistics: take("statistics"),
            optimizer: optimizer::State {
                steps: number("optimizer_steps").ok_or_else(missing)? as _,
                first: take("optimizer.first"),
                second: take("optimizer.second"),
            },
            average: [take("average.values"), take("average.statistics")],
            average_updates: number("average_updates").ok_or_else(missing)?,
            best: [take("best.values"), take("best.statistics")],
            best_score: fraction("best_score").zip(number("best_epoch_from_0").map(|e| e as usize)),
            tally: Tally {
                loss: fraction("loss").ok_or_else(missing)?,
                hits: count("hits")?,
                images: count("images")?,
                batches: count("batches")?,
            },
        })
    }

    fn vectors(&self) -> [(&'static str, &Vec<f32>); 8] {
        [
            ("average.values", &self.average[0]),
            ("average.statistics", &self.average[1]),
            ("best.statistics", &self.best[1]),
            ("best.values", &self.best[0]),
            ("optimizer.first", &self.optimizer.first),
            ("optimizer.second", &self.optimizer.second),
            ("statistics", &self.statistics),
            ("values", &self.values),
        ]
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.safetensors");
        let checkpoint = Checkpoint {
            identity: Identity { settings: "x \"y\"".into(), ..Identity::default() },
            step: 12,
            values: vec![1.0, f32::MIN_POSITIVE, -0.1],
            statistics: vec![2.5],
            optimizer: optimizer::State { steps: 12, first: vec![0.3; 3], second: vec![] },
            average: [vec![0.5], vec![0.25]],
            average_updates: 3,
            best: [vec![9.0, 8.0, 7.0], vec![1.0]],
            best_score: Some((91.25, 3)),
            tally: Tally { loss: 1.0 / 3.0, hits: 5, images: 8, batches: 2 },
        };
        checkpoint.write(&path).expect("a writable folder");
        assert_eq!(Checkpoint::read(&path).expect("the file just written"), checkpoint);
        std::fs::write(&path, b"not a checkpoint").expect("a writable file");
        assert!(matches!(Checkpoint::read(&path), Err(TrainError::Checkpoint { .. })));
    }
}
