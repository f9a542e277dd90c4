//! Accuracy of a network on labelled data: top-1 and top-5, or COCO's average precision and recall.

use crate::{
    Error, Model,
    progress::Progress,
    stream::{Run, Seen, Source, outputs, stream},
};
use fewbits_data::{
    Coco, Framing,
    detect::{Decoder, Found, Selection},
    metrics::{CocoScores, Detection, TopK, coco_scores, top1},
};
use fewbits_graph::{Graph, Tensor, exec::Mode};
use fewbits_methods::classes;
use serde::Serialize;
use std::{collections::BTreeSet, path::PathBuf};

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
        /// Average precisions and recalls.
        #[serde(flatten)]
        coco: CocoScores,
        /// Which candidates were boxes.
        #[serde(flatten)]
        selection: Selection,
        /// How many images there were.
        samples: usize,
    },
}

impl Scores {
    /// Top-1 or AP.
    pub fn main(&self) -> f64 {
        match self {
            Scores::Classification { top1, .. } => *top1,
            Scores::Detection { coco, .. } => coco.ap.unwrap_or(0.0),
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

/// Which candidates of a detector become boxes, where that is not the decoder's own choice ([`Decoder::selection`]).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Boxes {
    /// See [`Selection::score_threshold`].
    pub score_threshold: Option<f32>,
    /// See [`Selection::nms_iou`].
    pub nms_iou: Option<f64>,
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
    evaluate_boxes(graph, mode, source, Boxes::default(), threads, progress)
}

/// The same, with a choice of a detector's boxes.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_boxes(
    graph: &Graph,
    mode: Mode<'_>,
    source: &Source<'_>,
    chosen: Boxes,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Scores, Error> {
    progress.begin("evaluating", source.indices.len().div_ceil(Model::fixed_batch(graph).unwrap_or(1)));
    let scores = match source.dataset.coco() {
        Some(truth) => detection(graph, mode, source, truth, chosen, threads, progress),
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
    let dims = &seen.outputs[0].dims;
    let classes = match dims[..] {
        // A network for one image may leave out the batch axis.
        [classes] => classes,
        _ => classes(dims).ok_or_else(|| Error::Usage {
            what: format!("the network's first output {dims:?} holds no scores of classes, [samples, classes]"),
            hint: "detectors are evaluated on COCO annotations".into(),
        })?,
    };
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
    chosen: Boxes,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Scores, Error> {
    let (mut detections, mut used) = (Vec::new(), None);
    stream(
        &Run { graph, mode, observed: vec![] },
        source,
        threads,
        progress,
        |_| (),
        |(), _| {},
        |(), seen| boxes(graph, source, &seen, chosen),
        |(selection, images)| {
            used = Some(selection);
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
    let selection = used.ok_or_else(|| Error::Usage { what: "there are no samples".into(), hint: String::new() })?;
    let images: BTreeSet<usize> = source.indices.iter().copied().collect();
    let annotations = truth.annotations.iter().filter(|a| images.contains(&a.image)).cloned().collect();
    let coco = coco_scores(&Coco { annotations, ..truth.clone() }, &detections).percent();
    Ok(Scores::Detection { coco, selection, samples: source.indices.len() })
}

/// Boxes of images by their numbers.
type ByImage = Vec<(usize, Vec<Found>)>;

/// The boxes of each image, and how they were chosen.
fn boxes(graph: &Graph, source: &Source<'_>, seen: &Seen, chosen: Boxes) -> Result<(Selection, ByImage), Error> {
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
        hint: "AP is computed for raw YOLOv3 heads (other anchors than Darknet's stand in the metadata `anchors`) and for YOLOX outputs",
    };
    let decoder = Decoder::guess(&shapes, &graph.metadata, input).map_err(undecodable)?;
    // Class k is category k of the file, in the order of its ids.
    let categories = source.dataset.class_names().len();
    if let Some(classes) = decoder.classes(&shapes).filter(|classes| *classes != categories) {
        return Err(Error::Usage {
            what: format!(
                "the network has {classes} classes, `{}` {categories} categories",
                source.dataset.path().display()
            ),
            hint: "give annotations whose categories, in the order of their ids, are the classes of the network".into(),
        });
    }
    let Selection { score_threshold, nms_iou } = decoder.selection();
    let selection = Selection {
        score_threshold: chosen.score_threshold.unwrap_or(score_threshold),
        nms_iou: chosen.nms_iou.unwrap_or(nms_iou),
    };
    let found = |(entry, &image): (usize, &usize)| {
        let original = seen.batch.original_sizes[entry];
        let framing = Framing::of(source.preprocess, original);
        let found = decoder.decode(&outputs, entry, original, &framing, &selection).map_err(undecodable)?;
        Ok((image, found))
    };
    Ok((selection, seen.batch.indices.iter().enumerate().map(found).collect::<Result<_, Error>>()?))
}
