//! One histogram with its range, as SVG.

use super::escape;
use crate::report::TensorRange;
use std::fmt::{self, Write};

/// Size of a picture in its own units; the page scales it.
const WIDTH: f64 = 260.0;
const BARS: f64 = 70.0;
/// Height of the line of one other rule.
const RULE: f64 = 5.0;
/// Height of the labels.
const LABELS: f64 = 12.0;

/// Bars on a logarithmic scale, so that the tail that a range cuts off is seen; those outside the range are marked. Below them a line
/// for each of the other rules, in the colour of its place in `rules`, then the numbers.
pub(super) fn histogram(out: &mut String, tensor: &TensorRange, rules: &[&str]) -> fmt::Result {
    let bins = &tensor.bins;
    // The outermost bins reach beyond the extremes; the labels should not.
    let end = (bins.start + bins.width * bins.counts.len() as f64).min(tensor.max.into());
    let start = bins.start.max(tensor.min.into());
    let (lo, hi, half_step) = (f64::from(tensor.lo), f64::from(tensor.hi), 0.5 * f64::from(tensor.scale));
    let (left, right) = (start.min(lo).min(0.0), end.max(hi).max(0.0));
    let span = if (right - left).is_finite() && right > left { right - left } else { 1.0 };
    let x = |value: f64| ((value - left) / span * WIDTH).clamp(0.0, WIDTH);
    let most = bins.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let below = BARS + 3.0;
    let labels = below + RULE * tensor.others.len() as f64 + LABELS;

    write!(out, "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"histogram of ", labels + 3.0)?;
    write!(out, "{}\">", escape(&tensor.name))?;
    write!(out, "<rect class=\"wash\" x=\"{:.1}\" width=\"{:.1}\" height=\"{BARS}\"/>", x(lo), x(hi) - x(lo))?;
    let mut paths = [String::new(), String::new()];
    for (k, &count) in bins.counts.iter().enumerate().filter(|(_, c)| **c > 0) {
        let from = bins.start + k as f64 * bins.width;
        // A bin whose numbers are all alike, such as the 6.0 of a ReLU6, may have no width of its own.
        let width = (x(from + bins.width) - x(from) - 0.25).max(1.2);
        let a = x(from).min(WIDTH - width);
        let height = (1.0 + count as f64).ln() / (1.0 + most).ln() * (BARS - 4.0);
        let middle = (from + 0.5 * bins.width).max(start).min(end);
        // Up to half a step beyond the last code is rounding, not clipping.
        let clipped = middle < lo - half_step || middle > hi + half_step;
        write!(paths[usize::from(clipped)], "M{a:.1} {BARS}v-{height:.1}h{width:.1}v{height:.1}z")?;
    }
    for (path, class) in paths.iter().zip(["data", "out"]).filter(|(path, _)| !path.is_empty()) {
        write!(out, "<path class=\"{class}\" d=\"{path}\"/>")?;
    }
    write!(out, "<path class=\"axis\" d=\"M0 {BARS}h{WIDTH}M{0:.1} {BARS}v3\"/>", x(0.0))?;
    write!(out, "<path class=\"end\" d=\"M{:.1} 0v{BARS}M{:.1} 0v{BARS}\"/>", x(lo), x(hi))?;
    for (i, other) in tensor.others.iter().enumerate() {
        let (a, b) = (x(f64::from(other.lo)), x(f64::from(other.hi)));
        let y = below + RULE * (i as f64 + 0.5);
        let colour = rules.iter().position(|rule| *rule == other.rule).unwrap_or(0) % 6;
        write!(out, "<path class=\"rule c{colour}\" d=\"M{a:.1} {y:.1}H{b:.1}\">")?;
        write!(out, "<title>{}: {} … {}</title></path>", escape(&other.rule), other.lo, other.hi)?;
    }
    write!(out, "<text y=\"{labels:.0}\">{}</text>", short(left))?;
    if x(0.0) > 40.0 && x(0.0) < WIDTH - 40.0 {
        write!(out, "<text x=\"{:.1}\" y=\"{labels:.0}\" text-anchor=\"middle\">0</text>", x(0.0))?;
    }
    write!(out, "<text x=\"{WIDTH}\" y=\"{labels:.0}\" text-anchor=\"end\">{}</text></svg>", short(right))
}

pub(super) fn short(x: f64) -> String {
    let text = match x.abs() {
        0.0 => "0".into(),
        1e5.. => format!("{x:.2e}"),
        100.0.. => format!("{x:.0}"),
        0.01.. => format!("{x:.2}"),
        _ => format!("{x:.2e}"),
    };
    text.replace('-', "−")
}
