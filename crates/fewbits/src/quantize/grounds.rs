//! What `inspect` finds that a step is there for: so that a report says not only what a step bought, but what it was bought against.
//!
//! What enters: steps that were taken, and warnings. What leaves: more lines in the findings of steps. It does not know networks.

use crate::{inspect::Warning, methods::Method, refine::Step};

/// Names of what methods answer to. With a scale for each channel, channels may differ.
fn answered(method: Method, per_channel: bool) -> &'static [&'static str] {
    match method {
        Method::Equalize | Method::Lapq if !per_channel => &["outlier_channel", "channel_spread"],
        Method::Comq => &["outlier_weight"],
        Method::QDrop => &["depthwise"],
        _ => &[],
    }
}

/// Puts in front of the findings of `steps` what of `before`, or once weights are rescaled of `rescaled`, their methods answer to.
pub(super) fn explain(steps: &mut [Step], before: &[Warning], rescaled: &[Warning], per_channel: bool) {
    for step in steps {
        let Ok(method) = step.methods.parse() else { continue };
        let warnings = if method == Method::Equalize { before } else { rescaled };
        let lines = answered(method, per_channel).iter().filter_map(|kind| line(warnings, kind));
        step.findings = lines.chain(step.findings.drain(..)).collect();
    }
}

fn line(warnings: &[Warning], kind: &str) -> Option<String> {
    let mut found = warnings.iter().filter(|warning| warning.kind == kind);
    let first = found.next()?;
    let more = match found.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Some(format!("against {kind}: {}: {}{more}", first.node, first.message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Severity;

    #[test]
    fn steps_say_what_they_are_there_for() {
        let warning = |node: &str, kind, message: &str| Warning {
            node: node.into(),
            kind,
            severity: Severity::Warning,
            message: message.into(),
            hint: String::new(),
        };
        let step = |methods: &str| Step {
            methods: methods.into(),
            before_db: 1.0,
            after_db: 2.0,
            kept: true,
            findings: vec!["own".into()],
            seconds: 0.0,
        };
        let before =
            [warning("a", "channel_spread", "a lot"), warning("b", "channel_spread", "more"), warning("c", "x", "y")];
        let rescaled = [warning("b", "channel_spread", "a little")];
        let explained = |per_channel| {
            let mut steps = ["equalize", "lapq", "bn-tune", "comq, bn-tune"].map(step);
            explain(&mut steps, &before, &rescaled, per_channel);
            steps.map(|step| step.findings.join("; "))
        };
        let equalize = "against channel_spread: a: a lot (and 1 more); own";
        assert_eq!(explained(false), [equalize, "against channel_spread: b: a little; own", "own", "own"]);
        assert_eq!(explained(true), ["own"; 4]);
    }
}
