//! KURE: a penalty that makes the weights of a layer evenly distributed, so that they survive any grid.
//!
//! *What it does*: adds `λ/L · Σ_l (K(W_l) − T)²` to the loss of a network with `L` layers, `K(W) = E[((w−μ)/σ)⁴]` the kurtosis and
//! `T = 1.8` that of the uniform distribution. *Gradient*: `∂K/∂w_j = 4/(nσ)·(z_j³ − E[z³] − K·z_j)`, `z = (w−μ)/σ`.
//!
//! *Source*: Chmiel, Banner, Shomron, Nahshan, Bronstein, Weiser, "Robust quantization: one model to rule them all", NeurIPS 2020,
//! section 4.

/// Kurtosis of the uniform distribution.
pub const UNIFORM: f64 = 1.8;

/// `K(W)`; `target` itself, so without penalty or gradient, if the weights are all alike.
pub fn kurtosis(weights: &[f32], target: f64) -> f64 {
    Moments::of(weights).map_or(target, |m| m.kurtosis)
}

/// `(K(W) − T)²`, and adds its gradient times `factor` (`λ/L`) to `gradient`. A penalty of weights that are all alike is 0.
pub fn penalty(weights: &[f32], target: f64, factor: f64, gradient: &mut [f32]) -> f64 {
    let Some(m) = Moments::of(weights) else { return 0.0 };
    let excess = m.kurtosis - target;
    let slope = factor * 2.0 * excess * 4.0 / (weights.len() as f64 * m.deviation);
    for (gradient, w) in gradient.iter_mut().zip(weights) {
        let z = (f64::from(*w) - m.mean) / m.deviation;
        *gradient += (slope * (z.powi(3) - m.skewness - m.kurtosis * z)) as f32;
    }
    excess * excess
}

struct Moments {
    mean: f64,
    deviation: f64,
    skewness: f64,
    kurtosis: f64,
}

impl Moments {
    /// `None` if there is no spread to measure, or an element is not finite.
    fn of(weights: &[f32]) -> Option<Self> {
        let count = weights.len() as f64;
        let mean = weights.iter().map(|w| f64::from(*w)).sum::<f64>() / count;
        let central = |k: i32| weights.iter().map(|w| (f64::from(*w) - mean).powi(k)).sum::<f64>() / count;
        let deviation = central(2).sqrt();
        (deviation > 1e-12 * mean.abs() && deviation.is_normal()).then(|| Moments {
            mean,
            deviation,
            skewness: central(3) / deviation.powi(3),
            kurtosis: central(4) / deviation.powi(4),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{derivative, normal};
    use super::*;

    #[test]
    fn the_kurtosis_of_known_distributions() {
        let uniform: Vec<f32> = (0..10_000).map(|i| i as f32 * 0.01 - 3.0).collect();
        assert!((kurtosis(&uniform, UNIFORM) - 1.8).abs() < 1e-3);
        assert!((kurtosis(&normal(200_000, 0.1), UNIFORM) - 3.0).abs() < 0.05);
        assert!((kurtosis(&[1.0, -1.0, 1.0, -1.0], UNIFORM) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_gradient_is_that_of_the_penalty() {
        let w: Vec<f32> = normal(40, 0.3).iter().map(|x| x + x * x).collect();
        let mut gradient = vec![1.0; w.len()];
        let value = penalty(&w, UNIFORM, 0.5, &mut gradient);
        assert!((value - (kurtosis(&w, UNIFORM) - 1.8).powi(2)).abs() < 1e-12);
        for j in 0..w.len() {
            let at = |v: f64| {
                let mut changed = w.clone();
                changed[j] = v as f32;
                0.5 * penalty(&changed, UNIFORM, 0.0, &mut vec![0.0; w.len()])
            };
            let slope = derivative(at, w[j].into(), 1.0 / 256.0);
            let found = f64::from(gradient[j] - 1.0);
            assert!((found - slope).abs() < 2e-3 * (1.0 + slope.abs()), "{j}: {found} for {slope}");
        }
    }

    #[test]
    fn weights_without_spread_have_no_penalty() {
        for w in [&[][..], &[0.0; 4], &[0.1; 7], &[5.0], &[f32::NAN, 1.0]] {
            let mut gradient = vec![0.0; w.len()];
            assert_eq!(penalty(w, UNIFORM, 1.0, &mut gradient), 0.0, "{w:?}");
            assert!(gradient.iter().all(|g| *g == 0.0));
        }
    }
}
