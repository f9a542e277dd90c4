//! Bits by layer, as SVG: weights above the line, activations below it.

use super::{
    escape,
    names::{WIDTH, begin, short_names, space},
};
use crate::{
    LayerBits,
    numbers::{bits, bytes},
};
use std::fmt::{self, Write};

const LEFT: f64 = 26.0;
/// Height of one bit.
const BIT: f64 = 13.0;
const WIDEST_COLUMN: f64 = 44.0;
/// The most characters of a name.
const CHARACTERS: usize = 32;
/// A name, or a number on a bar, needs as much width as this.
const LEAST_NAME: f64 = 11.5;
const LEAST_NUMBER: f64 = 9.0;

pub(super) fn section(out: &mut String, layers: &[LayerBits]) -> fmt::Result {
    let most = |of: fn(&LayerBits) -> Option<u8>| f64::from(layers.iter().filter_map(of).max().unwrap_or(0));
    let (up, down) = (most(|layer| layer.weights), most(|layer| layer.activations));
    let column = ((WIDTH - LEFT) / layers.len().max(1) as f64).min(WIDEST_COLUMN);
    let line = 14.0 + BIT * up;
    let below = line + BIT * down + if down > 0.0 { 20.0 } else { 4.0 };
    let names = short_names(layers.iter().map(|layer| layer.name.as_str()), CHARACTERS);
    let (width, height) = (LEFT + column * layers.len() as f64, below + 10.0 + space(&names));

    out.write_str("<h3>Bits by layer</h3><div class=\"legend\"><span class=\"c6\">weights</span>")?;
    out.write_str(if down > 0.0 {
        "<span class=\"c0\">activations that they are multiplied with</span></div>"
    } else {
        "</div>"
    })?;
    begin(out, width, height, "bits by layer")?;
    for step in (2..=up as u32).step_by(2).map(f64::from).chain((2..=down as u32).step_by(2).map(|b| -f64::from(b))) {
        let y = line - BIT * step;
        write!(out, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{width:.1}\"/>")?;
        write!(out, "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, y + 4.0, step.abs())?;
    }
    // Where columns are too narrow, every second name or fewer.
    let every = (LEAST_NAME / column).ceil().max(1.0) as usize;
    for (i, (layer, name)) in layers.iter().zip(&names).enumerate() {
        let (x, middle) = (LEFT + column * i as f64, LEFT + column * (i as f64 + 0.5));
        write!(out, "<g><title>{}: {} bits, {}", escape(&layer.name), bits(layer.weights), bytes(layer.bytes))?;
        write!(out, "; activations {} bits</title>", bits(layer.activations))?;
        for (found, class, sign) in [(layer.weights, "data", 1.0), (layer.activations, "second", -1.0)] {
            let Some(found) = found else { continue };
            let (height, gap) = (BIT * f64::from(found), (0.18 * column).max(0.6));
            let top = if sign > 0.0 { line - height } else { line };
            write!(
                out,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
                x + gap / 2.0,
                column - gap
            )?;
            if column >= LEAST_NUMBER {
                let y = if sign > 0.0 { top - 3.0 } else { top + height + 10.0 };
                write!(out, "<text x=\"{middle:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{found}</text>")?;
            }
        }
        out.write_str("</g>")?;
        if i % every == 0 {
            let y = below + 4.0;
            write!(
                out,
                "<text transform=\"translate({:.1} {y:.1})rotate(-90)\" text-anchor=\"end\">{}</text>",
                middle + 4.0,
                escape(name)
            )?;
        }
    }
    write!(out, "<path class=\"axis\" d=\"M{LEFT} {line:.1}H{width:.1}\"/></svg></div>")
}
