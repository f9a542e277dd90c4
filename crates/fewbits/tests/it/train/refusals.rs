//! What `fewbits train` refuses, before anything is written.

use super::Studio;
use crate::{desk::Desk, fewbits, program};
use fewbits::demo;
use fewbits_data::npy::Elements;
use fewbits_graph::Dim;
use std::path::Path;

/// A folder with one picture, of class `class`.
fn desk_folder(desk: &Desk, folder: &str, class: &str) -> String {
    let first = desk.names("pictures").swap_remove(0);
    let picture = desk.names(&format!("pictures/{first}")).swap_remove(0);
    std::fs::create_dir_all(desk.path(&format!("{folder}/{class}"))).unwrap();
    let from = desk.path(&format!("pictures/{first}/{picture}"));
    std::fs::copy(from, desk.path(&format!("{folder}/{class}/{picture}"))).unwrap();
    desk.path(folder)
}

#[test]
fn wrong_inputs_are_errors_before_anything_is_written() {
    let studio = Studio::new(32, 16);
    let path = |name: &str| studio.desk.path(name);
    let (model, out) = (path("demo.onnx"), path("run"));
    let [quantized, _] = studio.desk.quantized();
    let fixed = path("fixed.onnx");
    let mut graph = demo::model().unwrap().graph;
    graph.inputs[0].dims.as_mut().unwrap()[0] = Dim::Fixed(1);
    fewbits_onnx::write(Path::new(&fixed), &graph, graph.opset).unwrap();
    let few = path("few.onnx");
    fewbits(&["zoo", "demo", "--classes", "3", "-o", &few]);
    let wide = path("wide.onnx");
    fewbits(&["zoo", "demo", "--input", "3x48x48", "-o", &wide]);
    let refuse = |model: &str, more: &[&str], words: &[&str]| {
        let batch: &[&str] = if more.contains(&"--batch") { &[] } else { &["--batch", "16"] };
        let output = program(&studio.args(model, &out, &[batch, more].concat()));
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {error}");
        assert!(words.iter().chain(&["\nhint: "]).all(|word| error.contains(word)), "{more:?}: {error}");
        assert!(!Path::new(&out).exists(), "{more:?} left {:?}", studio.desk.names("run"));
    };
    refuse(&quantized, &[], &["demo.int8.onnx", "quantized already"]);
    refuse(&fixed, &[], &["fixed.onnx", "batch size is fixed"]);
    refuse(&few, &["--method", "float"], &["has class 3, the network has 3 classes"]);
    refuse(&wide, &["--method", "float"], &["[batch, 3, 48, 48]", "[1, 3, 32, 32]"]);
    refuse(&path("missing.onnx"), &[], &["missing.onnx", "No such file"]);
    refuse(&model, &["--method", "adaround"], &["--method adaround"]);
    refuse(&model, &["--batch", "33"], &["fewer training images"]);
    refuse(&model, &["--batch", "16", "--accumulate", "3"], &["fewer training images"]);
    refuse(&model, &["--progressive", "9"], &["--progressive 9"]);
    for list in ["2,8", "8,8", "8,4", "4"] {
        let bits = ["--progressive", list, "--weights", "4"];
        refuse(&model, &bits, &[&format!("--progressive {list}"), "4 bits asked for"]);
    }
    for (flag, number) in [("--warmup", "nan"), ("--temperature", "0"), ("--momentum", "1"), ("--ema", "-0.1")] {
        let output = program(&studio.args(&model, &out, &[&format!("{flag}={number}")]));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(flag), "{flag} {number}: {error}");
    }
    refuse(&model, &["--distill", "nowhere.onnx"], &["nowhere.onnx"]);
    refuse(&model, &["--distill", &quantized], &["demo.int8.onnx", "it is quantized"]);
    refuse(&model, &["--distill", &few], &["160 outputs", "the teacher 48"]);
    refuse(&model, &["--distill", &fixed], &["the teacher does not take", "[16, 3, 32, 32]"]);
    refuse(&model, &["--augment", "rrc48"], &["rrc48", "32x32"]);
    refuse(&model, &["-o", &path("no/such/model.onnx")], &["no/such"]);
    refuse(&model, &["-o", &model], &["demo.onnx", "named twice"]);
    refuse(&model, &["-o", &path("one"), "--report", &path("one")], &["named twice"]);
    let inside = path("run/one");
    refuse(&model, &["-o", &inside, "--report", &inside], &["named twice"]);
    refuse(&model, &["-o", &path("qil.onnx"), "--method", "qil"], &["no integer form"]);
    let floats = studio.desk.save("floats.npy", &[16, 3, 32, 32], Elements::F32(&[0.5; 16 * 3 * 32 * 32]));
    let few_labels = studio.desk.save("few.npy", &[16], Elements::I64(&[0; 16]));
    let arrays = ["train", &model, "--out", &out, "--data", &floats, "--labels", &few_labels, "--val", &floats];
    let augmented = [&arrays[..], &["--val-labels", &few_labels, "--batch", "8", "--augment", "flip"]].concat();
    let error = String::from_utf8(program(&augmented).stderr).unwrap();
    assert!(error.contains("augment") && error.contains("\nhint: ") && !Path::new(&out).exists(), "{error}");
    let mut values = [0.5; 16 * 3 * 32 * 32];
    values[3 * 3 * 32 * 32] = f32::NAN;
    let broken = studio.desk.save("broken.npy", &[16, 3, 32, 32], Elements::F32(&values));
    let arrays = ["train", &model, "--out", &out, "--data", &broken, "--labels", &few_labels, "--val", &floats];
    let error = program(&[&arrays[..], &["--val-labels", &few_labels, "--batch", "16"]].concat()).stderr;
    let error = String::from_utf8(error).unwrap();
    assert!(error.contains("broken.npy: sample 3") && error.contains("\nhint: "), "{error}");
    assert!(!Path::new(&out).exists(), "{error}");
    let other = desk_folder(&studio.desk, "other", "zebra");
    let pictures = path("pictures");
    let error = program(&["train", &model, "--out", &out, "--data", &pictures, "--val", &other, "--batch", "2"]).stderr;
    let error = String::from_utf8(error).unwrap();
    assert!(error.contains("the classes of --data and --val differ") && error.contains("`zebra`"), "{error}");
    assert!(!Path::new(&out).exists(), "{error}");
    let unlabelled = path("train.npy");
    for args in [
        vec!["train", &model, "--out", &out, "--data", &unlabelled, "--val", &unlabelled],
        vec!["train", &model, "--out", &out, "--data", "nowhere", "--val", &unlabelled],
    ] {
        let output = program(&args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains("\nhint: "), "{args:?}: {error}");
        assert!(!Path::new(&out).exists(), "{args:?}");
    }
}

#[test]
fn flags_that_nothing_looks_at_are_errors() {
    let studio = Studio::new(32, 16);
    let (model, out) = (studio.desk.path("demo.onnx"), studio.desk.path("run"));
    // Method, flags, and what they go with.
    let idle: [(&str, &[&str], &str); 18] = [
        ("lsq", &["--configuration", "2"], "--configuration does nothing here"),
        ("pact", &["--offset", "learned"], "it goes with --method lsq+"),
        ("lsq+", &["--offset", "minimum", "--configuration", "2"], "it goes with --configuration 3 or 4"),
        ("lsq", &["--pact-weights", "sawb"], "it goes with --method pact"),
        ("lsq", &["--delay", "4"], "it goes with --method qat"),
        ("float", &["--start", "lsq"], "--start does nothing here"),
        ("float", &["--fold", "merged"], "not with --method float"),
        ("float", &["--scale-rate", "1"], "not with --method float"),
        ("float", &["--progressive", "8"], "not with --method float"),
        ("float", &["--weights", "4"], "not with --method float"),
        ("float", &["--granularity", "tensor"], "not with --method float"),
        ("float", &["--no-equalize"], "not with --method float"),
        ("float", &["--edge-bits", "4"], "not with --method float"),
        // With a scale for each channel there is nothing to equalize for.
        ("lsq-bn", &["--no-equalize"], "it goes with --granularity tensor"),
        ("lsq", &["--optimizer", "adam", "--momentum", "0.9"], "it goes with --optimizer sgd or nesterov"),
        ("lsq-bn", &["--bn-reestimation", "8"], "it goes with --fold none"),
        ("lsq", &["--bn-reestimation", "8", "--freeze-at", "0.5"], "without --freeze-at"),
        ("qat", &["--delay", "5"], "has 4 batches, and qat watches 5"),
    ];
    for (method, flags, expected) in idle {
        let recipe = [&["--method", method, "--batch", "16", "--epochs", "2"], flags].concat();
        let output = program(&studio.args(&model, &out, &recipe));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(expected), "{method} {flags:?}: {error}");
        assert!(!Path::new(&out).exists(), "{method} {flags:?}");
    }
}

#[test]
fn tables_refuse_flags_of_other_tables() {
    let desk = Desk::new();
    let out = desk.path("table");
    for (table, flag, expected) in [
        ("lsqplus-table2", "--evaluations", "it goes with zero-point and mixed-clipping"),
        ("lsqplus-table2", "--weights", "it goes with zero-point and mixed-clipping"),
        ("zero-point", "--epochs", "it goes with tables that train"),
        ("zero-point", "--seeds", "it goes with tables that train"),
    ] {
        let output = program(&["repro", table, "--data", "a", "--val", "b", flag, "4", "--out", &out]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(expected), "{table} {flag}: {error}");
    }
}
