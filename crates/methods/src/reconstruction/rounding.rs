//! The rounding of activations while a block is learned: a grid with a learned scale, from which elements can be left out.

use fewbits_graph::{QuantParams, tape::Quantizer};
use fewbits_kernels::{float::fake_quant::FakeQuant, simd::Isa};
use fewbits_train::random::Random;

/// Numbers of the quantizer: the scale, and one that each step draws and no gradient changes.
pub const NUMBERS: usize = 2;

/// `x̂ = s·(clamp(round(x/s) + z) − z)`; each element stays as it is with probability `keep` (QDrop, Wei et al. 2022).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding {
    low: f32,
    high: f32,
    /// Share of elements that are not rounded, of 2³².
    keep: u32,
    /// LSQ's gradient scale, `1 / √(elements · high)`.
    gradient_scale: f64,
}

impl Rounding {
    /// For a tensor with one scale and `elements` elements per batch; `None` if it has several.
    pub fn new(params: &QuantParams, elements: usize, keep: f64) -> Option<Self> {
        let (_, zero_point) = params.tensor_params()?;
        let (low, high) = (params.grid.qmin() - zero_point, params.grid.qmax() - zero_point);
        let reach = f64::from(high.max(-low).max(1));
        Some(Rounding {
            low: low as f32,
            high: high as f32,
            keep: (keep * 2f64.powi(32)).min(f64::from(u32::MAX)) as u32,
            gradient_scale: 1.0 / (elements.max(1) as f64 * reach).sqrt(),
        })
    }

    fn quantizer(&self, numbers: &[f32]) -> FakeQuant {
        FakeQuant { scale: numbers[0], offset: 0.0, low: self.low, high: self.high }
    }

    /// The odd factor by which elements are chosen in a step that drew `numbers[1]`.
    fn key(numbers: &[f32]) -> u32 {
        Random::new(numbers[1].to_bits().into()).next_u64() as u32 | 1
    }

    /// Whether `x` stays as it is: its bits times the step's `key` (multiplicative hashing, Dietzfelbinger et al. 1997). The element's
    /// own bits stand for its place, so that the choice is the same in both passes and on any number of threads.
    #[inline]
    fn keeps(&self, key: u32, x: f32) -> bool {
        x.to_bits().wrapping_mul(key) < self.keep
    }
}

impl Quantizer for Rounding {
    fn learned(&self) -> usize {
        NUMBERS
    }

    fn forward(&self, numbers: &[f32], x: &[f32], y: &mut [f32]) {
        self.quantizer(numbers).forward(Isa::best(), x, y);
        if self.keep > 0 {
            let key = Self::key(numbers);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = if self.keeps(key, *x) { *x } else { *y });
        }
    }

    fn backward(&self, numbers: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f64]) {
        let gradients = if self.keep > 0 {
            let key = Self::key(numbers);
            let rounded: Vec<f32> =
                dy.iter().zip(x).map(|(dy, x)| if self.keeps(key, *x) { 0.0 } else { *dy }).collect();
            let gradients = self.quantizer(numbers).backward(Isa::best(), x, &rounded, false, dx);
            for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                *dx = if self.keeps(key, *x) { *dy } else { *dx };
            }
            gradients
        } else {
            self.quantizer(numbers).backward(Isa::best(), x, dy, false, dx)
        };
        sums[0] += gradients.scale * self.gradient_scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbits_graph::Grid;

    #[test]
    fn about_the_asked_share_is_left_alone_in_both_passes() {
        let params = QuantParams::per_tensor(Grid::activations(4), 0.25, 3);
        let x: Vec<f32> = (0..4000).map(|i| (i as f32 * 0.618).fract() * 3.0 - 0.5).collect();
        let rounding = Rounding::new(&params, 4000, 0.5).unwrap();
        let numbers = [0.25, 7.0];
        let mut y = vec![0.0; x.len()];
        rounding.forward(&numbers, &x, &mut y);
        let kept: Vec<bool> = x.iter().zip(&y).map(|(x, y)| x == y).collect();
        let share = kept.iter().filter(|k| **k).count();
        assert!((1800..2200).contains(&share), "{share}");
        for (y, _) in y.iter().zip(&kept).filter(|(_, kept)| !**kept) {
            let code = y / 0.25;
            assert!(code.fract() == 0.0 && (-3.0..=12.0).contains(&code), "{y}");
        }
        // Above the grid only what was left alone has a gradient.
        let high = vec![9.5f32, 9.25, 9.125, 11.0, 12.0, 13.0, 14.0, 15.5];
        let (mut y, mut dx) = (vec![0.0; 8], vec![0.0; 8]);
        rounding.forward(&numbers, &high, &mut y);
        rounding.backward(&numbers, &high, &[1.0; 8], &mut dx, &mut [0.0; 2]);
        for i in 0..8 {
            assert_eq!(dx[i], f32::from(y[i] == high[i]));
        }
    }
}
