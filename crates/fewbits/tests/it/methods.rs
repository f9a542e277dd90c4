//! Post-training methods and the search for bits, as users call them.

use crate::{desk::Desk, fewbits, program};
use fewbits::{
    demo,
    progress::Silent,
    quantize::output_sqnr,
    stream::{Source, outputs},
};
use fewbits_graph::{Dim, Tensor, exec::Mode, passes};
use serde_json::Value;
use std::path::Path;

/// Top-1 of the demo network on drawn pictures, quantized from others with the flags.
fn top1(desk: &Desk, flags: &[&str]) -> f64 {
    let (model, out) = (desk.path("demo.onnx"), desk.path("low.onnx"));
    let [calibration, _] = desk.draw("calibration", 2, 64, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let [test, labels] = desk.draw("test", 3, 300, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    fewbits(&[&["quantize", &model, "--calib", &calibration, "-o", &out], flags].concat());
    let scores = fewbits(&["eval", &out, "--data", &test, "--labels", &labels, "--format", "json"]);
    serde_json::from_str::<Value>(&scores).unwrap()["top1"].as_f64().unwrap()
}

#[test]
fn comq_wins_back_most_of_what_three_bits_lose() {
    let desk = Desk::new();
    let [plain, repaired] =
        ["none", "comq"].map(|method| top1(&desk, &["--weights", "3", "--method", method, "--ranges", "mse"]));
    assert!(repaired > plain + 5.0, "{repaired} % instead of {plain} %");
}

#[test]
fn scales_that_methods_choose_bring_the_outputs_closer() {
    let desk = Desk::new();
    let (model, out) = (desk.path("demo.onnx"), desk.path("low.onnx"));
    let [calibration, _] = desk.draw("calibration", 2, 48, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for method in ["mixed-clipping", "mixed-clipping-network", "aciq", "omse", "lapq", "seq-mse"] {
        let plain = ["--ranges", "minmax", "--weight-ranges", "minmax"];
        let flags = [&["--weights", "3", "--method", method, "-o", &out], &plain[..]].concat();
        let said = fewbits(&[&["quantize", &model, "--calib", &calibration], &flags[..]].concat());
        let step = said
            .lines()
            .find_map(|line| line.strip_prefix(&format!("step {method} ")))
            .unwrap_or_else(|| panic!("{said}"));
        let decibels: Vec<f64> = step.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert!(decibels[1] > decibels[0], "{method}: {step}");
        assert_eq!(
            said.contains(" at 3 bits\n"),
            method.starts_with("mixed-clipping"),
            "each layer's rule is said: {said}"
        );
    }
}

#[test]
fn ranges_do_not_depend_on_how_far_weights_are_broken_before_they_are_repaired() {
    let desk = Desk::new();
    let (model, out) = (desk.path("demo.onnx"), desk.path("low.onnx"));
    let [calibration, _] = desk.draw("calibration", 2, 32, &[0, 3, 7]);
    let trials = |bits: &str, method: &str| -> Vec<String> {
        let flags = ["--weights", bits, "--method", method, "-o", &out];
        let said = fewbits(&[&["quantize", &model, "--calib", &calibration], &flags[..]].concat());
        said.lines().filter(|line| line.starts_with("ranges ")).map(String::from).collect()
    };
    let repaired = trials("2", "comq");
    assert!(repaired.len() > 1 && repaired == trials("8", "none"), "{repaired:?}");
    assert_ne!(repaired, trials("2", "none"), "without repair, ranges are those of what ships");
}

#[test]
fn a_step_gives_the_same_bytes_on_any_number_of_threads_and_says_what_it_did() {
    let desk = Desk::new();
    let model = desk.path("demo.onnx");
    let [calibration, _] = desk.draw("calibration", 2, 32, &[0, 3, 7]);
    let quantize = |threads: &str| {
        let out = desk.path(&format!("{threads}.onnx"));
        let plan = desk.path(&format!("{threads}.plan.json"));
        let flags = ["--weights", "4", "--method", "comq", "--ranges", "minmax", "--threads", threads, "-o", &out];
        let flags = [&flags[..], &["--plan", &plan]].concat();
        let said = fewbits(&[&["quantize", &model, "--calib", &calibration], &flags[..]].concat());
        assert!(said.contains("step comq"), "{said}");
        [&out, &plan].map(|file| std::fs::read(file).unwrap())
    };
    let [file, plan] = quantize("1");
    assert!([&file, &plan] == quantize("3").each_ref());
    let plan: Value = serde_json::from_slice(&plan).unwrap();
    assert_eq!(plan["history"][0]["metrics"]["steps"][0]["methods"], "comq");
    assert!(!desk.names(".").iter().any(|name| name.contains("partial")), "nothing is left behind");
}

#[test]
fn without_data_the_network_makes_its_own() {
    let desk = Desk::new();
    let model = desk.path("demo.onnx");
    let refused = |flags: &[&str], expected: &str| {
        let output = program(&[&["quantize", &model], flags].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(expected), "{error}");
    };
    refused(&[], "there is nothing to calibrate on");
    refused(&["--calib", &desk.path("pictures"), "--method", "zeroq-data"], "makes its own calibration data");
    refused(&["--calib", &desk.path("pictures"), "--image-iterations", "9"], "goes with --method zeroq-data");
    refused(&["--calib", &desk.path("pictures"), "--time-budget", "9s"], "goes with --method auto");
    refused(&["--calib", &desk.path("pictures"), "--method", "equalize", "--resume"], "--resume does nothing here");
    let folded = desk.path("folded.onnx");
    fewbits_onnx::write(Path::new(&folded), &passes::fold(&demo::model().unwrap().graph).unwrap().0, 17).unwrap();
    let analytic = ["quantize", &folded, "--calib", &desk.path("pictures"), "--method", "bias-correction-analytic"];
    let error = String::from_utf8(program(&analytic).stderr).unwrap();
    assert!(error.contains("the network has none") && error.contains("hint: take bias-correction"), "{error}");
    let initial = desk.path("initial.onnx");
    fewbits(&["zoo", "resnet20", "-o", &initial]);
    let out = desk.path("blind.onnx");
    let plan = desk.path("blind.plan.json");
    // As many as are asked for, also if more than are made by default.
    let made = ["--method", "zeroq-data", "--samples", "66", "--image-iterations", "1"];
    let flags = ["--preprocess", "none", "--ranges", "minmax", "--plan", &plan, "-o", &out];
    fewbits(&[&["quantize", &initial], &made[..], &flags[..]].concat());
    assert!(std::fs::metadata(&out).unwrap().len() > 100_000);
    let plan: Value = serde_json::from_slice(&std::fs::read(plan).unwrap()).unwrap();
    assert_eq!(plan["history"][0]["config"]["method"], "zeroq-data");
    assert_eq!(plan["history"][0]["config"]["samples"], 66);
}

#[test]
fn bits_by_channel_are_integers_in_8_bit_containers() {
    let desk = Desk::new();
    let (model, out) = (desk.path("demo.onnx"), desk.path("low.onnx"));
    let [calibration, _] = desk.draw("calibration", 2, 16, &[0, 3, 7]);
    let flags = ["--weights", "3", "--granularity", "channel-bits", "--ranges", "minmax", "-o", &out];
    let quantize =
        |more: &[&str]| program(&[&["quantize", &model, "--calib", &calibration], &flags[..], more].concat());
    let text = String::from_utf8(quantize(&[]).stdout).unwrap();
    assert!(text.contains("bits by channel: ") && text.contains("8-bit containers"), "{text}");
    let summary: Value = serde_json::from_slice(&quantize(&["--format", "json"]).stdout).unwrap();
    let layers = summary["layers"].as_array().unwrap();
    let integer = layers.iter().filter(|layer| layer["runtime"] == "integer" && layer["weight_bits"] == 8).count();
    assert!(integer > 10, "{layers:?}");
    let refused = quantize(&["--method", "comq"]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && error.contains("comq would take bits by channel back"), "{error}");
}

#[test]
fn a_search_keeps_its_budget_and_says_when_it_cannot() {
    let desk = Desk::new();
    let model = desk.path("demo.onnx");
    let [calibration, _] = desk.draw("calibration", 2, 16, &[0, 1, 2, 3]);
    let plan = desk.path("mixed.plan.json");
    let search = |budget: &str| {
        let flags =
            ["--budget", budget, "--method", "none", "--patience", "1", "--damage-samples", "4", "--format", "json"];
        program(&[&["search", &model, "--calib", &calibration, "-o", &plan], &flags[..]].concat())
    };
    let found = search("avg-bits=4");
    assert_eq!(found.status.code(), Some(0), "{}", String::from_utf8_lossy(&found.stderr));
    let out = desk.path("mixed.onnx");
    fewbits(&["export", &model, "--plan", &plan, "-o", &out]);
    let inspected: Value = serde_json::from_str(&fewbits(&["inspect", &out, "--format", "json"])).unwrap();
    assert_eq!(inspected["quantized"], true);
    let output = search("size=1KB");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && error.contains("with the fewest bits"), "{error}");
    let missed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(missed["kept"], false);
    let front: Value =
        serde_json::from_str(&std::fs::read_to_string(missed["pareto"].as_str().unwrap()).unwrap()).unwrap();
    let bytes: Vec<u64> = front.as_array().unwrap().iter().map(|point| point["bytes"].as_u64().unwrap()).collect();
    assert!(bytes.len() > 2 && bytes.is_sorted() && bytes[0] <= missed["bytes"].as_u64().unwrap(), "{bytes:?}");
}

#[test]
fn shifted_weights_are_float_in_the_file_and_the_program_says_so() {
    let desk = Desk::new();
    let (model, out) = (desk.path("demo.onnx"), desk.path("low.onnx"));
    let [calibration, _] = desk.draw("calibration", 2, 32, &[0, 3, 7]);
    let quantize = |method: &str| {
        let flags = ["--weights", "3", "--method", method, "--ranges", "minmax", "-o", &out, "--format", "json"];
        let summary = fewbits(&[&["quantize", &model, "--calib", &calibration], &flags[..]].concat());
        let summary: Value = serde_json::from_str(&summary).unwrap();
        let layers = summary["layers"].as_array().unwrap().clone();
        let float = |layer: &&Value| layer["runtime"] == "float" && layer["weight_bits"].is_null();
        let shifted = |layer: &&Value| layer["reason"].as_str().unwrap().contains("zero points");
        (layers.iter().filter(float).filter(shifted).count(), std::fs::metadata(&out).unwrap().len())
    };
    let (none, small) = quantize("seq-mse");
    let (many, large) = quantize("zero-point-window,bias-correction");
    assert!(none == 0 && many > 10 && large > 2 * small, "{many} layers, {large} bytes and not {small}");
}

#[test]
fn what_fills_up_a_fixed_batch_is_not_measured() {
    let model = demo::model().unwrap();
    let preprocess = model.preprocess().unwrap().unwrap();
    let dataset = demo::calibration_set();
    let source = Source { dataset: &dataset, preprocess: &preprocess, indices: dataset.first(Some(5)) };
    let sqnr = |batch: Dim| {
        let mut graph = model.graph.clone();
        graph.inputs[0].dims.as_mut().unwrap()[0] = batch;
        let mut references = Vec::new();
        outputs(&graph, Mode::Float, &source, 1, &Silent, |seen| {
            references.push(seen.outputs);
            Ok(())
        })
        .unwrap();
        let first = graph.nodes[0].inputs[1].clone();
        let weight = graph.constants[&first].clone();
        let halved = weight.as_f32().unwrap().iter().map(|w| 0.5 * w).collect();
        graph.constants.insert(first, Tensor::f32(&weight.dims, halved).into());
        output_sqnr(&graph, Mode::Float, &source, &references, 1, &Silent).unwrap()
    };
    let (alone, together) = (sqnr(Dim::Symbol("N".into())), sqnr(Dim::Fixed(4)));
    assert!((alone - together).abs() < 1e-3, "{alone} and {together} dB");
}
