//! Speed of the integer kernels on the layers of MobileNetV2 at 224 × 224, batch 1, and on the 3×3 layers of ResNet-18.
//!
//! `cargo run --release -p fewbits-kernels --example bench_int [rounds]` prints, for 1 and 2 threads, the time of each kind of
//! layer and the sum, the best of the rounds.

#![allow(clippy::print_stdout)]

use fewbits_kernels::Threads;
use fewbits_kernels::geometry::ConvGeometry;
use fewbits_kernels::int::{PackedQConv, Requantize};
use std::time::{Duration, Instant};

struct Layer {
    kind: &'static str,
    name: String,
    conv: PackedQConv,
    requantize: Requantize,
    size: usize,
    x: Vec<u8>,
    y: Vec<u8>,
    scratch: Vec<u8>,
}

impl Layer {
    fn new(kind: &'static str, size: usize, geometry: ConvGeometry) -> Layer {
        let weights: Vec<i8> = (0..geometry.weight_len()).map(|i| (i * 37 % 251) as i8).collect();
        let conv = PackedQConv::new(&geometry, &weights);
        let channels = geometry.out_channels;
        let requantize = conv.requantize(3, &vec![100; channels], &vec![1e-3; channels], 0, [0, 255]);
        let [oh, ow] = geometry.output_size(size, size).expect("the layers fit");
        Layer {
            kind,
            name: format!(
                "{}->{} k{} s{} @{size}",
                geometry.in_channels, channels, geometry.kernel[0], geometry.stride[0]
            ),
            requantize,
            size,
            x: (0..size * size * geometry.in_channels).map(|i| (i * 101 % 256) as u8).collect(),
            y: vec![0; oh * ow * channels],
            scratch: vec![0; conv.scratch_len([1, size, size])],
            conv,
        }
    }

    fn run(&mut self, threads: &Threads) -> Duration {
        let start = Instant::now();
        let shape = [1, self.size, self.size];
        self.conv.run(threads, shape, &self.x, &self.requantize, &mut self.y, &mut self.scratch);
        start.elapsed()
    }
}

/// MobileNetV2: (expansion, channels, repeats, stride) of each stage.
fn mobilenet_v2() -> Vec<Layer> {
    let dense = |a, b, k: usize, stride| ConvGeometry {
        kernel: [k, k],
        stride: [stride, stride],
        pads: [k / 2; 4],
        ..ConvGeometry::pointwise(a, b)
    };
    let depthwise = |c, stride| ConvGeometry { groups: c, ..dense(c, c, 3, stride) };
    let mut layers = vec![Layer::new("first", 224, dense(3, 32, 3, 2))];
    let (mut size, mut channels) = (112, 32);
    for (expansion, out, repeats, stride) in
        [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    {
        for repeat in 0..repeats {
            let stride = if repeat == 0 { stride } else { 1 };
            let wide = channels * expansion;
            if expansion > 1 {
                layers.push(Layer::new("expand", size, dense(channels, wide, 1, 1)));
            }
            layers.push(Layer::new("depthwise", size, depthwise(wide, stride)));
            size /= stride;
            layers.push(Layer::new("project", size, dense(wide, out, 1, 1)));
            channels = out;
        }
    }
    layers.push(Layer::new("last", 7, dense(320, 1280, 1, 1)));
    layers.push(Layer::new("classifier", 1, dense(1280, 1000, 1, 1)));
    layers
}

/// One 3×3 convolution of each stage of ResNet-18.
fn resnet_18() -> Vec<Layer> {
    let layer = |(channels, size)| {
        let pointwise = ConvGeometry::pointwise(channels, channels);
        Layer::new("3x3", size, ConvGeometry { kernel: [3, 3], pads: [1; 4], ..pointwise })
    };
    [(64, 56), (128, 28), (256, 14), (512, 7)].map(layer).into()
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(50);
    bench("MobileNetV2", mobilenet_v2(), rounds);
    bench("ResNet-18, one layer of each stage", resnet_18(), rounds);
}

fn bench(network: &str, mut layers: Vec<Layer>, rounds: usize) {
    for count in [1, 2] {
        let threads = Threads::new(count);
        let mut best = vec![Duration::MAX; layers.len()];
        let mut best_total = Duration::MAX;
        for _ in 0..rounds {
            let times: Vec<Duration> = layers.iter_mut().map(|layer| layer.run(&threads)).collect();
            best_total = best_total.min(times.iter().sum());
            best = best.iter().zip(&times).map(|(&a, &b)| a.min(b)).collect();
        }
        println!(
            "{network}, {count} thread(s): best round {:.2} ms, sum of best {:.2} ms",
            millis(best_total),
            millis(best.iter().sum())
        );
        for (layer, time) in layers.iter().zip(&best) {
            let macs = layer.conv.geometry().macs(1, layer.size, layer.size) as f64;
            println!(
                "  {:10} {:24} {:8.1} us {:7.1} GMAC/s",
                layer.kind,
                layer.name,
                millis(*time) * 1e3,
                macs / time.as_nanos() as f64
            );
        }
    }
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}
