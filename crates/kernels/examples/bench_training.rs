//! Speed of the float convolutions in training, on layers of well-known networks.
//!
//! `cargo run --release -p fewbits-kernels --example bench_training -- [rounds] [part of a layer's name]`
//!
//! One thread, a few images, as a training step calls the kernels. Prints the best GFLOP/s of the product, of the gradient of its
//! input and of that of its weight, how the gradients compare with the product, and the best microseconds of the work of once a step: packing the
//! weights for the product and for the input's gradient, unpacking the weight's gradient.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use fewbits_kernels::float::{ConvPlan, Epilogue, InputGradient, WeightGradient};
use fewbits_kernels::{ConvGeometry, Threads};

fn conv(from: usize, to: usize, k: usize, stride: usize) -> ConvGeometry {
    ConvGeometry { kernel: [k, k], stride: [stride; 2], pads: [k / 2; 4], ..ConvGeometry::pointwise(from, to) }
}

/// Convolutions with the side of the image and the number of images in a call.
fn layers() -> Vec<(ConvGeometry, usize, usize)> {
    let cifar = [
        (3, 16, 3, 1, 32),
        (16, 16, 3, 1, 32),
        (16, 32, 3, 2, 32),
        (16, 32, 1, 2, 32),
        (32, 32, 3, 1, 16),
        (64, 64, 3, 1, 8),
    ];
    let imagenet = [
        (3, 32, 3, 2, 224),
        (32, 16, 1, 1, 112),
        (16, 96, 1, 1, 112),
        (96, 24, 1, 1, 56),
        (24, 144, 1, 1, 56),
        (144, 32, 1, 1, 28),
        (384, 64, 1, 1, 14),
        (64, 384, 1, 1, 14),
        (960, 320, 1, 1, 7),
        (64, 64, 3, 1, 56),
        (256, 256, 3, 1, 14),
    ];
    let with = |images: usize| move |(from, to, k, stride, size)| (conv(from, to, k, stride), size, images);
    cifar.into_iter().map(with(4)).chain(imagenet.into_iter().map(with(1))).collect()
}

/// The best rate of `rounds` runs.
fn rate(flops: f64, rounds: usize, mut run: impl FnMut()) -> f64 {
    let seconds = (0..rounds).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    flops / seconds.fold(f64::INFINITY, f64::min) * 1e-9
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounds = arguments.first().and_then(|a| a.parse().ok()).unwrap_or(200);
    let part = arguments.get(1).map_or("", String::as_str);
    let threads = Threads::new(1);
    println!(
        "{:24} {:>8} {:>8} {:>8}   {:>6} {:>6}   {:>6} {:>6} {:>6}",
        "layer", "forward", "input", "weight", "i/f", "w/f", "pack", "pack i", "unpack"
    );
    for (g, size, images) in layers() {
        let name =
            format!("{0}x{0}s{1} {2}-{3}@{size} x{images}", g.kernel[0], g.stride[0], g.in_channels, g.out_channels);
        if !name.contains(part) {
            continue;
        }
        let [h, w] = g.output_size(size, size).expect("the kernel fits");
        let shape = [images, size, size];
        let numbers = |len: usize| -> Vec<f32> { (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.002).collect() };
        let (mut x, mut dy) = (numbers(images * size * size * g.in_channels), numbers(images * h * w * g.out_channels));
        let weights = numbers(g.weight_len());
        let (forward, input, weight) = (ConvPlan::new(&g), InputGradient::new(&g), WeightGradient::new(&g));
        let (mut packed, mut turned) = (vec![0.0; forward.packed_len()], vec![0.0; input.packed_len()]);
        forward.pack(&weights, &mut packed);
        input.pack(&weights, &mut turned);
        let scratch =
            forward.scratch_len(1, images, size, size).max(input.scratch_len(1, shape)).max(weight.scratch_len(shape));
        let (mut scratch, mut form) = (vec![0.0; scratch], vec![0.0; weight.form_len()]);
        let flops = 2.0 * g.macs(images, size, size) as f64;
        let w = rate(flops, rounds, || weight.run(shape, &x, &dy, &mut form, &mut scratch));
        let i = rate(flops, rounds, || input.run(&threads, shape, &turned, &dy, false, &mut x, &mut scratch));
        let f =
            rate(flops, rounds, || forward.run(&threads, shape, &packed, &x, &Epilogue::NONE, &mut dy, &mut scratch));
        let mut weights = weights;
        let micros = [
            rate(1e3, rounds, || forward.pack(&weights, &mut packed)),
            rate(1e3, rounds, || input.pack(&weights, &mut turned)),
            rate(1e3, rounds, || weight.unpack(&form, &mut weights)),
        ]
        .map(|rate| 1.0 / rate);
        let [p, q, u] = micros;
        println!("{name:24} {f:8.1} {i:8.1} {w:8.1}   {:6.2} {:6.2}   {p:6.0} {q:6.0} {u:6.0}", i / f, w / f);
    }
}
