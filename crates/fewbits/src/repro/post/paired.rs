//! Two networks on the same images.

use serde::Serialize;

/// On how many images only one of two networks is right, and how likely that is by chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// Only the first is right.
    pub better: usize,
    /// Only the second is right.
    pub worse: usize,
    /// Probability of a difference at least as large if both were equally good (McNemar's exact test, two-sided).
    pub probability: f64,
}

impl Paired {
    /// Compares `a` with `b`, image by image.
    pub fn of(a: &[bool], b: &[bool]) -> Self {
        let only = |x: &[bool], y: &[bool]| x.iter().zip(y).filter(|(x, y)| **x && !**y).count();
        let (better, worse) = (only(a, b), only(b, a));
        Paired { better, worse, probability: two_sided(better.min(worse), better + worse) }
    }
}

/// `min(1, 2·P(X ≤ k))` for `X` binomial with `n` tries of probability 1/2.
fn two_sided(k: usize, n: usize) -> f64 {
    // Logarithms, since 2^n overflows.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = log_term.exp();
    for i in 1..=k {
        log_term += ((n + 1 - i) as f64 / i as f64).ln();
        sum += log_term.exp();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disagreements_count() {
        let a = [true, true, true, false, true, true, true];
        let b = [true, false, false, true, false, false, false];
        // 5 against 1: 2·(1 + 6)/64.
        let paired = Paired::of(&a, &b);
        assert_eq!((paired.better, paired.worse), (5, 1));
        assert!((paired.probability - 14.0 / 64.0).abs() < 1e-12);
        assert_eq!(Paired::of(&a, &a).probability, 1.0);
        assert!(two_sided(400, 1000) < 1e-9 && two_sided(500, 1000) == 1.0);
    }
}
