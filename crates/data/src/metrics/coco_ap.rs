//! Average precision and recall of boxes with the semantics of pycocotools' `COCOeval(.., "bbox")`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Annotation, Coco};

/// Detections of one class in one image that count, the best ones. Precision is of the last.
const MAX_DETECTIONS: [usize; 3] = [1, 10, 100];
/// IoU thresholds .50, .55 … .95.
const THRESHOLDS: usize = 10;
/// Recall points 0, .01 … 1.
const RECALL_POINTS: usize = 101;
/// Ranges of object areas in square pixels: all, small, medium, large. Both ends belong to the range.
const AREAS: [(f64, f64); 4] = [(0.0, 1e10), (0.0, 1024.0), (1024.0, 9216.0), (9216.0, 1e10)];

/// A box that a network claims to see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Index into [`Coco::image_ids`].
    pub image: usize,
    /// Index into [`Coco::category_ids`].
    pub class: usize,
    /// Confidence.
    pub score: f64,
    /// Left, top, width, height in pixels of the original image.
    pub bbox: [f64; 4],
}

/// Average precisions and recalls in 0…1; `None` where the truth has no object of that kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct CocoScores {
    /// Average precision: mean over the thresholds IoU .50, .55 … .95.
    pub ap: Option<f64>,
    /// At IoU .50.
    pub ap50: Option<f64>,
    /// At IoU .75.
    pub ap75: Option<f64>,
    /// Of objects up to 32² pixels.
    pub ap_small: Option<f64>,
    /// Of objects from 32² to 96² pixels.
    pub ap_medium: Option<f64>,
    /// Of objects from 96² pixels.
    pub ap_large: Option<f64>,
    /// Average recall, over the same thresholds, of the best detection of each class in each image.
    pub ar1: Option<f64>,
    /// Of the best 10.
    pub ar10: Option<f64>,
    /// Of the best 100.
    pub ar100: Option<f64>,
    /// Of the best 100, objects up to 32² pixels.
    pub ar_small: Option<f64>,
    /// From 32² to 96² pixels.
    pub ar_medium: Option<f64>,
    /// From 96² pixels.
    pub ar_large: Option<f64>,
}

impl CocoScores {
    /// The same in percent.
    pub fn percent(self) -> Self {
        let percent = |score: Option<f64>| score.map(|s| 100.0 * s);
        Self {
            ap: percent(self.ap),
            ap50: percent(self.ap50),
            ap75: percent(self.ap75),
            ap_small: percent(self.ap_small),
            ap_medium: percent(self.ap_medium),
            ap_large: percent(self.ap_large),
            ar1: percent(self.ar1),
            ar10: percent(self.ar10),
            ar100: percent(self.ar100),
            ar_small: percent(self.ar_small),
            ar_medium: percent(self.ar_medium),
            ar_large: percent(self.ar_large),
        }
    }
}

/// Scores detections against the truth (test `equals_pycocotools`, to 1e-9).
///
/// For each class and IoU threshold, detections in order of score take the free object of the same image that they
/// overlap most, if the overlap reaches the threshold; precision is made monotone and averaged over 101 recalls
/// (0, .01 … 1), then over thresholds and classes. At most 100 detections of a class in an image count. Crowd regions
/// and objects outside the range of areas are ignored, and so are detections matched to them. Of equal scores, the image with the lower
/// id is first.
pub fn coco_scores(truth: &Coco, detections: &[Detection]) -> CocoScores {
    let mut groups: BTreeMap<(usize, u64), Group> = BTreeMap::new();
    for object in &truth.annotations {
        groups.entry((object.class, truth.image_ids[object.image])).or_default().objects.push(object);
    }
    for detection in detections {
        groups.entry((detection.class, truth.image_ids[detection.image])).or_default().detections.push(detection);
    }
    for group in groups.values_mut() {
        group.detections.sort_by(|a, b| b.score.total_cmp(&a.score));
        group.detections.truncate(MAX_DETECTIONS[2]);
        let overlaps = |d: &&Detection| group.objects.iter().map(|o| iou(&d.bbox, &o.bbox, o.crowd)).collect();
        group.overlaps = group.detections.iter().map(overlaps).collect();
    }
    let classes = |area: usize| -> Vec<ClassScores> {
        (0..truth.category_ids.len())
            .filter_map(|class| {
                let of_class: Vec<&Group> = groups.range((class, 0)..(class + 1, 0)).map(|(_, group)| group).collect();
                class_scores(&of_class, AREAS[area])
            })
            .collect()
    };
    let mean = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let precision = |classes: &[ClassScores], thresholds: std::ops::Range<usize>| {
        mean(classes.iter().flat_map(|c| &c.precision[thresholds.clone()]).flatten().copied().collect())
    };
    let recall = |classes: &[ClassScores], limit: usize| {
        mean(classes.iter().flat_map(|c| c.recall.iter().map(move |r| r[limit])).collect())
    };
    let [all, small, medium, large] = std::array::from_fn(classes);
    CocoScores {
        ap: precision(&all, 0..THRESHOLDS),
        ap50: precision(&all, 0..1),
        ap75: precision(&all, 5..6),
        ap_small: precision(&small, 0..THRESHOLDS),
        ap_medium: precision(&medium, 0..THRESHOLDS),
        ap_large: precision(&large, 0..THRESHOLDS),
        ar1: recall(&all, 0),
        ar10: recall(&all, 1),
        ar100: recall(&all, 2),
        ar_small: recall(&small, 2),
        ar_medium: recall(&medium, 2),
        ar_large: recall(&large, 2),
    }
}

/// One class in one image.
#[derive(Default)]
struct Group<'a> {
    objects: Vec<&'a Annotation>,
    /// Best first.
    detections: Vec<&'a Detection>,
    /// `[detection][object]`.
    overlaps: Vec<Vec<f64>>,
}

/// What became of a detection at one threshold.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Right,
    Wrong,
    Ignored,
}

/// Intersection over union; of a crowd region, intersection over the area of the detection.
fn iou(detection: &[f64; 4], object: &[f64; 4], crowd: bool) -> f64 {
    let overlap = |axis: usize| {
        let end = (detection[axis] + detection[axis + 2]).min(object[axis] + object[axis + 2]);
        end - detection[axis].max(object[axis])
    };
    let (w, h) = (overlap(0), overlap(1));
    if w <= 0.0 || h <= 0.0 {
        return 0.0;
    }
    let area = detection[2] * detection[3];
    let union = if crowd { area } else { area + object[2] * object[3] - w * h };
    w * h / union
}

/// The `i`-th of `n` points from `start` to `end`, rounded as numpy's `linspace`.
fn linspace(start: f64, end: f64, n: usize, i: usize) -> f64 {
    if i == n - 1 { end } else { start + i as f64 * ((end - start) / (n - 1) as f64) }
}

impl Group<'_> {
    fn ignores(&self, object: usize, area: (f64, f64)) -> bool {
        let object = self.objects[object];
        object.crowd || object.area < area.0 || object.area > area.1
    }

    /// Matches detections with objects at one threshold.
    fn outcomes(&self, area: (f64, f64), threshold: f64) -> Vec<Outcome> {
        // Objects that count are tried first.
        let mut order: Vec<usize> = (0..self.objects.len()).collect();
        order.sort_by_key(|&object| self.ignores(object, area));
        let mut taken = vec![false; self.objects.len()];
        let outcome = |(detection, overlaps): (&&Detection, &Vec<f64>)| {
            let mut best = threshold.min(1.0 - 1e-10);
            let mut found: Option<usize> = None;
            for &object in &order {
                if taken[object] && !self.objects[object].crowd {
                    continue;
                }
                // A match that counts is never given up for one that does not.
                if found.is_some_and(|f| !self.ignores(f, area)) && self.ignores(object, area) {
                    break;
                }
                if overlaps[object] >= best {
                    (best, found) = (overlaps[object], Some(object));
                }
            }
            let Some(object) = found else {
                let size = detection.bbox[2] * detection.bbox[3];
                return if size < area.0 || size > area.1 { Outcome::Ignored } else { Outcome::Wrong };
            };
            taken[object] = true;
            if self.ignores(object, area) { Outcome::Ignored } else { Outcome::Right }
        };
        self.detections.iter().zip(&self.overlaps).map(outcome).collect()
    }
}

/// One class, all images, one range of areas.
struct ClassScores {
    /// Interpolated precision at each threshold and recall point.
    precision: [[f64; RECALL_POINTS]; THRESHOLDS],
    /// Share of the objects that are found, at each threshold, under each of [`MAX_DETECTIONS`].
    recall: [[f64; 3]; THRESHOLDS],
}

/// `None` if no object counts.
fn class_scores(groups: &[&Group<'_>], area: (f64, f64)) -> Option<ClassScores> {
    let counting = |g: &Group<'_>| (0..g.objects.len()).filter(|&o| !g.ignores(o, area)).count();
    let objects: usize = groups.iter().map(|g| counting(g)).sum();
    if objects == 0 {
        return None;
    }
    let scores: Vec<f64> = groups.iter().flat_map(|g| g.detections.iter().map(|d| d.score)).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut found = ClassScores { precision: [[0.0; RECALL_POINTS]; THRESHOLDS], recall: [[0.0; 3]; THRESHOLDS] };
    for index in 0..THRESHOLDS {
        let threshold = linspace(0.5, 0.95, THRESHOLDS, index);
        let outcomes: Vec<Vec<Outcome>> = groups.iter().map(|g| g.outcomes(area, threshold)).collect();
        for (recall, limit) in found.recall[index].iter_mut().zip(MAX_DETECTIONS) {
            let best = outcomes.iter().flat_map(|image| image.iter().take(limit));
            *recall = best.filter(|o| **o == Outcome::Right).count() as f64 / objects as f64;
        }
        let outcomes: Vec<Outcome> = outcomes.concat();
        let (mut right, mut wrong) = (0usize, 0usize);
        let mut points: Vec<(f64, f64)> = Vec::with_capacity(order.len());
        for &detection in &order {
            right += usize::from(outcomes[detection] == Outcome::Right);
            wrong += usize::from(outcomes[detection] == Outcome::Wrong);
            let precision = right as f64 / ((right + wrong) as f64 + f64::EPSILON);
            points.push((right as f64 / objects as f64, precision));
        }
        for i in (1..points.len()).rev() {
            points[i - 1].1 = points[i - 1].1.max(points[i].1);
        }
        for (i, value) in found.precision[index].iter_mut().enumerate() {
            let recall = linspace(0.0, 1.0, RECALL_POINTS, i);
            let first = points.partition_point(|p| p.0 < recall);
            *value = points.get(first).map_or(0.0, |p| p.1);
        }
    }
    Some(found)
}
