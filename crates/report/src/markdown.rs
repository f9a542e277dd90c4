//! The report as Markdown.

use crate::{
    CandidateKind, Search, Sensitivity,
    numbers::{bits, bytes, count, decibels, digits, percent, ratio, significant},
    report::verdict,
    report::{Mode, Report, Runtime},
};
use std::fmt::{self, Write};

/// Text from a file inside a line of Markdown: nothing of it is markup.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '|' | '`' | '*' | '_' | '[' | ']' | '#' | '!' | '~' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

pub(crate) fn page(report: &Report) -> String {
    let mut out = String::new();
    write_page(&mut out, report).expect("writing to a string does not fail");
    out
}

fn write_page(out: &mut String, report: &Report) -> fmt::Result {
    let model = &report.model;
    writeln!(out, "# {}\n", plain(&report.title))?;
    if !report.command.is_empty() {
        writeln!(out, "Made by: {}\n", plain(&report.command))?;
    }
    writeln!(out, "{}: {} parameters, {} MAC.\n", plain(&model.name), count(model.parameters), count(model.macs))?;
    for warning in &report.warnings {
        writeln!(out, "- **warning:** {}", plain(warning))?;
    }
    if !report.preparation.is_empty() {
        let changes: Vec<String> = report.preparation.iter().map(|change| plain(change)).collect();
        writeln!(out, "\nPrepared: {}.", changes.join(", "))?;
    }
    if !report.trials.is_empty() {
        table(out, "Range rules tried", "| rule | SQNR dB | taken |\n|---|--:|---|")?;
        for t in &report.trials {
            writeln!(out, "| {} | {:.2} | {} |", plain(&t.rule), t.sqnr_db, if t.chosen { "yes" } else { "" })?;
        }
    }
    if !report.steps.is_empty() {
        table(out, "Steps", "| methods | before, dB | after, dB | time | verdict |\n|---|--:|--:|--:|---|")?;
        for s in &report.steps {
            let decided: Vec<&str> = [&*s.methods].into_iter().chain(s.findings.iter().map(|f| &**f)).collect();
            let (methods, verdict) = (plain(&decided.join("; ")), verdict(s.kept, s.before_db, s.after_db));
            writeln!(out, "| {methods} | {:.2} | {:.2} | {:.1} s | {verdict} |", s.before_db, s.after_db, s.seconds)?;
        }
    }
    if let Some(found) = &report.search {
        search(out, found)?;
    }
    if let Some(sensitivity) = &report.sensitivity {
        damage(out, sensitivity)?;
    }
    if !report.accuracy.is_empty() {
        table(out, "Accuracy", "| mode | metric | value | images |\n|---|---|--:|--:|")?;
        for a in &report.accuracy {
            let mode = match a.mode {
                Mode::Float => "float",
                Mode::Fake => "fake-quantized",
                Mode::Integer => "integer",
            };
            writeln!(out, "| {mode} | {} | {} | {} |", plain(&a.metric), percent(a.value), a.samples)?;
        }
    }
    if let Some(training) = &report.training {
        table(out, "Training", "| what | first epoch | last epoch |\n|---|--:|--:|")?;
        for curve in training.loss.iter().chain(&training.accuracy).chain(&training.scales) {
            if let (Some((_, first)), Some((_, last))) = (curve.points.first(), curve.points.last()) {
                writeln!(out, "| {} | {} | {} |", plain(&curve.name), digits(*first), digits(*last))?;
            }
        }
    }
    if !report.sizes.is_empty() {
        table(out, "Size", "| counted | float | quantized | smaller |\n|---|--:|--:|--:|")?;
        for s in &report.sizes {
            let (float, quantized) = (bytes(s.float_bytes), bytes(s.bytes));
            writeln!(out, "| {} | {float} | {quantized} | {} |", plain(&s.convention), ratio(s.float_bytes, s.bytes))?;
        }
    }
    if !report.layers.is_empty() {
        table(
            out,
            "Layers",
            "| name | operator | weight bits | activation bits | runtime | SQNR dB | MAC | parameters | reason |\n\
             |---|---|--:|--:|---|--:|--:|--:|---|",
        )?;
        for l in &report.layers {
            let runtime = if l.runtime == Runtime::Integer { "integer" } else { "float" };
            let (w, a, db) = (bits(l.weight_bits), bits(l.activation_bits), decibels(l.sqnr_db));
            let (name, op, reason) = (plain(&l.name), plain(&l.op), plain(&l.reason));
            let (macs, parameters) = (count(l.macs), count(l.parameters));
            writeln!(out, "| {name} | {op} | {w} | {a} | {runtime} | {db} | {macs} | {parameters} | {reason} |")?;
        }
    }
    if !report.tensors.is_empty() {
        table(
            out,
            "Activation ranges",
            "| tensor | bits | rule | range | seen | scale | zero point |\n|---|--:|---|---|---|--:|--:|",
        )?;
        for t in &report.tensors {
            let (name, rule) = (plain(&t.name), plain(&t.rule));
            let ranges = format!("{} … {} | {} … {}", t.lo, t.hi, t.min, t.max);
            writeln!(out, "| {name} | {} | {rule} | {ranges} | {} | {} |", t.bits, t.scale, t.zero_point)?;
        }
    }
    if !report.settings.is_empty() {
        table(out, "Settings", "| setting | value |\n|---|---|")?;
        for (name, value) in &report.settings {
            writeln!(out, "| {} | {} |", plain(name), plain(value))?;
        }
    }
    Ok(())
}

fn search(out: &mut String, found: &Search) -> fmt::Result {
    writeln!(out, "\n## Search\n")?;
    let verdict = if found.kept { "kept" } else { "missed" };
    write!(out, "By {}; budget {}: {verdict}. ", plain(&found.strategy), plain(&found.budget))?;
    writeln!(out, "{} bytes, {:.3} bits on average, {} bit operations.", found.bytes, found.average_bits, found.bops)?;
    let names: String = found.qualities.iter().map(|quality| format!(" {} |", plain(quality.name()))).collect();
    writeln!(out, "\n| network | bytes |{names}\n|---|--:|{}", "--:|".repeat(found.qualities.len()))?;
    for candidate in &found.candidates {
        let name = match candidate.kind {
            CandidateKind::Tried => continue,
            CandidateKind::Uniform(bits) => format!("{bits} bits everywhere"),
            CandidateKind::Found => "found".into(),
        };
        let values = found.qualities.iter().enumerate().map(|(i, q)| format!(" {} |", q.show(candidate.value(i))));
        writeln!(out, "| {name} | {} |{}", candidate.bytes, values.collect::<String>())?;
    }
    writeln!(out, "\n| layer | weight bits | activation bits | bytes |\n|---|--:|--:|--:|")?;
    for layer in &found.layers {
        let (weights, activations) = (bits(layer.weights), bits(layer.activations));
        writeln!(out, "| {} | {weights} | {activations} | {} |", plain(&layer.name), layer.bytes)?;
    }
    Ok(())
}

fn damage(out: &mut String, sensitivity: &Sensitivity) -> fmt::Result {
    writeln!(out, "\n## Sensitivity\n\nOf each layer alone: {}.\n", plain(&sensitivity.damage))?;
    let widths: String = sensitivity.widths.iter().map(|width| format!(" {width} bits |")).collect();
    writeln!(out, "| layer |{widths} chosen |\n|---|{}---|", "--:|".repeat(sensitivity.widths.len()))?;
    for layer in &sensitivity.layers {
        let damage: String = layer.damage.iter().map(|damage| format!(" {} |", significant(*damage, 2))).collect();
        writeln!(out, "| {} |{damage} {} |", plain(&layer.name), bits(layer.bits))?;
    }
    Ok(())
}

fn table(out: &mut String, title: &str, head: &str) -> fmt::Result {
    writeln!(out, "\n## {title}\n\n{head}")
}
