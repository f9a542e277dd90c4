//! From the raw outputs of a detector to boxes: tensors enter, boxes in pixels of the original image leave.
//! It must not know the model: the decoder is chosen by the shapes of the outputs and the model's metadata.

use std::collections::BTreeMap;

use crate::preprocess::letterbox_ratio;

/// Candidates at or below this score are dropped.
const MIN_SCORE: f32 = 0.005;
/// The best candidates that suppression looks at, and the most boxes that it keeps.
const MAX_CANDIDATES: usize = 3000;
const MAX_BOXES: usize = 100;
/// Strides of YOLOX's three grids, in the order of its rows.
const YOLOX_STRIDES: [usize; 3] = [8, 16, 32];

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

/// An output tensor: elements and shape.
pub type Output<'a> = (&'a [f32], &'a [usize]);

/// How raw outputs become boxes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Decoder {
    /// Raw YOLOv3 heads `[N, A·(5 + classes), h, w]`, one for each set of `A` anchors; the image was resized plainly.
    YoloV3 {
        /// `(height, width)` of the network's input.
        input: (usize, usize),
        /// For each head, `[width, height]` of its anchors in pixels of the input.
        anchors: Vec<Vec<[f32; 2]>>,
    },
    /// YOLOX `[N, cells, 5 + classes]` with strides 8, 16, 32; the image was letterboxed into the top left corner.
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
        Some(match self {
            Self::UnknownOutputs { .. } => {
                "read are YOLOX outputs [N, cells, 5 + classes], and raw YOLOv3 heads [N, A*(5 + classes), h, w] of \
                 models whose metadata hold `anchors`"
            }
            Self::Anchors { .. } => "anchors are JSON: for each output, in order, a list of [width, height] in pixels",
            Self::OutputLength { .. } => return None,
        }
        .into())
    }
}

impl Decoder {
    /// Chooses the decoder for outputs of these shapes. `input` is the `(height, width)` that the network was fed.
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
            _ => Err(DetectError::UnknownOutputs { shapes: owned(), input }),
        }
    }

    /// The boxes of batch entry `entry`, best first: candidates above a score of .005, suppressed greedily for each
    /// class (IoU .45 for YOLOv3, .65 for YOLOX), at most 100. `original` is `(width, height)` of the image as stored.
    pub fn decode(
        &self,
        outputs: &[Output<'_>],
        entry: usize,
        original: (usize, usize),
    ) -> Result<Vec<Found>, DetectError> {
        let shapes = || outputs.iter().map(|(_, shape)| shape.to_vec()).collect();
        let (mut candidates, max_overlap) = match (self, outputs) {
            (Self::YoloV3 { input, anchors }, outputs) if anchors.len() == outputs.len() => {
                let mut candidates = Vec::new();
                for (&output, anchors) in outputs.iter().zip(anchors) {
                    let &[_, channels, height, width] = output.1 else {
                        return Err(DetectError::UnknownOutputs { shapes: shapes(), input: *input });
                    };
                    if class_count(channels, anchors.len()).is_none() {
                        return Err(DetectError::UnknownOutputs { shapes: shapes(), input: *input });
                    }
                    yolov3_head(part(output, entry)?, (height, width), anchors, *input, original, &mut candidates);
                }
                (candidates, 0.45)
            }
            (&Self::YoloX { input }, &[output @ (_, &[_, _, columns])]) if columns > 5 => {
                (yolox(part(output, entry)?, columns, input, original), 0.65)
            }
            (Self::YoloV3 { input, .. } | Self::YoloX { input }, _) => {
                return Err(DetectError::UnknownOutputs { shapes: shapes(), input: *input });
            }
        };
        let (width, height) = (original.0 as f64, original.1 as f64);
        for found in &mut candidates {
            for (value, limit) in found.corners.iter_mut().zip([width, height, width, height]) {
                *value = value.clamp(0.0, limit);
            }
        }
        Ok(suppress(candidates, max_overlap))
    }
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

/// One YOLOv3 head: centre `(σ(t_xy) + cell) / grid · image`, size `exp(t_wh) · anchor / input · image`,
/// score `σ(objectness) · σ(class)`. Centres are f64 and sizes f32, as numpy promotes them.
fn yolov3_head(
    data: &[f32],
    (height, width): (usize, usize),
    anchors: &[[f32; 2]],
    input: (usize, usize),
    original: (usize, usize),
    candidates: &mut Vec<Found>,
) {
    let cells = height * width;
    let (image_w, image_h) = (original.0 as f32, original.1 as f32);
    let channels = data.len() / cells / anchors.len();
    for (planes, anchor) in data.chunks_exact(channels * cells).zip(anchors) {
        for cell in 0..cells {
            let at = |channel: usize| planes[channel * cells + cell];
            let objectness = sigmoid(at(4));
            if objectness <= MIN_SCORE {
                continue;
            }
            let centre = |t: f32, cell: usize, grid: usize, image: usize| {
                (f64::from(sigmoid(t)) + cell as f64) / grid as f64 * image as f64
            };
            let x = centre(at(0), cell % width, width, original.0);
            let y = centre(at(1), cell / width, height, original.1);
            let half = |t: f32, anchor: f32, input: usize, image: f32| {
                f64::from(t.exp() * anchor / input as f32 * image / 2.0)
            };
            let (w, h) = (half(at(2), anchor[0], input.1, image_w), half(at(3), anchor[1], input.0, image_h));
            for class in 0..channels - 5 {
                let score = objectness * sigmoid(at(5 + class));
                if score > MIN_SCORE {
                    candidates.push(Found { class, score, corners: [x - w, y - h, x + w, y + h] });
                }
            }
        }
    }
}

/// YOLOX rows: centre `(t_xy + cell) · stride`, size `exp(t_wh) · stride`, score `objectness · class`, all divided by
/// the letterbox ratio.
fn yolox(data: &[f32], columns: usize, input: (usize, usize), original: (usize, usize)) -> Vec<Found> {
    let ratio = letterbox_ratio(original, (input.1, input.0));
    let grid = YOLOX_STRIDES.iter().flat_map(|&stride| {
        let (height, width) = (input.0 / stride, input.1 / stride);
        (0..height * width).map(move |cell| (stride as f64, (cell % width) as f64, (cell / width) as f64))
    });
    let mut candidates = Vec::new();
    for (row, (stride, column, line)) in data.chunks_exact(columns).zip(grid) {
        let (x, y) = ((f64::from(row[0]) + column) * stride, (f64::from(row[1]) + line) * stride);
        let (w, h) = (f64::from(row[2].exp()) * stride / 2.0, f64::from(row[3].exp()) * stride / 2.0);
        let corners = [x - w, y - h, x + w, y + h].map(|v| v / ratio);
        for (class, confidence) in row[5..].iter().enumerate() {
            let score = row[4] * confidence;
            if score > MIN_SCORE {
                candidates.push(Found { class, score, corners });
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
