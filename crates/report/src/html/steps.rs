//! The steps that methods took, as a table: what each of them bought.

use super::{FULL_SQNR, escape, minus, sqnr};
use crate::report::{Report, verdict};
use std::fmt::{self, Write};

pub(super) fn section(out: &mut String, report: &Report) -> fmt::Result {
    if report.steps.is_empty() {
        return Ok(());
    }
    let seconds: f64 = report.steps.iter().map(|step| step.seconds).sum();
    write!(
        out,
        "<h2>What each step bought</h2><p class=\"soft\">SQNR of the outputs, in {seconds:.1} s. Equalization, absorption and bias \
         correction are measured on the first calibration samples and with weights of at least 8 bits; the steps after them with the bits \
         asked for, on samples held back from their methods.</p>"
    )?;
    out.write_str("<div class=\"scroll\"><table><tr><th>methods<th class=\"n\">before<th>after, dB<th class=\"n\">gain<th class=\"n\">time<th></tr>")?;
    let most = report.steps.iter().map(|s| s.after_db).filter(|db| db.is_finite()).fold(1.0, f64::max).min(FULL_SQNR);
    for step in &report.steps {
        write!(out, "<tr><td><code>{}</code>", escape(&step.methods))?;
        for finding in &step.findings {
            write!(out, "<br><span class=\"soft\">{}</span>", escape(finding))?;
        }
        write!(out, "<td class=\"n\">{}", minus(format!("{:.2}", step.before_db)))?;
        sqnr(out, step.after_db, most, 2)?;
        write!(out, "<td class=\"n\">{}", minus(format!("{:+.2}", step.after_db - step.before_db)))?;
        let (open, close) = if step.kept { ("<b>", "</b>") } else { ("<span class=\"soft\">", "</span>") };
        write!(
            out,
            "<td class=\"n\">{:.1} s<td>{open}{}{close}</tr>",
            step.seconds,
            verdict(step.kept, step.before_db, step.after_db)
        )?;
    }
    out.write_str("</table></div>")
}
