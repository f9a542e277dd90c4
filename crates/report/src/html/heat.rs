//! Damage by layer and width, as SVG: a row for each layer, a column for each width, the stronger the colour the more damage.

use super::{
    escape,
    names::{WIDTH, begin, short_names, space},
};
use crate::{Sensitivity, numbers::significant};
use std::fmt::{self, Write};

const ROW: f64 = 17.0;
/// The most characters of a name.
const CHARACTERS: usize = 54;
const WIDEST_CELL: f64 = 120.0;
/// Space for the widths above the columns.
const HEAD: f64 = 22.0;
/// What is less by this factor than the most damage has the weakest colour.
const DECADES: f64 = 1e6;
/// From this colour on, text is written in the colour of the page.
const STRONG: f64 = 0.65;

pub(super) fn section(out: &mut String, sensitivity: &Sensitivity) -> fmt::Result {
    let all = || sensitivity.layers.iter().flat_map(|l| &l.damage).copied().filter(|d| d.is_finite() && *d > 0.0);
    let most = all().fold(0.0, f64::max);
    let least = all().fold(f64::INFINITY, f64::min).max(most / DECADES);
    out.write_str("<h2>Sensitivity</h2><p class=\"soft\">What rounding one layer alone does to the network: ")?;
    write!(out, "{}. The stronger the colour, on a logarithmic scale, the more damage", escape(&sensitivity.damage))?;
    let framed = sensitivity.layers.iter().any(|layer| layer.bits.is_some());
    out.write_str(if framed { "; the bits that were chosen are framed.</p>" } else { ".</p>" })?;

    let names = short_names(sensitivity.layers.iter().map(|layer| layer.name.as_str()), CHARACTERS);
    let left = 10.0 + space(&names);
    let columns = sensitivity.widths.len().max(1) as f64;
    let cell = ((WIDTH - left) / columns).min(WIDEST_CELL);
    let (width, height) = (left + cell * columns, HEAD + ROW * sensitivity.layers.len() as f64);
    begin(out, width, height, "damage by layer and width")?;
    for (i, bits) in sensitivity.widths.iter().enumerate() {
        let x = left + cell * (i as f64 + 0.5);
        write!(out, "<text x=\"{x:.1}\" y=\"14\" text-anchor=\"middle\">{bits} bits</text>")?;
    }
    for (row, (layer, name)) in sensitivity.layers.iter().zip(&names).enumerate() {
        let y = HEAD + ROW * row as f64;
        let baseline = y + ROW - 5.0;
        write!(out, "<text x=\"{:.0}\" y=\"{baseline:.1}\" text-anchor=\"end\">{}", left - 8.0, escape(name))?;
        write!(out, "<title>{}</title></text>", escape(&layer.name))?;
        for (i, (damage, bits)) in layer.damage.iter().zip(&sensitivity.widths).enumerate() {
            let x = left + cell * i as f64;
            let strength = match (damage.max(least) / least).ln() / (most / least).ln() {
                share if share.is_finite() => 0.04 + 0.9 * share.clamp(0.0, 1.0),
                _ => 0.04,
            };
            let place = format!(
                "x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"",
                x + 1.0,
                y + 1.0,
                cell - 2.0,
                ROW - 2.0
            );
            write!(out, "<rect class=\"heat\" fill-opacity=\"{strength:.2}\" {place}/>")?;
            if layer.bits == Some(*bits) {
                write!(out, "<rect class=\"chosen\" {place}/>")?;
            }
            let class = if strength > STRONG { "on" } else { "ink" };
            let text = if damage.is_finite() { significant(*damage, 2).replace('-', "−") } else { "–".into() };
            write!(
                out,
                "<text class=\"{class}\" x=\"{:.1}\" y=\"{baseline:.1}\" text-anchor=\"middle\">{text}</text>",
                x + cell / 2.0
            )?;
        }
    }
    out.write_str("</svg></div>")
}
