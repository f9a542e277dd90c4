//! The sizes that the program states, against a count that knows the exported file alone.

use crate::{desk::Desk, fewbits};
use std::path::Path;

/// What a search states and what the file that follows from it shows.
fn check(desk: &Desk, model: &str, data: &str, flags: &[&str]) {
    let [plan, file] = ["found.plan.json", "found.onnx"].map(|name| desk.path(name));
    let asked = ["search", model, "--calib", data, "--samples", "8", "--damage-samples", "4", "--format", "json"];
    let budget = ["--budget", "avg-bits=4.3", "--patience", "0", "--method", "none", "-o", &plan];
    let found: serde_json::Value = serde_json::from_str(&fewbits(&[&asked[..], &budget, flags].concat())).unwrap();
    fewbits(&["export", model, "--plan", &plan, "-o", &file]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/packed_size.py");
    let Some(counted) = fewbits_testing::python(script, &[&file]) else { return };
    assert_eq!(counted.trim(), found["bytes"].to_string(), "{model}");
}

#[test]
fn bytes_to_deploy_are_those_that_the_file_shows() {
    let desk = Desk::new();
    check(&desk, &desk.path("demo.onnx"), &desk.path("pictures"), &[]);
}

#[test]
fn bytes_of_real_networks_are_those_that_their_files_show() {
    let Some(data) = fewbits_testing::data() else { return };
    let (desk, images) = (Desk::new(), data.join("imagenet/calib.csv"));
    let flags = ["--preprocess", "imagenet", "--resize", "0", "--crop", "224"];
    for name in ["mobilenet_v1_025", "squeezenet1_1"] {
        let model = data.join(format!("models/{name}.onnx"));
        if model.exists() {
            check(&desk, model.to_str().unwrap(), images.to_str().unwrap(), &flags);
        }
    }
}
