//! What the tests of quantizers share.

use super::Deployable;
use fewbits_graph::tape::Quantizer;

/// Normally distributed numbers, the same at each call (Box and Muller).
pub fn normal(count: usize, deviation: f32) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    };
    let mut next = || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
    (0..count).map(|_| deviation * next()).collect()
}

/// What a quantizer writes, and its gradients.
pub fn run(q: &dyn Quantizer, parameters: &[f32], x: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f64>) {
    let (mut y, mut dx, mut sums) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()], vec![0.0; q.learned()]);
    q.forward(parameters, x, &mut y);
    q.backward(parameters, x, dy, &mut dx, &mut sums);
    (y, dx, sums)
}

/// Codes of `x` on the deployed grid stand for the floats that are written for `x`.
pub fn snapped_values_are_deployed_values(q: &dyn Deployable, parameters: &[f32], x: &[f32]) {
    let mut y = vec![0.0; x.len()];
    q.forward(parameters, x, &mut y);
    assert_eq!(deployed(q, parameters, x), y, "{q:?} {parameters:?}");
    written_values_are_deployed_values(q, parameters, x);
}

/// Codes of the written floats stand for these floats.
pub fn written_values_are_deployed_values(q: &dyn Deployable, parameters: &[f32], x: &[f32]) {
    let mut y = vec![0.0; x.len()];
    q.forward(parameters, x, &mut y);
    assert_eq!(deployed(q, parameters, &y), y, "{q:?} {parameters:?}");
}

/// `scale · (clamp(round_ties_even(x / scale) + zero_point, qmin, qmax) − zero_point)`
fn deployed(q: &dyn Deployable, parameters: &[f32], x: &[f32]) -> Vec<f32> {
    let (grid, scale, zero_point) = q.grid(parameters).expect("the test is of a deployable quantizer");
    assert!((grid.qmin()..=grid.qmax()).contains(&zero_point), "{zero_point} is no code of {grid:?}");
    let code = |x: f32| ((x / scale).round_ties_even() as i64 + i64::from(zero_point)) as i32;
    x.iter().map(|x| (code(*x).clamp(grid.qmin(), grid.qmax()) - zero_point) as f32 * scale).collect()
}

/// The derivative of `f` at `x`.
pub fn derivative(f: impl Fn(f64) -> f64, x: f64, step: f64) -> f64 {
    (f(x + step) - f(x - step)) / (2.0 * step)
}
