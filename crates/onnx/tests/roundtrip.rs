//! Real models, and small ones in the forms of old operator sets, compute the same after import and export.

use fewbits_graph::{Attrs, DType, Graph, Node, Op, ValueInfo};
use fewbits_onnx::{export, import, import_bytes, write};
use fewbits_testing::{models, python};

const SAME_OUTPUTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/same_outputs.py");
const OLD_MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/old_models.py");

#[test]
fn models_compute_the_same_after_a_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    for model in models() {
        let graph = import(&model).unwrap();
        let copy = folder.path().join("copy.onnx");
        write(&copy, &graph, 13).unwrap();
        python(SAME_OUTPUTS, &[model.to_str().unwrap(), copy.to_str().unwrap()]);
    }
}

#[test]
fn a_second_round_trip_changes_no_byte() {
    for model in models() {
        let first = export(&import(&model).unwrap(), 18).unwrap();
        let second = export(&import_bytes(&first, None).unwrap(), 18).unwrap();
        assert!(first == second, "{}", model.display());
    }
}

#[test]
fn old_forms_compute_the_same_in_new_operator_sets() {
    let folder = tempfile::tempdir().unwrap();
    if python(OLD_MODELS, &[folder.path().to_str().unwrap()]).is_none() {
        return;
    }
    let mut pairs = Vec::new();
    let mut models: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    assert!(models.len() > 40);
    for model in models {
        let graph = import(&model).unwrap_or_else(|e| panic!("{}: {e:?}", model.display()));
        for opset in [13, 18, 20] {
            let copy = model.with_extension(format!("{opset}.copy"));
            write(&copy, &graph, opset).unwrap();
            pairs.push(model.to_str().unwrap().to_string());
            pairs.push(copy.to_str().unwrap().to_string());
        }
    }
    let args: Vec<&str> = pairs.iter().map(String::as_str).collect();
    python(SAME_OUTPUTS, &args);
}

#[test]
fn every_node_gets_a_unique_stable_name() {
    let node = |name: &str, input: &str, output: &str| Node {
        name: name.into(),
        op: Op::from_attrs("Neg", &Attrs::default()).unwrap(),
        inputs: vec![input.into()],
        outputs: vec![output.into()],
    };
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    let graph = Graph {
        inputs: vec![value("x")],
        outputs: vec![value("y")],
        nodes: vec![node("", "x", "a"), node("r", "a", "b"), node("r", "b", "c"), node("r_1", "c", "y")],
        opset: 13,
        ..Graph::default()
    };
    let names = |bytes: &[u8]| import_bytes(bytes, None).unwrap().nodes.into_iter().map(|n| n.name).collect::<Vec<_>>();
    let bytes = export(&graph, 13).unwrap();
    assert_eq!(names(&bytes), ["Neg_a", "r", "r_2", "r_1"]);
    assert_eq!(names(&export(&import_bytes(&bytes, None).unwrap(), 13).unwrap()), names(&bytes));
}
