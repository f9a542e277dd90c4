//! Top-1 and top-5 accuracy.

/// Counts of right answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopK {
    /// Samples counted.
    pub samples: usize,
    /// Samples whose label has the highest score.
    pub top1: usize,
    /// Samples whose label is among the five highest scores.
    pub top5: usize,
}

impl TopK {
    /// Counts one sample: `scores` holds one score for each class. Among equal scores the lower class comes first, and
    /// NaN comes last, as in numpy's stable `argsort(-scores)`. A label that is no class counts as wrong.
    pub fn add(&mut self, scores: &[f32], label: usize) {
        self.samples += 1;
        let Some(&own) = scores.get(label) else { return };
        let before = |(class, &score): (usize, &f32)| {
            score > own
                || (own.is_nan() && !score.is_nan())
                || ((score == own || score.is_nan() && own.is_nan()) && class < label)
        };
        let rank = scores.iter().enumerate().filter(|&entry| before(entry)).count();
        self.top1 += usize::from(rank == 0);
        self.top5 += usize::from(rank < 5);
    }

    /// Percentage of samples right at the first place; NaN without samples.
    pub fn top1_percent(&self) -> f64 {
        100.0 * self.top1 as f64 / self.samples as f64
    }

    /// Percentage of samples right among the first five; NaN without samples.
    pub fn top5_percent(&self) -> f64 {
        100.0 * self.top5 as f64 / self.samples as f64
    }
}

/// The class with the highest score: the lowest of equal ones; NaN counts below everything. 0 for no scores.
pub fn top1(scores: &[f32]) -> usize {
    let mut best = 0;
    for (class, &score) in scores.iter().enumerate().skip(1) {
        if score > scores[best] || (scores[best].is_nan() && !score.is_nan()) {
            best = class;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_ties_and_nan() {
        let nan = f32::NAN;
        // (scores, label, in top 1, in top 5, best class)
        let cases: [(&[f32], usize, usize, usize, usize); 8] = [
            (&[1.0, 3.0, 2.0], 1, 1, 1, 1),
            (&[1.0, 3.0, 2.0], 0, 0, 1, 1),
            (&[2.0, 2.0], 0, 1, 1, 0),
            (&[2.0, 2.0], 1, 0, 1, 0),
            (&[6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 5, 0, 0, 0),
            (&[2.0; 6], 5, 0, 0, 0),
            (&[nan, 1.0], 0, 0, 1, 1),
            (&[1.0, 2.0], 7, 0, 0, 1),
        ];
        for (scores, label, first, five, best) in cases {
            let mut counts = TopK::default();
            counts.add(scores, label);
            assert_eq!(counts, TopK { samples: 1, top1: first, top5: five }, "{scores:?} {label}");
            assert_eq!(top1(scores), best, "{scores:?}");
        }
    }
}
