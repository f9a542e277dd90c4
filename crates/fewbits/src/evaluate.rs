//! Accuracy of a network on labelled data: top-1 and top-5, or COCO AP.

use crate::{
    Error, Model,
    progress::Progress,
    stream::{Run, Seen, Source, outputs, stream},
};
use fewbits_data::{
    Coco,
    detect::{Decoder, Found},
    metrics::{Detection, TopK, coco_scores, top1},
};
use fewbits_graph::{Graph, Tensor, exec::Mode};
use serde::Serialize;
use std::path::PathBuf;

/// What an evaluation found; percentages.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Scores {
    /// Of a classifier.
    Classification {
        /// Samples whose class scored highest.
        top1: f64,
        /// Samples whose class was among the five highest.
        top5: f64,
        /// How many samples there were.
        samples: usize,
    },
    /// Of a detector.
    Detection {
        /// Average precision over IoU .50:.05:.95.
        ap: f64,
        /// Average precision at IoU .50.
        ap50: f64,
        /// How many images there were.
        samples: usize,
    },
}

impl Scores {
    /// Top-1 or AP.
    pub fn main(&self) -> f64 {
        match self {
            Scores::Classification { top1, .. } => *top1,
            Scores::Detection { ap, .. } => *ap,
        }
    }

    /// What [`Scores::main`] is called.
    pub fn name(&self) -> &'static str {
        match self {
            Scores::Classification { .. } => "top-1",
            Scores::Detection { .. } => "AP",
        }
    }
}

/// Evaluates `graph` in `mode` on the labelled samples of `source`.
///
/// # Errors
/// [`Error::Usage`] if there are no labels or a label is not below the number of classes; errors of the data and the network.
pub fn evaluate(
    graph: &Graph,
    mode: Mode<'_>,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Scores, Error> {
    progress.begin("evaluating", source.indices.len().div_ceil(Model::fixed_batch(graph).unwrap_or(1)));
    let scores = match source.dataset.coco() {
        Some(truth) => detection(graph, mode, source, truth, threads, progress),
        None => classification(graph, mode, source, threads, progress),
    };
    progress.end();
    scores
}

/// Whether each sample of `source` has its label as the highest score.
///
/// # Errors
/// As [`evaluate`].
pub fn top1_hits(
    graph: &Graph,
    mode: Mode<'_>,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<bool>, Error> {
    let mut hits = vec![];
    progress.begin("evaluating", source.indices.len().div_ceil(Model::fixed_batch(graph).unwrap_or(1)));
    outputs(graph, mode, source, threads, progress, |seen| {
        each(&seen, source, |row, label| hits.push(top1(row) == label))
    })?;
    progress.end();
    Ok(hits)
}

fn classification(
    graph: &Graph,
    mode: Mode<'_>,
    source: &Source<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Scores, Error> {
    if !source.dataset.has_labels() {
        return Err(Error::Usage {
            what: format!("`{}` has no labels", source.dataset.path().display()),
            hint: "evaluation needs a folder with one sub-folder per class, a csv list, or an array with labels".into(),
        });
    }
    let mut top = TopK::default();
    outputs(graph, mode, source, threads, progress, |seen| each(&seen, source, |row, label| top.add(row, label)))?;
    Ok(Scores::Classification { top1: top.top1_percent(), top5: top.top5_percent(), samples: top.samples })
}

/// Shows the scores of each sample of a chunk, and its label.
fn each(seen: &Seen, source: &Source<'_>, mut look: impl FnMut(&[f32], usize)) -> Result<(), Error> {
    let scores = scores_of(&seen.outputs)?;
    let classes = scores.len() / seen.outputs[0].dims.first().copied().unwrap_or(1).max(1);
    for ((row, label), index) in scores.chunks(classes.max(1)).zip(&seen.batch.labels).zip(&seen.batch.indices) {
        let name = || source.dataset.name(*index);
        match *label {
            Some(label) if label < classes => look(row, label),
            Some(label) => {
                return Err(Error::Usage {
                    what: format!("`{}` has class {label}, the network has {classes} classes", name().display()),
                    hint: "class indices count from 0 in the order of the sorted folder names".into(),
                });
            }
            None => {
                return Err(Error::Usage { what: format!("`{}` has no label", name().display()), hint: String::new() });
            }
        }
    }
    Ok(())
}

fn scores_of(outputs: &[Tensor]) -> Result<&[f32], Error> {
    outputs.first().and_then(|t| t.as_f32()).ok_or_else(|| Error::Usage {
        what: "the network's first output is not float".into(),
        hint: "evaluation reads class scores from the first output".into(),
    })
}

fn detection(
    graph: &Graph,
    mode: Mode<'_>,
    source: &Source<'_>,
    truth: &Coco,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Scores, Error> {
    let mut detections = Vec::new();
    stream(
        &Run { graph, mode, observed: vec![] },
        source,
        threads,
        progress,
        |_| (),
        |(), _| {},
        |(), seen| boxes(graph, &seen),
        |images| {
            for (image, found) in images {
                detections.extend(found.into_iter().map(|f| Detection {
                    image,
                    class: f.class,
                    score: f.score.into(),
                    bbox: f.bbox(),
                }));
            }
            Ok(())
        },
    )?;
    let scores = coco_scores(truth, &detections);
    let percent = |ap: Option<f64>| 100.0 * ap.unwrap_or(0.0);
    Ok(Scores::Detection { ap: percent(scores.ap), ap50: percent(scores.ap50), samples: source.indices.len() })
}

fn boxes(graph: &Graph, seen: &Seen) -> Result<Vec<(usize, Vec<Found>)>, Error> {
    let input = match seen.batch.shape[..] {
        [_, _, h, w] => (h, w),
        _ => (0, 0),
    };
    let outputs: Vec<(&[f32], &[usize])> =
        seen.outputs.iter().filter_map(|t| Some((t.as_f32()?, &t.dims[..]))).collect();
    let shapes: Vec<&[usize]> = outputs.iter().map(|o| o.1).collect();
    let undecodable = |e: fewbits_data::detect::DetectError| Error::Model {
        path: PathBuf::from(&graph.name),
        what: e.to_string(),
        hint: "AP is computed for raw YOLOv3 heads (metadata `anchors`) and for YOLOX outputs",
    };
    let decoder = Decoder::guess(&shapes, &graph.metadata, input).map_err(undecodable)?;
    let images = seen.batch.indices.iter().enumerate();
    images
        .map(|(entry, &image)| {
            let found = decoder.decode(&outputs, entry, seen.batch.original_sizes[entry]).map_err(undecodable)?;
            Ok((image, found))
        })
        .collect()
}
