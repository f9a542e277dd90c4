//! Speed of the float convolutions on the layers of well-known networks.
//!
//! `cargo run --release -p fewbits-kernels --example bench_float -- [threads] [batch] [rounds] [network]`
//!
//! The layers run in order, each reading what the one before wrote, so that caches are as cold as in the network. Prints the
//! best and the median time of each layer, and the best time of a whole round.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use fewbits_kernels::float::{Activation, Epilogue, PackedConv};
use fewbits_kernels::{ConvGeometry, Threads};

struct Layer {
    name: String,
    geometry: ConvGeometry,
    size: usize,
}

fn layer(from: usize, to: usize, k: usize, stride: usize, size: usize) -> Layer {
    conv(from, to, k, stride, size, 1)
}

fn conv(from: usize, to: usize, k: usize, stride: usize, size: usize, groups: usize) -> Layer {
    let geometry = ConvGeometry {
        kernel: [k, k],
        stride: [stride; 2],
        pads: [k / 2; 4],
        groups,
        ..ConvGeometry::pointwise(from, to)
    };
    let kind = if groups > 1 { "dw" } else { "" };
    Layer { name: format!("{kind}{k}x{k}s{stride} {from}-{to}@{size}"), geometry, size }
}

fn mobilenet_v2() -> Vec<Layer> {
    let mut layers = vec![layer(3, 32, 3, 2, 224)];
    let (mut from, mut size) = (32, 112);
    for (expand, to, repeat, stride) in
        [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    {
        for i in 0..repeat {
            let (stride, hidden) = (if i == 0 { stride } else { 1 }, from * expand);
            if expand > 1 {
                layers.push(layer(from, hidden, 1, 1, size));
            }
            layers.push(conv(hidden, hidden, 3, stride, size, hidden));
            size /= stride;
            layers.push(layer(hidden, to, 1, 1, size));
            from = to;
        }
    }
    layers.push(layer(320, 1280, 1, 1, 7));
    layers.push(layer(1280, 1000, 1, 1, 1));
    layers
}

fn resnet() -> Vec<Layer> {
    vec![
        layer(3, 64, 7, 2, 224),
        layer(64, 64, 3, 1, 56),
        layer(64, 128, 3, 2, 56),
        layer(128, 128, 3, 1, 28),
        layer(128, 256, 3, 2, 28),
        layer(256, 256, 3, 1, 14),
        layer(256, 512, 3, 2, 14),
        layer(512, 512, 3, 1, 7),
        layer(64, 256, 1, 1, 56),
        layer(256, 64, 1, 1, 56),
        layer(512, 128, 1, 1, 28),
        layer(1024, 256, 1, 1, 14),
        layer(512, 2048, 1, 1, 7),
    ]
}

fn squeezenet() -> Vec<Layer> {
    let mut layers = vec![layer(3, 64, 3, 2, 224)];
    for (from, squeeze, to, size) in
        [(64, 16, 64, 55), (128, 16, 64, 55), (128, 32, 128, 27), (256, 48, 192, 13), (384, 64, 256, 13)]
    {
        layers.push(layer(from, squeeze, 1, 1, size));
        layers.push(layer(squeeze, to, 1, 1, size));
        layers.push(layer(squeeze, to, 3, 1, size));
    }
    layers.push(layer(512, 1000, 1, 1, 13));
    layers
}

fn mobilenet_v1_025() -> Vec<Layer> {
    let mut layers = vec![layer(3, 8, 3, 2, 224)];
    let (mut from, mut size) = (8, 112);
    for (to, stride) in [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)] {
        for _ in 0..if (from, to, stride) == (128, 128, 1) { 5 } else { 1 } {
            layers.push(conv(from, from, 3, stride, size, from));
            size /= stride;
            layers.push(layer(from, to, 1, 1, size));
            from = to;
        }
    }
    layers.push(layer(256, 1000, 1, 1, 1));
    layers
}

fn yolox() -> Vec<Layer> {
    vec![
        layer(12, 16, 3, 1, 208),
        conv(16, 16, 3, 2, 208, 16),
        layer(16, 32, 1, 1, 104),
        layer(32, 16, 1, 1, 104),
        conv(16, 16, 3, 1, 104, 16),
        layer(32, 32, 1, 1, 104),
        conv(32, 32, 3, 2, 104, 32),
        layer(32, 64, 1, 1, 52),
        conv(64, 64, 3, 1, 52, 64),
        layer(64, 64, 1, 1, 52),
        conv(128, 128, 3, 1, 26, 128),
        layer(128, 128, 1, 1, 26),
        layer(64, 80, 1, 1, 52),
    ]
}

fn dw() -> Vec<Layer> {
    vec![conv(384, 384, 3, 1, 14, 384), conv(384, 384, 3, 1, 14, 384), conv(384, 384, 3, 1, 14, 384)]
}

fn cifar() -> Vec<Layer> {
    vec![
        layer(3, 16, 3, 1, 32),
        layer(16, 16, 3, 1, 32),
        layer(16, 32, 3, 2, 32),
        layer(32, 32, 3, 1, 16),
        layer(64, 64, 3, 1, 8),
        conv(96, 96, 5, 1, 40, 96),
        conv(96, 96, 5, 2, 40, 96),
    ]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| arguments.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (threads, batch, rounds) = (Threads::new(number(0, 1)), number(1, 1), number(2, 20).max(1));
    let layers = match arguments.get(3).map(String::as_str) {
        Some("resnet") => resnet(),
        Some("squeezenet") => squeezenet(),
        Some("cifar") => cifar(),
        Some("dw") => dw(),
        Some("mobilenet_v1_025") => mobilenet_v1_025(),
        Some("yolox") => yolox(),
        _ => mobilenet_v2(),
    };
    let weights: Vec<f32> = (0..3_000_000).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.002).collect();
    let packed: Vec<PackedConv> =
        layers.iter().map(|l| PackedConv::new(&l.geometry, &weights[..l.geometry.weight_len()])).collect();
    let lens = |l: &Layer| {
        let [h, w] = l.geometry.output_size(l.size, l.size).expect("the kernel fits");
        let g = &l.geometry;
        (batch * l.size * l.size * g.in_channels, batch * h * w * g.out_channels)
    };
    let longest = layers.iter().map(|l| lens(l).0.max(lens(l).1)).max().unwrap_or(0);
    let scratch = packed.iter().zip(&layers).map(|(p, l)| p.scratch_len(threads.count(), batch, l.size, l.size)).max();
    let mut scratch = vec![0.0; scratch.unwrap_or(0)];
    let (mut from, mut to) = (vec![0.5; longest], vec![0.5; longest]);
    let mut seconds = vec![Vec::new(); layers.len()];
    let mut whole = f64::INFINITY;
    for _ in 0..rounds {
        let round = Instant::now();
        for ((l, p), seconds) in layers.iter().zip(&packed).zip(&mut seconds) {
            let bias = &weights[..l.geometry.out_channels];
            let activation = Activation::Clamp { min: 0.0, max: 6.0 };
            let epilogue = Epilogue { bias: Some(bias), residual: None, activation };
            let (x_len, y_len) = lens(l);
            let start = Instant::now();
            p.run(&threads, [batch, l.size, l.size], &from[..x_len], &epilogue, &mut to[..y_len], &mut scratch);
            seconds.push(start.elapsed().as_secs_f64());
            std::mem::swap(&mut from, &mut to);
        }
        whole = whole.min(round.elapsed().as_secs_f64());
    }
    let (mut best_sum, mut median_sum) = (0.0, 0.0);
    println!("{:28} {:>9} {:>9} {:>9}", "layer", "best us", "median", "GFLOP/s");
    for (l, seconds) in layers.iter().zip(&mut seconds) {
        seconds.sort_by(f64::total_cmp);
        let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
        let flops = 2.0 * l.geometry.macs(batch, l.size, l.size) as f64;
        println!("{:28} {:9.1} {:9.1} {:9.1}", l.name, best * 1e6, median * 1e6, flops / best * 1e-9);
        best_sum += best;
        median_sum += median;
    }
    println!(
        "sum of best {:.2} ms, of medians {:.2} ms; best round {:.2} ms",
        best_sum * 1e3,
        median_sum * 1e3,
        whole * 1e3
    );
}
