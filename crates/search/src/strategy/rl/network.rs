//! A fully connected network with two hidden layers and one output, in plain arithmetic with its gradient.
//!
//! `y = w₃·relu(W₂ relu(W₁ x + b₁) + b₂) + b₃`. Parameters are one flat vector `[W₁ b₁ W₂ b₂ w₃ b₃]`, each matrix `[outputs][inputs]`;
//! a batch lies feature by feature: `x: [inputs][batch]`, `y: [batch]`. Results do not depend on the processor. It knows nothing
//! of what is learned.

use fewbits_kernels::{
    ConvGeometry, Threads,
    float::{ConvPlan, Epilogue, WeightGradient, update},
};
use fewbits_train::random::Random;
use std::ops::Range;

/// Numbers of a network.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Numbers that it reads.
    pub inputs: usize,
    /// Units of each hidden layer.
    pub hidden: usize,
}

impl Shape {
    /// How many parameters there are.
    #[cfg(test)]
    pub fn len(self) -> usize {
        self.ranges()[5].end
    }

    /// Where `W₁ b₁ W₂ b₂ w₃ b₃` lie.
    fn ranges(self) -> [Range<usize>; 6] {
        let Shape { inputs, hidden } = self;
        let mut end = 0;
        [hidden * inputs, hidden, hidden * hidden, hidden, hidden, 1].map(|len| {
            end += len;
            end - len..end
        })
    }

    /// Parameters as PyTorch draws them: uniform in ±1/√inputs of their layer. The first layer reads its inputs in parts of
    /// `parts` numbers each as if through layers of their own whose results are added; only the first has a bias.
    pub fn parameters(self, parts: &[usize], random: &mut Random) -> Vec<f32> {
        let bound = |inputs: usize| 1.0 / (inputs as f64).sqrt();
        let mut draw = |bound: f64| random.between(-bound, bound) as f32;
        let columns: Vec<f64> = parts.iter().flat_map(|&n| vec![bound(n); n]).collect();
        let first = (0..self.hidden * self.inputs).map(|i| columns[i % self.inputs]);
        let ranges = self.ranges();
        let biases = vec![bound(parts[0]); self.hidden];
        let others = vec![bound(self.hidden); ranges[5].end - ranges[2].start];
        first.chain(biases).chain(others).map(&mut draw).collect()
    }
}

/// Memory and plans for batches of one size.
#[derive(Debug)]
pub struct Pass {
    shape: Shape,
    batch: usize,
    layers: [Product; 2],
    input: Vec<f32>,
    /// What the hidden layers put out.
    hidden: [Vec<f32>; 2],
    /// Gradients of the sums in the hidden layers.
    sums: [Vec<f32>; 2],
    output: Vec<f32>,
    input_gradient: Vec<f32>,
}

impl Pass {
    /// For batches of `batch`; a multiple of 16 if gradients are asked for.
    pub fn new(shape: Shape, batch: usize) -> Self {
        let Shape { inputs, hidden } = shape;
        let unit = || vec![0.0; hidden * batch];
        Pass {
            shape,
            batch,
            layers: [Product::new(inputs, hidden, batch), Product::new(hidden, hidden, batch)],
            input: vec![0.0; inputs * batch],
            hidden: [unit(), unit()],
            sums: [unit(), unit()],
            output: vec![0.0; batch],
            input_gradient: vec![0.0; inputs * batch],
        }
    }

    /// The outputs for `x`.
    pub fn forward(&mut self, parameters: &[f32], x: &[f32]) -> &[f32] {
        let [w1, b1, w2, b2, w3, b3] = self.shape.ranges().map(|range| &parameters[range]);
        let ([first, second], [below, above]) = (&mut self.layers, &mut self.hidden);
        self.input.copy_from_slice(x);
        first.forward(w1, x, below);
        rectify(below, b1);
        second.forward(w2, below, above);
        rectify(above, b2);
        self.output.fill(b3[0]);
        for (row, &w) in above.chunks_exact(self.batch).zip(w3) {
            self.output.iter_mut().zip(row).for_each(|(y, h)| *y += w * h);
        }
        &self.output
    }

    /// From the gradient `dy` of the outputs of the last [`Pass::forward`], made with the same parameters: the gradient of the
    /// inputs, and those of the parameters into `gradient` if given.
    pub fn backward(&mut self, parameters: &[f32], dy: &[f32], gradient: Option<&mut [f32]>) -> &[f32] {
        let [w1, _, w2, _, w3, _] = self.shape.ranges().map(|range| &parameters[range]);
        let ([first, second], [below, above]) = (&mut self.layers, &self.hidden);
        let [below_sums, above_sums] = &mut self.sums;
        let rows = above_sums.chunks_exact_mut(self.batch).zip(above.chunks_exact(self.batch));
        for ((sums, row), &w) in rows.zip(w3) {
            let of = |(&dy, &h): (&f32, &f32)| if h > 0.0 { w * dy } else { 0.0 };
            sums.iter_mut().zip(dy.iter().zip(row)).for_each(|(sum, at)| *sum = of(at));
        }
        second.input_gradient(w2, above_sums, below_sums);
        below_sums.iter_mut().zip(below).for_each(|(sum, &h)| *sum = if h > 0.0 { *sum } else { 0.0 });
        first.input_gradient(w1, below_sums, &mut self.input_gradient);
        if let Some(gradient) = gradient {
            let ones = vec![1.0; self.batch];
            let [w1, b1, w2, b2, w3, b3] = self.shape.ranges();
            first.weight_gradient(&self.input, below_sums, &mut gradient[w1]);
            times(below_sums, &ones, &mut gradient[b1]);
            second.weight_gradient(below, above_sums, &mut gradient[w2]);
            times(above_sums, &ones, &mut gradient[b2]);
            times(above, dy, &mut gradient[w3]);
            times(dy, &ones, &mut gradient[b3]);
        }
        &self.input_gradient
    }
}

/// `x ← relu(x + bias of its row)`
fn rectify(x: &mut [f32], bias: &[f32]) {
    for (row, &bias) in x.chunks_exact_mut(x.len() / bias.len()).zip(bias) {
        row.iter_mut().for_each(|x| *x = (*x + bias).max(0.0));
    }
}

/// Rows of `matrix` times `vector`, summed in 16 lanes that are joined pair by pair. Rows are multiples of 16 long.
fn times(matrix: &[f32], vector: &[f32], products: &mut [f32]) {
    let (vector, _) = vector.as_chunks::<16>();
    for (row, product) in matrix.chunks_exact(16 * vector.len()).zip(products) {
        let mut lanes = [0.0; 16];
        for (a, b) in row.as_chunks::<16>().0.iter().zip(vector) {
            (0..16).for_each(|i| lanes[i] += a[i] * b[i]);
        }
        for half in [8, 4, 2, 1] {
            (0..half).for_each(|i| lanes[i] += lanes[i + half]);
        }
        *product = lanes[0];
    }
}

/// The products of one layer, by the kernels for pointwise convolutions. The batch is what they call channels, so that it is the
/// small operands that are packed, not the weights, which differ from step to step.
#[derive(Debug)]
struct Product {
    batch: usize,
    outputs: usize,
    forward: ConvPlan,
    input: WeightGradient,
    weight: ConvPlan,
    packed: Vec<f32>,
    one: Threads,
}

impl Product {
    fn new(inputs: usize, outputs: usize, batch: usize) -> Self {
        let (across, along) = (ConvGeometry::pointwise(inputs, batch), ConvGeometry::pointwise(batch, inputs));
        let (forward, weight) = (ConvPlan::new(&across), ConvPlan::new(&along));
        let packed = vec![0.0; forward.packed_len().max(weight.packed_len())];
        Product { batch, outputs, forward, input: WeightGradient::new(&across), weight, packed, one: Threads::new(1) }
    }

    /// `y[o][n] = Σ_i w[o][i] · x[i][n]`
    fn forward(&mut self, w: &[f32], x: &[f32], y: &mut [f32]) {
        let (batch, packed) = (self.batch, &mut self.packed[..self.forward.packed_len()]);
        self.forward.pack_with(|n, i, _| x[i * batch + n], packed);
        self.forward.run(&self.one, [1, 1, self.outputs], packed, w, &Epilogue::NONE, y, &mut []);
    }

    /// `dx[i][n] = Σ_o w[o][i] · dy[o][n]`
    fn input_gradient(&self, w: &[f32], dy: &[f32], dx: &mut [f32]) {
        dx.fill(0.0);
        self.input.run([1, 1, self.outputs], w, dy, dx, &mut []);
    }

    /// `dw[o][i] = Σ_n dy[o][n] · x[i][n]`
    fn weight_gradient(&mut self, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let packed = &mut self.packed[..self.weight.packed_len()];
        self.weight.pack(x, packed);
        self.weight.run(&self.one, [1, 1, self.outputs], packed, dy, &Epilogue::NONE, dw, &mut []);
    }
}

/// Parameters that Adam learns, and a copy that follows them slowly.
#[derive(Debug)]
pub struct Learner {
    /// The parameters.
    pub values: Vec<f32>,
    /// The copy.
    pub target: Vec<f32>,
    /// To be filled before [`Learner::step`].
    pub gradient: Vec<f32>,
    means: Vec<f32>,
    squares: Vec<f32>,
    steps: u32,
    adam: update::Adam,
}

impl Learner {
    /// Starts from `values`.
    pub fn new(values: Vec<f32>, learning_rate: f32) -> Self {
        let zeros = || vec![0.0; values.len()];
        let adam =
            update::Adam { learning_rate, betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.0, decoupled: false };
        let (target, gradient, means, squares) = (values.clone(), zeros(), zeros(), zeros());
        Learner { values, target, gradient, means, squares, steps: 0, adam }
    }

    /// One step down the gradient.
    pub fn step(&mut self) {
        self.steps += 1;
        self.adam.step(self.steps, &mut self.values, &self.gradient, &mut self.means, &mut self.squares);
    }

    /// `target ← (1 − share)·target + share·values`
    pub fn follow(&mut self, share: f32) {
        let pairs = self.target.iter_mut().zip(&self.values);
        pairs.for_each(|(target, value)| *target = *target * (1.0 - share) + value * share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { inputs: 5, hidden: 7 };
    const BATCH: usize = 16;

    /// The network in f64, sample by sample.
    fn plain(parameters: &[f64], x: &[f64]) -> Vec<f64> {
        let [w1, b1, w2, b2, w3, b3] = SHAPE.ranges().map(|range| &parameters[range]);
        let layer = |w: &[f64], b: &[f64], x: &[f64]| -> Vec<f64> {
            let row = |(w, b): (&[f64], &f64)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b;
            w.chunks(x.len()).zip(b).map(row).collect()
        };
        let relu = |x: Vec<f64>| -> Vec<f64> { x.into_iter().map(|x| x.max(0.0)).collect() };
        let of = |n: usize| {
            let x: Vec<f64> = (0..SHAPE.inputs).map(|i| x[i * BATCH + n]).collect();
            layer(w3, b3, &relu(layer(w2, b2, &relu(layer(w1, b1, &x)))))[0]
        };
        (0..BATCH).map(of).collect()
    }

    #[test]
    fn outputs_and_gradients_are_those_of_the_formula() {
        let mut random = Random::new(3);
        let parameters = SHAPE.parameters(&[3, 2], &mut random);
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| random.between(-1.0, 1.0) as f32).collect() };
        let (x, dy) = (draw(SHAPE.inputs * BATCH), draw(BATCH));
        let wide = |v: &[f32]| -> Vec<f64> { v.iter().map(|&v| f64::from(v)).collect() };
        let (exact, at) = (wide(&parameters), wide(&x));
        let mut pass = Pass::new(SHAPE, BATCH);
        let close =
            |found: f32, expected: f64| assert!((f64::from(found) - expected).abs() < 1e-5, "{found} {expected}");
        let outputs = pass.forward(&parameters, &x);
        outputs.iter().zip(plain(&exact, &at)).for_each(|(&found, expected)| close(found, expected));
        let mut gradient = vec![0.0; SHAPE.len()];
        let of_inputs = pass.backward(&parameters, &dy, Some(&mut gradient)).to_vec();
        // Small enough that no unit is switched, and exact enough in f64.
        let difference = |change: &dyn Fn(f64) -> Vec<f64>| {
            let loss = |h: f64| change(h).iter().zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum::<f64>();
            (loss(1e-6) - loss(-1e-6)) / 2e-6
        };
        let moved = |v: &[f64], i: usize, h: f64| {
            let mut v = v.to_vec();
            v[i] += h;
            v
        };
        for (i, &found) in gradient.iter().enumerate() {
            close(found, difference(&|h| plain(&moved(&exact, i, h), &at)));
        }
        for (i, &found) in of_inputs.iter().enumerate() {
            close(found, difference(&|h| plain(&exact, &moved(&at, i, h))));
        }
        assert!(gradient.iter().filter(|g| g.abs() > 1e-3).count() > SHAPE.len() / 2, "most units are on");
    }

    #[test]
    fn parameters_have_the_bounds_of_their_layers() {
        let shape = Shape { inputs: 6, hidden: 400 };
        let parameters = shape.parameters(&[4, 1, 1], &mut Random::new(1));
        let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |a: f32, b| a.max(b.abs()));
        let [w1, b1, w2, b2, w3, _] = shape.ranges().map(|range| &parameters[range]);
        for (found, bound) in [
            (largest(&mut w1.iter().copied().enumerate().filter(|(i, _)| i % 6 < 4).map(|(_, w)| w)), 0.5),
            (largest(&mut w1.iter().copied().enumerate().filter(|(i, _)| i % 6 >= 4).map(|(_, w)| w)), 1.0),
            (largest(&mut b1.iter().copied()), 0.5),
            (largest(&mut w2.iter().copied()), 0.05),
            (largest(&mut b2.iter().copied()), 0.05),
            (largest(&mut w3.iter().copied()), 0.05),
        ] {
            assert!(found <= bound && found > 0.97 * bound, "{found} of {bound}");
        }
    }

    #[test]
    fn a_network_learns_a_function() {
        // y = |x₀ − x₁|, on points that it has not seen.
        let shape = Shape { inputs: 2, hidden: 32 };
        let mut random = Random::new(5);
        let mut learner = Learner::new(shape.parameters(&[2], &mut random), 3e-3);
        let mut pass = Pass::new(shape, 64);
        let mut batch = || {
            let x: Vec<f32> = (0..128).map(|_| random.uniform() as f32).collect();
            let y: Vec<f32> = (0..64).map(|n| (x[n] - x[64 + n]).abs()).collect();
            (x, y)
        };
        for _ in 0..600 {
            let (x, y) = batch();
            let dy: Vec<f32> = pass.forward(&learner.values, &x).iter().zip(&y).map(|(p, y)| (p - y) / 32.0).collect();
            pass.backward(&learner.values, &dy, Some(&mut learner.gradient));
            learner.step();
            learner.follow(0.05);
        }
        let (x, y) = batch();
        for values in [&learner.values, &learner.target] {
            let errors = pass.forward(values, &x).iter().zip(&y).map(|(p, y)| (p - y).powi(2));
            let mean = errors.sum::<f32>() / 64.0;
            assert!(mean.sqrt() < 0.03, "{mean}");
        }
    }
}
