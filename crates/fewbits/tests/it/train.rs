//! `fewbits train`: networks learn, what is trained is what ships, and an interrupted run ends in the same bytes.

mod interruption;
mod refusals;

use crate::{
    desk::Desk,
    exactness::{prepared, read, save},
    fewbits, program, runtime_is_exact, same_outputs,
};
use fewbits::{Model, demo};
use fewbits_demo::images::{TEST_SEED, TRAIN_SEED};
use fewbits_graph::{Op, TensorQuant};
use serde_json::Value;
use std::path::Path;

/// A desk with pictures to train on and to score on.
struct Studio {
    desk: Desk,
    data: Vec<String>,
}

impl Studio {
    fn new(training: usize, validation: usize) -> Self {
        Studio::of_classes(training, validation, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    }

    fn of_classes(training: usize, validation: usize, classes: &[u64]) -> Self {
        let desk = Desk::new();
        let [pictures, labels] = desk.draw("train", TRAIN_SEED, training, classes);
        let [others, other_labels] = desk.draw("test", TEST_SEED, validation, classes);
        let flags = [["--data", &pictures], ["--labels", &labels], ["--val", &others], ["--val-labels", &other_labels]];
        let data = flags.concat().into_iter().map(String::from).collect();
        Studio { desk, data }
    }

    /// The command line of a training of `model` into the folder `out`.
    fn args<'a>(&'a self, model: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let data = self.data.iter().map(String::as_str);
        ["train", model, "--out", out].into_iter().chain(data).chain(more.iter().copied()).collect()
    }

    /// Trains the demo network into the folder `out`; returns what is printed as JSON.
    fn train(&self, out: &str, more: &[&str]) -> Value {
        let (model, out) = (self.desk.path("demo.onnx"), self.desk.path(out));
        let args = [&self.args(&model, &out, more)[..], &["--format", "json"]].concat();
        serde_json::from_str(&fewbits(&args)).expect("one JSON object")
    }

    /// What a finished run leaves, without the times.
    fn results(&self, out: &str) -> Vec<(&'static str, Vec<u8>)> {
        let read = |file| (file, std::fs::read(self.desk.path(&format!("{out}/{file}"))).unwrap());
        let mut files = ["model.onnx", "float.onnx", "plan.json", "state.safetensors", "steps.jsonl", "scales.jsonl"]
            .map(read)
            .to_vec();
        let epochs = std::fs::read_to_string(self.desk.path(&format!("{out}/epochs.csv"))).unwrap();
        let timeless = epochs.lines().map(|line| line.rsplit_once(',').unwrap().0.to_owned() + "\n");
        files.push(("epochs.csv", timeless.collect::<String>().into_bytes()));
        files
    }

    fn assert_same(&self, expected: &str, found: &str) {
        for ((name, expected), (_, found)) in self.results(expected).iter().zip(self.results(found)) {
            assert!(*expected == found, "{name} differs");
        }
    }
}

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("no `{key}` in {report:#}"))
}

/// Column `column` of `epochs.csv`.
fn epochs(desk: &Desk, out: &str, column: usize) -> Vec<f64> {
    let text = std::fs::read_to_string(desk.path(&format!("{out}/epochs.csv"))).unwrap();
    text.lines().skip(1).map(|line| line.split(',').nth(column).unwrap().parse().unwrap()).collect()
}

#[test]
fn a_network_of_the_zoo_learns() {
    // Discs and stripes: all ten kinds take too many steps.
    let studio = Studio::of_classes(512, 200, &[4, 8]);
    let model = studio.desk.path("initial.onnx");
    fewbits(&["zoo", "demo", "--classes", "2", "-o", &model]);
    let out = studio.desk.path("float");
    let recipe = ["--method", "float", "--epochs", "6", "--batch", "16", "--augment", "flip"];
    let steps = ["--optimizer", "adamw", "--learning-rate", "0.015"];
    fewbits(&studio.args(&model, &out, &[&recipe[..], &steps].concat()));
    let (losses, top1) = (epochs(&studio.desk, "float", 1), epochs(&studio.desk, "float", 3));
    assert_eq!(epochs(&studio.desk, "float", 0), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert!(losses[5] < losses[0] - 0.2, "{losses:?}");
    assert!(top1[5] > 70.0, "chance is 50 %: {top1:?}");
    assert_eq!(
        studio.desk.names("float"),
        ["epochs.csv", "float.onnx", "model.onnx", "state.safetensors", "steps.jsonl", "summary.json"]
    );
    assert!(Model::load(Path::new(&studio.desk.path("float/model.onnx"))).unwrap().preprocess().unwrap().is_some());
}

const SHORT: [&str; 6] = ["--epochs", "2", "--batch", "32", "--weights", "4"];

#[test]
fn four_bits_are_trained_and_ship_as_they_were_trained() {
    let studio = Studio::new(512, 500);
    let report = studio.train("run", &[&SHORT[..], &["--activations", "4", "--method", "lsq"]].concat());
    let keys = ["start_top1", "trained_top1", "fake_top1", "integer_top1"];
    let [start, trained, fake, integer] = keys.map(|key| number(&report, key));
    assert!((fake - integer).abs() <= 1.0 && (trained - integer).abs() <= 5.0, "{report:#}");
    assert!(start > 85.0 && integer > 50.0, "{report:#}");
    let losses = epochs(&studio.desk, "run", 1);
    assert!(losses[1] < losses[0], "{losses:?}");
    let file = studio.desk.path("run/model.onnx");
    let model = Model::load(Path::new(&file)).unwrap();
    let grids = model.grids.as_ref().expect("the file is quantized");
    let bits = |name: &str| match grids.0.get(name) {
        Some(TensorQuant::Quantized(params)) => params.grid.bits,
        other => panic!("{name}: {other:?}"),
    };
    let layers: Vec<_> = model.graph.nodes.iter().filter(|n| matches!(n.op, Op::Conv(_) | Op::Gemm(_))).collect();
    let weights: Vec<u8> = layers.iter().map(|node| bits(&node.inputs[1])).collect();
    assert_eq!(weights.iter().filter(|b| **b == 8).count(), 2, "first and last layer: {weights:?}");
    assert_eq!(weights.iter().filter(|b| **b == 4).count(), weights.len() - 2, "{weights:?}");
    let again = studio.desk.path("again.onnx");
    fewbits(&[
        "export",
        &studio.desk.path("run/float.onnx"),
        "--plan",
        &studio.desk.path("run/plan.json"),
        "-o",
        &again,
    ]);
    assert!(std::fs::read(&file).unwrap() == std::fs::read(again).unwrap(), "the plan makes another file");
}

/// Integers as ONNX Runtime's, and no convolution in floats: with a float one, elements would differ in the last bit somewhere,
/// and `fewbits` would print it among the nodes that stay float.
#[test]
fn trained_files_give_the_integers_of_onnx_runtime() {
    if !runtime_is_exact() {
        return;
    }
    let studio = Studio::new(256, 64);
    studio.train("run", &[&SHORT[..], &["--activations", "4"]].concat());
    let file = studio.desk.path("run/model.onnx");
    let folder = studio.desk.folder("exact");
    let (array, outputs) = (folder.join("inputs.npy"), folder.join("outputs.npz"));
    let preprocess = demo::model().unwrap().preprocess().unwrap().unwrap();
    let inputs = prepared(&demo::test_set(), &preprocess, 200);
    save(&array, &inputs);
    let [array, stored] = [&array, &outputs].map(|path| path.to_str().unwrap());
    fewbits(&["run", &file, "--data", array, "--mode", "integer", "-o", stored]);
    let integers = read(&outputs);
    let named = integers.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let Some(report) = same_outputs(&folder, &[(file.clone().into(), vec![("image", &inputs)], named)]) else { return };
    for (output, row) in &report[Path::new(&file)] {
        assert!(row.different == 0 && row.values > 16, "{output}: {row:?}");
    }
}

#[test]
fn every_way_to_fold_ships_what_was_trained() {
    let studio = Studio::new(256, 600);
    for fold in ["none", "batch", "corrected", "running", "merged"] {
        let recipe = ["--activations", "4", "--method", "lsq", "--fold", fold, "--learning-rate", "1e-3"];
        let report = studio.train(fold, &[&SHORT[..], &recipe].concat());
        let [fake, integer] = ["fake_top1", "integer_top1"].map(|key| number(&report, key));
        assert!((fake - integer).abs() <= 0.5, "{fold}: {report:#}");
        // Two epochs on few pictures: well above the tenth that guessing gets.
        assert!(integer > 20.0, "{fold}: {report:#}");
    }
}

#[test]
fn one_scale_for_a_folded_weight_is_worth_equalizing_first() {
    let studio = Studio::new(64, 600);
    // So small a rate shows the start.
    let recipe = ["--method", "lsq-bn", "--granularity", "tensor", "--weights", "4", "--learning-rate", "1e-5"];
    let top1 = |out: &str, more: &[&str]| {
        let report = studio.train(out, &[&["--epochs", "1", "--batch", "32"], &recipe[..], more].concat());
        assert!((number(&report, "fake_top1") - number(&report, "integer_top1")).abs() <= 0.5, "{report:#}");
        number(&report, "integer_top1")
    };
    let (equalized, plain) = (top1("equalized", &[]), top1("plain", &["--no-equalize"]));
    assert!(equalized > plain + 10.0, "{equalized} % and {plain} %");
}

#[test]
fn every_method_and_choice_runs_through() {
    let studio = Studio::new(32, 16);
    let choices: [&[&str]; 22] = [
        &["--method", "lsq"],
        &["--method", "lsq+", "--configuration", "4"],
        &["--method", "lsq-bn"],
        &["--method", "pact"],
        &["--method", "pact", "--pact-weights", "sawb"],
        &["--method", "dsq"],
        &["--method", "qil"],
        &["--method", "dorefa"],
        &["--method", "tqt"],
        &["--method", "sawb"],
        &["--method", "qat", "--delay", "1"],
        &["--progressive", "8,6", "--ema", "0.9"],
        &["--distill", "self", "--temperature", "4", "--distill-weight", "0.5"],
        &["--ema", "0.9"],
        &["--accumulate", "2"],
        &["--optimizer", "adam"],
        &["--optimizer", "adamw", "--kure", "0.1", "--clip-norm", "1"],
        &["--optimizer", "sgd", "--schedule", "step:1:0.1", "--warmup", "0.5"],
        &["--granularity", "tensor", "--start", "mse"],
        &["--edge-bits", "4", "--include-batch", "--label-smoothing", "0.1"],
        &["--target", "tensorrt", "--offset", "none"],
        &["--augment", "none", "--scale-rate", "0.1", "--scale-decay", "1e-4"],
    ];
    let mut failures = Vec::new();
    for choice in choices {
        let recipe = ["--epochs", "1", "--batch", "16", "--weights", "4", "--activations", "4"];
        let report = studio.train("run", &[&recipe[..], choice].concat());
        let (integer, reason) = (report.get("integer_top1"), report.get("not_deployable"));
        let close =
            integer.and_then(Value::as_f64).is_none_or(|top1| (top1 - number(&report, "fake_top1")).abs() <= 6.3);
        if integer.is_some() == reason.is_some() || !close {
            failures.push(format!("{choice:?}: {report:#}"));
        }
        let losses = epochs(&studio.desk, "run", 1);
        if losses.is_empty() || losses.iter().any(|loss| !(0.0..20.0).contains(loss)) {
            failures.push(format!("{choice:?}: {losses:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn any_number_of_threads_trains_the_same_bytes() {
    let studio = Studio::new(160, 48);
    // From 8 on, several threads prepare images.
    for threads in ["1", "2", "8"] {
        studio.train(threads, &[&SHORT[..], &["--activations", "4", "--threads", threads]].concat());
    }
    studio.assert_same("1", "2");
    studio.assert_same("1", "8");
}

#[test]
fn divergence_ends_with_the_tensor_and_leaves_no_model() {
    let studio = Studio::new(96, 16);
    for rate in ["1e12", "1e30"] {
        // A run that diverges is not finished, and would be gone on with.
        let run = format!("run{rate}");
        let (model, out) = (studio.desk.path("demo.onnx"), studio.desk.path(&run));
        let recipe = [&SHORT[..], &["--learning-rate", rate, "--optimizer", "sgd"]].concat();
        let output = program(&studio.args(&model, &out, &recipe));
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{rate}: {error}");
        assert!(error.contains("` is not finite") && error.contains("\nhint: lower --learning-rate"), "{error}");
        let files = studio.desk.names(&run);
        assert!(files.iter().all(|f| !f.ends_with("onnx") && f != "plan.json"), "{files:?}");
    }
}
