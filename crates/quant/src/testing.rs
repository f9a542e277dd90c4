//! Random numbers for the tests of this crate: a seed enters, the same numbers leave every time.

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// Uniform in (0, 1). SplitMix64.
    pub(crate) fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 41) as f32 / (1u32 << 23) as f32 + f32::EPSILON / 4.0
    }

    /// Standard normal, by Box and Muller.
    pub(crate) fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }

    /// Laplace with mean distance 1 from 0.
    pub(crate) fn laplace(&mut self) -> f32 {
        let sign = if self.uniform() < 0.5 { -1.0 } else { 1.0 };
        -sign * self.uniform().ln()
    }
}
