//! Speed of the kernels of a training step that work on the rows of one part of a batch, on one thread.
//!
//! `cargo run --release -p fewbits-kernels --example bench_training_rows -- [milliseconds per kernel]`
//!
//! Prints the best time of each; GB/s count what is read and written once, GFLOP/s two per multiply-accumulate.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use fewbits_kernels::float::batch_norm::{self, Forward};
use fewbits_kernels::float::fake_quant::FakeQuant;
use fewbits_kernels::float::update::{Adam, Sgd};
use fewbits_kernels::float::{Activation, DepthwiseBackward, Epilogue, PackedConv};
use fewbits_kernels::simd::Isa;
use fewbits_kernels::{ConvGeometry, Threads};

/// Prints the speed of `work`, which does `amount` giga-units of `unit`.
fn bench(name: &str, time: Duration, amount: f64, unit: &str, mut work: impl FnMut()) {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < time {
        let run = Instant::now();
        work();
        best = best.min(run.elapsed().as_secs_f64());
    }
    println!("{name:44} {:9.1} us {:8.1} {unit}", best * 1e6, amount / best * 1e-9);
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1009) as f32 * 0.004 - 2.0).collect()
}

fn rows(time: Duration, positions: usize, channels: usize) {
    let isa = Isa::best();
    let len = positions * channels;
    let (x, dy, mut y) = (numbers(len), numbers(len), numbers(len));
    let [scale, shift, k] = [1.5, 0.25, 0.5].map(|c| vec![c; channels]);
    let mut sums = vec![0.0; 2 * channels];
    let bounds = [0.0, f32::INFINITY];
    let forward = Forward { x: &x, scale: &scale, shift: &shift, bounds };
    let bytes = |slices: usize| (slices * 4 * len) as f64;
    let name = |kernel: &str| format!("{kernel} {channels} channels, {positions} positions");
    bench(&name("moments"), time, bytes(1), "GB/s", || batch_norm::moments(isa, &x, &shift, black_box(&mut sums)));
    bench(&name("normalize"), time, bytes(2), "GB/s", || {
        batch_norm::normalize(isa, &x, &scale, &shift, bounds, black_box(&mut y));
    });
    bench(&name("gradient sums"), time, bytes(2), "GB/s", || {
        batch_norm::gradient_sums(isa, forward, &dy, &shift, black_box(&mut sums));
    });
    bench(&name("input gradient"), time, bytes(3), "GB/s", || {
        batch_norm::input_gradient(isa, forward, &dy, [&scale, &shift, &k], false, black_box(&mut y));
    });
    bench(&name("clamp (for comparison)"), time, bytes(2), "GB/s", || {
        Activation::Clamp { min: 0.0, max: 1.0 }.map(isa, &x, black_box(&mut y));
    });
    let quantizer = FakeQuant { scale: 0.1, offset: 0.0, low: 0.0, high: 15.0 };
    bench(&name("fake quant"), time, bytes(2), "GB/s", || quantizer.forward(isa, &x, black_box(&mut y)));
    bench(&name("fake quant backward"), time, bytes(3), "GB/s", || {
        black_box(quantizer.backward(isa, &x, &dy, false, black_box(&mut y)));
    });
}

fn depthwise(time: Duration, channels: usize, size: usize, k: usize, stride: usize) {
    let geometry = ConvGeometry {
        kernel: [k; 2],
        stride: [stride; 2],
        pads: [k / 2; 4],
        groups: channels,
        ..ConvGeometry::pointwise(channels, channels)
    };
    let [oh, ow] = geometry.output_size(size, size).expect("the kernel fits");
    let plan = DepthwiseBackward::new(&geometry);
    let (x, dy, weights) = (numbers(size * size * channels), numbers(oh * ow * channels), numbers(plan.packed_len()));
    let (mut dx, mut dw) = (x.clone(), weights.clone());
    let flops = 2.0 * geometry.macs(1, size, size) as f64;
    let name = |of: &str| format!("depthwise {of}: {channels} @ {size}, {k} x {k} / {stride}");
    let shape = [1, size, size];
    let (forward, threads, mut y) = (PackedConv::new(&geometry, &weights), Threads::new(1), dy.clone());
    bench(&name("y (for comparison)"), time, flops, "GFLOP/s", || {
        forward.run(&threads, shape, &x, &Epilogue::NONE, black_box(&mut y), &mut []);
    });
    bench(&name("dx"), time, flops, "GFLOP/s", || plan.input_gradient(shape, &weights, &dy, false, black_box(&mut dx)));
    bench(&name("dw"), time, flops, "GFLOP/s", || plan.weight_gradient(shape, &x, &dy, black_box(&mut dw)));
}

fn main() {
    let time = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(50);
    let time = Duration::from_millis(time);
    for (positions, channels) in [(4 * 32 * 32, 16), (56 * 56, 24), (14 * 14, 384)] {
        rows(time, positions, channels);
    }
    for (channels, size) in [(96, 56), (384, 14), (960, 7)] {
        for (k, stride) in [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (9, 1)] {
            depthwise(time, channels, size, k, stride);
        }
    }
    let len = 1 << 16;
    let (mut w, g, mut v, mut m) = (numbers(len), numbers(len), numbers(len), numbers(len));
    v.iter_mut().for_each(|v| *v = v.abs());
    let sgd = Sgd { learning_rate: 0.1, momentum: 0.9, nesterov: false, weight_decay: 1e-4 };
    bench("sgd", time, 20.0 * len as f64, "GB/s", || sgd.step(black_box(&mut w), &g, &mut m));
    let adam = Adam { learning_rate: 1e-3, betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.0, decoupled: false };
    bench("adam", time, 28.0 * len as f64, "GB/s", || adam.step(1, black_box(&mut w), &g, &mut m, &mut v));
}
