//! Random numbers for initial weights: a seed enters, the same numbers leave everywhere.

use std::f64::consts::TAU;

/// SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Random { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// `count` numbers, uniform in ±`bound`.
    pub fn uniform(&mut self, count: usize, bound: f64) -> Vec<f32> {
        (0..count).map(|_| ((2.0 * self.unit() - 1.0) * bound) as f32).collect()
    }

    /// `count` numbers of mean 0 and standard deviation `deviation`, normally distributed (Box and Muller 1958).
    pub fn normal(&mut self, count: usize, deviation: f64) -> Vec<f32> {
        let mut numbers = Vec::with_capacity(count + 1);
        while numbers.len() < count {
            let radius = (-2.0 * self.unit().ln()).sqrt() * deviation;
            let (sin, cos) = (TAU * self.unit()).sin_cos();
            numbers.extend([(radius * cos) as f32, (radius * sin) as f32]);
        }
        numbers.truncate(count);
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn splitmix64_gives_its_published_numbers() {
        let mut random = Random::new(1_234_567);
        let first = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([random.next(), random.next(), random.next()], first);
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let moment = |v: &[f32], power| v.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / v.len() as f64;
        let mut random = Random::new(0);
        let normal = random.normal(100_001, 2.0);
        assert_eq!(normal.len(), 100_001);
        // Standard errors of the mean, the variance and the fourth moment: 0.006, 0.018, 0.5.
        assert!(moment(&normal, 1).abs() < 0.03);
        assert!((moment(&normal, 2) - 4.0).abs() < 0.09);
        assert!((moment(&normal, 4) - 48.0).abs() < 2.5);
        let uniform = random.uniform(100_000, 3.0);
        assert!(uniform.iter().all(|x| x.abs() <= 3.0));
        assert!((moment(&uniform, 2) - 3.0).abs() < 0.05);
    }
}
