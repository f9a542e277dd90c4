//! Soft rounding: each weight between two neighbouring codes, by a number that is learned (Nagel et al. 2020, equations 22-24).
//!
//! `ŵ = s·(a + d·h(V))` with `h(V) = clip(1.2·σ(V) − 0.1, 0, 1)`: from code `a` one step in the direction `d`.

use fewbits_kernels::Threads;

/// Weights of a task.
const PART: usize = 1 << 13;

/// `ζ − γ` and `γ`: the sigmoid is stretched, so that 0 and 1 are reached.
const STRETCH: f32 = 1.2;
const SHIFT: f32 = -0.1;

/// A `V` so far out that it does not come back.
const DECIDED: f32 = 20.0;

/// The weights of one layer, by rows of output channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Soft {
    /// Scale of each weight's channel.
    scale: Vec<f32>,
    /// `s·a`
    from: Vec<f32>,
    /// `s·d`
    step: Vec<f32>,
    /// `h(V)` as [`Soft::weights`] last saw it.
    share: Vec<f32>,
}

/// `h(V)`
pub fn rectified_sigmoid(v: f32) -> f32 {
    (STRETCH / (1.0 + (-v).exp()) + SHIFT).clamp(0.0, 1.0)
}

/// `∂h/∂V` where `h(V) = h`.
fn slope(h: f32) -> f32 {
    let sigmoid = (h - SHIFT) / STRETCH;
    if h > 0.0 && h < 1.0 { STRETCH * sigmoid * (1.0 - sigmoid) } else { 0.0 }
}

/// `V` with `h(V) = h`, for `h` within 0.01 and 0.99.
fn inverse(h: f32) -> f32 {
    let sigmoid = (h.clamp(0.01, 0.99) - SHIFT) / STRETCH;
    (sigmoid / (1.0 - sigmoid)).ln()
}

impl Soft {
    /// Between the codes on both sides of `wanted`, at `wanted`. Where `current` (on the grid) is one of these, or further away, it is
    /// between `current` and its neighbour towards `wanted`, and at most half way. All slices have an element for each weight.
    pub fn new(wanted: &[f32], current: &[f32], scale: Vec<f32>, [low, high]: [f32; 2]) -> (Soft, Vec<f32>) {
        let mut soft = Soft { from: Vec::new(), step: Vec::new(), share: vec![0.0; wanted.len()], scale };
        let mut start = Vec::new();
        for ((w, q), s) in wanted.iter().zip(current).zip(&soft.scale) {
            let (u, code) = (w / s, (q / s).round_ties_even().clamp(low, high));
            let towards = if u >= code { 1.0 } else { -1.0 };
            // At the end of the grid there is no way but back.
            let direction = if (low..=high).contains(&(code + towards)) { towards } else { -towards };
            let h = if direction == towards { (u - code).abs().min(0.5) } else { 0.0 };
            soft.from.push(code * s);
            soft.step.push(direction * s);
            start.push(inverse(h));
        }
        (soft, start)
    }

    /// `ŵ`
    pub fn weights(&mut self, v: &[f32], weights: &mut [f32], threads: &Threads) {
        let grid = self.from.chunks(PART).zip(self.step.chunks(PART));
        let parts = weights.chunks_mut(PART).zip(self.share.chunks_mut(PART)).zip(v.chunks(PART)).zip(grid);
        threads.each(parts, |(((weights, share), v), (from, step))| {
            share.iter_mut().zip(v).for_each(|(h, v)| *h = rectified_sigmoid(*v));
            for (((w, h), from), step) in weights.iter_mut().zip(&*share).zip(from).zip(step) {
                *w = from + step * h;
            }
        });
    }

    /// Turns `∂L/∂ŵ` into `∂L/∂V`, at the `V` that [`Soft::weights`] last saw, with that of `λ Σ (1 − |2h − 1|^β)` if there is a
    /// `regularizer` (`λ`, `β`).
    pub fn chain(&self, regularizer: Option<(f32, f32)>, gradient: &mut [f32], threads: &Threads) {
        let parts = gradient.chunks_mut(PART).zip(self.share.chunks(PART)).zip(self.step.chunks(PART));
        threads.each(parts, |((gradient, share), step)| {
            for ((g, h), step) in gradient.iter_mut().zip(share).zip(step) {
                let slope = slope(*h);
                *g *= step * slope;
                // Most roundings are settled sooner or later, and cost nothing more.
                if let Some((strength, beta)) = regularizer
                    && slope != 0.0
                {
                    let side = 2.0 * h - 1.0;
                    *g -= slope * strength * 2.0 * beta * side.abs().powf(beta - 1.0) * side.signum();
                }
            }
        });
    }

    /// Decides for the codes of the share of `V` that lean most to one side; the others can still make up for it.
    pub fn decide(v: &mut [f32], share: f64) {
        let mut order: Vec<usize> = (0..v.len()).collect();
        let decided = (share * v.len() as f64).round() as usize;
        if decided < order.len() {
            order.select_nth_unstable_by(decided, |&a, &b| v[b].abs().total_cmp(&v[a].abs()).then(a.cmp(&b)));
        }
        order.into_iter().take(decided).for_each(|i| v[i] = if v[i] >= 0.0 { DECIDED } else { -DECIDED });
    }

    /// The codes that `V` decides for, times their scales.
    pub fn rounded(&self, v: &[f32]) -> Vec<f32> {
        let code = |i: usize| {
            ((self.from[i] + if v[i] >= 0.0 { self.step[i] } else { 0.0 }) / self.scale[i]).round_ties_even()
        };
        (0..v.len()).map(|i| code(i) * self.scale[i]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_finite_differences() {
        let (wanted, current, scale) = ([0.33, -0.7, 1.4], [0.3, -0.6, 1.2], vec![0.3, 0.2, 0.4]);
        let (mut soft, start) = Soft::new(&wanted, &current, scale, [-3.0, 3.0]);
        let mut loss = |v: &[f32]| {
            let mut w = [0.0; 3];
            soft.weights(v, &mut w, &Threads::new(1));
            let h: f32 = v.iter().map(|v| 1.0 - (2.0 * rectified_sigmoid(*v) - 1.0).abs().powf(4.0)).sum();
            w.iter().enumerate().map(|(i, w)| (i + 1) as f32 * w).sum::<f32>() + 0.1 * h
        };
        let slopes = [0, 1, 2].map(|i| {
            let mut moved = |by: f32| {
                let mut v = start.clone();
                v[i] += by;
                loss(&v)
            };
            (moved(1e-2) - moved(-1e-2)) / 2e-2
        });
        loss(&start);
        let mut gradient = [1.0, 2.0, 3.0];
        soft.chain(Some((0.1, 4.0)), &mut gradient, &Threads::new(1));
        for (i, expected) in slopes.into_iter().enumerate() {
            assert!((gradient[i] - expected).abs() < 2e-3, "{i}: {} for {expected}", gradient[i]);
        }
    }

    #[test]
    fn it_begins_at_the_wanted_weight_and_ends_on_the_grid() {
        let (mut soft, start) = Soft::new(&[0.33, -0.5, 5.0], &[0.3, -0.6, 1.2], vec![0.3, 0.2, 0.4], [-3.0, 3.0]);
        let mut weights = [0.0; 3];
        soft.weights(&start, &mut weights, &Threads::new(1));
        assert!((weights[0] - 0.33).abs() < 1e-5 && (weights[1] + 0.5).abs() < 1e-5, "{weights:?}");
        assert!((weights[2] - 1.2).abs() < 0.01, "the grid ends there");
        assert_eq!(soft.rounded(&[3.0, -3.0, -3.0]), [0.6, -0.6, 1.2]);
        assert_eq!((rectified_sigmoid(-9.0), slope(0.0)), (0.0, 0.0));
        assert!((rectified_sigmoid(inverse(0.3)) - 0.3).abs() < 1e-6);
    }
}
