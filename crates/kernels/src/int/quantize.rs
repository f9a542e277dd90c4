//! From real numbers to grid points and back: the one quantizer.
//!
//! `quantize(x) = clamp(round_ties_even(x / scale) + zero, qmin, qmax)`, `dequantize(q) = (q - zero) * scale`, both in f32 with a
//! true division. Equal to ONNX Runtime's QuantizeLinear / DequantizeLinear on every f32, including infinities and NaN (which
//! becomes `qmin`).

use super::isa::multiversion;

/// Adding this to a float of magnitude below 2^22 leaves its integer part, rounded half to even, in the low mantissa bits.
const ROUND_MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23

/// A uniform grid: the integers `qmin..=qmax`, of which `zero` stands for 0.0, `scale` apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GridParams {
    /// Distance between neighbouring grid points.
    pub scale: f32,
    /// The integer that stands for 0.0.
    pub zero: i32,
    /// Smallest integer.
    pub qmin: i32,
    /// Largest integer.
    pub qmax: i32,
}

impl GridParams {
    /// All 256 integers of `u8`.
    pub fn u8(scale: f32, zero: i32) -> Self {
        GridParams { scale, zero, qmin: 0, qmax: 255 }
    }

    /// Bounds of `x / scale` that lead to `qmin` and `qmax`.
    #[inline(always)]
    fn bounds(&self) -> [f32; 2] {
        [(self.qmin - self.zero) as f32, (self.qmax - self.zero) as f32]
    }
}

/// `clamp(round_ties_even(v), lo, hi)` for integer bounds of magnitude below 2^22; NaN gives `lo`.
#[inline(always)]
pub(crate) fn round_clamped(v: f32, [lo, hi]: [f32; 2]) -> i32 {
    // Written as comparisons so that NaN takes the lower bound and each line is one instruction.
    let v = if v > lo { v } else { lo };
    let v = if v < hi { v } else { hi };
    (v + ROUND_MAGIC).to_bits() as i32 - ROUND_MAGIC.to_bits() as i32
}

/// The grid point of one number. Bounds and zero point are below 2^21 in magnitude.
#[inline(always)]
pub fn quantize_value(x: f32, grid: &GridParams) -> i32 {
    round_clamped(x / grid.scale, grid.bounds()) + grid.zero
}

/// The number that one grid point stands for.
#[inline(always)]
pub fn dequantize_value(q: i32, grid: &GridParams) -> f32 {
    (q - grid.zero) as f32 * grid.scale
}

multiversion! {
    /// `out[i] = quantize(x[i])` on a grid within `0..=255`.
    pub fn quantize(x: &[f32], grid: &GridParams, out: &mut [u8]) {
        let grid = *grid;
        for (o, &x) in out.iter_mut().zip(x) {
            *o = quantize_value(x, &grid) as u8;
        }
    }
}

multiversion! {
    /// `out[i] = (q[i] - zero) * scale`.
    pub fn dequantize(q: &[u8], scale: f32, zero: i32, out: &mut [f32]) {
        for (o, &q) in out.iter_mut().zip(q) {
            *o = (i32::from(q) - zero) as f32 * scale;
        }
    }
}

multiversion! {
    /// `out[i] = dequantize(quantize(x[i]))`: each number moved to its nearest grid point.
    pub fn fake_quantize(x: &[f32], grid: &GridParams, out: &mut [f32]) {
        let grid = *grid;
        let bounds = grid.bounds();
        for (o, &x) in out.iter_mut().zip(x) {
            *o = round_clamped(x / grid.scale, bounds) as f32 * grid.scale;
        }
    }
}

multiversion! {
    /// As [`fake_quantize`], in place.
    pub fn fake_quantize_in_place(x: &mut [f32], grid: &GridParams) {
        let grid = *grid;
        let bounds = grid.bounds();
        for x in x {
            *x = round_clamped(*x / grid.scale, bounds) as f32 * grid.scale;
        }
    }
}

/// Bias as the accumulator holds it: `round_ties_even(b[c] / (x_scale * w_scales[c]))`, saturated to i32; NaN gives 0.
/// `w_scales` has one entry per channel, or one for all.
pub fn quantize_bias(bias: &[f32], x_scale: f32, w_scales: &[f32]) -> Vec<i32> {
    let last = w_scales.len() - 1;
    let quantize = |(c, &b): (usize, &f32)| (b / (x_scale * w_scales[c.min(last)])).round_ties_even() as i32;
    bias.iter().enumerate().map(quantize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in f64 after the one f32 division.
    fn definition(x: f32, g: &GridParams) -> i32 {
        let v = f64::from(x / g.scale).round_ties_even();
        let v = if v.is_nan() { f64::from(g.qmin - g.zero) } else { v };
        (v as i64).saturating_add(i64::from(g.zero)).clamp(i64::from(g.qmin), i64::from(g.qmax)) as i32
    }

    #[test]
    fn quantizer_equals_its_definition_on_ties_extremes_and_tails() {
        let grids = [
            GridParams::u8(0.1, 128),
            GridParams::u8(0.02, 0),
            GridParams { scale: 3e-5, zero: 7, qmin: 0, qmax: 15 },
            GridParams { scale: 1.0, zero: 200, qmin: 3, qmax: 250 },
        ];
        for grid in grids {
            let mut x: Vec<f32> = (-1200..1200).map(|i| i as f32 * 0.5 * grid.scale).collect();
            x.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0, 1e-40]);
            let mut q = vec![0; x.len()];
            quantize(&x, &grid, &mut q);
            let mut fake = vec![0.0; x.len()];
            fake_quantize(&x, &grid, &mut fake);
            let mut real = vec![0.0; x.len()];
            dequantize(&q, grid.scale, grid.zero, &mut real);
            for i in 0..x.len() {
                assert_eq!(i32::from(q[i]), definition(x[i], &grid), "{} on {grid:?}", x[i]);
                assert_eq!(real[i], (f32::from(q[i]) - grid.zero as f32) * grid.scale);
            }
            assert_eq!(fake, real);
        }
    }

    #[test]
    fn a_bias_uses_its_channels_scale() {
        assert_eq!(quantize_bias(&[0.25, 1e20, -3.0], 0.5, &[1.0, 2.0, 4.0]), [0, i32::MAX, -2]);
        assert_eq!(quantize_bias(&[0.75, 1.25], 0.5, &[1.0]), [2, 2]);
    }
}
