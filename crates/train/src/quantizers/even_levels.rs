//! Evenly spaced levels from −1 to 1, both ends included: the weights of DoReFa and all that follow it.
//!
//! `2^bits` levels have none at zero: they are the odd numbers `−m…m` over `m = 2^bits − 1`, and so fit a signed grid one bit
//! wider. At 8 bits that would no longer fit a byte; there are then 255 levels, `−127…127` over 127, zero among them.

use super::narrow;
use fewbits_graph::Grid;

/// Levels of a width.
#[derive(Clone, Copy, Debug)]
pub(super) struct EvenLevels {
    bits: u8,
}

impl EvenLevels {
    /// 2 to 8 bits.
    pub fn new(bits: u8) -> Self {
        EvenLevels { bits }
    }

    /// The grid that holds the codes of [`EvenLevels::code`].
    pub fn grid(self) -> Grid {
        narrow(if self.bits < 8 { self.bits + 1 } else { 8 })
    }

    /// Scale of the codes if the outermost level is `amplitude`.
    pub fn scale(self, amplitude: f32) -> f32 {
        amplitude / self.grid().qmax() as f32
    }

    /// Number of steps between the levels.
    pub fn steps(self) -> i32 {
        if self.bits < 8 { (1 << self.bits) - 1 } else { 254 }
    }

    /// Code of the level nearest to `t`, which is cut to −1…1: `2·round(steps·(t+1)/2) − steps` below 8 bits.
    pub fn code(self, t: f32) -> f32 {
        let steps = self.steps() as f32;
        let level = (steps * (0.5 * t.clamp(-1.0, 1.0) + 0.5)).round_ties_even();
        if self.bits < 8 { 2.0 * level - steps } else { level - 0.5 * steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_levels_as_codes_and_both_ends_are_levels() {
        for (bits, expected) in [(2, vec![-3.0, -1.0, 1.0, 3.0]), (3, vec![-7.0, -5.0, -3.0, -1.0, 1.0, 3.0, 5.0, 7.0])]
        {
            let mut codes: Vec<f32> = (-200..=200).map(|i| EvenLevels::new(bits).code(i as f32 / 150.0)).collect();
            codes.dedup();
            assert_eq!(codes, expected);
        }
        for bits in 2..=8 {
            let levels = EvenLevels::new(bits);
            assert_eq!(
                [levels.code(-1.0), levels.code(1.0)],
                [levels.grid().qmin() as f32, levels.grid().qmax() as f32]
            );
        }
        assert_eq!(EvenLevels::new(8).code(0.0), 0.0);
        assert!(EvenLevels::new(4).code(f32::NAN).is_nan());
    }
}
