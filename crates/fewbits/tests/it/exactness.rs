//! Quantized networks: every element of every output is that of ONNX Runtime on the exported file.

use crate::{fewbits, runtime_is_exact, same_outputs};
use fewbits::{Model, demo};
use fewbits_data::{Batch, Dataset, OpenOptions, Preprocess, Resize, npy, npz};
use fewbits_graph::Tensor;
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// What the files do not say about themselves, by a part of the file name: preprocessing flags.
const FLAGS: &[(&str, &[&str])] =
    &[("cifar10", &["--preprocess", "cifar10", "--resize-to", "32x32"]), ("yolox", &["--preprocess", "yolox"])];

/// Bits of weights and activations that are tried, and on which models.
const BITS: &[(&str, &str, &[&str])] = &[
    ("8", "8", &[""]),
    ("4", "8", &["mobilenet_v2", "cifar10"]),
    ("4", "4", &["squeezenet", "cifar10", "mobilenet_v2"]),
    ("3", "3", &["cifar10"]),
    ("2", "2", &["cifar10", "mobilenet_v2"]),
];

/// Prepares `count` samples, quantizes and runs `model` with the program; compares its integers with ONNX Runtime's.
pub fn check(
    model: &Path,
    calibration: &Path,
    folder: &Path,
    inputs: &Tensor,
    flags: &[&str],
    bits: [&str; 2],
) -> Option<usize> {
    let array = folder.join("inputs.npy");
    save(&array, inputs);
    let stem = model.file_stem().unwrap().to_string_lossy();
    let quantized = folder.join(format!("{stem}.w{}a{}.onnx", bits[0], bits[1]));
    let (outputs, plan) = (folder.join("outputs.npz"), folder.join("plan.json"));
    let path = |p: &Path| p.to_str().unwrap().to_string();
    let quantize = ["quantize", &path(model), "--calib", &path(calibration), "--samples", "16", "--ranges", "minmax"];
    // Learning takes long, and what is learned is weights like any others.
    let method = match (bits, stem.contains("cifar10") || stem.contains("demo")) {
        (["8", "8"], _) => "basic",
        (["4", _], true) => "equalize,comq",
        _ => "none",
    };
    let more = ["--weights", bits[0], "--activations", bits[1], "-o", &path(&quantized), "--plan", &path(&plan)];
    let more = [&more[..], &["--method", method]].concat();
    fewbits(&[&quantize[..], &more, flags].concat());
    let run = |file: &Path, more: &[&str]| {
        fewbits(
            &[&["run", &path(file), "--data", &path(&array), "--mode", "integer", "-o", &path(&outputs)], more]
                .concat(),
        );
        read(&outputs)
    };
    let integers = run(&quantized, &[]);
    // The plan over the float model and the file that was exported are the same network.
    assert_eq!(integers, run(model, &["--plan", &path(&plan)]), "{stem}");
    let input = Model::load(model).unwrap().graph.inputs[0].name.clone();
    let named = integers.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let report = same_outputs(folder, &[(quantized.clone(), vec![(&input, inputs)], named)])?;
    for (output, row) in &report[&quantized] {
        assert_eq!(row.different, 0, "{stem} W{}A{} {output}: {row:?}", bits[0], bits[1]);
        assert!(row.values > 16, "{stem} {output}: {row:?}");
    }
    Some(report[&quantized].values().map(|row| row.elements).sum())
}

pub fn save(path: &Path, tensor: &Tensor) {
    let values = tensor.as_f32().expect("prepared samples are floats");
    npy::write(&mut File::create(path).unwrap(), &tensor.dims, npy::Elements::F32(values)).unwrap();
}

pub fn read(outputs: &Path) -> Vec<(String, Tensor)> {
    let arrays = npz::open(outputs).unwrap();
    let read = |(name, file): npz::Entry| {
        let file = file.unwrap();
        (name, Tensor::f32(&file.shape, file.read_f32(0, file.rows()).unwrap()))
    };
    arrays.into_iter().map(read).collect()
}

pub fn prepared(dataset: &Dataset, preprocess: &Preprocess, count: usize) -> Tensor {
    let batch = Batch::read(dataset, preprocess, &dataset.first(Some(count))).unwrap();
    Tensor::f32(&batch.shape, batch.data)
}

#[test]
fn real_networks_give_the_integers_of_onnx_runtime() {
    let Some(data) = fewbits_testing::data().filter(|_| runtime_is_exact()) else { return };
    let folder = tempfile::tempdir().unwrap();
    for file in fewbits_testing::models() {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let images = if name.contains("yolo") { "coco/calib" } else { "imagenet/calib.csv" };
        let flags = FLAGS.iter().find(|(part, _)| name.contains(part)).map_or(&[][..], |(_, flags)| flags);
        let model = Model::load(&file).unwrap();
        let stated = model.preprocess().unwrap();
        let size = model.input_size();
        let mut preprocess = match flags {
            [] => stated.expect("the file says how its images are prepared"),
            [_, preset, ..] => Preprocess::preset(preset, size).unwrap(),
            _ => unreachable!("flags begin with a preset"),
        };
        if name.contains("cifar10") {
            preprocess.resize = Resize::Exact { height: 32, width: 32 };
        }
        let dataset = Dataset::open(&data.join(images), &OpenOptions::default()).unwrap();
        let inputs = prepared(&dataset, &preprocess, 4);
        for (weights, activations, models) in BITS {
            if models.iter().any(|part| name.contains(part)) {
                let checked = check(&file, &data.join(images), folder.path(), &inputs, flags, [weights, activations]);
                if checked.is_none() {
                    return;
                }
            }
        }
    }
}

#[test]
fn the_demo_network_gives_the_integers_of_onnx_runtime() {
    if !runtime_is_exact() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.onnx");
    std::fs::write(&file, fewbits_demo::MODEL).unwrap();
    let preprocess = demo::model().unwrap().preprocess().unwrap().unwrap();
    let calibration: PathBuf = folder.path().join("calibration.npy");
    save(&calibration, &prepared(&demo::calibration_set(), &preprocess, 32));
    let inputs = prepared(&demo::test_set(), &preprocess, 300);
    for bits in [["8", "8"], ["4", "8"], ["4", "4"], ["2", "2"]] {
        check(&file, &calibration, folder.path(), &inputs, &[], bits);
    }
}
