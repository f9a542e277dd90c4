//! SAWB: statistics-aware weight binning.
//!
//! *What it does*: clips weights at `α = c₁·√E[w²] + c₂·E|w|`, computed anew at each step, and rounds to `2^k` even levels from −α to α.
//! Nothing is learned. *Gradient*: 1 where `|w| ≤ α`, 0 elsewhere.
//!
//! *When it fails*: weights unlike the six distributions that the coefficients were fitted to; many zeros make α small.
//!
//! *Source*: Choi, Venkataramani, Srinivasan, Gopalakrishnan, Wang, Chuang, "Accurate and efficient 2-bit quantized neural networks",
//! MLSys 2019, section 4; coefficients for 2 bits as in the authors' code.
//!
//! *Departures*: 255 levels at 8 bits. An α that is not positive is replaced with `max|w|`.

use super::{Deployable, NotDeployable, QuantizerError, even_levels::EvenLevels, init};
use fewbits_graph::{Grid, tape::Quantizer};

/// SAWB's weights. Parameters `[α]`, derived.
#[derive(Clone, Debug)]
pub struct Sawb {
    levels: EvenLevels,
    coefficients: [f64; 2],
}

impl Sawb {
    /// Weights of `bits` bits.
    ///
    /// # Errors
    /// For 6 and 7 bits there are no published coefficients.
    pub fn new(bits: u8) -> Result<Self, QuantizerError> {
        let coefficients = match bits {
            2 => [3.12, -2.064],
            3 => [7.509, -6.892],
            4 => [12.68, -12.80],
            5 => [17.74, -18.64],
            8 => [31.76, -35.04],
            _ => return Err(QuantizerError::Bits { method: "sawb", tensor: "weights", bits }),
        };
        Ok(Sawb { levels: EvenLevels::new(bits), coefficients })
    }
}

impl Quantizer for Sawb {
    fn learned(&self) -> usize {
        0
    }

    fn derived(&self) -> usize {
        1
    }

    fn derive(&self, x: &[f32], derived: &mut [f32]) {
        let (mut count, mut magnitudes, mut squares) = (0u64, 0.0, 0.0);
        for x in x.iter().filter(|x| x.is_finite()).map(|x| f64::from(*x)) {
            count += 1;
            magnitudes += x.abs();
            squares += x * x;
        }
        let mean = |sum: f64| sum / count.max(1) as f64;
        let alpha = self.coefficients[0] * mean(squares).sqrt() + self.coefficients[1] * mean(magnitudes);
        let (least, greatest) = init::extremes(x);
        derived[0] = init::usable(if alpha > 0.0 { alpha } else { greatest.max(-least) });
    }

    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        let scale = self.levels.scale(parameters[0]);
        for (y, x) in y.iter_mut().zip(x) {
            *y = scale * self.levels.code(x / parameters[0]);
        }
    }

    fn backward(&self, parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], _sums: &mut [f64]) {
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = if x.abs() <= parameters[0] { *dy } else { 0.0 };
        }
    }
}

impl Deployable for Sawb {
    fn initial(&self, x: &[f32]) -> Vec<f32> {
        let mut derived = vec![0.0];
        self.derive(x, &mut derived);
        derived
    }

    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        Ok((self.levels.grid(), self.levels.scale(parameters[0]), 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{normal, run, written_values_are_deployed_values};
    use super::*;

    #[test]
    fn the_clip_is_near_the_optimum_of_the_normal_distribution() {
        // Least squared error with levels at both ends of −α…α: 1.494σ, 2.051σ, 2.514σ at 2, 3, 4 bits (1.5 steps of 0.9957σ,
        // 3.5 of 0.5860σ, 7.5 of 0.3352σ; Max 1960, table II).
        let w = normal(200_000, 1.0);
        for (bits, optimum, closed_form) in [(2, 1.494, 1.473), (3, 2.051, 2.010), (4, 2.514, 2.467), (5, 2.910, 2.867)]
        {
            let alpha = f64::from(Sawb::new(bits).unwrap().initial(&w)[0]);
            assert!((alpha - closed_form).abs() < 0.03, "{bits} bits: {alpha}");
            assert!((alpha / optimum - 1.0).abs() < 0.03, "{bits} bits: {alpha}");
        }
    }

    #[test]
    fn values_and_gradients_follow_the_clip() {
        let q = Sawb::new(2).unwrap();
        let (y, dx, _) = run(&q, &[3.0], &[-9.0, -3.0, -1.9, -0.1, 0.1, 2.1, 3.1, f32::NAN], &[1.0; 8]);
        assert_eq!(y[..7], [-3.0, -3.0, -1.0, -1.0, 1.0, 3.0, 3.0]);
        assert!(y[7].is_nan(), "NaN stays visible");
        assert_eq!(dx, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert!(Sawb::new(6).is_err());
    }

    #[test]
    fn training_and_deployment_give_the_same_floats() {
        let w = normal(2000, 0.11);
        for bits in [2, 3, 4, 5, 8] {
            let q = Sawb::new(bits).unwrap();
            written_values_are_deployed_values(&q, &q.initial(&w), &w);
        }
    }
}
