//! What a search found: its numbers, bits by layer, and the networks that it looked at.

use super::{bars, escape, front, rewards};
use crate::{
    CandidateKind, Search,
    numbers::{bytes, count, exact},
};
use std::fmt::{self, Write};

pub(super) fn section(out: &mut String, search: &Search) -> fmt::Result {
    let verdict = if search.kept { "kept" } else { "missed" };
    write!(out, "<h2>Search</h2><p class=\"soft\">By {}, under the budget ", escape(&search.strategy))?;
    write!(out, "{}, which is {verdict}: {} bytes, ", escape(&search.budget), exact(search.bytes))?;
    write!(
        out,
        "{:.3} bits on average, {} bit operations for one image.</p>",
        search.average_bits,
        count(search.bops)
    )?;
    table(out, search)?;
    let (has_front, has_rewards) = (search.candidates.len() > 2, !search.rewards.is_empty());
    if has_front || has_rewards {
        out.write_str("<div class=\"plots wide\">")?;
        if has_front {
            (0..search.qualities.len()).try_for_each(|quality| front::figure(out, search, quality))?;
        }
        if has_rewards {
            rewards::figure(out, &search.rewards)?;
        }
        out.write_str("</div>")?;
    }
    if search.layers.is_empty() { Ok(()) } else { bars::section(out, &search.layers) }
}

/// The network that was found beside those with the same bits everywhere.
fn table(out: &mut String, search: &Search) -> fmt::Result {
    out.write_str("<div class=\"scroll\"><table><tr><th>network<th class=\"n\">bytes<th class=\"n\">size")?;
    search.qualities.iter().try_for_each(|quality| write!(out, "<th class=\"n\">{}", escape(quality.name())))?;
    out.write_str("</tr>")?;
    for candidate in &search.candidates {
        let name = match candidate.kind {
            CandidateKind::Tried => continue,
            CandidateKind::Uniform(bits) => format!("{bits} bits everywhere"),
            CandidateKind::Found => "<b>found</b>".into(),
        };
        write!(out, "<tr><td>{name}<td class=\"n\">{}<td class=\"n\">", exact(candidate.bytes))?;
        out.write_str(&bytes(candidate.bytes))?;
        for (i, quality) in search.qualities.iter().enumerate() {
            write!(out, "<td class=\"n\">{}", quality.show(candidate.value(i)))?;
        }
        out.write_str("</tr>")?;
    }
    out.write_str("</table></div>")
}
