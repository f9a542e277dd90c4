//! Ranges that are observed, not learned: the quantization-aware training of Jacob et al.
//!
//! *What it does*: weights are rounded on the symmetric grid of their largest magnitude, found anew at each step. Of activations
//! an exponential moving average of each batch's smallest and largest element is kept; they pass unrounded for the first
//! batches, then are rounded on the affine grid of that range, which holds zero exactly.
//!
//! *Gradient*: 1 within the range, its ends included; 0 elsewhere.
//!
//! *Source*: Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko, "Quantization and training of neural networks for efficient
//! integer-arithmetic-only inference", CVPR 2018, sections 3.1 and 3.2, equations 12 and 13.
//!
//! *Departures*: weights are symmetric, as integer kernels of today want them.

use super::{Deployable, NotDeployable, fake_quant::FakeQuant, full, init, narrow};
use fewbits_graph::{Grid, tape::Quantizer};
use fewbits_quant::{Mapping, Range};

/// Weights on the grid of their largest magnitude. Parameters `[scale]`, derived.
#[derive(Clone, Debug)]
pub struct StepRange {
    grid: Grid,
}

impl StepRange {
    /// Signed, narrow weights of `bits` bits.
    pub fn new(bits: u8) -> Self {
        StepRange { grid: narrow(bits) }
    }
}

impl Quantizer for StepRange {
    fn learned(&self) -> usize {
        0
    }

    fn derived(&self) -> usize {
        1
    }

    fn derive(&self, x: &[f32], derived: &mut [f32]) {
        let (least, greatest) = init::extremes(x);
        derived[0] = init::usable(greatest.max(-least) / f64::from(self.grid.qmax()));
    }

    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        FakeQuant::symmetric(parameters[0], self.grid.qmin(), self.grid.qmax()).forward(x, y);
    }

    fn backward(&self, _parameters: &[f32], _x: &[f32], dy: &[f32], dx: &mut [f32], _sums: &mut [f64]) {
        dx.copy_from_slice(dy);
    }
}

impl Deployable for StepRange {
    fn initial(&self, x: &[f32]) -> Vec<f32> {
        let mut derived = vec![0.0];
        self.derive(x, &mut derived);
        derived
    }

    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        Ok((self.grid, parameters[0], 0))
    }
}

/// Activations on the grid of a moving average of their range. Parameters `[smallest, largest, batches seen]`, none of which an
/// optimizer changes.
#[derive(Clone, Debug)]
pub struct MovingAverage {
    grid: Grid,
    delay: u32,
    decay: f32,
}

impl MovingAverage {
    /// Unsigned activations of `bits` bits, unrounded until `delay` batches are seen (at most 2²⁴); `decay` is the weight of the
    /// past.
    pub fn new(bits: u8, delay: u32, decay: f32) -> Self {
        MovingAverage { grid: full(bits, false), delay: delay.min(1 << 24), decay: decay.clamp(0.0, 1.0) }
    }

    fn affine(&self, parameters: &[f32]) -> (f32, i32) {
        let range = Range::of(parameters[0].into(), parameters[1].into()).params(self.grid, Mapping::Affine);
        (range.scale[0], range.zero_point[0])
    }

    /// `None` while values pass.
    fn kernel(&self, parameters: &[f32]) -> Option<FakeQuant> {
        let (scale, z) = self.affine(parameters);
        (parameters[2] >= self.delay as f32).then(|| FakeQuant::symmetric(scale, -z, self.grid.qmax() - z))
    }
}

impl Quantizer for MovingAverage {
    fn learned(&self) -> usize {
        3
    }

    fn forward(&self, parameters: &[f32], x: &[f32], y: &mut [f32]) {
        match self.kernel(parameters) {
            Some(kernel) => kernel.forward(x, y),
            None => y.copy_from_slice(x),
        }
    }

    fn backward(&self, parameters: &[f32], x: &[f32], dy: &[f32], dx: &mut [f32], _sums: &mut [f64]) {
        let Some(FakeQuant { scale, low, high, .. }) = self.kernel(parameters) else {
            return dx.copy_from_slice(dy);
        };
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = if (low..=high).contains(&(x / scale)) { *dy } else { 0.0 };
        }
    }

    fn follows_range(&self) -> bool {
        true
    }

    fn follow(&self, parameters: &mut [f32], range: [f32; 2]) {
        if !range.iter().all(|end| end.is_finite()) {
            return;
        }
        let past = if parameters[2] > 0.0 { self.decay } else { 0.0 };
        for (kept, new) in parameters.iter_mut().zip(range) {
            *kept = past * *kept + (1.0 - past) * new;
        }
        parameters[2] += 1.0;
    }

    fn project(&self, parameters: &mut [f32]) {
        if !parameters.iter().all(|p| p.is_finite()) {
            parameters.fill(0.0);
        }
    }
}

impl Deployable for MovingAverage {
    fn initial(&self, x: &[f32]) -> Vec<f32> {
        let (least, greatest) = init::extremes(x);
        let mut parameters = vec![0.0; 3];
        if x.iter().any(|x| x.is_finite()) {
            self.follow(&mut parameters, [least as f32, greatest as f32]);
        }
        parameters
    }

    fn grid(&self, parameters: &[f32]) -> Result<(Grid, f32, i32), NotDeployable> {
        if self.kernel(parameters).is_none() {
            return Err(NotDeployable::Observing { seen: parameters[2] as u32, delay: self.delay });
        }
        let (scale, zero_point) = self.affine(parameters);
        Ok((self.grid, scale, zero_point))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{normal, run, snapped_values_are_deployed_values};
    use super::*;

    #[test]
    fn activations_pass_until_enough_is_seen() {
        let q = MovingAverage::new(2, 3, 0.5);
        let mut parameters = q.initial(&[-0.5, 2.0]);
        let x = [-3.0, -0.4, 0.0, 1.4, 7.0];
        for range in [[-1.5, 2.0], [f32::NAN, 1.0], [-1.0, 2.0]] {
            assert_eq!(run(&q, &parameters, &x, &[1.0; 5]).0, x);
            assert!(matches!(q.grid(&parameters), Err(NotDeployable::Observing { delay: 3, .. })));
            q.follow(&mut parameters, range);
        }
        // −0.5, then −1, then −1; NaN is passed over.
        assert_eq!(parameters, [-1.0, 2.0, 3.0]);
        assert_eq!(q.grid(&parameters), Ok((full(2, false), 1.0, 1)));
        let (y, dx, _) = run(&q, &parameters, &[-3.0, -1.0, -0.4, 1.4, 2.0, 7.0], &[1.0; 6]);
        assert_eq!(y, [-1.0, -1.0, 0.0, 1.0, 2.0, 2.0]);
        assert_eq!(dx, [0.0, 1.0, 1.0, 1.0, 1.0, 0.0], "the ends of the range are within");
    }

    #[test]
    fn weights_reach_their_largest_magnitude() {
        let w = [-0.75, 0.2, 0.26, 0.5];
        let q = StepRange::new(3);
        let scale = q.initial(&w);
        assert_eq!(scale, [0.25]);
        let (y, dx, _) = run(&q, &scale, &w, &[2.0; 4]);
        assert_eq!((y, dx), (vec![-0.75, 0.25, 0.25, 0.5], vec![2.0; 4]));
    }

    #[test]
    fn training_and_deployment_give_the_same_floats() {
        let x = normal(2000, 1.1);
        for bits in 2..=8 {
            snapped_values_are_deployed_values(&StepRange::new(bits), &StepRange::new(bits).initial(&x), &x);
            let q = MovingAverage::new(bits, 1, 0.9);
            snapped_values_are_deployed_values(&q, &q.initial(&x), &x);
        }
    }
}
