//! The report as one HTML page: a summary, warnings, what was measured and found, layers, ranges, what runs in integers, and the
//! details.

mod axis;
mod bars;
mod curves;
mod frame;
mod front;
mod heat;
mod names;
mod plot;
mod rewards;
mod search;
mod steps;

use crate::{
    numbers::{bits, bytes, count, exact, percent, ratio},
    report::{Accuracy, Layer, Mode, Report, Runtime},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display, Write},
};

const STYLE: &str = include_str!("html/style.css");
/// Below these, in dB, a layer's bar changes its colour.
const FAIR_SQNR: f64 = 20.0;
const BAD_SQNR: f64 = 10.0;
/// Where a bar is as long as it gets.
const FULL_SQNR: f64 = 60.0;

/// Text from a file, harmless in elements and in quoted attributes.
fn escape(text: &str) -> impl Display + '_ {
    struct Escaped<'a>(&'a str);
    impl Display for Escaped<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.chars().try_for_each(|c| match c {
                '&' => f.write_str("&amp;"),
                '<' => f.write_str("&lt;"),
                '>' => f.write_str("&gt;"),
                '"' => f.write_str("&quot;"),
                '\'' => f.write_str("&#39;"),
                c => f.write_char(c),
            })
        }
    }
    Escaped(text)
}

/// Text whose names stand between backticks, as elements.
fn prose(out: &mut String, text: &str) -> fmt::Result {
    text.split('`').enumerate().try_for_each(|(i, part)| match i % 2 {
        0 => write!(out, "{}", escape(part)),
        _ => write!(out, "<code>{}</code>", escape(part)),
    })
}

pub(crate) fn page(report: &Report) -> String {
    let mut out = String::new();
    write_page(&mut out, report).expect("writing to a string does not fail");
    out
}

fn write_page(out: &mut String, report: &Report) -> fmt::Result {
    let title = escape(&report.title);
    write!(out, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>")?;
    write!(
        out,
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><style>{STYLE}</style></head>"
    )?;
    write!(out, "<body><h1>{title}</h1>")?;
    head(out, report)?;
    tiles(out, report)?;
    if !report.warnings.is_empty() {
        out.write_str("<h2>Warnings</h2><ul class=\"warnings\">")?;
        for warning in &report.warnings {
            out.write_str("<li>")?;
            prose(out, warning)?;
            out.write_str("</li>")?;
        }
        out.write_str("</ul>")?;
    }
    accuracy(out, report)?;
    if let Some(training) = &report.training {
        curves::section(out, training)?;
    }
    sizes(out, report)?;
    if let Some(found) = &report.search {
        search::section(out, found)?;
    }
    if let Some(sensitivity) = &report.sensitivity {
        heat::section(out, sensitivity)?;
    }
    done(out, report)?;
    steps::section(out, report)?;
    layers(out, report)?;
    ranges(out, report)?;
    runtimes(out, report)?;
    settings(out, report)?;
    out.write_str("</body></html>\n")
}

fn head(out: &mut String, report: &Report) -> fmt::Result {
    let model = &report.model;
    write!(out, "<p class=\"soft\">{}", escape(&model.name))?;
    for (n, what) in [(model.parameters, "parameters"), (model.macs, "MAC"), (model.nodes, "nodes")] {
        write!(out, " · {} {what}", count(n))?;
    }
    if let Some(images) = report.images {
        let what = if report.training.is_some() { "trained" } else { "calibrated" };
        write!(out, " · {what} on {images} images")?;
    }
    if let Some(seconds) = report.seconds {
        write!(out, " in {seconds:.1} s")?;
    }
    out.write_str("</p>")?;
    if report.command.is_empty() {
        return Ok(());
    }
    write!(out, "<code class=\"command\">{}</code>", escape(&report.command))
}

/// The few numbers that decide whether to read on.
fn tiles(out: &mut String, report: &Report) -> fmt::Result {
    out.write_str("<div class=\"tiles\">")?;
    let mut tile =
        |value: String, text: String| write!(out, "<div class=\"tile\"><b>{value}</b><span>{text}</span></div>");
    let of = |mode: Mode| report.accuracy.iter().find(move |a| a.mode == mode);
    if let Some(a) = of(Mode::Integer).or(of(Mode::Fake)) {
        let change = change(report, a).map_or(String::new(), |points| format!(", {points} points against float"));
        tile(percent(a.value), format!("{}{change}", escape(&a.metric)))?;
    }
    if let Some(found) = &report.search {
        let verdict = if found.kept { "within" } else { "more than" };
        let text = format!("bits on average, {} bytes: {verdict} {}", exact(found.bytes), escape(&found.budget));
        tile(format!("{:.2}", found.average_bits), text)?;
    }
    if let Some(size) = report.sizes.last() {
        let text = format!("{} smaller than {}", ratio(size.float_bytes, size.bytes), bytes(size.float_bytes));
        tile(bytes(size.bytes), text)?;
    }
    if !report.layers.is_empty() {
        let integer = || report.layers.iter().filter(|l| l.runtime == Runtime::Integer);
        let all: u64 = report.layers.iter().map(|l| l.macs).sum();
        let share = integer().map(|l| l.macs).sum::<u64>() as f64 / all.max(1) as f64;
        tile(
            format!("{} of {}", integer().count(), report.layers.len()),
            format!("nodes in integers, {} of the MAC", percent(share)),
        )?;
    }
    let worst = report.layers.iter().filter_map(|l| Some((l.sqnr_db?, l))).min_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((db, layer)) = worst {
        tile(format!("{db:.1} dB"), format!("least SQNR, at <code>{}</code>", escape(&layer.name)))?;
    }
    out.write_str("</div>")
}

/// How much `a` is above the float model by the same metric, in points.
fn change(report: &Report, a: &Accuracy) -> Option<String> {
    let float = report.accuracy.iter().find(|f| f.mode == Mode::Float && f.metric == a.metric)?;
    (a.mode != Mode::Float).then(|| minus(format!("{:+.2}", 100.0 * (a.value - float.value))))
}

fn accuracy(out: &mut String, report: &Report) -> fmt::Result {
    if report.accuracy.is_empty() {
        return Ok(());
    }
    out.write_str("<h2>Accuracy</h2><div class=\"scroll\"><table><tr><th>run as<th>metric<th class=\"n\">value<th class=\"n\">against float<th class=\"n\">images</tr>")?;
    for a in &report.accuracy {
        let mode = match a.mode {
            Mode::Float => "float",
            Mode::Fake => "rounded to the grids, computed in floats",
            Mode::Integer => "computed in integers",
        };
        let change = change(report, a).unwrap_or("–".into());
        write!(out, "<tr><td>{mode}<td>{}<td class=\"n\">{}", escape(&a.metric), percent(a.value))?;
        write!(out, "<td class=\"n\">{change}<td class=\"n\">{}</tr>", a.samples)?;
    }
    out.write_str("</table></div>")
}

fn sizes(out: &mut String, report: &Report) -> fmt::Result {
    if report.sizes.is_empty() {
        return Ok(());
    }
    out.write_str("<h2>Size</h2><div class=\"scroll\"><table><tr><th>what is counted<th class=\"n\">float<th class=\"n\">quantized<th class=\"n\">smaller</tr>")?;
    for s in &report.sizes {
        write!(out, "<tr><td>{}<td class=\"n\">{}", escape(&s.convention), bytes(s.float_bytes))?;
        write!(out, "<td class=\"n\">{}<td class=\"n\">{}</tr>", bytes(s.bytes), ratio(s.float_bytes, s.bytes))?;
    }
    out.write_str("</table></div>")
}

/// What preparation changed, and which range rules were tried.
fn done(out: &mut String, report: &Report) -> fmt::Result {
    if !report.preparation.is_empty() {
        out.write_str("<h2>Preparation</h2><p>")?;
        for (i, change) in report.preparation.iter().enumerate() {
            write!(out, "{}{}", if i > 0 { " · " } else { "" }, escape(change))?;
        }
        out.write_str("</p>")?;
    }
    if report.trials.is_empty() {
        return Ok(());
    }
    out.write_str("<h2>Range rules tried</h2><p class=\"soft\">SQNR of the outputs, on calibration images.</p>")?;
    out.write_str("<div class=\"scroll\"><table><tr><th>rule<th>SQNR, dB<th></tr>")?;
    let most = report.trials.iter().map(|t| t.sqnr_db).filter(|db| db.is_finite()).fold(1.0, f64::max);
    for t in &report.trials {
        let chosen = if t.chosen { "<b>taken</b>" } else { "" };
        write!(out, "<tr><td><code>{}</code>", escape(&t.rule))?;
        sqnr(out, t.sqnr_db, most, 2)?;
        write!(out, "<td>{chosen}</tr>")?;
    }
    out.write_str("</table></div>")
}

fn layers(out: &mut String, report: &Report) -> fmt::Result {
    if report.layers.is_empty() {
        return Ok(());
    }
    out.write_str("<h2>Layers</h2><p class=\"soft\">SQNR is the power of a node's float output over that of its error, all nodes before it quantized too; 200 dB stands for no error. What only a SiLU or the like reads may be cut off where that function is flat, and is then far off while its reader is not.</p>")?;
    out.write_str("<div class=\"scroll\"><table><tr><th>name<th>operator<th class=\"n\">W bits<th class=\"n\">A bits<th>runtime<th>SQNR, dB<th class=\"n\">MAC<th class=\"n\">parameters</tr>")?;
    let most =
        report.layers.iter().filter_map(|l| l.sqnr_db).filter(|db| db.is_finite()).fold(1.0, f64::max).min(FULL_SQNR);
    report.layers.iter().try_for_each(|l| layer(out, l, most))?;
    out.write_str("</table></div>")
}

fn layer(out: &mut String, l: &Layer, most: f64) -> fmt::Result {
    write!(out, "<tr><td class=\"name\"><code>{}</code><td>{}", escape(&l.name), escape(&l.op))?;
    write!(out, "<td class=\"n\">{}<td class=\"n\">{}<td>", bits(l.weight_bits), bits(l.activation_bits))?;
    runtime(out, l.runtime, &l.reason)?;
    match l.sqnr_db {
        Some(db) => sqnr(out, db, most, 1)?,
        // An integer kernel that goes on into the activation behind it never writes this tensor.
        None if l.runtime == Runtime::Integer && l.activation_bits.is_none() => {
            out.write_str("<td class=\"soft\">fused with what follows")?
        }
        None => out.write_str("<td>")?,
    }
    write!(out, "<td class=\"n\">{}<td class=\"n\">{}</tr>", count(l.macs), count(l.parameters))
}

/// A cell with a number and its bar.
fn sqnr(out: &mut String, db: f64, most: f64, decimals: usize) -> fmt::Result {
    let class = match db {
        FAIR_SQNR.. => "good",
        BAD_SQNR.. => "fair",
        _ => "bad",
    };
    let width = (100.0 * db / most).clamp(0.5, 100.0);
    write!(
        out,
        "<td class=\"bar\"><div><i class=\"{class}\" style=\"width:{width:.1}%\"></i>{}</div>",
        minus(format!("{db:.decimals$}"))
    )
}

/// With a real minus sign.
fn minus(number: String) -> String {
    number.replace('-', "−")
}

fn runtime(out: &mut String, runtime: Runtime, reason: &str) -> fmt::Result {
    let name = if runtime == Runtime::Integer { "integer" } else { "float" };
    write!(out, "<span class=\"tag {name}\" title=\"{}\">{name}</span>", escape(reason))
}

fn ranges(out: &mut String, report: &Report) -> fmt::Result {
    if report.tensors.is_empty() {
        return Ok(());
    }
    // Said once if it is the same for all.
    let rule = report.tensors[0].rule.as_str();
    let common = report.tensors.iter().all(|t| t.rule == rule);
    out.write_str("<h2>Activation ranges</h2><p class=\"soft\">How often each value was seen, on a logarithmic scale. The shaded part is what the grid can hold")?;
    if common {
        write!(out, ", by the rule <code>{}</code>", escape(rule))?;
    }
    out.write_str("; red is clipped.")?;
    let mut rules: Vec<&str> = Vec::new();
    for other in report.tensors.iter().flat_map(|t| &t.others) {
        if !rules.contains(&other.rule.as_str()) {
            rules.push(&other.rule);
        }
    }
    if !rules.is_empty() {
        out.write_str(" The lines below are the ranges of other rules.</p><div class=\"legend\">")?;
        for (i, rule) in rules.iter().enumerate() {
            write!(out, "<span class=\"c{}\">{}</span>", i % 6, escape(rule))?;
        }
        out.write_str("</div>")?;
    } else {
        out.write_str("</p>")?;
    }
    out.write_str("<div class=\"plots\">")?;
    for t in &report.tensors {
        out.write_str("<figure class=\"plot\">")?;
        plot::histogram(out, t, &rules)?;
        let name = escape(&t.name);
        write!(out, "<figcaption><code title=\"{name}\">{name}</code><span class=\"soft\">")?;
        write!(out, "{} bits", t.bits)?;
        if !common {
            write!(out, ", {}", escape(&t.rule))?;
        }
        write!(out, ": {} … {}", plot::short(t.lo.into()), plot::short(t.hi.into()))?;
        let total = t.bins.zeros + t.bins.counts.iter().sum::<u64>();
        if t.bins.zeros > 0 {
            write!(out, ", {:.0} % zeros", 100.0 * t.bins.zeros as f64 / total as f64)?;
        }
        out.write_str("</span></figcaption></figure>")?;
    }
    out.write_str("</div>")
}

/// Nodes grouped by what the target does with them.
fn runtimes(out: &mut String, report: &Report) -> fmt::Result {
    if report.layers.is_empty() {
        return Ok(());
    }
    out.write_str("<h2>What runs in integers, and why not</h2><div class=\"scroll\"><table><tr><th>runtime<th>reason<th class=\"n\">nodes<th>which</tr>")?;
    // Reasons that differ in a name only are one reason.
    let nameless = |reason: &str| reason.split('`').step_by(2).collect::<Vec<_>>().join("…");
    let mut groups: BTreeMap<(bool, String), Vec<&Layer>> = BTreeMap::new();
    for layer in &report.layers {
        groups.entry((layer.runtime == Runtime::Integer, nameless(&layer.reason))).or_default().push(layer);
    }
    for ((_, reason), nodes) in &groups {
        let reason = if nodes.len() == 1 { &nodes[0].reason } else { reason };
        out.write_str("<tr><td>")?;
        runtime(out, nodes[0].runtime, reason)?;
        out.write_str("<td>")?;
        prose(out, reason)?;
        write!(out, "<td class=\"n\">{}<td class=\"name\">", nodes.len())?;
        let names = |out: &mut String| {
            let name = |(i, l): (usize, &&Layer)| {
                write!(out, "{}<code>{}</code>", if i > 0 { ", " } else { "" }, escape(&l.name))
            };
            nodes.iter().enumerate().try_for_each(name)
        };
        if nodes.len() > 6 {
            let ops: BTreeSet<&str> = nodes.iter().map(|l| l.op.as_str()).collect();
            let ops = ops.into_iter().collect::<Vec<_>>().join(", ");
            write!(out, "<details><summary>{}</summary>", escape(&ops))?;
            names(out)?;
            out.write_str("</details>")?;
        } else {
            names(out)?;
        }
        out.write_str("</tr>")?;
    }
    out.write_str("</table></div>")
}

fn settings(out: &mut String, report: &Report) -> fmt::Result {
    let model = &report.model;
    out.write_str("<h2>Details</h2><div class=\"card\"><dl>")?;
    let mut row = |name: &str, value: &str| match value {
        "" => Ok(()),
        value => write!(out, "<dt>{}<dd>{}", escape(name), escape(value)),
    };
    row("model", &model.name)?;
    row("sha256", &model.sha256)?;
    row("inputs", &model.inputs.join(", "))?;
    row("outputs", &model.outputs.join(", "))?;
    report.settings.iter().try_for_each(|(name, value)| row(name, value))?;
    out.write_str("</dl></div>")
}
