//! From a range of real numbers to a scale and a zero point.

use fewbits_graph::{Grid, QuantParams};

/// Whether the zero point may move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// The zero point goes where the range asks for it.
    #[default]
    Affine,
    /// The range is widened to be symmetric, and the zero point is 0 on a signed grid. On an unsigned grid it is 0 if the range
    /// has no negative part, and `2^(bits−1)` otherwise.
    Symmetric,
}

/// An interval with `lo ≤ 0 ≤ hi`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

/// Ranges narrower than this hold nothing but zero.
const DEGENERATE: f64 = 1e-8;

impl Range {
    /// `lo..=hi`, extended to zero: every grid holds zero exactly, as padding needs it.
    pub fn of(lo: f64, hi: f64) -> Self {
        Range { lo: lo.min(0.0), hi: hi.max(0.0) }
    }

    /// The part that lies within `other`.
    pub fn intersect(self, other: Range) -> Self {
        Range { lo: self.lo.max(other.lo), hi: self.hi.min(other.hi) }
    }

    /// The grid that spans this range.
    ///
    /// Affine: `scale = (hi − lo) / (qmax − qmin)`, `zero_point = qmin − round_ties_even(lo / scale)`, clamped to the grid, so a
    /// range without negative part has the zero point `qmin`. Rounding the zero point shifts the range by up to half a step.
    /// Symmetric: `scale = max(−lo, hi) / (qmax − zero_point)`; a full signed grid then reaches one step further below zero
    /// than above. A range narrower than 1e-8 has scale 1. The scale is always a positive, normal, finite `f32`.
    pub fn params(self, grid: Grid, mapping: Mapping) -> QuantParams {
        let (scale, zero_point) = self.scale_and_zero_point(grid, mapping);
        QuantParams::per_tensor(grid, scale, zero_point)
    }

    pub(super) fn scale_and_zero_point(self, grid: Grid, mapping: Mapping) -> (f32, i32) {
        let normal = |scale: f64| (scale as f32).clamp(f32::MIN_POSITIVE, f32::MAX);
        let usable = |scale: f64| if self.hi - self.lo < DEGENERATE { 1.0 } else { normal(scale) };
        match mapping {
            Mapping::Affine => {
                let scale = usable((self.hi - self.lo) / f64::from(grid.steps()));
                let below = (-self.lo / f64::from(scale)).round_ties_even() as i32;
                (scale, grid.qmin().saturating_add(below).min(grid.qmax()))
            }
            Mapping::Symmetric => {
                let zero_point = if grid.signed || self.lo == 0.0 { 0 } else { 1 << (grid.bits - 1) };
                (usable(self.hi.max(-self.lo) / f64::from(grid.qmax() - zero_point)), zero_point)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Mapping::{Affine, Symmetric};

    const FULL: Grid = Grid { bits: 8, signed: true, narrow: false };

    #[test]
    fn ranges_become_the_grids_of_the_definition() {
        // Expected numbers by hand: unsigned 8 bits over [-1, 1.55] has 255 steps of 0.01, zero 100 steps up, and so on.
        #[rustfmt::skip]
        let cases = [
            (-1.0, 1.55, Grid::activations(8), Affine, 0.01, 100),
            (-1.0, 1.55, FULL, Affine, 0.01, -28),
            (0.0, 6.0, Grid::activations(8), Affine, 6.0 / 255.0, 0),
            (0.0, 6.0, FULL, Affine, 6.0 / 255.0, -128),
            (-3.0, 0.0, Grid::activations(2), Affine, 1.0, 3),
            (-0.5, 6.35, Grid::weights(8), Symmetric, 0.05, 0),
            (-6.35, 0.5, FULL, Symmetric, 0.05, 0),
            (-0.7, 0.2, Grid::weights(4), Symmetric, 0.1, 0),
            (0.0, 5.1, Grid::activations(8), Symmetric, 0.02, 0),
            (-1.27, 1.0, Grid::activations(8), Symmetric, 0.01, 128),
            (-1.0, 1.0, Grid::weights(2), Symmetric, 1.0, 0),
            (0.0, 0.0, Grid::activations(8), Affine, 1.0, 0),
            (0.0, 1e-9, FULL, Affine, 1.0, -128),
            (0.0, 0.0, Grid::weights(8), Symmetric, 1.0, 0),
            // Half a step below zero: the tie goes to the even code.
            (-0.5, 2.5, Grid::activations(2), Affine, 1.0, 0),
            (-1.5, 1.5, Grid::activations(2), Affine, 1.0, 2),
        ];
        for (lo, hi, grid, mapping, scale, zero_point) in cases {
            let params = Range::of(lo, hi).params(grid, mapping);
            let found = params.tensor_params().unwrap();
            assert_eq!(found, (scale as f32, zero_point), "[{lo}, {hi}] on {grid:?}, {mapping:?}");
        }
    }

    #[test]
    fn scales_are_normal_and_zero_is_a_code_at_the_extremes() {
        let huge = f64::from(f32::MAX);
        for (lo, hi) in
            [(-huge, huge), (0.0, huge), (-1e-8, 1e-8), (-1e-20, huge), (-huge, 1e-20), (3.0, 5.0), (-5.0, -3.0)]
        {
            for grid in [Grid::activations(8), Grid::activations(1), Grid::weights(2), FULL] {
                for mapping in [Affine, Symmetric] {
                    let (scale, zero_point) = Range::of(lo, hi).scale_and_zero_point(grid, mapping);
                    assert!(scale.is_normal() && scale > 0.0, "{scale} for [{lo}, {hi}]");
                    assert!((grid.qmin()..=grid.qmax()).contains(&zero_point));
                }
            }
        }
    }
}
