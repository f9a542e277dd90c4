//! Reward over episodes, as SVG: a dot for each, and a line for the best so far.

use super::{
    axis::Axis,
    frame::{Frame, Side},
};
use std::fmt::{self, Write};

pub(super) fn figure(out: &mut String, rewards: &[f64]) -> fmt::Result {
    let episodes = [1.0, rewards.len() as f64];
    let frame = Frame {
        x: Side { title: "episode", axis: Axis::of(episodes.into_iter(), false), unit: 1.0 },
        y: Side { title: "reward", axis: Axis::of(rewards.iter().copied(), false), unit: 1.0 },
    };
    out.write_str("<figure class=\"plot\"><div class=\"legend\"><span class=\"soft dot\">episode</span>")?;
    out.write_str("<span class=\"c6\">best so far</span></div>")?;
    frame.begin(out, "reward over episodes")?;
    let (mut dots, mut line, mut best) = (String::new(), String::new(), f64::NEG_INFINITY);
    for (i, &reward) in rewards.iter().enumerate().filter(|(_, reward)| reward.is_finite()) {
        let episode = (i + 1) as f64;
        let Some((x, y)) = frame.place(episode, reward) else { continue };
        write!(dots, "M{x:.1} {y:.1}h0")?;
        if reward > best {
            best = reward;
            // Up where it became better.
            let before = if line.is_empty() { format!("M{x:.1} {y:.1}") } else { format!("H{x:.1}V{y:.1}") };
            line.push_str(&before);
        }
    }
    if let Some((x, _)) = frame.place(episodes[1], best).filter(|_| !line.is_empty()) {
        write!(line, "H{x:.1}")?;
    }
    write!(out, "<path class=\"faint\" d=\"{dots}\"/><path class=\"curve c6\" d=\"{line}\"/></svg></figure>")
}
