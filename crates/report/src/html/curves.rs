//! Numbers over epochs, as SVG.

use super::{escape, plot::short};
use crate::report::Curve;
use std::fmt::{self, Write};

/// Size of a picture in its own units; the page scales it.
const WIDTH: f64 = 260.0;
const HEIGHT: f64 = 80.0;
/// Height of the labels below.
const LABELS: f64 = 12.0;

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    Linear,
    /// What is not positive is left out.
    Logarithmic,
}

impl Axis {
    fn place(self, value: f64) -> Option<f64> {
        let placed = if self == Axis::Linear { value } else { value.ln() };
        placed.is_finite().then_some(placed)
    }
}

/// A line for each curve, in the colour of its place; the labels are the least and the greatest value, and the first and the last epoch.
pub(super) fn plot(out: &mut String, title: &str, curves: &[Curve], axis: Axis) -> fmt::Result {
    let points = || curves.iter().flat_map(|curve| &curve.points).filter(|(_, value)| axis.place(*value).is_some());
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)))
    };
    let (first, last) = ends(&mut points().map(|(epoch, _)| *epoch as f64));
    let (least, greatest) = ends(&mut points().map(|(_, value)| *value));
    let (bottom, top) = (axis.place(least).unwrap_or(0.0), axis.place(greatest).unwrap_or(0.0));
    // A single epoch, or a number that stays, is drawn in the middle.
    let share = |x: f64, from: f64, to: f64| if to > from { (x - from) / (to - from) } else { 0.5 };
    let x = |epoch: u64| share(epoch as f64, first, last) * WIDTH;
    let y = |placed: f64| 3.0 + (1.0 - share(placed, bottom, top)) * (HEIGHT - 6.0);

    let below = HEIGHT + LABELS;
    write!(out, "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{}\">", below + 3.0, escape(title))?;
    write!(out, "<path class=\"grid\" d=\"M0 {0:.1}H{WIDTH}M0 {1:.1}H{WIDTH}\"/>", y(top), y(bottom))?;
    for (i, curve) in curves.iter().enumerate() {
        let mut path = String::new();
        for (epoch, value) in &curve.points {
            let Some(placed) = axis.place(*value) else { continue };
            let (x, y) = (x(*epoch), y(placed));
            write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" })?;
            // A dot of its own for a curve of one point.
            if curve.points.len() == 1 {
                path.push_str("h1");
            }
        }
        if !path.is_empty() {
            write!(out, "<path class=\"curve c{}\" d=\"{path}\"/>", i % 6)?;
        }
    }
    if least <= greatest {
        write!(
            out,
            "<text y=\"10\">{}</text><text y=\"{:.0}\">{}</text>",
            short(greatest),
            HEIGHT - 4.0,
            short(least)
        )?;
        write!(out, "<text y=\"{below:.0}\">epoch {first}</text>")?;
        write!(out, "<text x=\"{WIDTH}\" y=\"{below:.0}\" text-anchor=\"end\">{last}</text>")?;
    }
    out.write_str("</svg>")
}
