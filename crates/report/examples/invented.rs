//! Writes `report.html`, `report.md` and `report.json` with invented data into the folder given: for looking at the page.

use fewbits_graph::Grid;
use fewbits_quant::{Mapping, RangeRule, TensorStats};
use fewbits_report::{Accuracy, Layer, Mode, Model, Report, Runtime, Size, TensorRange};
use std::{env, error::Error, fs, path::PathBuf};

/// Numbers that look random.
struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 + 0.5) / 16_777_216.0
    }

    fn normal(&mut self) -> f32 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f32::consts::TAU * self.uniform()).cos()
    }
}

fn tensor(noise: &mut Noise, k: usize) -> TensorRange {
    let spread = 0.5 + 3.0 * noise.uniform();
    let mut stats = TensorStats::new();
    for _ in 0..32 {
        let element = |noise: &mut Noise| match k % 4 {
            0 => (spread * noise.normal() + 0.3).clamp(0.0, 6.0),
            1 => (spread * noise.normal() - 0.4).max(0.0),
            2 => spread * noise.normal() * if noise.uniform() < 0.01 { 5.0 } else { 1.0 },
            _ => {
                let x = 2.0 * spread * noise.normal();
                x / (1.0 + (-x).exp())
            }
        };
        let values: Vec<f32> = (0..4000).map(|_| element(noise)).collect();
        stats.observe_image(&values);
    }
    let grid = Grid::activations(if k < 2 { 8 } else { 4 });
    let rules = [RangeRule::MinMax, RangeRule::Percentile(99.99), RangeRule::Kl, RangeRule::Aciq];
    let params = RangeRule::Mse.params(&stats, grid, Mapping::Affine);
    TensorRange::new(&format!("features.{}.conv.{}/output", k / 3, k % 3), "mse", &stats, &params).with_others(
        &rules,
        &stats,
        grid,
        Mapping::Affine,
    )
}

fn layer(noise: &mut Noise, k: usize) -> Layer {
    let (op, macs, parameters) = match k % 5 {
        0 | 2 => ("Conv", 1_000_000 + 400_000 * k as u64, 900 * (k as u64 + 1)),
        1 => ("Conv (depthwise)", 200_000 + 9_000 * k as u64, 90 * (k as u64 + 1)),
        3 => ("Add", 0, 0),
        _ => ("GlobalAveragePool", 0, 0),
    };
    let float = k > 26;
    Layer {
        name: format!("features.{}.conv.{}", k / 3, k % 3),
        op: if float { "Softmax" } else { op }.into(),
        weight_bits: (macs > 0 && !float).then_some(if (2..25).contains(&k) { 4 } else { 8 }),
        activation_bits: (!float).then_some(8),
        runtime: if float { Runtime::Float } else { Runtime::Integer },
        reason: match (float, macs) {
            (true, _) => "ONNX Runtime has no integer kernel for Softmax <on CPU>",
            (false, 0) => "works on codes",
            _ => "QLinearConv",
        }
        .into(),
        sqnr_db: Some(f64::from(44.0 - 1.1 * k as f32 - 6.0 * noise.uniform() - if k == 17 { 12.0 } else { 0.0 })),
        macs: if float { 0 } else { macs },
        parameters: if float { 0 } else { parameters },
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::args().nth(1).unwrap_or(".".into()));
    let noise = &mut Noise(1);
    let accuracy = |mode, metric: &str, value| Accuracy { mode, metric: metric.into(), value, samples: 1300 };
    let size = |convention: &str, float_bytes, bytes| Size { convention: convention.into(), float_bytes, bytes };
    let report = Report {
        title: "mobilenet_v2 in 4-bit weights, 8-bit activations".into(),
        command: "fewbits quantize mobilenet_v2.onnx --calib calib --weights 4 --method equalize,adaround --report report.html".into(),
        settings: [("ranges", "mse"), ("weight ranges", "mse"), ("granularity", "channel"), ("target", "ort"), ("seed", "0")]
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .into(),
        model: Model {
            name: "mobilenet_v2.onnx".into(),
            sha256: "3f2a9c1e".repeat(8),
            nodes: 66,
            parameters: 3_487_816,
            macs: 300_774_272,
            inputs: vec!["input: float32 [1, 3, 224, 224]".into()],
            outputs: vec!["logits: float32 [1, 1000]".into()],
        },
        accuracy: vec![
            accuracy(Mode::Float, "top-1", 0.7954),
            accuracy(Mode::Fake, "top-1", 0.7846),
            accuracy(Mode::Integer, "top-1", 0.7846),
            accuracy(Mode::Float, "top-5", 0.9438),
            accuracy(Mode::Integer, "top-5", 0.9385),
        ],
        sizes: vec![
            size("every parameter at its width (ZeroQ, HAWQ)", 14_019_488, 1_752_436),
            size("weights at their width, biases and BatchNorm in float (HAQ)", 14_019_488, 1_875_120),
            size("as shipped: packed weights, biases, scales, zero points", 13_951_264, 2_398_720),
        ],
        layers: (0..30).map(|k| layer(noise, k)).collect(),
        tensors: (0..18).map(|k| tensor(noise, k)).collect(),
        warnings: vec![
            "features.1.conv.0: the largest channel range is 412 times the smallest; per-tensor weights would lose it".into(),
            "the first and the last layer keep 8 bits".into(),
        ],
        seconds: Some(12.4),
        images: Some(256),
    };
    fs::write(folder.join("report.html"), report.to_html())?;
    fs::write(folder.join("report.md"), report.to_markdown())?;
    fs::write(folder.join("report.json"), report.to_json())?;
    Ok(())
}
