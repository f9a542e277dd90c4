//! Operators as ONNX defines them: the test cases that ship inside the `onnx` package, imported and run. What cannot pass is listed
//! with its reason, and a listed case that passes fails the test.

use crate::node_gaps::GAPS;
use fewbits_graph::{
    Data, Graph, GraphError, OpError, Tensor,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;
use fewbits_onnx::{import, lift, tensor_from_proto_bytes};
use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Folders below `folder`, sorted.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

#[test]
fn operators_compute_what_onnx_says() {
    let scratch = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/node_tests.py");
    let Some(counts) = fewbits_testing::python(&script, &[scratch.path().to_str().unwrap()]) else { return };
    let counts: BTreeMap<String, usize> = serde_json::from_str(&counts).unwrap();
    let empty: Vec<_> = counts.iter().filter(|(_, n)| **n == 0).map(|(op, _)| op).collect();
    assert!(empty.is_empty(), "no cases for {empty:?}");
    let reasons: BTreeMap<&str, &str> =
        GAPS.iter().flat_map(|(reason, cases)| cases.iter().map(move |case| (*case, *reason))).collect();
    let (mut passed, mut failures) = (0, Vec::new());
    for case in folders(scratch.path()).iter().flat_map(|operator| folders(operator)) {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        match (check(&case), reasons.get(name.as_str())) {
            (Ok(()), None) => passed += 1,
            (Ok(()), Some(reason)) => failures.push(format!("{name} passes, but is a listed gap: {reason}")),
            (Err(error), None) => failures.push(format!("{name}: {error}")),
            (Err(_), Some(_)) => {}
        }
    }
    assert!(failures.is_empty(), "{} failures, {passed} passed:\n{}", failures.len(), failures.join("\n"));
    let all: usize = counts.values().sum();
    assert_eq!(
        passed + GAPS.iter().map(|(_, cases)| cases.len()).sum::<usize>(),
        all,
        "a listed gap is no case, or is listed twice"
    );
}

/// Runs one case: as it stands and, if it has Q/DQ pairs that lift, on codes.
fn check(case: &Path) -> Result<(), String> {
    let graph = import(&case.join("model.onnx")).map_err(|e| format!("{e:?}"))?;
    let read = |stem: &str| -> Result<Vec<Tensor>, String> {
        let files = (0..).map(|i| case.join(format!("{stem}_{i}.pb"))).take_while(|path| path.exists());
        files.map(|path| tensor_from_proto_bytes(&std::fs::read(path).unwrap()).map_err(|e| e.to_string())).collect()
    };
    let (inputs, expected) = (read("input")?, read("output")?);
    compare(&run(&graph, Mode::Float, &inputs)?, &expected)?;
    let lifted = lift(&graph).map_err(|e| e.to_string())?;
    if !lifted.grids.0.is_empty() {
        compare(&run(&lifted.graph, Mode::Integer(&lifted.grids), &inputs)?, &expected)
            .map_err(|e| format!("on codes: {e}"))?;
    }
    Ok(())
}

/// Inputs that must be known ahead (shapes, axes, scales) become constants.
fn run(graph: &Graph, mode: Mode, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let (mut graph, mut inputs, threads) = (graph.clone(), inputs.to_vec(), Threads::new(1));
    loop {
        let error = match Executor::new(&graph, mode, &threads).run(&inputs) {
            Ok(outputs) => return Ok(outputs),
            Err(error) => error,
        };
        let due = match &error {
            GraphError::Node { node, source, .. } if let OpError::NotConstant { index } = **source => {
                let node = graph.nodes.iter().find(|n| n.name == *node).expect("the error names a node");
                graph.inputs.iter().position(|v| node.input(index) == Some(&v.name))
            }
            _ => None,
        };
        let Some(due) = due else { return Err(format!("{error}: {:?}", error.source().map(ToString::to_string))) };
        graph.constants.insert(graph.inputs.remove(due).name, Arc::new(inputs.remove(due)));
    }
}

/// Floats may differ by 1e-3 relatively plus 1e-7 (the tolerances of ONNX's own runner), everything else not at all.
fn compare(got: &[Tensor], expected: &[Tensor]) -> Result<(), String> {
    if got.len() != expected.len() {
        return Err(format!("{} outputs, expected {}", got.len(), expected.len()));
    }
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        if got.dims != expected.dims || got.dtype() != expected.dtype() {
            let [a, b] = [got, expected].map(|t| format!("{} {:?}", t.dtype(), t.dims));
            return Err(format!("output {i} is {a}, expected {b}"));
        }
        let equal = match (&got.data, &expected.data) {
            (Data::F32(a), Data::F32(b)) => {
                let near = |(a, b): (&f32, &f32)| {
                    a == b || (a - b).abs() <= 1e-7 + 1e-3 * b.abs() || (a.is_nan() && b.is_nan())
                };
                a.iter().zip(b).all(near)
            }
            (a, b) => a == b,
        };
        if !equal {
            let [a, b] = [got, expected].map(|t| format!("{:.200}", format!("{:?}", t.data)));
            return Err(format!("output {i} is {a}, expected {b}"));
        }
    }
    Ok(())
}
