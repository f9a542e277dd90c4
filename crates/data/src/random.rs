//! Random numbers for data, training and search: keys enter (a seed, an epoch, a sample number …), a stream leaves that is the same on
//! every machine. Because a stream is made from its keys, results depend neither on the number of threads nor on where a
//! run was resumed, and no generator has to be stored.

/// Weyl increment of splitmix64, 2⁶⁴ / φ.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A xoshiro256** generator (Blackman and Vigna 2018), its state filled by splitmix64. Not for cryptography.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        let mut counter = seed;
        let state = std::array::from_fn(|_| {
            counter = counter.wrapping_add(GOLDEN);
            mix(counter)
        });
        Self { state }
    }

    /// The stream of several keys, such as `[seed, epoch, sample]`. Their order and number matter.
    pub fn keyed(keys: &[u64]) -> Self {
        Self::new(keys.iter().fold(keys.len() as u64, |hash, &key| mix(hash.wrapping_add(GOLDEN) ^ key)))
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        b.wrapping_mul(5).rotate_left(7).wrapping_mul(9)
    }

    /// Uniform in `[0, 1)`, a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in `0..count`; `count` is at least 1. The bias is below `count` / 2⁶⁴.
    pub fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next_u64()) * count as u128) >> 64) as usize
    }

    /// A standard normal deviate, by Box and Muller's cosine; the sine is not kept, so two numbers are used for each.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Brings the values into one of their orders, each equally likely (Fisher and Yates).
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }
}

/// The output function of splitmix64 (Steele, Lea and Flood 2014).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_published_sequences() {
        // splitmix64 of seed 1234567, as the reference program prints it.
        let expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        assert_eq!(Random::new(1234567).state, expected);
        // xoshiro256** from the state 1, 2, 3, 4.
        let mut random = Random { state: [1, 2, 3, 4] };
        for expected in [11520, 0, 1509978240, 1215971899390074240, 1216172134540287360, 607988272756665600] {
            assert_eq!(random.next_u64(), expected);
        }
    }

    #[test]
    fn moments_of_the_deviates() {
        let mut random = Random::new(3);
        let n = 200_000;
        let (mut uniform, mut normal) = ([0.0; 2], [0.0; 4]);
        for _ in 0..n {
            let (u, z) = (random.uniform(), random.normal());
            assert!((0.0..1.0).contains(&u));
            uniform.iter_mut().enumerate().for_each(|(k, sum)| *sum += u.powi(k as i32 + 1) / n as f64);
            normal.iter_mut().enumerate().for_each(|(k, sum)| *sum += z.powi(k as i32 + 1) / n as f64);
        }
        // Within five standard errors of 1/2, 1/3, and of 0, 1, 0, 3.
        for (found, expected, variance) in [
            (uniform[0], 1.0 / 2.0, 1.0 / 12.0),
            (uniform[1], 1.0 / 3.0, 4.0 / 45.0),
            (normal[0], 0.0, 1.0),
            (normal[1], 1.0, 2.0),
            (normal[2], 0.0, 15.0),
            (normal[3], 3.0, 96.0),
        ] {
            let error: f64 = found - expected;
            assert!(error.abs() < 5.0 * f64::sqrt(variance / n as f64), "{found} for {expected}");
        }
    }

    #[test]
    fn orders_are_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for sample in 0..6000 {
            let mut values = [0, 1, 2];
            Random::keyed(&[7, sample]).shuffle(&mut values);
            *counts.entry(values).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        // Mean 1000, standard deviation 29.
        assert!(counts.values().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }

    #[test]
    fn keys_are_told_apart() {
        let first = |keys: &[u64]| Random::keyed(keys).next_u64();
        let keys: [&[u64]; 7] = [&[], &[0], &[0, 0], &[1, 0], &[0, 1], &[1, 0, 0], &[0, 0, 1]];
        let distinct: std::collections::BTreeSet<u64> = keys.iter().map(|keys| first(keys)).collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(first(&[1, 2, 3]), first(&[1, 2, 3]));
    }
}
