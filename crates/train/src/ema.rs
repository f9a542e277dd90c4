//! The moving average of parameters: their values after each step enter, smoother values to evaluate and export leave.

/// An exponential moving average of a flat vector.
///
/// Update `t` = 1, 2, … is `a ← a + (1 − d)·(p − a)` with `d = min(decay, t / (t + 9))`: at first a mean of the recent
/// steps whose memory grows with their number, so that the initial values are soon forgotten (TensorFlow's
/// `ExponentialMovingAverage` with `num_updates`).
#[derive(Debug, Clone, PartialEq)]
pub struct Ema {
    /// The averages.
    pub values: Vec<f32>,
    /// Updates so far.
    pub updates: u64,
    /// The decay in the long run, in `[0, 1)`.
    pub decay: f64,
}

impl Ema {
    /// Starts at the present values.
    pub fn new(values: &[f32], decay: f64) -> Self {
        Self { values: values.to_vec(), updates: 0, decay }
    }

    /// Takes in the values after a step; they are as many as before.
    pub fn update(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.values.len(), "one value for each average");
        self.updates += 1;
        let updates = self.updates as f64;
        let share = (1.0 - self.decay.min(updates / (updates + 9.0))) as f32;
        for (average, value) in self.values.iter_mut().zip(values) {
            *average += share * (value - *average);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_by_hand() {
        let mut average = Ema::new(&[0.0, 4.0], 0.15);
        // d = 1/10, then 0.15 in place of 2/11.
        average.update(&[1.0, 4.0]);
        assert!((average.values[0] - 0.9).abs() < 1e-6);
        average.update(&[2.0, 4.0]);
        assert!((average.values[0] - (0.15 * 0.9 + 0.85 * 2.0)).abs() < 1e-6);
        assert_eq!(average.values[1], 4.0);
    }

    #[test]
    fn memory_is_that_of_the_decay() {
        let mut average = Ema::new(&[1.0], 0.9);
        (0..2000).for_each(|_| average.update(&[1.0]));
        (0..10).for_each(|_| average.update(&[0.0]));
        assert!((average.values[0] - 0.9f32.powi(10)).abs() < 1e-5);
    }

    #[test]
    fn a_stored_average_continues() {
        let mut whole = Ema::new(&[0.0], 0.99);
        (0..5).for_each(|i| whole.update(&[i as f32]));
        let mut parts = Ema::new(&[0.0], 0.99);
        (0..3).for_each(|i| parts.update(&[i as f32]));
        // What a checkpoint holds.
        let (values, updates) = (parts.values, parts.updates);
        let mut parts = Ema { values, updates, ..Ema::new(&[7.0], 0.99) };
        (3..5).for_each(|i| parts.update(&[i as f32]));
        assert_eq!(whole, parts);
    }
}
