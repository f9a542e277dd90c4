//! Pictures with a name for each layer, as SVG: the names, short enough to stand beside them, and how they begin.

use std::fmt::{self, Write};

/// Width of a picture in its own units, unless names need more; the page scales it.
pub(super) const WIDTH: f64 = 1060.0;
/// The space that a character takes.
const CHARACTER: f64 = 6.2;

/// Begins a picture that scrolls where the page is narrower; whoever draws into it ends it.
pub(super) fn begin(out: &mut String, width: f64, height: f64, label: &str) -> fmt::Result {
    write!(
        out,
        "<div class=\"scroll picture\"><svg class=\"big\" style=\"width:{width:.0}px\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{label}\">"
    )
}

/// The space that the longest of `names` takes.
pub(super) fn space(names: &[String]) -> f64 {
    CHARACTER * names.iter().map(|name| name.chars().count()).max().unwrap_or(0) as f64
}

/// `names` without what all of them begin with, and of each the last `most` characters.
pub(super) fn short_names<'a>(names: impl Iterator<Item = &'a str> + Clone, most: usize) -> Vec<String> {
    let first = names.clone().next().unwrap_or_default();
    let shared = |name: &str| first.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    let common = names.clone().map(shared).min().unwrap_or(0);
    // Whole parts only, and never the last one.
    let common = first.as_bytes()[..common].iter().rposition(|b| b"/.".contains(b)).map_or(0, |at| at + 1);
    let short = |name: &str| {
        let rest: Vec<char> = name[common..].chars().collect();
        match rest.len() {
            len if len > most => format!("…{}", rest[len + 1 - most..].iter().collect::<String>()),
            _ => rest.into_iter().collect(),
        }
    };
    names.map(short).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_names_apart_is_kept() {
        let short = |names: &[&str], most| short_names(names.iter().copied(), most);
        assert_eq!(short(&["/net/a.1/Conv", "/net/a.2/Conv"], 20), ["1/Conv", "2/Conv"]);
        assert_eq!(short(&["/net/a.1/Conv", "/net/a.2/Conv"], 4), ["…onv", "…onv"]);
        assert_eq!(short(&["conv1", "conv2"], 9), ["conv1", "conv2"]);
        assert_eq!(short(&["é/1", "é/ü"], 9), ["1", "ü"]);
        assert!(short(&[], 9).is_empty());
    }
}
