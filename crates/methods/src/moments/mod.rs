//! Moments: all that the squared output error of a layer depends on, in one pass over samples.
//!
//! A layer that should put out `W x` puts out `Ŵ x̂`, with `x` from the float network and `x̂` from the quantized one. With
//! `v = ŵ − w` for one output channel and `e = f(w·x̂) − f(w·x)`, its error over rows `x̂` is `v G vᵀ + 2 v·t + Σ e²`, where
//! `G = Σ x̂ x̂ᵀ` and `t = Σ e x̂`. A bias takes off the mean; what is left is the same with moments about the mean. So candidates are
//! judged without looking at data again. `f` is what the network notices of an output (`window.rs`): a difference that is clipped away
//! behind the layer is no error.

mod left;
mod shape;
mod window;

use crate::{
    Draft, Layer, MethodError, Walk,
    samples::is_held,
    walk::{LANES, Run, Side},
};
use fewbits_graph::exec::{Mode, rounded_constant};
use fewbits_kernels::{
    ConvGeometry, Threads,
    float::{
        Activation, Epilogue, PackedConv, WeightGradient,
        vectors::{axpy, dot},
    },
};
pub use left::Left;
pub use shape::Shape;
use std::sync::Arc;
use window::Window;

/// Rows that are looked at: a multiple of `K`, at least [`LEAST_ROWS`], at most all.
const ROWS_PER_INPUT: usize = 8;
/// See [`ROWS_PER_INPUT`].
const LEAST_ROWS: usize = 32_768;
/// The same for products of few inputs.
const LEAST_ROWS_OF_FEW: usize = 8_192;
/// Inputs from which matrix kernels are used.
const MANY_INPUTS: usize = 48;
/// Rows that are multiplied at once.
const BLOCK: usize = 256;

/// Bytes of running sums that a layer may take. VGG's first fully connected layer would take 23 GB.
const MEMORY: usize = 2 << 30;

/// The moments of one group of a layer, about the mean, per row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// `G`: `[K, K]`.
    pub gram: Vec<f32>,
    /// `t` of each output: `[outputs, K]`.
    pub cross: Vec<f32>,
    /// Mean of `x̂`.
    pub mean: Vec<f64>,
    /// Mean of `e` of each output.
    pub mean_error: Vec<f64>,
    /// How many rows there were.
    pub rows: usize,
}

impl Group {
    /// `v G vᵀ + 2 v·t` of one output, per row: the error beyond what `x̂ ≠ x` alone brings.
    pub fn error(&self, output: usize, v: &[f32]) -> f64 {
        let cross = self.cross[output * v.len()..].iter().zip(v);
        self.energy(v) + 2.0 * cross.map(|(t, v)| f64::from(*v) * f64::from(*t)).sum::<f64>()
    }

    /// `v G vᵀ`, per row: the variance of `v·x̂`, the error if `x̂` were `x`.
    pub fn energy(&self, v: &[f32]) -> f64 {
        self.energies(&[v])[0]
    }

    /// The same for several `v`, reading `G` once.
    pub fn energies(&self, several: &[impl AsRef<[f32]>]) -> Vec<f64> {
        let mut sums = vec![0.0; several.len()];
        let k = self.mean.len();
        for (i, row) in self.gram.chunks(k.max(1)).enumerate() {
            for (sum, v) in sums.iter_mut().zip(several).filter(|(_, v)| v.as_ref()[i] != 0.0) {
                *sum += f64::from(v.as_ref()[i]) * f64::from(dot(row, v.as_ref()));
            }
        }
        sums
    }

    /// Mean of `ŵ x̂ − w x`.
    pub fn shift(&self, output: usize, v: &[f32]) -> f64 {
        self.mean_error[output] + self.mean_of(v)
    }

    /// The same moments about zero: what is to be lowered if no bias takes off the mean.
    pub fn about_zero(&self) -> Group {
        let (k, o) = (self.mean.len(), self.mean_error.len());
        let gram = (0..k * k).map(|i| (f64::from(self.gram[i]) + self.mean[i / k] * self.mean[i % k]) as f32);
        let cross = (0..o * k).map(|i| (f64::from(self.cross[i]) + self.mean_error[i / k] * self.mean[i % k]) as f32);
        let (gram, cross) = (gram.collect(), cross.collect());
        Group { gram, cross, mean: vec![0.0; k], mean_error: vec![0.0; o], rows: self.rows }
    }

    /// `G 1`: moments of each input with the sum of all.
    pub fn sums(&self) -> Vec<f32> {
        let rows = self.gram.chunks(self.mean.len().max(1));
        rows.map(|row| row.iter().map(|g| f64::from(*g)).sum::<f64>() as f32).collect()
    }

    /// Mean of `v·x̂`.
    pub fn mean_of(&self, v: &[f32]) -> f64 {
        v.iter().zip(&self.mean).map(|(v, m)| f64::from(*v) * m).sum()
    }
}

/// The moments of a layer.
#[derive(Clone, Debug)]
pub struct Moments {
    /// The layer as a matrix product.
    pub shape: Shape,
    /// From the samples that are learned from, by group.
    pub fit: Vec<Group>,
    /// From those that are held back, by group.
    pub held: Vec<Group>,
}

impl Moments {
    /// Those to judge by: from samples that are held back, if there are any.
    pub fn judge(&self) -> &[Group] {
        if self.held.first().is_some_and(|group| group.rows > 0) { &self.held } else { &self.fit }
    }

    /// Gathers the moments of `layer`, a layer of the walk's block, with everything before it as `draft` has it. `None` if the layer is no
    /// plain convolution or product, or has so many inputs that moments would take more than 2 GiB.
    ///
    /// # Errors
    /// [`MethodError::Graph`], [`MethodError::Spill`].
    pub fn of(walk: &Walk<'_>, draft: &Draft, layer: &Layer) -> Result<Option<Moments>, MethodError> {
        let ground = walk.ground();
        let (Some(block), Some(fact)) = (walk.block(), ground.facts.get(&layer.input)) else { return Ok(None) };
        let weight = ground.float.constant(&layer.weight).and_then(|t| t.as_f32());
        let (Some(shape), Some(weight)) = (Shape::of(ground.float, layer, &fact.dims), weight) else { return Ok(None) };
        if bytes(&shape) > MEMORY {
            return Ok(None);
        }
        let given = block.inputs.iter().position(|name| *name == layer.input);
        let names = [layer.input.as_str()];
        let parts = match given {
            Some(_) => None,
            None => Some((block.part(ground.float, &names)?, block.part(&draft.graph, &names)?)),
        };
        let runs: Vec<Run<'_>> = parts
            .iter()
            .flat_map(|(float, quantized)| {
                let mode = Mode::FakeQuant(&draft.grids);
                [
                    Run { side: Side::Float, part: float, mode: Mode::Float },
                    Run { side: Side::Quantized, part: quantized, mode },
                ]
            })
            .collect();
        let window = Window::of(&ground, draft, layer, shape.channels());
        let plan = Plan::new(&shape, &shape.rows(weight), window, walk.samples());
        let lanes = walk.each(
            &runs,
            0..walk.samples(),
            LANES,
            || [None, None],
            |sums: &mut [Option<Sums>; 2], sample, outputs| {
                let (x, rounded) = match given {
                    Some(i) => (
                        walk.inputs(Side::Float, sample)?.swap_remove(i),
                        walk.inputs(Side::Quantized, sample)?.swap_remove(i),
                    ),
                    None => {
                        let mut tensors = outputs.into_iter().flatten();
                        let (Some(x), Some(rounded)) = (tensors.next(), tensors.next()) else { return Ok(()) };
                        (Arc::new(x), Arc::new(rounded))
                    }
                };
                let rounded = rounded_constant(&layer.input, &rounded, &draft.grids);
                if let (Some(x), Some(rounded)) = (x.as_f32(), rounded.as_f32()) {
                    let part = usize::from(is_held(sample));
                    plan.add(sums[part].get_or_insert_with(|| plan.sums()), sample, x, rounded);
                }
                Ok(())
            },
        )?;
        let [mut fit, mut held] = [plan.sums(), plan.sums()];
        for [own_fit, own_held] in lanes {
            own_fit.into_iter().for_each(|own| plan.join(&mut fit, own));
            own_held.into_iter().for_each(|own| plan.join(&mut held, own));
        }
        let (fit, held) = (plan.groups(&fit), plan.groups(&held));
        Ok(Some(Moments { shape, fit, held }))
    }
}

/// Bytes of the running sums of a layer, of all lanes.
fn bytes(shape: &Shape) -> usize {
    let elements = shape.groups.saturating_mul(shape.inputs).saturating_mul(shape.inputs + shape.outputs);
    elements.saturating_mul(2 * LANES * size_of::<f32>())
}

/// How rows are chosen and multiplied.
struct Plan<'a> {
    shape: &'a Shape,
    weight: Vec<f32>,
    window: Window,
    /// Positions of one sample that are looked at.
    positions: usize,
    /// For many inputs: `Σ x̂ x̂ᵀ`, `Σ x̂ eᵀ`, and the product of each group.
    kernels: Option<(WeightGradient, WeightGradient, Vec<PackedConv>)>,
}

/// Running sums of a lane.
struct Sums {
    rows: usize,
    /// By group, in the kernel's order for many inputs.
    gram: Vec<Vec<f32>>,
    cross: Vec<Vec<f32>>,
    input: Vec<Vec<f64>>,
    error: Vec<Vec<f64>>,
    /// Rows that wait to be multiplied: `x̂` and `x` of each group.
    waiting: Vec<[Vec<f32>; 2]>,
}

impl<'a> Plan<'a> {
    fn new(shape: &'a Shape, weight: &[f32], window: Window, samples: usize) -> Self {
        let &Shape { inputs, outputs, groups, .. } = shape;
        let many = inputs >= MANY_INPUTS;
        let wanted = (ROWS_PER_INPUT * inputs).max(if many { LEAST_ROWS } else { LEAST_ROWS_OF_FEW });
        let kernels = many.then(|| {
            let gradient = |outputs| WeightGradient::new(&ConvGeometry::pointwise(inputs, outputs));
            let matrix = |g: usize| &weight[g * outputs * inputs..][..outputs * inputs];
            let products = (0..groups).map(|g| PackedConv::from_matrix(inputs, outputs, matrix(g), true));
            (gradient(inputs), gradient(outputs), products.collect())
        });
        Plan {
            shape,
            weight: weight.to_vec(),
            window,
            positions: wanted.div_ceil(samples.max(1)).min(shape.positions),
            kernels,
        }
    }

    fn sums(&self) -> Sums {
        let &Shape { groups, inputs, outputs, .. } = self.shape;
        let lens = match &self.kernels {
            Some((gram, cross, _)) => [gram.form_len(), cross.form_len()],
            None => [inputs * inputs, inputs * outputs],
        };
        Sums {
            rows: 0,
            gram: vec![vec![0.0; lens[0]]; groups],
            cross: vec![vec![0.0; lens[1]]; groups],
            input: vec![vec![0.0; inputs]; groups],
            error: vec![vec![0.0; outputs]; groups],
            waiting: vec![[vec![], vec![]]; groups],
        }
    }

    /// Adds rows of one sample.
    fn add(&self, sums: &mut Sums, sample: usize, x: &[f32], rounded: &[f32]) {
        let k = self.shape.inputs;
        let mut row = vec![0.0; k];
        sums.rows += self.positions;
        for group in 0..self.shape.groups {
            let [waiting, exact] = &mut sums.waiting[group];
            for i in 0..self.positions {
                // Evenly spread, and elsewhere in every sample.
                let shifted = i as f64 + (sample as f64 * 0.618_033_988_75).fract();
                let position = (shifted * self.shape.positions as f64 / self.positions as f64) as usize;
                let position = position.min(self.shape.positions - 1);
                self.shape.gather(rounded, group, position, &mut row);
                waiting.extend_from_slice(&row);
                self.shape.gather(x, group, position, &mut row);
                exact.extend_from_slice(&row);
            }
            if waiting.len() >= BLOCK * k {
                self.multiply(sums, group);
            }
        }
    }

    /// Multiplies the rows of `group` that wait.
    fn multiply(&self, sums: &mut Sums, group: usize) {
        let (k, o) = (self.shape.inputs, self.shape.outputs);
        let [rounded, exact] = std::mem::take(&mut sums.waiting[group]);
        let rows = rounded.len() / k;
        if rows == 0 {
            return;
        }
        let (mut error, mut wanted) = (self.outputs(group, &rounded), self.outputs(group, &exact));
        self.window.see(group * o, o, &mut error);
        self.window.see(group * o, o, &mut wanted);
        axpy(-1.0, &wanted, &mut error);
        match &self.kernels {
            Some((gram, cross, _)) => {
                let shape = [1, 1, rows];
                gram.run(shape, &rounded, &rounded, &mut sums.gram[group], &mut vec![0.0; gram.scratch_len(shape)]);
                cross.run(shape, &rounded, &error, &mut sums.cross[group], &mut vec![0.0; cross.scratch_len(shape)]);
            }
            None => {
                for (x, e) in rounded.chunks(k).zip(error.chunks(o)) {
                    for (i, &xi) in x.iter().enumerate() {
                        axpy(xi, x, &mut sums.gram[group][i * k..][..k]);
                        axpy(xi, e, &mut sums.cross[group][i * o..][..o]);
                    }
                }
            }
        }
        for row in rounded.chunks(k) {
            sums.input[group].iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        for row in error.chunks(o) {
            sums.error[group].iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }

    /// `W x` of each row.
    fn outputs(&self, group: usize, rows: &[f32]) -> Vec<f32> {
        let (k, o) = (self.shape.inputs, self.shape.outputs);
        let count = rows.len() / k;
        let mut y = vec![0.0; count * o];
        match &self.kernels {
            Some((_, _, products)) => {
                let mut scratch = vec![0.0; products[group].scratch_len(1, 1, 1, count)];
                let epilogue = Epilogue { bias: None, residual: None, activation: Activation::Identity };
                products[group].run(&Threads::new(1), [1, 1, count], rows, &epilogue, &mut y, &mut scratch);
            }
            None => {
                let weight = &self.weight[group * o * k..][..o * k];
                for (x, y) in rows.chunks(k).zip(y.chunks_mut(o)) {
                    y.iter_mut().zip(weight.chunks(k)).for_each(|(y, w)| *y = dot(w, x));
                }
            }
        }
        y
    }

    fn join(&self, total: &mut Sums, mut part: Sums) {
        for group in 0..self.shape.groups {
            self.multiply(&mut part, group);
            add(&mut total.gram[group], &part.gram[group]);
            add(&mut total.cross[group], &part.cross[group]);
            let both = [(&mut total.input, &part.input), (&mut total.error, &part.error)];
            for (total, part) in both {
                total[group].iter_mut().zip(&part[group]).for_each(|(a, b)| *a += b);
            }
        }
        total.rows += part.rows;
    }

    /// Moments about the mean.
    fn groups(&self, sums: &Sums) -> Vec<Group> {
        let (k, o) = (self.shape.inputs, self.shape.outputs);
        let rows = sums.rows.max(1) as f64;
        let group = |g: usize| {
            let mean: Vec<f64> = sums.input[g].iter().map(|s| s / rows).collect();
            let mean_error: Vec<f64> = sums.error[g].iter().map(|s| s / rows).collect();
            let (mut gram, mut cross) = (vec![0.0; k * k], vec![0.0; o * k]);
            let about = |sum: f32, product: f64| (f64::from(sum) / rows - product) as f32;
            match &self.kernels {
                Some((gram_kernel, cross_kernel, _)) => {
                    gram_kernel
                        .unpack_with(&sums.gram[g], |j, i, _, sum| gram[i * k + j] = about(sum, mean[i] * mean[j]));
                    cross_kernel.unpack_with(&sums.cross[g], |c, i, _, sum| {
                        cross[c * k + i] = about(sum, mean[i] * mean_error[c])
                    });
                }
                None => {
                    for i in 0..k {
                        for j in 0..k {
                            gram[i * k + j] = about(sums.gram[g][i * k + j], mean[i] * mean[j]);
                        }
                        for c in 0..o {
                            cross[c * k + i] = about(sums.cross[g][i * o + c], mean[i] * mean_error[c]);
                        }
                    }
                }
            }
            Group { gram, cross, mean, mean_error, rows: sums.rows }
        };
        (0..self.shape.groups).map(group).collect()
    }
}

fn add(total: &mut [f32], part: &[f32]) {
    total.iter_mut().zip(part).for_each(|(a, b)| *a += b);
}

#[cfg(test)]
mod tests;
