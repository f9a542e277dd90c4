//! The command line as scripts see it: commands, exit codes, JSON keys, messages, and what is left on disk.

use crate::{desk::Desk, fewbits, program};
use fewbits::{Model, demo, plan};
use fewbits_data::npy::Elements;
use fewbits_graph::{
    Attrs, Node, Op, Tensor,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;
use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

#[test]
fn help_is_quick_and_names_every_command() {
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let help = fewbits(&["--help"]);
        times.push(start.elapsed());
        for command in [
            "demo", "inspect", "quantize", "search", "train", "zoo", "repro", "eval", "compare", "run", "export",
            "bench",
        ] {
            assert!(help.contains(&format!("\n  {command} ")), "{command} is not in\n{help}");
        }
    }
    let fastest = times.iter().min().unwrap();
    assert!(*fastest < Duration::from_millis(50), "{times:?}");
}

#[test]
fn flags_are_checked_before_anything_is_read() {
    for (args, expected) in [
        (&["quantize", "m.onnx", "--calib", "d", "--weights", "9"][..], "9 is not in 2..=8"),
        (&["quantize", "m.onnx", "--calib", "d", "--granularity", "row"], "possible values: channel, tensor"),
        (&["quantize", "m.onnx", "--calib", "d", "--ranges", "best"], "unknown range rule `best`"),
        (&["eval", "m.onnx", "--data", "d", "--mode", "exact"], "possible values: float, fake, integer"),
        (&["eval", "m.onnx", "--data", "d", "--nms-iou", "1.5"], "from 0 to 1"),
        (&["quantize", "m.onnx", "--calib", "d", "--method", "adarond"], "there are basic, auto, none, zeroq-data"),
        (&["quantize", "m.onnx", "--calib", "d", "--time-budget", "long"], "`long` is no time"),
        (&["search", "m.onnx", "--calib", "d", "--budget", "tiny"], "size="),
        (
            &["search", "m.onnx", "--calib", "d", "--budget", "avg-bits=4", "--inside", "bn-tune"],
            "these inside: mixed-clipping",
        ),
        (&["quantise"], "similar subcommand"),
    ] {
        let output = program(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(error.contains(expected), "{args:?}: {error}");
    }
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&fewbits(&[args, &["--format", "json"]].concat())).expect("one JSON object")
}

fn keys(value: &Value, keys: &[&str]) {
    for key in keys {
        let found = key.split('.').try_fold(value, |v, part| v.get(part));
        assert!(found.is_some(), "no `{key}` in {value:#}");
    }
}

#[test]
fn json_has_the_keys_that_scripts_read() {
    let desk = Desk::new();
    let (model, data, file) = (desk.path("demo.onnx"), desk.path("pictures"), desk.path("out.onnx"));
    let quantized = json(&["quantize", &model, "--calib", &data, "-o", &file]);
    let sizes = ["size_bytes.file", "size_bytes.packed", "size_bytes.float"];
    keys(&quantized, &[&["seconds", "samples", "peak_rss_bytes", "steps", "layers"], &sizes[..]].concat());
    assert_eq!(quantized["size_bytes"]["file"], std::fs::metadata(&file).unwrap().len());
    assert_eq!(quantized["samples"], 24);
    let layers = quantized["layers"].as_array().unwrap();
    for layer in layers {
        keys(layer, &["name", "op", "weight_bits", "activation_bits", "runtime", "reason"]);
        assert!(layer["runtime"] == "integer" || layer["runtime"] == "float");
    }
    let convolutions = layers.iter().filter(|l| l["op"] == "Conv");
    assert!(convolutions.clone().count() > 10 && convolutions.into_iter().all(|l| l["weight_bits"] == 8));
    let labels = ["--labels", &desk.path("labels.npy")];
    let evaluated = json(&[&["eval", &file, "--data", &desk.path("pictures.npy")], &labels[..]].concat());
    keys(&evaluated, &["top1", "top5", "samples", "seconds"]);
    assert!(evaluated["top1"].as_f64().unwrap() > 70.0, "{evaluated}");
    let compared = json(&["compare", &model, &file, "--data", &data]);
    keys(&compared, &["max_abs_diff", "sqnr_db", "cosine", "top1_agreement", "first_divergence"]);
    assert!(compared["sqnr_db"].as_f64().unwrap() > 20.0);
    let same = json(&["compare", &model, &model, "--data", &data]);
    assert_eq!((&same["max_abs_diff"], &same["first_divergence"]), (&Value::from(0.0), &Value::Null));
    let inspected = json(&["inspect", &model]);
    keys(&inspected, &["layers", "warnings", "totals.parameters", "totals.macs"]);
    assert_eq!(inspected["quantized"], false);
    assert_eq!(json(&["inspect", &file])["quantized"], true);
}

#[test]
fn pictures_give_the_same_in_every_form() {
    let desk = Desk::new();
    let (model, out) = (desk.path("demo.onnx"), desk.path("out.npz"));
    let mut list = String::from("file,class_index\n");
    for class in desk.names("pictures") {
        for file in desk.names(&format!("pictures/{class}")) {
            list += &format!("pictures/{class}/{file},{class}\n");
        }
    }
    std::fs::write(desk.path("list.csv"), list).unwrap();
    let [folder, csv, array] = ["pictures", "list.csv", "pictures.npy"].map(|form| {
        fewbits(&["run", &model, "--data", &desk.path(form), "-o", &out]);
        std::fs::read(&out).unwrap()
    });
    assert!(folder == csv && csv == array);
}

#[test]
fn a_missed_threshold_is_exit_code_1() {
    let desk = Desk::new();
    let code = |least: &str| {
        let data = desk.path("pictures.npy");
        let labels = desk.path("labels.npy");
        program(&["eval", &desk.path("demo.onnx"), "--data", &data, "--labels", &labels, "--at-least", least])
            .status
            .code()
    };
    assert_eq!((code("1"), code("100.5"), code("-1")), (Some(0), Some(1), Some(2)));
}

#[test]
fn the_plan_and_the_float_model_make_the_file_again() {
    let desk = Desk::new();
    let [file, plan] = desk.quantized();
    let again = desk.path("again.onnx");
    fewbits(&["export", &desk.path("demo.onnx"), "--plan", &plan, "-o", &again]);
    assert!(std::fs::read(file).unwrap() == std::fs::read(again).unwrap());
}

/// A command that must fail, and words of its message, in order.
struct Refusal<'a> {
    args: Vec<&'a str>,
    words: &'a [&'a str],
    hint: bool,
}

#[test]
fn errors_name_the_file_and_say_what_to_do() {
    let desk = Desk::new();
    let [quantized, plan] = desk.quantized();
    let path = |name: &str| desk.path(name);
    let (model, data) = (path("demo.onnx"), path("pictures"));
    let missing = path("missing.onnx");
    let truncated = path("truncated.onnx");
    std::fs::write(&truncated, &fewbits_demo::MODEL[..fewbits_demo::MODEL.len() / 2]).unwrap();
    let text = path("text.onnx");
    std::fs::write(&text, "this is no model").unwrap();
    let empty = desk.folder("empty").to_str().unwrap().to_string();
    let list = path("list.csv");
    std::fs::write(&list, "file,class_index\npictures/nowhere.png,3\n").unwrap();
    let broken_folder = desk.folder("broken");
    std::fs::write(broken_folder.join("a.png"), b"\x89PNG\r\n\x1a\nand nothing").unwrap();
    let broken = broken_folder.to_str().unwrap().to_string();
    let small = desk.save("small.npy", &[2, 3, 16, 16], Elements::F32(&[0.0; 1536]));
    let (nan, other) = (path("nan.onnx"), path("other.onnx"));
    change_first_weight(&nan, f32::NAN);
    change_first_weight(&other, 0.25);
    let layerless = path("layerless.onnx");
    let mut graph = demo::model().unwrap().graph;
    graph.nodes.truncate(0);
    graph.outputs = graph.inputs.clone();
    graph.outputs[0].name = "shown".into();
    let inputs = vec![graph.inputs[0].name.clone()];
    let relu = Op::from_attrs("Relu", &Attrs::default()).unwrap();
    graph.nodes.push(Node { name: "relu".into(), op: relu, inputs, outputs: vec!["shown".into()] });
    graph.constants.clear();
    fewbits_onnx::write(Path::new(&layerless), &graph, graph.opset).unwrap();
    let not_plan = path("not.plan.json");
    std::fs::write(&not_plan, "{\"fewbits\": 1}").unwrap();
    let out = desk.folder("out");
    let made = out.join("made.onnx").to_str().unwrap().to_string();
    let arrays = out.join("made.npz").to_str().unwrap().to_string();
    let quantize = |model, calib, more: &[&'static str]| {
        let mut args = vec!["quantize", model, "--calib", calib, "-o", &made];
        args.extend(more);
        args
    };
    let run = |model, data| vec!["run", model, "--data", data, "-o", &arrays];
    let refusals = [
        Refusal { args: quantize(&missing, &data, &[]), words: &["missing.onnx", "No such file"], hint: true },
        Refusal { args: quantize(&truncated, &data, &[]), words: &["truncated.onnx", "not an ONNX model"], hint: true },
        Refusal { args: quantize(&text, &data, &[]), words: &["text.onnx", "a text file"], hint: true },
        Refusal { args: quantize(&model, &empty, &[]), words: &["empty", "no images"], hint: true },
        Refusal { args: quantize(&model, "nowhere", &[]), words: &["nowhere", "does not exist"], hint: true },
        Refusal { args: quantize(&model, &list, &[]), words: &["list.csv", "line 2", "nowhere.png"], hint: true },
        Refusal { args: quantize(&model, &broken, &[]), words: &["cannot decode", "a.png"], hint: true },
        Refusal { args: quantize(&nan, &data, &[]), words: &["NaN"], hint: true },
        Refusal { args: quantize(&layerless, &data, &[]), words: &["layerless.onnx", "no layer"], hint: true },
        Refusal { args: quantize(&quantized, &data, &[]), words: &["demo.int8.onnx", "quantized already"], hint: true },
        Refusal {
            args: quantize(&model, &data, &["--keep-float", "no_such_node"]),
            words: &["no_such_node"],
            hint: true,
        },
        Refusal {
            args: quantize(&model, &data, &["--target", "npu"]),
            words: &["npu", "ort, tensorrt and generic"],
            hint: true,
        },
        Refusal { args: quantize(&model, &data, &["--preprocess", "cafe"]), words: &["cafe"], hint: true },
        Refusal { args: quantize(&model, &data, &["--resize-to", "big"]), words: &["big"], hint: true },
        Refusal {
            args: run(&model, &small),
            words: &["small.npy", "[batch, 3, 32, 32]", "[1, 3, 16, 16]"],
            hint: true,
        },
        Refusal {
            args: [run(&other, &data), vec!["--plan", &plan]].concat(),
            words: &["plan was made for the model"],
            hint: true,
        },
        Refusal {
            args: [run(&model, &data), vec!["--plan", &not_plan]].concat(),
            words: &["not.plan.json", "not a plan"],
            hint: true,
        },
        Refusal {
            args: [run(&model, &data), vec!["--mode", "integer"]].concat(),
            words: &["demo.onnx", "float model"],
            hint: true,
        },
        Refusal { args: vec!["eval", &model, "--data", &small], words: &["small.npy", "label"], hint: true },
        Refusal {
            args: vec!["export", &other, "--plan", &plan, "-o", &made],
            words: &["plan was made for the model"],
            hint: true,
        },
        Refusal { args: vec!["inspect", &truncated], words: &["truncated.onnx"], hint: true },
    ];
    let mut failures = Vec::new();
    for Refusal { args, words, hint } in &refusals {
        let output = program(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let mut rest = &error[..];
        let in_order = words.iter().all(|word| match rest.find(word) {
            Some(at) => {
                rest = &rest[at..];
                true
            }
            None => false,
        });
        let tidy = error.lines().any(|l| l.starts_with("error: ")) && !error.contains("panicked");
        if output.status.code() != Some(2)
            || !output.stdout.is_empty()
            || !tidy
            || !in_order
            || error.contains("\nhint: ") != *hint
        {
            failures.push(format!("{}\n  code {:?}, wanted {words:?}\n{error}", args.join(" "), output.status.code()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(desk.names("out"), [""; 0], "something is left after errors");
}

/// The demo network with another first weight element.
fn change_first_weight(path: &str, value: f32) {
    let mut graph = fewbits_onnx::import_bytes(fewbits_demo::MODEL, None).unwrap();
    let name = graph.nodes[0].inputs[1].clone();
    let weight = &graph.constants[&name];
    let mut values = weight.as_f32().unwrap().to_vec();
    values[0] = value;
    let changed = Tensor::f32(&weight.dims, values);
    graph.constants.insert(name, Arc::new(changed));
    fewbits_onnx::write(Path::new(path), &graph, graph.opset).unwrap();
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let desk = Desk::new();
    let [model, data, file] = ["demo.onnx", "pictures.npy", "no/such/folder/out"].map(|name| desk.path(name));
    let quantize = ["quantize", &model, "--calib", &data, "-o", &file];
    let run = ["run", &model, "--data", &data, "-o", &file];
    for args in [&quantize[..], &run, &["bench", &model, "--latency-table", &file]] {
        let output = program(args);
        let error = String::from_utf8_lossy(&output.stderr);
        let said = error.contains("no/such/folder/out` cannot be written: there is no such folder");
        assert!(output.status.code() == Some(2) && said, "{error}");
    }
}

#[test]
fn a_killed_run_leaves_no_half_written_file() {
    let desk = Desk::new();
    let (model, data, file) = (desk.path("demo.onnx"), desk.path("pictures"), desk.path("out.onnx"));
    let args = ["quantize", &model, "--calib", &data, "-o", &file];
    let start = Instant::now();
    fewbits(&args);
    let whole = start.elapsed();
    let complete = std::fs::read(&file).unwrap();
    for part in 0..12 {
        // The first runs find no file, the later ones an older file.
        match part {
            0..6 => drop(std::fs::remove_file(&file)),
            _ => std::fs::write(&file, b"older").unwrap(),
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_fewbits"))
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * (part % 6 + 1) / 6);
        child.kill().unwrap();
        child.wait().unwrap();
        match std::fs::read(&file) {
            Ok(bytes) => assert!(bytes == complete || (part >= 6 && bytes == b"older"), "{} bytes", bytes.len()),
            Err(_) => assert!(part < 6, "the older file is gone"),
        }
    }
}

#[test]
fn damaged_plans_never_panic() {
    let desk = Desk::new();
    let [_, file] = desk.quantized();
    let model = Model::load(Path::new(&desk.path("demo.onnx"))).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let numbers = ["-1", "0", "1e39", "1e-46", "null", "9999999999999999999", "\"8\"", "[]", "255", "0.5"];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let input = Tensor::f32(&[1, 3, 32, 32], vec![0.5; 3072]);
    let (threads, mut accepted) = (Threads::new(1), 0);
    for round in 0..300 {
        let mut bytes = text.clone().into_bytes();
        let at = random(bytes.len());
        if round % 2 == 0 {
            // Another value in place of a number.
            let digit = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'-');
            let first = (at..bytes.len()).find(|&i| digit(bytes[i])).unwrap_or(0);
            let last = (first..bytes.len()).find(|&i| !digit(bytes[i])).unwrap_or(bytes.len());
            bytes.splice(first..last, numbers[random(numbers.len())].bytes());
        } else {
            match random(3) {
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at),
            }
        }
        std::fs::write(&file, bytes).unwrap();
        let Ok(planned) = plan::apply(&model, Path::new(&file)) else { continue };
        let grids = planned.grids.as_ref().expect("a plan brings grids");
        let _ = fewbits_onnx::emit_qdq(&planned.graph, grids, &fewbits_onnx::EmitOptions::default());
        for mode in [Mode::Integer(grids), Mode::FakeQuant(grids)] {
            let _ = Executor::new(&planned.graph, mode, &threads).run(std::slice::from_ref(&input));
        }
        accepted += 1;
    }
    assert!((5..250).contains(&accepted), "{accepted} of 300 accepted");
}

#[test]
fn the_demo_needs_nothing_and_writes_what_it_says() {
    let desk = Desk::new();
    let out = desk.path("demo");
    let start = Instant::now();
    let report = json(&["demo", "--out", &out]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let float = report["float_top1"].as_f64().unwrap();
    for row in report["quantized"].as_array().unwrap() {
        assert!(row["integer_top1"].as_f64().unwrap() > float - 2.0, "{report:#}");
        for file in ["file", "report"] {
            let path = row[file].as_str().unwrap();
            assert!(std::fs::metadata(path).is_ok_and(|m| m.len() > 1000), "{path}");
        }
    }
    assert!(desk.names("demo").iter().all(|name| name.starts_with("demo.")));
}
