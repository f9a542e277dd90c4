//! From the raw outputs of a detector to boxes: tensors enter, boxes in pixels of the original image leave.
//! It must not know the model: the decoder is chosen by the shapes of the outputs and the model's metadata.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Framing;

/// The best candidates that suppression looks at, and the most boxes that it keeps.
const MAX_CANDIDATES: usize = 3000;
const MAX_BOXES: usize = 100;
/// Strides of YOLOX's three grids, in the order of its rows.
const YOLOX_STRIDES: [usize; 3] = [8, 16, 32];
/// `[width, height]` of three anchors.
type Anchors = [[f32; 2]; 3];
/// Darknet's anchors for COCO of `yolov3.cfg`, by stride of the head.
const YOLOV3_ANCHORS: [(usize, Anchors); 3] = [
    (8, [[10.0, 13.0], [16.0, 30.0], [33.0, 23.0]]),
    (16, [[30.0, 61.0], [62.0, 45.0], [59.0, 119.0]]),
    (32, [[116.0, 90.0], [156.0, 198.0], [373.0, 326.0]]),
];
/// The same of `yolov3-tiny.cfg`.
const YOLOV3_TINY_ANCHORS: [(usize, Anchors); 2] =
    [(16, [[10.0, 14.0], [23.0, 27.0], [37.0, 58.0]]), (32, [[81.0, 82.0], [135.0, 169.0], [344.0, 319.0]])];

/// A box in an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Index of the class.
    pub class: usize,
    /// Confidence in 0…1.
    pub score: f32,
    /// Left, top, right, bottom in pixels of the original image, inside it.
    pub corners: [f64; 4],
}

impl Found {
    /// The box as COCO writes it: left, top, width, height.
    pub fn bbox(&self) -> [f64; 4] {
        let [left, top, right, bottom] = self.corners;
        [left, top, right - left, bottom - top]
    }
}

/// Which candidates become boxes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Selection {
    /// Candidates at or below this score are dropped.
    pub score_threshold: f32,
    /// Candidates that overlap a better one of their class by more than this (IoU) are dropped.
    pub nms_iou: f64,
}

/// An output tensor: elements and shape.
pub type Output<'a> = (&'a [f32], &'a [usize]);

/// How raw outputs become boxes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Decoder {
    /// Raw YOLOv3 heads `[N, A·(5 + classes), h, w]`, one for each set of `A` anchors.
    YoloV3 {
        /// `(height, width)` of the network's input.
        input: (usize, usize),
        /// For each head, `[width, height]` of its anchors in pixels of the input.
        anchors: Vec<Vec<[f32; 2]>>,
    },
    /// YOLOX `[N, cells, 5 + classes]` with strides 8, 16, 32.
    YoloX {
        /// `(height, width)` of the network's input.
        input: (usize, usize),
    },
}

/// Why outputs cannot be read as boxes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// No decoder fits.
    #[error("outputs of shapes {shapes:?} fit no known detector for an input of {input:?}")]
    UnknownOutputs {
        /// Shapes of all outputs.
        shapes: Vec<Vec<usize>>,
        /// `(height, width)` of the input.
        input: (usize, usize),
    },
    /// The anchors in the metadata cannot be read, or do not belong to these outputs.
    #[error("anchors `{anchors}` do not fit outputs of shapes {shapes:?}")]
    Anchors {
        /// The text in the metadata.
        anchors: String,
        /// Shapes of all outputs.
        shapes: Vec<Vec<usize>>,
    },
    /// An output does not have as many elements as its shape says, or no such batch entry.
    #[error("an output of {len} elements and shape {shape:?} has no batch entry {entry}")]
    OutputLength {
        /// Number of elements.
        len: usize,
        /// Its shape.
        shape: Vec<usize>,
        /// Batch entry asked for.
        entry: usize,
    },
}

impl DetectError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::UnknownOutputs { .. } => {
                    "read are YOLOX outputs [N, cells, 5 + classes], and raw YOLOv3 heads [N, A*(5 + classes), h, w]; \
                 other anchors than those of yolov3 and yolov3-tiny stand in the metadata `anchors`"
                }
                Self::Anchors { .. } => {
                    "anchors are JSON: for each output, in order, a list of [width, height] in pixels"
                }
                Self::OutputLength { .. } => return None,
            }
            .into(),
        )
    }
}

impl Decoder {
    /// Chooses the decoder for outputs of these shapes. `input` is the `(height, width)` that the network was fed. Heads of three anchors
    /// with the strides of Darknet's `yolov3` or `yolov3-tiny` have the anchors of these for COCO if the metadata have none.
    pub fn guess(
        shapes: &[&[usize]],
        metadata: &BTreeMap<String, String>,
        input: (usize, usize),
    ) -> Result<Self, DetectError> {
        let owned = || shapes.iter().map(|s| s.to_vec()).collect::<Vec<_>>();
        if let Some(text) = metadata.get("anchors") {
            let anchors: Option<Vec<Vec<[f32; 2]>>> = serde_json::from_str(text).ok();
            let fits = |anchors: &Vec<Vec<[f32; 2]>>| {
                let pairs = || anchors.iter().zip(shapes);
                anchors.len() == shapes.len()
                    && pairs().all(|(a, s)| s.len() == 4 && class_count(s[1], a.len()).is_some())
            };
            let anchors = anchors.filter(fits);
            return match anchors {
                Some(anchors) => Ok(Self::YoloV3 { input, anchors }),
                None => Err(DetectError::Anchors { anchors: text.clone(), shapes: owned() }),
            };
        }
        let cells: usize = YOLOX_STRIDES.iter().map(|s| (input.0 / s) * (input.1 / s)).sum();
        match shapes {
            &[&[_, rows, columns]] if rows == cells && columns > 5 => Ok(Self::YoloX { input }),
            _ => match darknet_anchors(shapes, input) {
                Some(anchors) => Ok(Self::YoloV3 { input, anchors }),
                None => Err(DetectError::UnknownOutputs { shapes: owned(), input }),
            },
        }
    }

    /// Classes of outputs of these shapes.
    pub fn classes(&self, shapes: &[&[usize]]) -> Option<usize> {
        match (self, shapes) {
            (Self::YoloV3 { anchors, .. }, [head, ..]) => class_count(*head.get(1)?, anchors.first()?.len()),
            (Self::YoloX { .. }, [[_, _, columns]]) => columns.checked_sub(5),
            _ => None,
        }
    }

    /// What candidates become boxes in evaluations of such detectors: scores above .005, IoU .45 for YOLOv3, .65 for YOLOX.
    pub fn selection(&self) -> Selection {
        let nms_iou = match self {
            Self::YoloV3 { .. } => 0.45,
            Self::YoloX { .. } => 0.65,
        };
        Selection { score_threshold: 0.005, nms_iou }
    }

    /// The boxes of batch entry `entry`, best first: candidates as `selection` says, suppressed greedily for each class, at most 100.
    /// `original` is `(width, height)` of the image as stored, `framing` where the network saw it.
    pub fn decode(
        &self,
        outputs: &[Output<'_>],
        entry: usize,
        original: (usize, usize),
        framing: &Framing,
        selection: &Selection,
    ) -> Result<Vec<Found>, DetectError> {
        let mut candidates = self.candidates(outputs, entry, selection.score_threshold)?;
        let (width, height) = (original.0 as f64, original.1 as f64);
        for found in &mut candidates {
            found.corners = framing.to_original(found.corners);
            for (value, limit) in found.corners.iter_mut().zip([width, height, width, height]) {
                *value = value.clamp(0.0, limit);
            }
        }
        Ok(suppress(candidates, selection.nms_iou))
    }

    /// Boxes with a score above `least`, in pixels of the network's input.
    fn candidates(&self, outputs: &[Output<'_>], entry: usize, least: f32) -> Result<Vec<Found>, DetectError> {
        let (Self::YoloV3 { input, .. } | Self::YoloX { input }) = self;
        let unknown = || {
            let shapes = outputs.iter().map(|(_, shape)| shape.to_vec()).collect();
            DetectError::UnknownOutputs { shapes, input: *input }
        };
        match (self, outputs) {
            (Self::YoloV3 { anchors, .. }, outputs) if anchors.len() == outputs.len() => {
                let mut candidates = Vec::new();
                for (&output, anchors) in outputs.iter().zip(anchors) {
                    let &[_, channels, height, width] = output.1 else { return Err(unknown()) };
                    class_count(channels, anchors.len()).ok_or_else(unknown)?;
                    yolov3_head(part(output, entry)?, (height, width), anchors, *input, least, &mut candidates);
                }
                Ok(candidates)
            }
            (Self::YoloX { .. }, &[output @ (_, &[_, _, columns])]) if columns > 5 => {
                Ok(yolox(part(output, entry)?, columns, *input, least))
            }
            _ => Err(unknown()),
        }
    }
}

/// Darknet's anchors for heads of the strides of `yolov3` or `yolov3-tiny`, in the order of the heads.
fn darknet_anchors(shapes: &[&[usize]], input: (usize, usize)) -> Option<Vec<Vec<[f32; 2]>>> {
    let known: &[(usize, Anchors)] = match shapes.len() {
        3 => &YOLOV3_ANCHORS,
        2 => &YOLOV3_TINY_ANCHORS,
        _ => return None,
    };
    let has_stride =
        |shape: &[usize], stride: usize| matches!(*shape, [_, _, h, w] if (h * stride, w * stride) == input);
    let every_stride = known.iter().all(|(stride, _)| shapes.iter().any(|shape| has_stride(shape, *stride)));
    let anchors_of = |shape: &&[usize]| {
        class_count(*shape.get(1)?, 3)?;
        known.iter().find(|(stride, _)| has_stride(shape, *stride)).map(|(_, anchors)| anchors.to_vec())
    };
    shapes.iter().map(anchors_of).collect::<Option<_>>().filter(|_| every_stride)
}

fn class_count(channels: usize, anchors: usize) -> Option<usize> {
    let per_anchor = channels.checked_div(anchors)?;
    (per_anchor * anchors == channels && per_anchor > 5).then(|| per_anchor - 5)
}

/// The elements of one batch entry.
fn part<'a>((data, shape): Output<'a>, entry: usize) -> Result<&'a [f32], DetectError> {
    let size: usize = shape.iter().skip(1).product();
    let whole = shape.iter().product::<usize>() == data.len();
    let range = data.get(entry * size..(entry + 1) * size).filter(|_| whole && size > 0);
    range.ok_or_else(|| DetectError::OutputLength { len: data.len(), shape: shape.to_vec(), entry })
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// One YOLOv3 head, in pixels of the input: centre `(σ(t_xy) + cell) / grid · input`, size `exp(t_wh) · anchor`, score
/// `σ(objectness) · σ(class)`.
fn yolov3_head(
    data: &[f32],
    (height, width): (usize, usize),
    anchors: &[[f32; 2]],
    input: (usize, usize),
    least: f32,
    candidates: &mut Vec<Found>,
) {
    let cells = height * width;
    let channels = data.len() / cells / anchors.len();
    for (planes, anchor) in data.chunks_exact(channels * cells).zip(anchors) {
        for cell in 0..cells {
            let at = |channel: usize| planes[channel * cells + cell];
            let objectness = sigmoid(at(4));
            if objectness <= least {
                continue;
            }
            let centre = |t: f32, cell: usize, grid: usize, input: usize| {
                (f64::from(sigmoid(t)) + cell as f64) / grid as f64 * input as f64
            };
            let (x, y) = (centre(at(0), cell % width, width, input.1), centre(at(1), cell / width, height, input.0));
            let half = |t: f32, anchor: f32| f64::from(t.exp() * anchor / 2.0);
            let (w, h) = (half(at(2), anchor[0]), half(at(3), anchor[1]));
            for class in 0..channels - 5 {
                let score = objectness * sigmoid(at(5 + class));
                if score > least {
                    candidates.push(Found { class, score, corners: [x - w, y - h, x + w, y + h] });
                }
            }
        }
    }
}

/// YOLOX rows, in pixels of the input: centre `(t_xy + cell) · stride`, size `exp(t_wh) · stride`, score `objectness · class`.
fn yolox(data: &[f32], columns: usize, input: (usize, usize), least: f32) -> Vec<Found> {
    let grid = YOLOX_STRIDES.iter().flat_map(|&stride| {
        let (height, width) = (input.0 / stride, input.1 / stride);
        (0..height * width).map(move |cell| (stride as f64, (cell % width) as f64, (cell / width) as f64))
    });
    let mut candidates = Vec::new();
    for (row, (stride, column, line)) in data.chunks_exact(columns).zip(grid) {
        let (x, y) = ((f64::from(row[0]) + column) * stride, (f64::from(row[1]) + line) * stride);
        let (w, h) = (f64::from(row[2].exp()) * stride / 2.0, f64::from(row[3].exp()) * stride / 2.0);
        for (class, confidence) in row[5..].iter().enumerate() {
            let score = row[4] * confidence;
            if score > least {
                candidates.push(Found { class, score, corners: [x - w, y - h, x + w, y + h] });
            }
        }
    }
    candidates
}

/// Greedy suppression for each class: the best candidate stays, and removes those of its class that overlap it by more
/// than `max_overlap` (IoU).
fn suppress(mut candidates: Vec<Found>, max_overlap: f64) -> Vec<Found> {
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(MAX_CANDIDATES);
    let mut kept: Vec<Found> = Vec::new();
    for candidate in candidates {
        if kept.len() == MAX_BOXES {
            break;
        }
        if kept.iter().all(|k| k.class != candidate.class || overlap(&k.corners, &candidate.corners) <= max_overlap) {
            kept.push(candidate);
        }
    }
    kept
}

fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let area = |c: &[f64; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    let side = |axis: usize| (a[axis + 2].min(b[axis + 2]) - a[axis].max(b[axis])).max(0.0);
    let common = side(0) * side(1);
    common / (area(a) + area(b) - common + 1e-9)
}
