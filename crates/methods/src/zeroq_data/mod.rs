//! Distilled data: images made from what a network's BatchNormalizations remember of its training data.
//!
//! # What it does
//! A BatchNormalization keeps mean `μ` and variance `σ²` of each channel that came to it in training. Images are looked for that bring
//! the same: from noise, by gradient descent on the images themselves, with the least
//! `Σ_layers mean_channels ((μ − μ̃)² + (√(σ² + ε) − √(σ̃² + ε))²) / (σ² + ε)`, where `μ̃` and `σ̃²` are over the positions of all images
//! of a group and `ε` is the normalization's own. So a channel counts by what the network makes of it, whatever its range. A
//! classifier should also find a class in each image, drawn by chance: the cross entropy is added. The pixels themselves
//! are one more layer, and keep within what 0…255 can become ([`Pixels`]).
//!
//! # When it helps
//! Where there is no data at all to calibrate with. Ranges come out close to those of real images.
//!
//! # When it fails
//! Where BatchNormalizations have been folded already, as in most exported models: an error says so. Activations behind
//! normalizations over a single position (classifiers) are not matched.
//!
//! # Cost
//! A forward and a backward pass per image and iteration, without gradients of weights.
//!
//! # Config
//! [`Config`].
//!
//! # Source
//! Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework" (CVPR 2020), §3.1 and its published program; classes and statistics
//! of groups as in Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion" (CVPR 2020), §3.2.
//!
//! # Departures
//! Distances in units of each channel, variances of the population, images that the preprocessing could have made. Groups have
//! [`GROUP`] images and fewer for large networks, where the paper optimises 32 together. The paper's settings are 500 iterations from noise at
//! a step size of 0.5 that falls after 100 iterations without progress; here 80 are the default, from smooth patterns, at 0.2 deviations of
//! the pixels, and it falls after 15. A group is done when it has fallen far enough; of all iterations the best counts.

mod matching;

use crate::{MethodError, Progress};
use fewbits_graph::{DType, Graph, Node, Op, Tensor, op::Fact};
use fewbits_kernels::Threads;
use fewbits_train::{
    optimizer::{self, Optimizer, Rule},
    random::Random,
};
use matching::{Classes, Matching, Target};
use std::collections::BTreeMap;

/// Images that are optimised together.
pub const GROUP: usize = 8;
/// Numbers of matched tensors that a group may have.
const MOST_NUMBERS: usize = 1 << 25;
/// Part of the first step size at which a group is done.
const LEAST_RATE: f32 = 1e-3;
/// What a plateau leaves of the step size.
const FALL: f32 = 0.3;
/// A loss that falls by less than this part is a plateau.
const PROGRESS: f64 = 1e-3;
/// [`Config::class_weight`] by default.
const CLASS_WEIGHT: f64 = 1.0;
/// Pixels between the knots of a smooth start.
const KNOTS: usize = 8;

/// What the pixels of one channel are like, as the network gets them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pixels {
    /// Their mean.
    pub mean: f32,
    /// Their standard deviation.
    pub deviation: f32,
    /// The smallest that there can be.
    pub least: f32,
    /// The largest.
    pub most: f32,
}

impl Default for Pixels {
    /// Normalised, without limits.
    fn default() -> Self {
        Pixels { mean: 0.0, deviation: 1.0, least: f32::NEG_INFINITY, most: f32::INFINITY }
    }
}

/// How images are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How many.
    pub images: usize,
    /// Steps for each, at most.
    pub iterations: usize,
    /// Of Adam, at the beginning, in deviations of the pixels.
    pub learning_rate: f32,
    /// Steps without progress after which the step size falls.
    pub patience: usize,
    /// Begin with smooth patterns and a little noise, in place of noise alone.
    pub smooth: bool,
    /// Of the cross entropy, where the network is a classifier.
    pub class_weight: f64,
    /// What pixels are like, for each channel of the input; the default where there is none.
    pub pixels: Vec<Pixels>,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            images: 64,
            iterations: 80,
            learning_rate: 0.2,
            patience: 15,
            smooth: true,
            class_weight: CLASS_WEIGHT,
            pixels: vec![],
            seed: 0,
        }
    }
}

/// Images for `graph`, whose one input has `shape` for one image: `[1, C, …]`. They are [`crate::Samples`], and the same whatever the
/// number of threads.
///
/// # Errors
/// [`MethodError::Unsupported`] if the graph has several inputs, or no BatchNormalization to match; [`MethodError::Graph`] if it cannot
/// be differentiated.
pub fn draw(
    graph: &Graph,
    shape: &[usize],
    config: &Config,
    threads: &Threads,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Tensor>>, MethodError> {
    let one_input = graph.inputs.len() == 1 && graph.inputs[0].dtype == DType::F32;
    if !one_input || shape.len() < 3 || shape[0] != 1 || shape.contains(&0) {
        return Err(unsupported(
            format!("images of shape {shape:?} for a network with {} inputs", graph.inputs.len()),
            "give calibration data, or one float input of shape [1, C, ...]",
        ));
    }
    let facts = fewbits_graph::exec::infer(graph, &[shape.to_vec()])?;
    let positions = |name: &str| facts.get(name).map_or(0, |fact| fact.dims.iter().skip(2).product());
    let targets: Vec<Target> = targets(graph).into_iter().filter(|t| positions(&t.tensor) > 1).collect();
    if targets.is_empty() {
        let what = match normalizations(graph) {
            0 => "the network has no BatchNormalization left that would tell what its training data was like",
            _ => "no BatchNormalization of the network is over more than one position",
        };
        return Err(unsupported(
            what.into(),
            "give calibration data, or the model as it was before BatchNormalization was folded (export it in training mode)",
        ));
    }
    let numbers: usize = targets.iter().map(|t| facts[&t.tensor].len()).sum();
    let group = (MOST_NUMBERS / numbers.max(1)).clamp(1, GROUP);
    let pixels: Vec<Pixels> = (0..shape[1]).map(|c| config.pixels.get(c).copied().unwrap_or_default()).collect();
    let input = Target {
        tensor: graph.inputs[0].name.clone(),
        mean: pixels.iter().map(|p| p.mean).collect(),
        variance: pixels.iter().map(|p| p.deviation * p.deviation).collect(),
        epsilon: 0.0,
    };
    let logits = logits(graph, &facts);
    let row: usize = shape.iter().product();
    let mut images = Vec::with_capacity(config.images);
    progress.begin("images from BatchNormalization statistics", config.images.div_ceil(group));
    while images.len() < config.images {
        let numbers = images.len() as u64..(images.len() + group).min(config.images) as u64;
        let classes = logits.map(|(logits, classes)| Classes {
            logits: logits.into(),
            labels: numbers.clone().map(|i| Random::keyed(&[config.seed, i, 1]).below(classes)).collect(),
            weight: config.class_weight,
        });
        let shapes = [&[numbers.clone().count()], &shape[1..]].concat();
        let mut matching = Matching::new(graph, &targets, classes, input.clone(), &shapes)?;
        let begun = numbers.flat_map(|i| start(shape, &pixels, config, i)).collect();
        let (found, [first, last]) = descend(&mut matching, begun, &pixels, row, config, threads);
        progress.say(&format!("loss {first:.3e} -> {last:.3e}"));
        images.extend(found.chunks(row).map(|image| vec![Tensor::f32(shape, image.to_vec())]));
        progress.step();
    }
    progress.end();
    Ok(images)
}

fn unsupported(what: String, hint: &'static str) -> MethodError {
    MethodError::Unsupported { method: "zeroq-data", what, hint }
}

fn normalizations(graph: &Graph) -> usize {
    graph.nodes.iter().filter(|node| matches!(node.op, Op::BatchNormalization(_))).count()
}

/// What the normalizations of `graph` remember of tensors that nodes make.
fn targets(graph: &Graph) -> Vec<Target> {
    let producers = graph.producers();
    let target = |node: &Node| {
        let Op::BatchNormalization(normalization) = &node.op else { return None };
        let constant = |i: usize| node.input(i).and_then(|name| graph.constant(name)).and_then(|t| t.as_f32());
        let tensor = node.input(0)?;
        producers.get(tensor)?;
        let (mean, variance) = (constant(3)?.to_vec(), constant(4)?.iter().map(|v| v.max(0.0)).collect());
        let epsilon = normalization.epsilon.max(f32::MIN_POSITIVE);
        Some(Target { tensor: tensor.into(), mean, variance, epsilon })
    };
    graph.nodes.iter().filter_map(target).collect()
}

/// The numbers `[1, K]` that a classifier ends in, before a Softmax, and `K`.
fn logits<'g>(graph: &'g Graph, facts: &BTreeMap<String, Fact>) -> Option<(&'g str, usize)> {
    let [output] = &graph.outputs[..] else { return None };
    let last = &graph.nodes[*graph.producers().get(output.name.as_str())?];
    let name = if matches!(last.op, Op::Softmax(_)) { last.input(0)? } else { last.output() };
    match facts.get(name)?.dims[..] {
        [1, classes] if classes > 1 => Some((name, classes)),
        _ => None,
    }
}

/// The best images on the way down from `images`; the loss per image at the beginning, and theirs.
fn descend(
    matching: &mut Matching,
    mut images: Vec<f32>,
    pixels: &[Pixels],
    row: usize,
    config: &Config,
    threads: &Threads,
) -> (Vec<f32>, [f64; 2]) {
    let len = images.len();
    let whole = optimizer::Group { range: 0..len, learning_rate: 1.0, weight_decay: 0.0 };
    let mut adam = Optimizer::new(Rule::Adam(optimizer::Moments::default()), vec![whole], len);
    let mut gradient = vec![0.0; len];
    let mut best = images.clone();
    let (mut first, mut least, mut plateau) = (None, f64::INFINITY, f64::INFINITY);
    // In units of the pixels' deviation.
    let unit = pixels.iter().map(|p| p.deviation).sum::<f32>() / pixels.len() as f32;
    let (mut rate, mut waited) = (config.learning_rate * unit, 0);
    for iteration in 0..=config.iterations {
        let loss = matching.gradient(&images, &mut gradient, threads);
        first.get_or_insert(loss);
        if loss < least {
            least = loss;
            best.copy_from_slice(&images);
        }
        if loss < plateau * (1.0 - PROGRESS) {
            (plateau, waited) = (loss, 0);
        } else {
            waited += 1;
        }
        if waited > config.patience {
            (rate, waited) = (rate * FALL, 0);
            // What was found is a better place to go on from than where large steps led.
            images.copy_from_slice(&best);
            if rate < LEAST_RATE * config.learning_rate * unit {
                break;
            }
        }
        if iteration < config.iterations {
            adam.step(rate, &mut images, &gradient, threads);
            limit(&mut images, row, pixels);
        }
    }
    (best, [first.unwrap_or(0.0), least])
}

/// Brings pixels back to what they can be.
fn limit(images: &mut [f32], row: usize, pixels: &[Pixels]) {
    for image in images.chunks_mut(row) {
        for (plane, channel) in image.chunks_mut(row / pixels.len()).zip(pixels) {
            plane.iter_mut().for_each(|x| *x = x.clamp(channel.least, channel.most));
        }
    }
}

/// What image `number` begins as.
fn start(shape: &[usize], pixels: &[Pixels], config: &Config, number: u64) -> Vec<f32> {
    let mut random = Random::keyed(&[config.seed, number]);
    let [height, width] = [shape[2], shape.get(3).copied().unwrap_or(1)];
    let planes = shape.iter().product::<usize>() / (height * width);
    // Channels have most of their pattern in common, as in photographs.
    let common = pattern(&mut random, height, width);
    let mut image = Vec::with_capacity(planes * height * width);
    for channel in (0..shape[1]).flat_map(|c| std::iter::repeat_n(pixels[c], planes / shape[1])) {
        let own = pattern(&mut random, height, width);
        let smooth = common.iter().zip(&own).map(|(a, b)| 1.1 * a + 0.7 * b);
        image.extend(smooth.map(|s| {
            let noise = random.normal() as f32;
            channel.mean + channel.deviation * if config.smooth { s + 0.3 * noise } else { noise }
        }));
    }
    limit(&mut image, shape.iter().product(), pixels);
    image
}

/// Random numbers [`KNOTS`] pixels apart, joined linearly.
fn pattern(random: &mut Random, height: usize, width: usize) -> Vec<f32> {
    let columns = width / KNOTS + 2;
    let knots: Vec<f32> = (0..(height / KNOTS + 2) * columns).map(|_| random.normal() as f32).collect();
    let pixel = |y: usize, x: usize| {
        let (row, column) = (y / KNOTS, x / KNOTS);
        let [down, right] = [y % KNOTS, x % KNOTS].map(|rest| rest as f32 / KNOTS as f32);
        let along = |row: usize| {
            let at = row * columns + column;
            (1.0 - right) * knots[at] + right * knots[at + 1]
        };
        (1.0 - down) * along(row) + down * along(row + 1)
    };
    (0..height * width).map(|i| pixel(i / width, i % width)).collect()
}

#[cfg(test)]
mod tests;
