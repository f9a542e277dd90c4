//! The weights of a layer on their grid, whatever scales a method gives them.
//!
//! What enters: a layer, its moments, and a method's choice of scales. What leaves: the draft with rounded weights, these scales, and a
//! bias without the mean error. It does not know how scales are chosen.

use super::{Clip, rounded};
use crate::{
    Draft, Ground, Layer, MethodError, Walk,
    bias_correction::{corrections, means},
    moments::{Group, Left, Moments, Shape},
};
use fewbits_graph::{Granularity, QuantParams, Tensor};
use fewbits_kernels::Threads;

/// The float weights of a layer, by the groups that share a scale: output channels, or all of them.
#[derive(Debug)]
pub struct Weights<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// The layer as a matrix product.
    pub shape: &'a Shape,
    /// A row of `K` numbers for each output channel.
    pub rows: Vec<f32>,
    /// The grid, with the scales that it has so far.
    pub params: QuantParams,
}

/// Weights on their grid: codes times scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    /// A row for each output channel.
    pub rows: Vec<f32>,
    /// A scale for each group.
    pub scale: Vec<f32>,
}

impl<'a> Weights<'a> {
    /// The weights of `layer`, whose shape is `shape`; `None` if they have no grid by channels or as a whole.
    pub fn of(ground: Ground<'_>, draft: &Draft, layer: &'a Layer, shape: &'a Shape) -> Option<Self> {
        let params = draft.grids.params(&layer.weight)?.clone();
        let rows = shape.rows(ground.float.constant(&layer.weight)?.as_f32()?);
        let scales = if params.granularity == Granularity::Tensor { 1 } else { shape.channels() };
        (params.scale.len() == scales).then_some(Weights { shape, rows, params, layer })
    }

    /// Those of all `layers` that have them.
    pub fn all(ground: Ground<'_>, draft: &Draft, layers: &'a [Layer], shapes: &'a [Option<Shape>]) -> Vec<Self> {
        let pairs = layers.iter().zip(shapes);
        pairs.filter_map(|(layer, shape)| Weights::of(ground, draft, layer, shape.as_ref()?)).collect()
    }

    /// Bits of the grid.
    pub fn bits(&self) -> u8 {
        self.params.grid.bits
    }

    /// How many weights share a scale.
    pub fn width(&self) -> usize {
        self.rows.len() / self.params.scale.len().max(1)
    }

    /// Weights that share a scale.
    pub fn group(&self, group: usize) -> &[f32] {
        self.part(&self.rows, group)
    }

    /// The same of other rows.
    pub fn part<'r>(&self, rows: &'r [f32], group: usize) -> &'r [f32] {
        &rows[group * self.width()..][..self.width()]
    }

    /// The scale of a grid that reaches to `clip`; what it is so far if there is none.
    pub fn scale(&self, group: usize, clip: Option<f32>) -> f32 {
        let scale = clip.map(|clip| clip / self.params.grid.qmax() as f32);
        scale.filter(|scale| scale.is_normal() && *scale > 0.0).unwrap_or(self.params.scale[group])
    }

    /// `solve` for each group, on all threads.
    pub fn each_group<T: Send>(&self, threads: &Threads, solve: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        threads.map(self.params.scale.len(), solve)
    }

    /// The scale of each group under `clip`; `None` where the rule has no answer for any.
    pub fn scales(&self, clip: Clip, threads: &Threads) -> Option<Vec<f32>> {
        let found = self.clips(clip, threads);
        let scales = || (0..).zip(&found).map(|(group, found)| self.scale(group, *found)).collect();
        found.iter().any(Option::is_some).then(scales)
    }

    /// The clip of each group.
    pub fn clips(&self, clip: Clip, threads: &Threads) -> Vec<Option<f32>> {
        clip.magnitudes(&self.rows, self.width(), self.bits(), threads)
    }

    /// The nearest codes, times `scale`, of each group.
    pub fn rounded(&self, scale: Vec<f32>) -> Rounded {
        let rows = scale.iter().enumerate().flat_map(|(g, s)| rounded(self.group(g), *s, self.bits())).collect();
        Rounded { rows, scale }
    }

    /// What rounding `group` to each of `candidates` adds to the variance of the outputs, by these moments.
    pub fn output_errors(&self, moments: &[Group], group: usize, candidates: &[impl AsRef<[f32]>]) -> Vec<f64> {
        let (k, outputs) = (self.shape.inputs, self.shape.outputs);
        let first = group * self.width() / k;
        let mut errors = vec![0.0; candidates.len()];
        for (row, old) in self.group(group).chunks(k).enumerate() {
            let differences: Vec<Vec<f32>> =
                candidates.iter().map(|new| difference(old, &new.as_ref()[row * k..][..k])).collect();
            let energies = moments[(first + row) / outputs].energies(&differences);
            errors.iter_mut().zip(energies).for_each(|(error, energy)| *error += energy);
        }
        errors
    }

    /// The mean that rounding to `rows` adds to each output channel. Means that errors before the layer bring are left alone: behind Relus
    /// they belong to noise in part, and taken off layer after layer they take the signal with them.
    pub(crate) fn shifts(&self, moments: &Moments, rows: &[f32]) -> Vec<f64> {
        let (k, outputs) = (self.shape.inputs, self.shape.outputs);
        let pairs = self.rows.chunks(k).zip(rows.chunks(k)).enumerate();
        pairs.map(|(c, (old, new))| moments.fit[c / outputs].mean_of(&difference(old, new))).collect()
    }

    /// Puts `rounded` into the draft, and takes `shifts`, a number for each output channel, off the float bias.
    pub fn write(&self, ground: Ground<'_>, draft: &mut Draft, rounded: Rounded, shifts: &[f64]) {
        let float = |name: &String| ground.float.constant(name);
        if let Some(old) = float(&self.layer.weight) {
            draft.set_constant(&self.layer.weight, self.shape.tensor(&old.dims, rounded.rows));
            draft.set_params(&self.layer.weight, QuantParams { scale: rounded.scale, ..self.params.clone() });
        }
        if let Some((name, old)) = self.layer.bias.as_ref().and_then(|name| Some((name, float(name)?)))
            && let Some(values) = old.as_f32().filter(|b| b.len() == shifts.len())
        {
            let new = values.iter().zip(shifts).map(|(b, shift)| (f64::from(*b) - shift) as f32).collect();
            draft.set_constant(name, Tensor::f32(&old.dims, new));
        }
    }
}

/// The float weights on grids with these scales, a list for each of `weights`, and the biases that go with them: without what rounding adds to
/// the means, by statistics.
pub(crate) fn with_scales(ground: Ground<'_>, draft: &Draft, weights: &[Weights<'_>], scales: &[Vec<f32>]) -> Draft {
    let mut draft = draft.clone();
    for (weights, scale) in weights.iter().zip(scales) {
        let name = &weights.layer.weight;
        draft.graph.constants.extend(ground.float.constants.get(name).map(|float| (name.clone(), float.clone())));
        draft.set_params(name, QuantParams { scale: scale.clone(), ..weights.params.clone() });
    }
    let biases = corrections(ground.float, &draft.grids, ground.facts, &means(ground.stats));
    draft.graph.constants.extend(biases);
    draft
}

fn difference(old: &[f32], new: &[f32]) -> Vec<f32> {
    old.iter().zip(new).map(|(old, new)| new - old).collect()
}

/// Rounds each layer of the walk's block as `round` says; mean errors go into the biases. Those without moments go into `left`.
///
/// # Errors
/// Those of [`Moments::of`].
pub fn round_layers(
    walk: &Walk<'_>,
    draft: &mut Draft,
    left: &Left,
    round: impl Fn(&Weights<'_>, &Moments, &Layer) -> Rounded,
) -> Result<(), MethodError> {
    let Some(block) = walk.block() else { return Ok(()) };
    for layer in &block.layers {
        let Some(moments) = left.moments(walk, draft, layer)? else { continue };
        if let Some(weights) = Weights::of(walk.ground(), draft, layer, &moments.shape) {
            let rounded = round(&weights, &moments, layer);
            let shifts = weights.shifts(&moments, &rounded.rows);
            weights.write(walk.ground(), draft, rounded, &shifts);
        }
    }
    Ok(())
}
