//! How a training went: numbers over epochs, as SVG.

use super::{escape, plot::short};
use crate::report::{Curve, Training};
use std::fmt::{self, Write};

/// Size of a picture in its own units; the page scales it.
const WIDTH: f64 = 260.0;
const HEIGHT: f64 = 80.0;
/// Height of the labels below.
const LABELS: f64 = 12.0;

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
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

/// Loss and accuracy, then a small picture for each scale.
pub(super) fn section(out: &mut String, training: &Training) -> fmt::Result {
    out.write_str("<h2>Training</h2><div class=\"plots wide\">")?;
    for (title, curves) in [("loss", &training.loss), ("accuracy", &training.accuracy)] {
        if curves.is_empty() {
            continue;
        }
        out.write_str("<figure class=\"plot\">")?;
        plot(out, title, curves, Axis::Linear)?;
        out.write_str("<div class=\"legend\">")?;
        for (i, curve) in curves.iter().enumerate() {
            let last = curve.points.last().map_or(String::new(), |(_, value)| format!(", {} at last", short(*value)));
            write!(out, "<span class=\"c{}\">{}{last}</span>", i % 6, escape(&curve.name))?;
        }
        out.write_str("</div></figure>")?;
    }
    out.write_str("</div>")?;
    if training.scales.is_empty() {
        return Ok(());
    }
    out.write_str("<h3>Scales</h3><p class=\"soft\">Over the epochs, on a logarithmic axis.</p><div class=\"plots\">")?;
    training.scales.iter().try_for_each(|curve| scale(out, curve))?;
    out.write_str("</div>")
}

fn scale(out: &mut String, curve: &Curve) -> fmt::Result {
    let name = escape(&curve.name);
    out.write_str("<figure class=\"plot\">")?;
    plot(out, &curve.name, std::slice::from_ref(curve), Axis::Logarithmic)?;
    write!(out, "<figcaption><code title=\"{name}\">{name}</code>")?;
    if let [(_, first), .., (_, last)] = &curve.points[..] {
        write!(out, "<span class=\"soft\">{} → {}</span>", short(*first), short(*last))?;
    }
    out.write_str("</figcaption></figure>")
}

/// A line for each curve, in the colour of its place; the labels are the least and the greatest value, and the first and the last epoch.
fn plot(out: &mut String, title: &str, curves: &[Curve], axis: Axis) -> fmt::Result {
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
