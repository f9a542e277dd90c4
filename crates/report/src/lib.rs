//! What was done to a model and what came of it, for people to read.
//!
//! What enters: a [`Report`], plain data that others have measured. What leaves: JSON, Markdown, or one self-contained HTML page.
//! This room computes nothing but where ink goes.

mod html;
mod markdown;
mod numbers;
mod report;
mod search;

pub use report::{
    Accuracy, Bins, Curve, Layer, Mode, Model, Report, RuleRange, Runtime, Size, Step, TensorRange, Training, Trial,
    verdict,
};
pub use search::{Candidate, CandidateKind, LayerBits, LayerDamage, Quality, Search, Sensitivity};

impl Report {
    /// The report as one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has text keys only, and JSON holds its other values")
    }

    /// The report as Markdown, without pictures.
    pub fn to_markdown(&self) -> String {
        markdown::page(self)
    }

    /// The report as an HTML page with its style and pictures inside: it loads nothing and runs nothing.
    pub fn to_html(&self) -> String {
        html::page(self)
    }
}

#[cfg(test)]
mod tests;
