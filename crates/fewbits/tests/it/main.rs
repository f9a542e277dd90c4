//! What the program promises as a whole: integers equal to ONNX Runtime's, operators as ONNX defines them, the same bytes from
//! any number of threads, trainings that can be interrupted, and a command line that scripts can rely on.

mod cli;
mod desk;
mod detectors;
mod determinism;
mod exactness;
mod forms;
mod imports;
mod methods;
mod node_conformance;
mod node_gaps;
mod operators;
mod random;
mod sizes;
mod train;

use fewbits_data::{npy::Elements, npz};
use fewbits_graph::Tensor;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Runs the program; it must succeed. Returns what it printed.
fn fewbits(args: &[&str]) -> String {
    let output = program(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "fewbits {}: {error}", args.join(" "));
    String::from_utf8(output.stdout).expect("the program prints UTF-8")
}

/// Runs the program.
fn program(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewbits"));
    command.args(args).env_remove("RUST_BACKTRACE").output().expect("the program was built for this test")
}

/// How an output compares with ONNX Runtime's.
#[derive(Debug, Deserialize)]
struct Difference {
    elements: usize,
    different: usize,
    largest: f64,
    /// Distinct values.
    values: usize,
}

type Named<'a> = Vec<(&'a str, &'a Tensor)>;

/// Compares outputs with those of ONNX Runtime: for each model file its inputs and outputs by name. `None` without Python.
fn same_outputs(
    folder: &Path,
    cases: &[(PathBuf, Named, Named)],
) -> Option<BTreeMap<PathBuf, BTreeMap<String, Difference>>> {
    let store = |model: &Path, extension: &str, arrays: &Named| {
        let path = folder.join(model.file_name().unwrap()).with_extension(extension);
        let array = |&(name, tensor): &(&'_ str, &'_ Tensor)| {
            (name.to_string(), tensor.dims.clone(), tensor.as_f32().expect("float tensors").to_vec())
        };
        let arrays: Vec<_> = arrays.iter().map(array).collect();
        let arrays: Vec<_> = arrays.iter().map(|(n, d, v)| (n.as_str(), &d[..], Elements::F32(v))).collect();
        npz::save(&path, &arrays).unwrap();
        path
    };
    let list: Vec<_> = cases
        .iter()
        .map(|(model, inputs, outputs)| {
            [model.clone(), store(model, "in.npz", inputs), store(model, "out.npz", outputs)]
        })
        .collect();
    let index = folder.join("cases.json");
    std::fs::write(&index, serde_json::to_vec(&list).unwrap()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/same_outputs.py");
    let printed = fewbits_testing::python(&script, &[index.to_str().unwrap()])?;
    Some(serde_json::from_str(&printed).expect("the script prints what is read here"))
}

/// Whether ONNX Runtime adds products of 8-bit numbers without saturating: not on x86 without the VNNI instructions.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
fn runtime_is_exact() -> bool {
    #[cfg(target_arch = "x86_64")]
    if !is_x86_feature_detected!("avx512vnni") && !is_x86_feature_detected!("avxvnni") {
        eprintln!("SKIPPED: on this processor ONNX Runtime saturates sums of products");
        return false;
    }
    true
}
