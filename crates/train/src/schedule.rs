//! Learning rates over time: a step's number enters, the factor of the learning rate leaves. Pure functions, so a resumed run
//! needs no more than the number of its step.

use std::{f64::consts::PI, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How the learning rate falls, in epochs. Written as `constant`, `cosine`, `cosine:0.01` (its floor) or
/// `step:30,60:0.1` (milestones and factor).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// It does not.
    Constant,
    /// Along half a cosine from 1 to `floor`.
    Cosine {
        /// The factor at the end.
        floor: f64,
    },
    /// By `factor` at each milestone.
    Step {
        /// Epochs, counted from the start of the phase, in ascending order.
        milestones: Vec<f64>,
        /// What the rate is multiplied by.
        factor: f64,
    },
}

/// A text that is no [`Decay`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schedule `{text}` is not understood")]
pub struct UnknownSchedule {
    /// The text.
    pub text: String,
}

impl UnknownSchedule {
    /// What would be understood.
    pub fn hint(&self) -> &'static str {
        "write `constant`, `cosine`, `cosine:FLOOR` with a floor from 0 to 1, or `step:30,60:0.1`: epochs in ascending \
         order and the factor at each"
    }
}

/// A [`Decay`] over a training of known length, with a linear warm-up in front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// What follows the warm-up.
    pub decay: Decay,
    /// Epochs of training.
    pub epochs: f64,
    /// Epochs of warm-up, part of `epochs`.
    pub warmup: f64,
    /// Steps in an epoch, at least 1.
    pub steps_per_epoch: usize,
}

impl Schedule {
    /// The factor of the learning rate in step `step`, counted from 0.
    ///
    /// With `w` steps of warm-up and `n` in all: `(step + 1) / (w + 1)` for `step < w`, so that the first step is not lost
    /// and step `w` has the full rate; then, for the cosine, `floor + (1 − floor)·(1 + cos(π·(step − w)/(n − w)))/2`.
    /// Milestones count from step 0, warm-up included.
    pub fn factor(&self, step: usize) -> f64 {
        let per_epoch = self.steps_per_epoch.max(1) as f64;
        let (step, warmup, end) = (step as f64, (self.warmup * per_epoch).round(), self.epochs * per_epoch);
        if step < warmup {
            return (step + 1.0) / (warmup + 1.0);
        }
        match &self.decay {
            Decay::Constant => 1.0,
            Decay::Cosine { floor } => {
                let progress = ((step - warmup) / (end - warmup).max(1.0)).min(1.0);
                floor + (1.0 - floor) * (1.0 + (PI * progress).cos()) / 2.0
            }
            Decay::Step { milestones, factor } => {
                let passed = milestones.iter().filter(|&&epoch| step >= (epoch * per_epoch).round()).count();
                factor.powi(passed as i32)
            }
        }
    }
}

impl FromStr for Decay {
    type Err = UnknownSchedule;

    fn from_str(text: &str) -> Result<Self, UnknownSchedule> {
        let share = |text: &str| text.trim().parse().ok().filter(|share| (0.0..=1.0).contains(share));
        let parse = || match text.trim().split(':').collect::<Vec<_>>()[..] {
            ["constant"] => Some(Self::Constant),
            ["cosine"] => Some(Self::Cosine { floor: 0.0 }),
            ["cosine", floor] => Some(Self::Cosine { floor: share(floor)? }),
            ["step", milestones, factor] => {
                let milestones: Option<Vec<f64>> =
                    milestones.split(',').map(|epoch| epoch.trim().parse().ok()).collect();
                let milestones = milestones?;
                let ascending = milestones.is_sorted_by(|a, b| a < b);
                let valid = ascending && milestones.iter().all(|epoch| epoch.is_finite() && *epoch > 0.0);
                valid.then_some(Self::Step { milestones, factor: share(factor)? })
            }
            _ => None,
        };
        parse().ok_or_else(|| UnknownSchedule { text: text.to_owned() })
    }
}

impl fmt::Display for Decay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => write!(f, "constant"),
            Self::Cosine { floor: 0.0 } => write!(f, "cosine"),
            Self::Cosine { floor } => write!(f, "cosine:{floor}"),
            Self::Step { milestones, factor } => {
                let milestones: Vec<String> = milestones.iter().map(f64::to_string).collect();
                write!(f, "step:{}:{factor}", milestones.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: &str, epochs: f64, warmup: f64) -> Schedule {
        Schedule { decay: decay.parse().unwrap(), epochs, warmup, steps_per_epoch: 10 }
    }

    fn assert_factors(schedule: &Schedule, expected: &[(usize, f64)]) {
        for &(step, factor) in expected {
            let found = schedule.factor(step);
            assert!((found - factor).abs() < 1e-12, "{schedule:?} in step {step}: {found}");
        }
    }

    #[test]
    fn closed_forms() {
        assert_factors(&schedule("constant", 3.0, 0.0), &[(0, 1.0), (29, 1.0), (99, 1.0)]);
        let half = 0.5f64.sqrt();
        let cosine = [(0, 1.0), (10, (1.0 + half) / 2.0), (20, 0.5), (30, (1.0 - half) / 2.0), (40, 0.0), (50, 0.0)];
        assert_factors(&schedule("cosine", 4.0, 0.0), &cosine);
        assert_factors(&schedule("cosine:0.2", 4.0, 0.0), &[(0, 1.0), (20, 0.6), (40, 0.2)]);
        let steps = [(0, 1.0), (19, 1.0), (20, 0.1), (29, 0.1), (30, 0.01), (99, 0.01)];
        assert_factors(&schedule("step:2,3:0.1", 5.0, 0.0), &steps);
    }

    #[test]
    fn warm_up_rises_in_equal_steps_to_the_full_rate() {
        let warm = [(0, 0.2), (1, 0.4), (2, 0.6), (3, 0.8), (4, 1.0)];
        for decay in ["constant", "cosine", "step:1:0.5"] {
            assert_factors(&schedule(decay, 2.4, 0.4), &warm);
        }
        assert_factors(&schedule("cosine", 2.4, 0.4), &[(14, 0.5), (24, 0.0)]);
        assert_factors(&schedule("step:1:0.5", 2.4, 0.4), &[(9, 1.0), (10, 0.5)]);
        // All of it warm-up.
        assert_factors(&schedule("cosine", 1.0, 1.0), &[(9, 10.0 / 11.0), (10, 1.0)]);
    }

    #[test]
    fn texts_there_and_back() {
        for text in ["constant", "cosine", "cosine:0.01", "step:30,60:0.1", "step:0.5:0.2"] {
            assert_eq!(text.parse::<Decay>().unwrap().to_string(), text);
        }
        for text in
            ["", "linear", "cosine:2", "cosine:", "step:30", "step:60,30:0.1", "step:0:0.1", "step:a:0.1", "step:3:nan"]
        {
            assert_eq!(text.parse::<Decay>().unwrap_err().text, text);
        }
    }
}
