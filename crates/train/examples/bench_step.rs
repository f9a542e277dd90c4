//! Times training steps: one network, one mode, random images. `benches/compare_pytorch_training.py` runs it.
//!
//!     echo "10 1" | cargo run --release -p fewbits-train --example bench_step -- resnet20 lsq 3x32x32 128
//!
//! Arguments: architecture of the zoo, `float` or `lsq`, image, batch. Each line of standard input asks for steps and threads;
//! each is answered with a line of JSON. A step is forward, loss, backward and SGD with momentum and weight decay. `lsq` rounds
//! weights (each output channel) and inputs (each tensor) of all convolutions and matrix products to 4 bits. CPU time and memory
//! are the process's, where `/proc` tells them.
#![expect(clippy::print_stdout, reason = "a program that prints")]

use fewbits_graph::{
    Graph, Op, exec, passes,
    tape::{Config, Kind, Laid, Leaf, Leaves, Statistics, Tape, quantizer_leaf},
};
use fewbits_kernels::Threads;
use fewbits_train::{
    loss::Objective,
    optimizer::{Group, Optimizer, Rule},
    quantizers::{Deployable, Lsq, init::Start},
};
use std::{collections::BTreeMap, error::Error, fs, io, sync::Arc, time::Instant};

const BITS: u8 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [architecture, mode, image, batch] = &arguments[..] else {
        return Err("usage: bench_step ARCHITECTURE float|lsq[+recompute] CxHxW BATCH".into());
    };
    let sizes: Vec<usize> = image.split('x').map(str::parse).collect::<Result<_, _>>()?;
    let sizes: [usize; 3] = sizes.try_into().map_err(|_| "an image is CxHxW")?;
    let start = Instant::now();
    let (method, recompute) = mode.strip_suffix("+recompute").map_or((&mode[..], false), |method| (method, true));
    let mut training = Training::new(architecture, method == "lsq", recompute, sizes, batch.parse()?)?;
    training.step(&Threads::new(1))?;
    println!(
        r#"{{"ready_seconds": {:.3}, "planned_bytes": {}}}"#,
        start.elapsed().as_secs_f64(),
        training.tape.bytes()
    );
    let mut all: BTreeMap<usize, Threads> = BTreeMap::new();
    for line in io::stdin().lines() {
        let line = line?;
        let (steps, count) = line.trim().split_once(' ').ok_or("a line has steps and threads")?;
        let (steps, count): (usize, usize) = (steps.parse()?, count.parse()?);
        let threads = all.entry(count).or_insert_with(|| Threads::new(count));
        let (cpu, start) = (cpu_seconds(), Instant::now());
        let mut loss = 0.0;
        for _ in 0..steps {
            loss = training.step(threads)?;
        }
        let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let [wall, cpu] = [wall, cpu].map(|seconds| seconds * 1e3 / steps as f64);
        println!(
            r#"{{"steps": {steps}, "wall_ms": {wall:.3}, "cpu_ms": {cpu:.3}, "peak_rss_bytes": {}, "loss": {loss:.6}}}"#,
            peak_rss()
        );
    }
    Ok(())
}

struct Training {
    tape: Tape,
    leaves: Leaves,
    quantizers: BTreeMap<String, Arc<dyn Deployable>>,
    optimizer: Optimizer,
    images: Vec<f32>,
    labels: Vec<usize>,
    gradients: Vec<f32>,
}

impl Training {
    fn new(
        architecture: &str,
        lsq: bool,
        recompute: bool,
        input: [usize; 3],
        batch: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let options = fewbits_zoo::Options { input: Some(input), ..Default::default() };
        let architecture = fewbits_zoo::find(architecture)?;
        let graph = passes::with_layer_input_slots(&passes::trainable(&architecture.build(&options)?, false)?)?;
        let shapes = [[&[batch], &input[..]].concat()];
        let laid = if lsq { lay(&graph, &shapes, batch)? } else { Quantizers::new() };
        let mut config = Config { recompute, ..Config::default() };
        let mut quantizers = BTreeMap::new();
        for (name, (quantizer, groups)) in laid {
            config.quantizers.insert(name.clone(), Laid { quantizer: quantizer.clone(), groups, axis: 0 });
            quantizers.insert(name, quantizer);
        }
        let mut leaves = Leaves::new(&graph, &config.quantizers);
        let images = noise(batch * input.iter().product::<usize>());
        start_weights(&mut leaves, &quantizers);
        let starting = Config { stops: true, forward_only: true, statistics: Statistics::Running, ..config.clone() };
        Tape::compile(&graph, &leaves, &shapes, &starting)?.forward_initializing(
            &mut leaves,
            &[&images],
            &Threads::new(1),
            &mut |name, x, numbers| numbers.copy_from_slice(&quantizers[name].initial(x)),
        );
        let group = |leaf: &Leaf| Group {
            range: leaf.range.clone(),
            learning_rate: 1.0,
            weight_decay: if leaf.kind == Kind::Weight { 1e-4 } else { 0.0 },
        };
        let groups = leaves.parameters.iter().map(group).collect();
        let count = leaves.values.len();
        Ok(Training {
            tape: Tape::compile(&graph, &leaves, &shapes, &config)?,
            optimizer: Optimizer::new(Rule::Sgd { momentum: 0.9, nesterov: false }, groups, count),
            labels: (0..batch).map(|i| i % 10).collect(),
            gradients: vec![0.0; count],
            leaves,
            quantizers,
            images,
        })
    }

    /// Makes a step; the loss before it.
    fn step(&mut self, threads: &Threads) -> Result<f64, Box<dyn Error>> {
        let inputs = [&self.images[..]];
        self.tape.forward(&mut self.leaves, &inputs, threads);
        let logits = self.tape.output(0);
        let mut gradient = vec![0.0; logits.len()];
        let loss = Objective::default().evaluate(logits, &self.labels, None, &mut gradient)?;
        self.tape.backward(&self.leaves, &inputs, &[&gradient], &mut self.gradients, threads);
        self.optimizer.step(1e-3, &mut self.leaves.values, &self.gradients, threads);
        for (name, quantizer) in &self.quantizers {
            let numbers = self.leaves.get_mut(&quantizer_leaf(name)).unwrap_or_default();
            numbers.chunks_exact_mut(quantizer.learned()).for_each(|group| quantizer.project(group));
        }
        Ok(loss.total)
    }
}

/// Quantizers for the weights and inputs of all layers, each with its number of groups.
type Quantizers = BTreeMap<String, (Arc<dyn Deployable>, usize)>;

fn lay(graph: &Graph, shapes: &[Vec<usize>], batch: usize) -> Result<Quantizers, Box<dyn Error>> {
    let facts = exec::infer(graph, shapes)?;
    let mut all = Quantizers::new();
    for node in graph.nodes.iter().filter(|node| matches!(node.op, Op::Conv(_) | Op::Gemm(_))) {
        let [input, weight] = [0, 1].map(|i| node.inputs[i].clone());
        let dims = &graph.constant(&weight).ok_or("a layer without a weight")?.dims;
        let count = dims[1..].iter().product();
        all.insert(weight, (Arc::new(Lsq::symmetric(BITS, true, count, Start::Lsq)), dims[0]));
        let count = facts[&input].len() / batch;
        let quantizer = Lsq::symmetric(BITS, !is_positive(graph, &input), count, Start::Lsq);
        all.insert(input, (Arc::new(quantizer), 1));
    }
    Ok(all)
}

/// Sets the numbers of weight quantizers from the weights.
fn start_weights(leaves: &mut Leaves, quantizers: &BTreeMap<String, Arc<dyn Deployable>>) {
    for (name, quantizer) in quantizers {
        let Some(leaf) = leaves.parameter(name) else { continue };
        let rows = leaves.values[leaf.range.clone()].chunks_exact(leaf.range.len() / leaf.dims[0]);
        let numbers: Vec<f32> = rows.flat_map(|row| quantizer.initial(row)).collect();
        leaves.get_mut(&quantizer_leaf(name)).unwrap_or_default().copy_from_slice(&numbers);
    }
}

/// Whether the tensor comes from a Relu or Clip, perhaps by way of its mean.
fn is_positive(graph: &Graph, tensor: &str) -> bool {
    let maker = graph.nodes.iter().find(|node| node.output() == tensor);
    maker.is_some_and(|node| match node.op {
        Op::Relu(_) | Op::Clip(_) => true,
        Op::Identity(_) | Op::Flatten(_) | Op::GlobalAveragePool(_) => is_positive(graph, &node.inputs[0]),
        _ => false,
    })
}

/// Numbers spread evenly over ±√3, so that their variance is 1.
fn noise(count: usize) -> Vec<f32> {
    let number = |i: usize| {
        let mixed = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40;
        (mixed as f32 / (1u32 << 23) as f32 - 1.0) * 3f32.sqrt()
    };
    (0..count).map(number).collect()
}

/// User and system time of all threads so far; the system counts in hundredths of a second. 0 where it cannot be told.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name, in parentheses, may have spaces in it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// 0 where it cannot be told.
fn peak_rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
