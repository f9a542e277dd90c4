//! Scores: predictions and truth enter, accuracy leaves.

mod coco_ap;
mod top_k;

pub use coco_ap::{CocoScores, Detection, coco_scores};
pub use top_k::{TopK, top1};
