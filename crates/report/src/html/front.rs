//! Size against quality of the networks that a search looked at, as SVG: those that no other beats in both are joined by a line.

use super::{
    axis::Axis,
    frame::{Frame, Side, WIDTH},
};
use crate::{Candidate, CandidateKind, Quality, Search};
use std::fmt::{self, Write};

/// A label takes this much space.
const LABEL: (f64, f64) = (34.0, 12.0);
/// Space that a mark takes on each side of its middle.
const MARK: f64 = 6.0;

/// By [`Search::qualities`] number `quality`.
pub(super) fn figure(out: &mut String, search: &Search, quality: usize) -> fmt::Result {
    let (name, unit, positive) = match &search.qualities[quality] {
        Quality::Accuracy(name) => (format!("{name}, %"), 0.01, false),
        Quality::Damage(name) => (name.clone(), 1.0, true),
    };
    let seen = |c: &Candidate| Some(Seen { kind: c.kind, bytes: c.bytes, value: c.value(quality)? });
    let candidates: Vec<Seen> = search.candidates.iter().filter_map(seen).collect();
    let sizes = || candidates.iter().map(|c| c.bytes as f64);
    let (size_unit, size) = if sizes().fold(0.0, f64::max) < 2e6 { (1024.0, "KiB") } else { (1_048_576.0, "MiB") };
    let frame = Frame {
        x: Side { title: &format!("bytes to deploy, {size}"), axis: Axis::of(sizes(), false), unit: size_unit },
        y: Side { title: &name, axis: Axis::of(candidates.iter().map(|c| c.value), positive), unit },
    };
    let place = |c: &Seen| frame.place(c.bytes as f64, c.value);
    out.write_str(
        "<figure class=\"plot\"><div class=\"legend\"><span class=\"c6\">no other is smaller and better</span>",
    )?;
    let some = |kind: fn(CandidateKind) -> bool| candidates.iter().any(|c| kind(c.kind));
    if some(|kind| kind == CandidateKind::Tried) {
        out.write_str("<span class=\"soft dot\">others that were tried</span>")?;
    }
    if some(|kind| matches!(kind, CandidateKind::Uniform(_))) {
        out.write_str("<span class=\"c0 diamond\">the same bits everywhere</span>")?;
    }
    if some(|kind| kind == CandidateKind::Found) {
        out.write_str("<span class=\"c2 ring\">found</span>")?;
    }
    out.write_str("</div>")?;
    frame.begin(out, "size against quality")?;
    let tried: Vec<(f64, f64)> = candidates.iter().filter_map(place).collect();
    write!(out, "<path class=\"faint\" d=\"{}\"/>", dots(&tried)?)?;
    let front: Vec<(f64, f64)> = front(&candidates, positive).into_iter().filter_map(place).collect();
    let line: Vec<String> = front.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    if !line.is_empty() {
        write!(out, "<path class=\"curve c6\" d=\"M{}\"/>", line.join("L"))?;
    }
    write!(out, "<path class=\"dots c6\" d=\"{}\"/>", dots(&front)?)?;
    let marked = || candidates.iter().filter(|c| c.kind != CandidateKind::Tried);
    let mut taken: Vec<(f64, f64)> = marked().filter_map(place).chain(along(&front)).collect();
    for candidate in marked() {
        let Some((x, y)) = place(candidate) else { continue };
        match candidate.kind {
            CandidateKind::Uniform(bits) => {
                write!(out, "<path class=\"mark0\" d=\"M{x:.1} {:.1}l5 5l-5 5l-5 -5z\"/>", y - 5.0)?;
                let (x, y) = beside((x, y), &mut taken);
                write!(out, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{bits} bits</text>", y + 4.0)?;
            }
            _ => write!(out, "<circle class=\"found\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"6\"/>")?,
        }
    }
    out.write_str("</svg></figure>")
}

/// A candidate by one quality.
struct Seen {
    kind: CandidateKind,
    bytes: u64,
    value: f64,
}

/// Candidates that no other beats, smallest first.
fn front(candidates: &[Seen], less_is_better: bool) -> Vec<&Seen> {
    let value = |c: &Seen| if less_is_better { c.value } else { -c.value };
    let mut sorted: Vec<&Seen> = candidates.iter().filter(|c| c.value.is_finite()).collect();
    sorted.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(value(a).total_cmp(&value(b))));
    let mut best = f64::INFINITY;
    sorted.retain(|c| {
        let better = value(c) < best;
        best = best.min(value(c));
        better
    });
    sorted
}

/// Places on the line through `points`, no farther apart than a label is high.
fn along(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> {
    points.windows(2).flat_map(|pair| {
        let ((x, y), (to_x, to_y)) = (pair[0], pair[1]);
        let steps = ((to_x - x).hypot(to_y - y) / LABEL.1).ceil() as u32;
        (0..=steps).map(move |i| {
            let share = f64::from(i) / f64::from(steps.max(1));
            (x + share * (to_x - x), y + share * (to_y - y))
        })
    })
}

fn dots(places: &[(f64, f64)]) -> Result<String, fmt::Error> {
    let mut path = String::new();
    places.iter().try_for_each(|(x, y)| write!(path, "M{x:.1} {y:.1}h0"))?;
    Ok(path)
}

/// The middle of a label near a mark, where nothing is yet; right of it if there is no such place.
fn beside((x, y): (f64, f64), taken: &mut Vec<(f64, f64)>) -> (f64, f64) {
    let (across, up) = (MARK + 3.0 + LABEL.0 / 2.0, MARK + 1.0 + LABEL.1 / 2.0);
    let sides = [
        (across, 0.0),
        (across, -up),
        (across, up),
        (0.0, -up),
        (0.0, up),
        (-across, 0.0),
        (-across, up),
        (-across, -up),
    ];
    let places = sides.map(|(right, down)| (x + right, y + down));
    let free = |&(x, y): &(f64, f64)| {
        let apart = |(a, b): &(f64, f64)| (a - x).abs() > LABEL.0 / 2.0 + MARK || (b - y).abs() > LABEL.1 / 2.0 + MARK;
        x + LABEL.0 / 2.0 < WIDTH && taken.iter().all(apart)
    };
    let place = places.into_iter().find(free).unwrap_or(places[0]);
    // What a label covers, as marks.
    taken.extend([-1.0, 0.0, 1.0].map(|side| (place.0 + side * LABEL.0 / 3.0, place.1)));
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(values: &[(u64, f64)]) -> Vec<Seen> {
        values.iter().map(|&(bytes, value)| Seen { kind: CandidateKind::Tried, bytes, value }).collect()
    }

    #[test]
    fn the_front_is_what_nothing_beats() {
        let all = candidates(&[(30, 0.2), (10, 0.9), (20, 0.5), (20, 0.4), (25, 0.4), (40, 0.3), (15, f64::NAN)]);
        let of = |less| front(&all, less).iter().map(|c| (c.bytes, c.value)).collect::<Vec<_>>();
        assert_eq!(of(true), [(10, 0.9), (20, 0.4), (30, 0.2)]);
        assert_eq!(of(false), [(10, 0.9)], "of accuracies the smallest is the best here");
        // Brute force: on the front is who is not beaten.
        let beaten = |c: &Seen| {
            all.iter().any(|o| o.bytes <= c.bytes && o.value <= c.value && (o.bytes, o.value) != (c.bytes, c.value))
        };
        let rest: Vec<_> = all.iter().filter(|c| c.value.is_finite() && !beaten(c)).map(|c| c.bytes).collect();
        assert_eq!(rest.len(), 3);
    }

    #[test]
    fn labels_of_neighbours_do_not_cover_each_other() {
        let marks = [(100.0, 100.0), (112.0, 104.0), (120.0, 96.0)];
        let mut taken = marks.to_vec();
        let labels = marks.map(|mark| beside(mark, &mut taken));
        for (i, a) in labels.iter().enumerate() {
            for b in &labels[..i] {
                assert!((a.0 - b.0).abs() >= LABEL.0 || (a.1 - b.1).abs() >= LABEL.1, "{a:?} {b:?}");
            }
        }
    }
}
