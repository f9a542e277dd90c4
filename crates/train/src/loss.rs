//! What training minimises: logits, labels and a teacher's logits enter; the loss, its gradient and the hits leave.
//! Sums are f64 in a fixed order. It must not know where logits come from.

use serde::{Deserialize, Serialize};

/// A weighted sum of the two losses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// `s` of [`cross_entropy`].
    pub label_smoothing: f64,
    /// Weight of the [`cross_entropy`] with the labels.
    pub label_weight: f64,
    /// Weight of the [`distillation`]; not used without a teacher.
    pub teacher_weight: f64,
    /// `T` of [`distillation`].
    pub temperature: f64,
}

impl Default for Objective {
    /// Cross entropy alone.
    fn default() -> Self {
        Self { label_smoothing: 0.0, label_weight: 1.0, teacher_weight: 0.0, temperature: 1.0 }
    }
}

/// The loss of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The weighted sum.
    pub total: f64,
    /// Cross entropy with the labels, without its weight.
    pub labels: f64,
    /// Distillation, without its weight; 0 without a teacher.
    pub teacher: f64,
    /// Samples whose largest logit is that of their label (of equal ones the first counts).
    pub hits: usize,
}

impl Loss {
    /// That of a step with several batches of one size: the mean of their losses, the sum of their hits.
    pub fn of_step(batches: &[Loss]) -> Loss {
        let mean = |part: fn(&Loss) -> f64| batches.iter().map(part).sum::<f64>() / batches.len().max(1) as f64;
        Loss {
            total: mean(|loss| loss.total),
            labels: mean(|loss| loss.labels),
            teacher: mean(|loss| loss.teacher),
            hits: batches.iter().map(|loss| loss.hits).sum(),
        }
    }
}

/// Why there is no loss.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// A logit is infinite or not a number: training has diverged.
    #[error("the {of} output for sample {sample} of the batch is not finite")]
    NotFinite {
        /// `network's` or `teacher's`.
        of: &'static str,
        /// Position in the batch.
        sample: usize,
    },
    /// A class that the network does not have.
    #[error("sample {sample} of the batch is of class {label}, the network has {classes} classes")]
    Label {
        /// Position in the batch.
        sample: usize,
        /// The class.
        label: usize,
        /// Length of a row of logits.
        classes: usize,
    },
    /// The teacher has other outputs than the network.
    #[error("the network has {student} outputs for the batch, the teacher {teacher}")]
    Teacher {
        /// Number of the network's logits.
        student: usize,
        /// Number of the teacher's.
        teacher: usize,
    },
}

impl Objective {
    /// The loss of `logits` (`[N, K]`, `N` the number of labels). `gradient` (`[N, K]`) is overwritten with
    /// `∂total/∂logits`.
    pub fn evaluate(
        &self,
        logits: &[f32],
        labels: &[usize],
        teacher: Option<&[f32]>,
        gradient: &mut [f32],
    ) -> Result<Loss, LossError> {
        gradient.fill(0.0);
        let entropy = cross_entropy(logits, labels, self.label_smoothing, self.label_weight, gradient)?;
        let distilled = match teacher {
            Some(teacher) => {
                distillation(logits, teacher, labels.len(), self.temperature, self.teacher_weight, gradient)?
            }
            None => 0.0,
        };
        let total = self.label_weight * entropy + self.teacher_weight * distilled;
        Ok(Loss { total, labels: entropy, teacher: distilled, hits: hits(logits, labels) })
    }
}

/// Softmax cross entropy, the mean over samples of `−Σₖ qₖ·log pₖ` with `p = softmax(logits)` and
/// `q = (1 − s)·onehot(label) + s/K` (PyTorch's `cross_entropy(label_smoothing = s)`; test `losses_equal_pytorch`).
///
/// `logits` and `gradient` are `[N, K]`, `N` the number of labels; `weight · (p − q)/N` is added to the gradient. The loss
/// returned has no weight. Logits of any finite size will do: `log p` is computed from differences to the largest.
pub fn cross_entropy(
    logits: &[f32],
    labels: &[usize],
    smoothing: f64,
    weight: f64,
    gradient: &mut [f32],
) -> Result<f64, LossError> {
    let (samples, classes) = (labels.len(), logits.len() / labels.len().max(1));
    assert_eq!([samples * classes, logits.len()], [gradient.len(); 2], "logits and gradient are [N, K]");
    let mut log_p = vec![0.0; classes];
    let mut sum = 0.0;
    let rows = logits.chunks_exact(classes.max(1)).zip(gradient.chunks_exact_mut(classes.max(1)));
    for (sample, ((row, gradient), &label)) in rows.zip(labels).enumerate() {
        if label >= classes {
            return Err(LossError::Label { sample, label, classes });
        }
        log_softmax(row, 1.0, &mut log_p).ok_or(LossError::NotFinite { of: "network's", sample })?;
        let uniform = smoothing / classes as f64;
        sum -= (1.0 - smoothing) * log_p[label] + uniform * log_p.iter().sum::<f64>();
        for (class, (gradient, log_p)) in gradient.iter_mut().zip(&log_p).enumerate() {
            let q = uniform + if class == label { 1.0 - smoothing } else { 0.0 };
            *gradient += (weight * (log_p.exp() - q) / samples as f64) as f32;
        }
    }
    Ok(sum / samples.max(1) as f64)
}

/// Distillation (Hinton, Vinyals and Dean 2015): the mean over samples of `T²·KL(t ‖ p)`, with `t` and `p` the softmax of
/// the teacher's logits and of the network's, each divided by the temperature `T`. The factor `T²` keeps the size of the
/// gradient independent of `T`.
///
/// `logits`, `teacher` and `gradient` are `[samples, K]`; `weight · T·(p − t)/samples` is added to the gradient.
pub fn distillation(
    logits: &[f32],
    teacher: &[f32],
    samples: usize,
    temperature: f64,
    weight: f64,
    gradient: &mut [f32],
) -> Result<f64, LossError> {
    if teacher.len() != logits.len() {
        return Err(LossError::Teacher { student: logits.len(), teacher: teacher.len() });
    }
    let classes = logits.len() / samples.max(1);
    assert_eq!([samples * classes, logits.len()], [gradient.len(); 2], "logits and gradient are [samples, K]");
    let (mut log_p, mut log_t) = (vec![0.0; classes], vec![0.0; classes]);
    let mut sum = 0.0;
    let rows = logits.chunks_exact(classes.max(1)).zip(teacher.chunks_exact(classes.max(1)));
    for (sample, ((row, teacher), gradient)) in rows.zip(gradient.chunks_exact_mut(classes.max(1))).enumerate() {
        log_softmax(row, temperature, &mut log_p).ok_or(LossError::NotFinite { of: "network's", sample })?;
        log_softmax(teacher, temperature, &mut log_t).ok_or(LossError::NotFinite { of: "teacher's", sample })?;
        for ((gradient, log_p), log_t) in gradient.iter_mut().zip(&log_p).zip(&log_t) {
            let (p, t) = (log_p.exp(), log_t.exp());
            sum += t * (log_t - log_p);
            *gradient += (weight * temperature * (p - t) / samples as f64) as f32;
        }
    }
    Ok(temperature * temperature * sum / samples.max(1) as f64)
}

/// How many samples have their largest logit at their label; of equal logits the first counts, and none if one is NaN.
pub fn hits(logits: &[f32], labels: &[usize]) -> usize {
    let classes = (logits.len() / labels.len().max(1)).max(1);
    let hit = |(row, &label): (&[f32], &usize)| {
        let Some(&best) = row.get(label) else { return false };
        row.iter().enumerate().all(|(class, &logit)| if class < label { logit < best } else { logit <= best })
    };
    logits.chunks_exact(classes).zip(labels).filter(|&row| hit(row)).count()
}

/// `log softmax(logits / T)`; `None` if a logit is not finite.
fn log_softmax(logits: &[f32], temperature: f64, log_p: &mut [f64]) -> Option<()> {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return None;
    }
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    for (log_p, &logit) in log_p.iter_mut().zip(logits) {
        *log_p = (f64::from(logit) - largest) / temperature;
    }
    let log_sum = log_p.iter().map(|z| z.exp()).sum::<f64>().ln();
    log_p.iter_mut().for_each(|z| *z -= log_sum);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 12] = [1.0, -2.0, 0.5, 3.0, 0.25, 0.0, -1.0, 2.5, 40.0, -30.0, 0.0, 5.0];
    const TEACHER: [f32; 12] = [0.5, -1.0, 0.0, 4.0, 1.0, 0.5, -2.0, 0.0, 3.0, 1.0, 0.0, -1.0];
    const LABELS: [usize; 3] = [3, 0, 0];

    fn assert_close(found: (f64, [f32; 12]), expected: (f64, [f64; 12])) {
        assert!((found.0 - expected.0).abs() < 1e-9, "{} for {}", found.0, expected.0);
        for (found, expected) in found.1.iter().zip(expected.1) {
            assert!((f64::from(*found) - expected).abs() < 1e-7, "{found} for {expected}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn losses_equal_pytorch() {
        // tests/golden/pytorch.py
        let entropy = |smoothing| {
            let mut gradient = [0.0; 12];
            (cross_entropy(&LOGITS, &LABELS, smoothing, 1.0, &mut gradient).unwrap(), gradient)
        };
        assert_close(entropy(0.0), (0.883067392023, [
            0.0368512501, 0.00183471571, 0.022351413, -0.0610373789,
            -0.304480902, 0.0224702961, 0.00826635996, 0.273744246,
            0.0, 0.0, 0.0, 0.0,
        ]));
        assert_close(entropy(0.1), (2.16431739202, [
            0.0285179168, -0.00649861762, 0.0140180797, -0.0360373789,
            -0.279480902, 0.0141369627, -6.69733756e-05, 0.265410913,
            0.025, -0.00833333333, -0.00833333333, -0.00833333333,
        ]));
        let mut gradient = [0.0; 12];
        let loss = distillation(&LOGITS, &TEACHER, 3, 4.0, 1.0, &mut gradient).unwrap();
        assert_close((loss, gradient), (33.8525881632, [
            0.0646862772, -0.0271185781, 0.0570854392, -0.0946531382,
            -0.124242465, -0.0924979092, 0.0194093776, 0.197330996,
            0.788126909, -0.330519528, -0.257348372, -0.200259009,
        ]));
    }

    #[test]
    fn gradient_of_the_sum_equals_differences() {
        let objective = Objective { label_smoothing: 0.2, label_weight: 0.3, teacher_weight: 0.7, temperature: 2.5 };
        let mut gradient = [9.0; 12];
        let loss = objective.evaluate(&LOGITS, &LABELS, Some(&TEACHER), &mut gradient).unwrap();
        assert!((loss.total - 0.3 * loss.labels - 0.7 * loss.teacher).abs() < 1e-12);
        assert_eq!(loss.hits, 2);
        for (i, gradient) in gradient.into_iter().enumerate() {
            let at = |step: f32| {
                let mut logits = LOGITS;
                logits[i] += step;
                objective.evaluate(&logits, &LABELS, Some(&TEACHER), &mut [0.0; 12]).unwrap().total
            };
            let slope = (at(1.0 / 256.0) - at(-1.0 / 256.0)) * 128.0;
            assert!((slope - f64::from(gradient)).abs() < 1e-5, "{i}: {gradient} for {slope}");
        }
    }

    #[test]
    fn no_teacher_means_labels_alone() {
        let objective = Objective { teacher_weight: 0.5, ..Default::default() };
        let loss = objective.evaluate(&LOGITS, &LABELS, None, &mut [0.0; 12]).unwrap();
        assert_eq!((loss.total, loss.teacher), (loss.labels, 0.0));
        // A network that equals its teacher has nothing to learn from it.
        let mut gradient = [0.0; 12];
        assert!(distillation(&LOGITS, &LOGITS, 3, 3.0, 1.0, &mut gradient).unwrap().abs() < 1e-12);
        assert_eq!(gradient, [0.0; 12]);
    }

    #[test]
    fn huge_logits_have_finite_losses() {
        let mut gradient = [0.0; 2];
        let loss = cross_entropy(&[3e38, -3e38], &[1], 0.0, 1.0, &mut gradient).unwrap();
        assert!((loss / 6e38 - 1.0).abs() < 1e-6);
        assert_eq!(gradient, [1.0, -1.0]);
        let loss = distillation(&[1e4, -1e4], &[-1e4, 1e4], 1, 1.0, 1.0, &mut [0.0; 2]).unwrap();
        assert!((loss - 2e4).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn what_has_no_loss_is_an_error() {
        let evaluate = |logits: &[f32], labels: &[usize], teacher: Option<&[f32]>| {
            Objective::default().evaluate(logits, labels, teacher, &mut vec![0.0; logits.len()]).unwrap_err()
        };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(
                evaluate(&[0.0, 1.0, 2.0, bad], &[0, 1], None),
                LossError::NotFinite { of: "network's", sample: 1 }
            );
            let teacher = evaluate(&[0.0; 4], &[0, 1], Some(&[bad, 0.0, 0.0, 0.0]));
            assert_eq!(teacher, LossError::NotFinite { of: "teacher's", sample: 0 });
        }
        assert_eq!(evaluate(&[0.0; 4], &[0, 2], None), LossError::Label { sample: 1, label: 2, classes: 2 });
        assert_eq!(evaluate(&[0.0; 4], &[0, 1], Some(&[0.0; 6])), LossError::Teacher { student: 4, teacher: 6 });
    }

    #[test]
    fn hits_of_ties_and_not_numbers() {
        assert_eq!(hits(&[1.0, 1.0, 0.0, 2.0, 2.0, 1.0], &[0, 1, 1]), 2);
        assert_eq!(hits(&[1.0, 1.0, f32::NAN, 2.0], &[1, 1]), 0);
    }
}
