//! Damaged and foreign files are refused with a located error, never a panic.

use fewbits_graph::{Attr, Attrs, DType, Dim, Graph, GraphError, Node, Op, Tensor, ValueInfo};
use fewbits_onnx::{OnnxError, TensorError, export, import, import_bytes, lift, tensor_from_proto_bytes};
use std::{path::Path, sync::Arc};

fn node(op_type: &str, attrs: Attrs, inputs: &[&str], outputs: &[&str]) -> Node {
    Node {
        name: format!("node_{}", outputs[0]),
        op: Op::from_attrs(op_type, &attrs).unwrap(),
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        outputs: outputs.iter().map(|s| s.to_string()).collect(),
    }
}

/// A small file with every kind of attribute and tensor that the reader knows.
fn small_model() -> Vec<u8> {
    let value = |name: &str| ValueInfo {
        name: name.into(),
        dtype: DType::F32,
        dims: Some(vec![Dim::Symbol("N".into()), Dim::Fixed(2), Dim::Fixed(4), Dim::Symbol(String::new())]),
    };
    let mut graph = Graph { inputs: vec![value("x")], outputs: vec![value("y")], opset: 13, ..Graph::default() };
    let constants = [
        ("w", Tensor::f32(&[2, 2, 1, 1], vec![0.5, -1.0, 2.0, 0.25])),
        ("s", Tensor::f32(&[], vec![0.1])),
        ("z", Tensor::u8(&[], vec![128])),
        ("wq", Tensor::i8(&[2, 2, 1, 1], vec![1, -2, 3, 127])),
        ("ws", Tensor::f32(&[2], vec![0.1, 0.2])),
        ("wz", Tensor::i8(&[2], vec![0, 0])),
        ("split", Tensor::i64(&[2], vec![1, 1])),
    ];
    graph.constants = constants.into_iter().map(|(name, t)| (name.into(), Arc::new(t))).collect();
    let int = |name: &str, v| Attrs::default().with(name, Attr::Int(v));
    let custom = Attrs::default()
        .with("f", Attr::Float(0.5))
        .with("s", Attr::Str("text".into()))
        .with("t", Attr::Tensor(Tensor::bool(&[2], vec![true, false])))
        .with("list", Attr::Strs(vec!["a".into()]))
        .with("floats", Attr::Floats(vec![1.0, 2.0]));
    graph.nodes = vec![
        node("QuantizeLinear", Attrs::default(), &["x", "s", "z"], &["xq"]),
        node("DequantizeLinear", Attrs::default(), &["xq", "s", "z"], &["xd"]),
        node("DequantizeLinear", int("axis", 0), &["wq", "ws", "wz"], &["wd"]),
        node("Conv", Attrs::default().with("pads", Attr::Ints(vec![0, 0, 0, 0])), &["xd", "wd"], &["c"]),
        node("Split", int("axis", 1), &["c", "split"], &["a", "b"]),
        node("Concat", int("axis", 1), &["b", "a"], &["j"]),
        node("NoSuchOperator", custom, &["j"], &["y"]),
    ];
    graph.metadata.insert("fewbits.bits".into(), r#"{"w":4}"#.into());
    export(&graph, 13).unwrap()
}

/// Reads whatever it is as far as it goes; panics fail the test.
fn digest(bytes: &[u8]) -> bool {
    let Ok(graph) = import_bytes(bytes, None) else { return false };
    let _ = lift(&graph).map(|l| export(&l.graph, 13));
    let _ = fewbits_graph::passes::prepare(&graph);
    export(&graph, 21).is_ok()
}

#[test]
fn mutated_files_never_panic() {
    let model = small_model();
    assert!(digest(&model));
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let mut accepted = 0;
    for _ in 0..10_000 {
        let mut bytes = model.clone();
        for _ in 0..1 + random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes[at] ^= 1 << random(8),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, [0, 1, 0x7f, 0x80, 0xff][random(5)]),
            }
        }
        accepted += usize::from(digest(&bytes));
    }
    // Changed weights and names are no damage; broken lengths are.
    assert!((500..9_500).contains(&accepted), "{accepted} of 10000 accepted");
}

#[test]
fn truncated_files_never_panic() {
    let model = small_model();
    for len in 0..model.len() {
        digest(&model[..len]);
    }
    // A file that ends inside a field is refused.
    assert!(matches!(import_bytes(&model[..model.len() / 2], None), Err(OnnxError::Decode(_))));
}

#[test]
fn foreign_files_are_named_for_what_they_are() {
    for (bytes, expected) in [
        (&b""[..], "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "Git LFS pointer"),
        (b"PK\x03\x04abc", "zip"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (b"<html><body>Not found</body></html>", "text file"),
    ] {
        let error = import_bytes(bytes, None).unwrap_err();
        assert!(matches!(error, OnnxError::NotOnnx { .. }) && error.to_string().contains(expected), "{error}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn errors_name_the_file() {
    let missing = import(Path::new("no/such/file.onnx")).unwrap_err();
    assert_eq!(missing.to_string(), "model `no/such/file.onnx`");
    assert_eq!(missing.hint().as_deref(), Some("check the path"));
}

/// One field of a protobuf message: number, wire type 2.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    assert!(content.len() < 128);
    [&[number << 3 | 2, content.len() as u8], content].concat()
}

/// TensorProto with the given dimensions (each one varint), data type and further fields.
fn tensor(dims: &[&[u8]], data_type: u8, rest: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|d| [&[8], *d].concat()).collect();
    [&dims[..], &[16, data_type], &field(8, b"w"), rest].concat()
}

#[test]
fn tensors_must_hold_what_they_declare() {
    let huge: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let negative: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let source = |bytes: Vec<u8>| match tensor_from_proto_bytes(&bytes) {
        Err(OnnxError::Tensor { tensor, source }) if tensor == "w" => source,
        other => panic!("{other:?}"),
    };
    let good = tensor(&[&[2]], 1, &field(9, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]));
    assert_eq!(tensor_from_proto_bytes(&good).unwrap(), Tensor::f32(&[2], vec![1.0, 2.0]));
    let short = source(tensor(&[&[3]], 1, &field(9, &[0; 8])));
    assert_eq!(short.to_string(), "dimensions [3] need 12 bytes, the data holds 8");
    let none = source(tensor(&[&[3]], 1, &[]));
    assert_eq!(none.to_string(), "dimensions [3] need 3 values, the data holds 0");
    assert!(matches!(source(tensor(&[huge, huge], 1, &[])), TensorError::Dims(_)));
    assert!(matches!(source(tensor(&[huge, huge, &[0]], 1, &[])), TensorError::Dims(_)));
    assert!(matches!(source(tensor(&[negative], 1, &[])), TensorError::Dims(_)));
    assert!(matches!(source(tensor(&[&[1]], 99, &[])), TensorError::DataType(99)));
    // int32_data 300 in a uint8 tensor
    assert!(matches!(source(tensor(&[&[1]], 2, &field(5, &[0xac, 2]))), TensorError::Value(300)));
}

#[test]
fn external_data_stays_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), [0; 8]).unwrap();
    std::fs::create_dir(folder.path().join("models")).unwrap();
    let models = folder.path().join("models");
    std::fs::write(models.join("short"), [0; 4]).unwrap();
    let read = |location: &str| {
        let entry = |key: &[u8], value: &[u8]| field(13, &[field(1, key), field(2, value)].concat());
        let weights = tensor(&[&[2]], 1, &[entry(b"location", location.as_bytes()), vec![14 << 3, 1]].concat());
        let graph = field(7, &field(5, &weights));
        let opset = field(8, &[16, 13]);
        match import_bytes(&[graph, opset].concat(), Some(&models)) {
            Err(OnnxError::Tensor { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    };
    for outside in ["../secret", "/etc/hostname", "a/../../secret", ""] {
        assert!(matches!(read(outside), TensorError::External { .. }), "{outside}");
    }
    assert!(matches!(read("missing"), TensorError::ExternalRead { .. }));
    assert!(matches!(read("short"), TensorError::ExternalRead { .. }));
}

#[test]
fn graphs_must_be_well_formed() {
    let operator_set = field(8, &[16, 13]);
    let relu = |input: &[u8], output: &[u8]| field(1, &[field(1, input), field(2, output), field(4, b"Relu")].concat());
    let model = |graph: &[u8]| [field(7, graph), operator_set.clone()].concat();
    let source = |graph: &[u8]| match import_bytes(&model(graph), None) {
        Err(OnnxError::Graph(source)) => *source,
        other => panic!("{other:?}"),
    };
    assert!(matches!(source(&relu(b"x", b"y")), GraphError::Dangling { .. }));
    assert!(matches!(source(&[relu(b"a", b"b"), relu(b"b", b"a")].concat()), GraphError::Cycle { .. }));
    let x = field(11, &field(1, b"x"));
    assert!(matches!(source(&[x.clone(), relu(b"x", b"y"), relu(b"x", b"y")].concat()), GraphError::Duplicate { .. }));
    assert!(matches!(source(&[x.clone(), x].concat()), GraphError::Duplicate { .. }));
    assert!(matches!(import_bytes(&field(7, b""), None), Err(OnnxError::Opset(0))));
    assert!(matches!(import_bytes(&operator_set, None), Err(OnnxError::NotOnnx { .. })));
}
