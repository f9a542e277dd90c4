//! A network in its two forms: as it is trained, with BatchNormalizations and quantizers laid over it, and as it ships, folded,
//! with grids.
//!
//! What enters: a float graph, a target, bits. What leaves: quantizers by tensor name for the tape, and, for any values of the
//! leaves, the deployed graph with its grids. Placement decides where quantizers go, so what is trained is what ships.

mod biases;
mod signs;

use crate::{
    TrainError,
    quantizers::{
        Deployable, Method, NotDeployable, QuantizerError, Settings, Signs, activation_quantizer, weight_quantizer,
    },
};
use fewbits_graph::{
    Granularity, Graph, Grid, Grids, Node, Op, QuantParams, Tensor, TensorQuant,
    exec::infer,
    op::Role,
    passes,
    tape::{Config, Laid, Leaves, Statistics, quantizer_leaf},
};
use fewbits_quant::{
    WeightRule,
    calibrate::{Policy, REST_BITS},
    placement::{Placement, Site, place},
    target::Target,
    weights::weight_params,
};
use signs::signs;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What is trained towards.
#[derive(Clone, Debug)]
pub struct Goal {
    /// The method of the low-bit tensors; others have LSQ quantizers of 8 bits.
    pub method: Method,
    /// The method's choices.
    pub settings: Settings,
    /// Widths, single ones by name in the deployed network, and whether each output channel of a weight has a scale of its own. Scales are
    /// learned: the range rule of weights is not asked.
    pub policy: Policy,
    /// Offsets also where a Relu cuts off everything below zero. Such a grid keeps ONNX Runtime from fusing the Relu.
    pub offsets_everywhere: bool,
}

/// A layer in both forms.
#[derive(Clone, Debug)]
struct Layer {
    /// Its weight in the trained and in the deployed graph.
    trained: String,
    deployed: String,
    axis: usize,
    channels: usize,
    edge: bool,
    /// The BatchNormalization that it takes in when it ships.
    norm: Option<Node>,
    /// Whether the tape can quantize its weight as folded: convolutions only.
    folds: bool,
    /// Its own bias in the trained graph.
    bias: Option<String>,
    /// The activation whose scale, times the weight's, is that of the deployed bias, if that is rounded.
    bias_input: Option<String>,
}

/// The two forms.
#[derive(Clone, Debug)]
pub struct Network {
    /// As it is trained, without slots.
    base: Graph,
    /// The same with slots at layer inputs.
    graph: Graph,
    /// The tensors that slots write.
    slots: BTreeSet<String>,
    placement: Placement,
    target: Target,
    layers: Vec<Layer>,
}

/// Quantizers, ready for the tape, and what they become.
#[derive(Clone, Debug, Default)]
pub struct Quantizers {
    /// By tensor of the trained graph.
    pub all: BTreeMap<String, Laid>,
    deployable: BTreeMap<String, Arc<dyn Deployable>>,
}

impl Network {
    /// Prepares `graph`. With `merge`, BatchNormalizations are folded for good before training.
    ///
    /// # Errors
    /// [`TrainError::Graph`] if the graph is malformed.
    pub fn new(graph: &Graph, target: &Target, goal: Option<&Goal>, merge: bool) -> Result<Self, TrainError> {
        let mut base = passes::trainable(graph, merge)?;
        make_scales_positive(&mut base);
        let mut network = Network {
            graph: base.clone(),
            base,
            slots: BTreeSet::new(),
            placement: Placement::default(),
            target: target.clone(),
            layers: vec![],
        };
        let Some(goal) = goal else { return Ok(network) };
        // A layer input that would have as many bits as the tensor behind it needs no slot.
        let all = passes::drop_neutral_slots(&passes::prepare(&network.base)?.0);
        for (name, site) in &place(&all, target, &BTreeSet::new()).sites {
            if all.nodes.iter().any(|n| n.output() == name && passes::is_layer_input_slot(n))
                && goal.policy.activation_bits(name, site) < REST_BITS
            {
                network.slots.insert(name.clone());
            }
        }
        let slots = &network.slots;
        let graph = passes::with_layer_input_slots(&network.base)?;
        network.graph = passes::drop_layer_input_slots(&graph, |slot| !slots.contains(slot));
        network.graph.sort()?;
        let deployed = network.folded(&network.base)?;
        network.placement = place(&deployed, target, &BTreeSet::new());
        network.layers = network.find_layers(&deployed)?;
        Ok(network)
    }

    /// The graph that is trained.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    fn folded(&self, base: &Graph) -> Result<Graph, TrainError> {
        let graph = passes::drop_neutral_slots(&passes::prepare(base)?.0);
        Ok(passes::drop_layer_input_slots(&graph, |slot| !self.slots.contains(slot)))
    }

    fn find_layers(&self, deployed: &Graph) -> Result<Vec<Layer>, TrainError> {
        let mut layers = Vec::new();
        for (name, site) in &self.placement.sites {
            let &Site::Weight { axis, edge, .. } = site else { continue };
            let reader = |node: &&Node| node.input(1) == Some(name);
            let both = deployed.nodes.iter().find(reader).and_then(|shipped| {
                let trained = self.graph.nodes.iter().find(|n| n.name == shipped.name)?;
                Some((shipped, trained, self.graph.constant(trained.input(1)?)?))
            });
            let (shipped, node, weight) = both.ok_or_else(|| TrainError::Lost { tensor: name.clone() })?;
            // A normalization that ships as a convolution has one weight for each channel, which 8 bits hold exactly.
            if matches!(node.op, Op::BatchNormalization(_)) {
                continue;
            }
            // A normalization in front of a layer would be folded into a weight that is rounded already.
            let before = self.graph.nodes.iter().find(|n| Some(n.output()) == node.input(0));
            if let Some(norm) = before.filter(|n| matches!(n.op, Op::BatchNormalization(_)))
                && !deployed.nodes.iter().any(|n| n.output() == norm.output())
            {
                return Err(TrainError::NormBefore { norm: norm.name.clone(), layer: node.name.clone() });
            }
            let readers = self.graph.consumers();
            // A layer that took in the normalization behind it writes what that one wrote.
            let absorbed = |n: &&Node| matches!(n.op, Op::BatchNormalization(_)) && n.output() == shipped.output();
            let norm = match readers.get(node.output()).map_or(&[][..], Vec::as_slice) {
                [one] => Some(&self.graph.nodes[*one]).filter(absorbed).cloned(),
                _ => None,
            };
            let folds = matches!(node.op, Op::Conv(_));
            let channels = weight.dims[axis];
            let bias_input = match shipped.input(2).and_then(|bias| self.placement.sites.get(bias)) {
                Some(Site::Bias { input, .. }) => Some(self.owner(input).to_string()),
                _ => None,
            };
            layers.push(Layer {
                trained: node.inputs[1].clone(),
                deployed: name.clone(),
                axis,
                channels,
                edge,
                norm,
                folds,
                bias: node.input(2).map(String::from),
                bias_input,
            });
        }
        Ok(layers)
    }

    /// The tensor whose grid `name` has.
    fn owner<'a>(&'a self, name: &'a str) -> &'a str {
        let mut name = name;
        // Placement makes no cycles.
        while let Some(Site::SameAs(other)) = self.placement.sites.get(name) {
            name = other;
        }
        name
    }

    /// The quantizers of `goal` for this network, for images of the dimensions `image` (without the batch axis).
    ///
    /// # Errors
    /// [`TrainError::Quantizer`] if the method has no rule for a width; [`TrainError::Graph`] for shapes.
    pub fn quantizers(&self, goal: &Goal, image: &[usize]) -> Result<Quantizers, TrainError> {
        let facts = infer(&self.graph, &[[&[1], image].concat()])?;
        let signs = signs(&self.graph, &facts);
        let mut found = Quantizers::default();
        for (name, site) in &self.placement.sites {
            let Site::Activation { bounds, feeds_layer, edge, .. } = site else { continue };
            let fact = facts.get(name).ok_or_else(|| TrainError::Lost { tensor: name.clone() })?;
            let positive = bounds.is_some_and(|(min, _)| min >= 0.0);
            let signs = match signs.get(name) {
                // Codes without sign would need a zero point.
                _ if self.target.symmetric_activations => Signs::Both,
                _ if positive => Signs::Positive,
                known => known.copied().unwrap_or(Signs::Both),
            };
            // Edges, and what no layer multiplies, are rounded so finely that LSQ+ serves for all methods.
            let own = *feeds_layer && !*edge;
            // So does it where codes without sign would cut off the lobe of a SiLU.
            let serves = keeps_ranges(goal.method) && (signs != Signs::Lobe || goal.method.has_zero_points());
            let method = if own || serves { goal.method } else { Method::LsqPlus };
            let bits = goal.policy.activation_bits(name, site);
            let mut settings = goal.settings.clone();
            if !own {
                settings = Settings {
                    snapped: settings.snapped,
                    counted_images: settings.counted_images,
                    delay: settings.delay,
                    decay: settings.decay,
                    ..Settings::default()
                };
            }
            if self.target.symmetric_activations {
                settings.configuration = crate::quantizers::Configuration::SignedSymmetric;
            }
            if signs == Signs::Positive && !(goal.offsets_everywhere && own) {
                settings.offset = crate::quantizers::Offset::None;
                if matches!(method, Method::LsqPlus) && settings.configuration == Default::default() {
                    settings.configuration = crate::quantizers::Configuration::UnsignedSymmetric;
                }
            }
            if self.target.symmetric_activations && method.has_zero_points() {
                let target = self.target.name.clone();
                return Err(QuantizerError::ZeroPoints { method: method.name(), target }.into());
            }
            let quantizer = activation_quantizer(method, bits, signs, &settings, fact.len())?;
            found.add(name, quantizer, 1, 0);
        }
        for layer in &self.layers {
            let weight = self.graph.constant(&layer.trained).map_or(0, |t| t.len());
            let bits = goal.policy.weight_bits(&layer.deployed, layer.edge);
            let method = match layer.edge && !keeps_ranges(goal.method) {
                true => Method::Lsq,
                false => goal.method,
            };
            let groups = if goal.policy.per_channel { layer.channels } else { 1 };
            let quantizer = weight_quantizer(method, bits, &goal.settings, weight / groups)?;
            found.add(&layer.trained, quantizer, groups, layer.axis);
        }
        Ok(found)
    }

    /// What the tape is compiled with.
    pub fn config(&self, quantizers: &Quantizers, statistics: Statistics, fold: bool, stops: bool) -> Config {
        Config { quantizers: quantizers.all.clone(), statistics, fold, stops, ..Config::default() }
    }

    /// Sets the numbers of weight quantizers from the weights, folded if `fold`.
    pub fn start_weights(&self, quantizers: &Quantizers, leaves: &mut Leaves, fold: bool) {
        for layer in &self.layers {
            let Some(quantizer) = quantizers.deployable.get(&layer.trained) else { continue };
            let Some(mut weight) = leaves.get(&layer.trained).map(<[f32]>::to_vec) else { continue };
            let dims = leaves.parameter(&layer.trained).map(|leaf| leaf.dims.clone()).unwrap_or_default();
            if fold
                && layer.folds
                && let Some(factors) = self.factors(layer, leaves)
            {
                scale_rows(&mut weight, &factors);
            }
            let groups = quantizers.all[&layer.trained].groups;
            let learned = quantizer.learned();
            let Some(numbers) = leaves.get_mut(&quantizer_leaf(&layer.trained)) else { continue };
            for (g, numbers) in numbers.chunks_exact_mut(learned.max(1)).enumerate() {
                let group = group_of(&weight, &dims, layer.axis, groups, g);
                numbers.copy_from_slice(&quantizer.initial(&group)[..learned]);
            }
        }
    }

    /// `γ / √(σ² + ε)` of the BatchNormalization behind a layer.
    fn factors(&self, layer: &Layer, leaves: &Leaves) -> Option<Vec<f32>> {
        let norm = layer.norm.as_ref()?;
        let Op::BatchNormalization(op) = &norm.op else { return None };
        let gamma = leaves.get(norm.input(1)?)?;
        let variance = leaves.running.iter().find(|leaf| Some(&*leaf.name) == norm.input(4))?;
        let variance = &leaves.statistics[variance.range.clone()];
        Some(gamma.iter().zip(variance).map(|(g, v)| g / (v + op.epsilon).sqrt()).collect())
    }

    /// What the rows of the weight `trained` are multiplied with before they are rounded, where quantizers are on folded weights.
    pub fn folding(&self, trained: &str, leaves: &Leaves) -> Option<Vec<f32>> {
        self.factors(self.layers.iter().find(|layer| layer.folds && layer.trained == trained)?, leaves)
    }

    /// Keeps the scales of normalizations that ship in the layer before them from turning negative: that would mirror the
    /// codes of a weight that was rounded before the scale came in. NaN stays visible.
    pub fn project(&self, leaves: &mut Leaves) {
        for norm in self.layers.iter().filter_map(|layer| layer.norm.as_ref()) {
            let Some(gamma) = norm.input(1).and_then(|name| leaves.get_mut(name)) else { continue };
            gamma.iter_mut().filter(|g| **g < 0.0).for_each(|g| *g = 0.0);
        }
    }

    /// The float network with these leaves, as it is trained.
    pub fn float(&self, leaves: &Leaves) -> Graph {
        leaves.apply(&self.base)
    }

    /// The graph that ships, and its grids. `fold` says that quantizers are on folded weights.
    ///
    /// # Errors
    /// [`TrainError::NotDeployable`] if a quantizer has no grid.
    pub fn deploy(&self, quantizers: &Quantizers, leaves: &Leaves, fold: bool) -> Result<(Graph, Grids), TrainError> {
        let mut base = leaves.apply(&self.base);
        let mut weights: BTreeMap<String, QuantParams> = BTreeMap::new();
        for layer in &self.layers {
            let Some(quantizer) = quantizers.deployable.get(&layer.trained) else { continue };
            let laid = &quantizers.all[&layer.trained];
            let fold = fold && layer.folds;
            let leaf =
                leaves.parameter(&layer.trained).ok_or_else(|| TrainError::Lost { tensor: layer.trained.clone() })?;
            let factors = self.factors(layer, leaves);
            let mut weight = leaves.values[leaf.range.clone()].to_vec();
            if let (true, Some(factors)) = (fold, &factors) {
                scale_rows(&mut weight, factors);
            }
            let numbers = leaves.get(&quantizer_leaf(&layer.trained)).unwrap_or_default();
            let mut rounded = laid.apply(numbers, &leaf.dims, &weight);
            let (grid, scales) =
                layer.deployed_grid(quantizer.as_ref(), laid.groups, numbers, (&weight, &leaf.dims), &factors, fold)?;
            if let (true, Some(factors)) = (fold, &factors) {
                let inverse: Vec<f32> = factors.iter().map(|f| if f.is_normal() { 1.0 / f } else { 0.0 }).collect();
                scale_rows(&mut rounded, &inverse);
            }
            base.constants.insert(layer.trained.clone(), Arc::new(Tensor::f32(&leaf.dims, rounded)));
            let params = match &scales[..] {
                [one] => QuantParams::per_tensor(grid, *one, 0),
                _ => QuantParams::per_channel(grid, layer.axis, scales),
            };
            weights.insert(layer.deployed.clone(), params);
        }
        let graph = self.folded(&base)?;
        let mut grids = Grids::default();
        for (name, site) in &self.placement.sites {
            let quant = match site {
                Site::SameAs(other) => TensorQuant::SameAs(other.clone()),
                Site::Bias { input, weight } => TensorQuant::BiasOf { input: input.clone(), weight: weight.clone() },
                Site::Weight { axis, .. } => {
                    let own = || {
                        let by_channel = Granularity::Channel { axis: *axis };
                        weight_params(name, graph.constant(name)?, Grid::weights(8), by_channel, WeightRule::MinMax)
                            .ok()
                    };
                    match weights.remove(name).or_else(own) {
                        Some(params) => TensorQuant::Quantized(params),
                        None => continue,
                    }
                }
                Site::Activation { .. } => {
                    let Some(quantizer) = quantizers.deployable.get(name) else { continue };
                    let numbers = leaves.get(&quantizer_leaf(name)).unwrap_or_default();
                    let refuse = |source| TrainError::NotDeployable { tensor: name.clone(), source };
                    let (grid, scale, zero_point) = quantizer.grid(numbers).map_err(refuse)?;
                    TensorQuant::Quantized(self.activation(grid, scale, zero_point))
                }
            };
            grids.0.insert(name.clone(), quant);
        }
        Ok((graph, grids))
    }

    /// The same grid with the target's signs.
    fn activation(&self, grid: Grid, scale: f32, zero_point: i32) -> QuantParams {
        let half = 1 << (grid.bits - 1);
        let (signed, shift) = match (grid.signed, self.target.signed_activations) {
            (true, false) => (false, half),
            (false, true) => (true, -half),
            (signed, _) => (signed, 0),
        };
        QuantParams::per_tensor(Grid { signed, ..grid }, scale, zero_point + shift)
    }
}

impl Layer {
    /// Grid and scales of the weight that ships, from the quantizer's `numbers`. `weight`, and its dimensions, is what is rounded: with
    /// `fold` it is folded with `factors` already. A quantizer that derives nothing from it does not look at it.
    fn deployed_grid(
        &self,
        quantizer: &dyn Deployable,
        groups: usize,
        numbers: &[f32],
        (weight, dims): (&[f32], &[usize]),
        factors: &Option<Vec<f32>>,
        fold: bool,
    ) -> Result<(Grid, Vec<f32>), TrainError> {
        let (mut grid, mut scales) = (Grid::weights(8), Vec::new());
        for g in 0..groups {
            let mut own = numbers[g * quantizer.learned()..][..quantizer.learned()].to_vec();
            let mut derived = vec![0.0; quantizer.derived()];
            if !derived.is_empty() {
                quantizer.derive(&group_of(weight, dims, self.axis, groups, g), &mut derived);
            }
            own.extend(derived);
            let refuse = |source| TrainError::NotDeployable { tensor: self.trained.clone(), source };
            let (own_grid, scale, _) = quantizer.grid(&own).map_err(refuse)?;
            grid = own_grid;
            scales.push(scale);
        }
        if let (false, Some(factors)) = (fold, factors) {
            let scale = |(c, f): (usize, &f32)| scales[if scales.len() == 1 { 0 } else { c }] * f.abs();
            scales = factors.iter().enumerate().map(scale).collect();
            // A channel that is switched off has any scale.
            let usual = scales.iter().fold(f32::MIN_POSITIVE, |m, s| m.max(*s));
            scales.iter_mut().filter(|s| **s <= usual * 1e-6).for_each(|s| *s = usual);
        }
        Ok((grid, scales))
    }
}

impl Quantizers {
    fn add(&mut self, name: &str, quantizer: Arc<dyn Deployable>, groups: usize, axis: usize) {
        self.all.insert(name.into(), Laid { quantizer: quantizer.clone(), groups, axis });
        self.deployable.insert(name.into(), quantizer);
    }

    /// The quantizer on `tensor`.
    pub fn get(&self, tensor: &str) -> Option<&Arc<dyn Deployable>> {
        self.deployable.get(tensor)
    }

    /// Whether some still watch ranges and round nothing, or have offsets that are not whole steps yet.
    pub fn unsettled(&self, leaves: &Leaves) -> bool {
        let unsettled = |(name, quantizer): (&String, &Arc<dyn Deployable>)| {
            let numbers = leaves.get(&quantizer_leaf(name)).unwrap_or_default();
            let refused = |why| matches!(why, NotDeployable::Observing { .. } | NotDeployable::FreeOffset);
            quantizer.learned() > 0 && quantizer.grid(numbers).is_err_and(refused)
        };
        self.deployable.iter().any(unsettled)
    }

    /// Brings every quantizer's numbers back to where it is defined.
    pub fn project(&self, leaves: &mut Leaves) {
        for (name, laid) in &self.all {
            let learned = laid.quantizer.learned();
            if let Some(numbers) = leaves.get_mut(&quantizer_leaf(name)).filter(|_| learned > 0) {
                numbers.chunks_exact_mut(learned).for_each(|group| laid.quantizer.project(group));
            }
        }
    }
}

/// Whether the method's own quantizers serve 8-bit tensors of any sign too.
fn keeps_ranges(method: Method) -> bool {
    matches!(method, Method::Lsq | Method::LsqPlus | Method::LsqBn | Method::MovingAverage | Method::Tqt)
}

/// The elements of a weight that share one quantizer.
fn group_of(weight: &[f32], dims: &[usize], axis: usize, groups: usize, g: usize) -> Vec<f32> {
    if groups == 1 {
        return weight.to_vec();
    }
    let inner: usize = dims[axis + 1..].iter().product();
    weight.chunks_exact(inner.max(1)).skip(g).step_by(groups).flatten().copied().collect()
}

/// Multiplies each output channel (axis 0) by a factor.
pub(crate) fn scale_rows(weight: &mut [f32], factors: &[f32]) {
    let len = weight.len() / factors.len().max(1);
    for (row, factor) in weight.chunks_exact_mut(len.max(1)).zip(factors) {
        row.iter_mut().for_each(|w| *w *= factor);
    }
}

/// Turns negative scales of BatchNormalizations behind layers positive: the layer's channel changes its sign, and the network computes
/// the same. Folding then never mirrors a weight's grid, which has one negative code more than positive ones.
fn make_scales_positive(graph: &mut Graph) {
    let readers = graph.consumers();
    let mut flips: Vec<(String, usize, Vec<bool>)> = Vec::new();
    for layer in &graph.nodes {
        let Role::Weight { channel_axis: axis } = layer.op.def().quant_rule().role(1) else { continue };
        let [one] = readers.get(layer.output()).map_or(&[][..], Vec::as_slice) else { continue };
        let norm = &graph.nodes[*one];
        if !matches!(norm.op, Op::BatchNormalization(_)) || graph.is_output(layer.output()) {
            continue;
        }
        let gamma = norm.input(1).and_then(|name| graph.constant(name)).and_then(|t| t.as_f32());
        let Some(negative) = gamma.map(|g| g.iter().map(|g| *g < 0.0).collect::<Vec<_>>()) else { continue };
        let mirrored = [(layer.input(1), axis), (layer.input(2), 0), (norm.input(1), 0), (norm.input(3), 0)];
        let mirrored = mirrored.into_iter().filter_map(|(name, axis)| Some((name?, axis)));
        let by_channel = |name: &str, axis: usize| graph.constant(name)?.dims.get(axis).copied();
        if !mirrored.clone().all(|(name, axis)| by_channel(name, axis) == Some(negative.len())) {
            continue;
        }
        flips.extend(mirrored.map(|(name, axis)| (name.to_string(), axis, negative.clone())));
    }
    for (name, axis, negative) in flips.into_iter().filter(|(.., negative)| negative.contains(&true)) {
        let Some(tensor) = graph.constants.get_mut(&name) else { continue };
        let Some(values) = tensor.as_f32() else { continue };
        let inner: usize = tensor.dims[axis + 1..].iter().product();
        let sign = |i: usize| if negative[i / inner.max(1) % negative.len()] { -1.0 } else { 1.0 };
        let values = values.iter().enumerate().map(|(i, v)| v * sign(i)).collect();
        *tensor = Arc::new(Tensor::f32(&tensor.dims, values));
    }
}
