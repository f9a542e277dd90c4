//! The frame of a picture with two axes, as SVG: lines at round numbers, and their labels.

use super::{
    axis::{Axis, label},
    escape,
};
use std::fmt::{self, Write};

/// Size of the picture in its own units; the page scales it.
pub(super) const WIDTH: f64 = 540.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = WIDTH - 14.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = HEIGHT - 36.0;

/// One of the axes of a picture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    /// What it shows.
    pub(super) title: &'a str,
    /// Where numbers are on it.
    pub(super) axis: Axis,
    /// What its labels count.
    pub(super) unit: f64,
}

/// Two axes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) x: Side<'a>,
    pub(super) y: Side<'a>,
}

impl Frame<'_> {
    /// Begins the picture; whoever draws into it ends it.
    pub(super) fn begin(&self, out: &mut String, name: &str) -> fmt::Result {
        let name = escape(name);
        write!(out, "<svg class=\"frame\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{name}\">")?;
        for tick in self.y.axis.ticks(self.y.unit) {
            let Some(at) = self.up(tick) else { continue };
            let text = label(tick / self.y.unit);
            write!(out, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>")?;
            write!(out, "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", LEFT - 6.0, at + 4.0)?;
        }
        for tick in self.x.axis.ticks(self.x.unit) {
            let Some(at) = self.across(tick) else { continue };
            let text = label(tick / self.x.unit);
            write!(out, "<path class=\"axis\" d=\"M{at:.1} {BOTTOM}v4\"/>")?;
            write!(out, "<text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{text}</text>", BOTTOM + 16.0)?;
        }
        write!(out, "<path class=\"axis\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/>")?;
        write!(out, "<text x=\"2\" y=\"12\">{}</text>", escape(self.y.title))?;
        write!(out, "<text x=\"{RIGHT}\" y=\"{:.0}\" text-anchor=\"end\">", HEIGHT - 4.0)?;
        write!(out, "{}</text>", escape(self.x.title))
    }

    /// Where a point is in the picture, if it has a place.
    pub(super) fn place(&self, x: f64, y: f64) -> Option<(f64, f64)> {
        Some((self.across(x)?, self.up(y)?))
    }

    fn across(&self, x: f64) -> Option<f64> {
        Some(LEFT + self.x.axis.share(x)? * (RIGHT - LEFT))
    }

    fn up(&self, y: f64) -> Option<f64> {
        Some(BOTTOM - self.y.axis.share(y)? * (BOTTOM - TOP))
    }
}
