//! The same input gives the same bytes, for any number of threads.

use crate::{desk::Desk, fewbits};
use std::collections::BTreeMap;

/// Every file that quantizing and running `model` on `data` writes, by name.
fn written(desk: &Desk, model: &str, data: &str, threads: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = desk.folder(&format!("threads{threads}"));
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let (file, plan) = (path("model.onnx"), path("plan.json"));
    fewbits(&[
        "quantize",
        model,
        "--calib",
        data,
        "--threads",
        threads,
        "--samples",
        "12",
        "-o",
        &file,
        "--plan",
        &plan,
    ]);
    for (source, mode) in [(&file[..], "integer"), (&file, "fake"), (model, "float")] {
        let output = path(&format!("{mode}.npz"));
        fewbits(&["run", source, "--data", data, "--limit", "5", "--mode", mode, "--threads", threads, "-o", &output]);
    }
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())).collect()
}

fn check(desk: &Desk, model: &str, data: &str) {
    let [one, two, three] = ["1", "2", "3"].map(|threads| written(desk, model, data, threads));
    assert!(one.len() >= 5, "{:?}", one.keys());
    for (threads, other) in [(2, two), (3, three)] {
        assert!(one.keys().eq(other.keys()), "{:?} and {:?}", one.keys(), other.keys());
        for (name, bytes) in &one {
            assert!(*bytes == other[name], "{name} differs between 1 and {threads} threads");
        }
    }
}

#[test]
fn the_demo_network_is_the_same_for_any_number_of_threads() {
    let desk = Desk::new();
    check(&desk, &desk.path("demo.onnx"), &desk.path("pictures"));
}

#[test]
fn a_real_network_is_the_same_for_any_number_of_threads() {
    let Some(data) = fewbits_testing::data() else { return };
    let models = fewbits_testing::models();
    let Some(model) = models.iter().find(|m| m.ends_with("mobilenet_v1_025.onnx")).or(models.first()) else { return };
    let images = data.join("imagenet/calib.csv");
    check(&Desk::new(), model.to_str().unwrap(), images.to_str().unwrap());
}

#[test]
fn quantizing_twice_writes_the_same_bytes() {
    let desk = Desk::new();
    let first = desk.quantized().map(|path| std::fs::read(path).unwrap());
    assert!(first == desk.quantized().map(|path| std::fs::read(path).unwrap()));
}
