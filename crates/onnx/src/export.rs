//! [`Graph`] → a model file: canonical forms lowered to one operator set, deterministic bytes, written atomically.

use crate::{
    attribute,
    error::{MAX_OPSET, OnnxError},
    import::{CAPTURED, captured, captured_names},
    proto::{
        AttributeProto, DimensionProto, DimensionValue, EXTERNAL, GraphProto, ModelProto, NodeProto,
        OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
        type_proto,
    },
    raise::REDUCTIONS,
    tensor::{encode, type_code},
    versions::{check_redefined, ir_version, known_attrs, required_opset},
};
use fewbits_graph::{Attr, DType, Dim, Graph, Node, Op, OpError, ValueInfo};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Weights beyond this go to a second file: a protobuf message ends at 2 GiB.
const EXTERNAL_ABOVE: usize = 1_900_000_000;
/// Alignment of each tensor in the second file, so that runtimes can map it.
const EXTERNAL_ALIGNMENT: usize = 4096;

/// The bytes of a model in operator set `opset`, or in the oldest newer one that can express the graph.
///
/// # Errors
/// [`OnnxError::Opset`] if the graph needs a newer one than is written, [`OnnxError::Node`] if a node cannot be expressed,
/// [`OnnxError::TooLarge`] beyond 1.9 GB of weights (use [`write()`]).
pub fn export(graph: &Graph, opset: i64) -> Result<Vec<u8>, OnnxError> {
    let model = model_proto(graph, opset)?;
    match model.encoded_len() {
        len if len > EXTERNAL_ABOVE => Err(OnnxError::TooLarge(len)),
        _ => Ok(model.encode_to_vec()),
    }
}

/// Writes a model file, replacing an older one only when the new one is complete. More than 1.9 GB of weights go to
/// `NAME.data` beside it.
///
/// # Errors
/// As [`export`], and [`OnnxError::File`] if the file cannot be written.
pub fn write(path: &Path, graph: &Graph, opset: i64) -> Result<(), OnnxError> {
    write_split(path, graph, opset, EXTERNAL_ABOVE)
        .map_err(|source| OnnxError::File { path: path.to_path_buf(), source: Box::new(source) })
}

fn write_split(path: &Path, graph: &Graph, opset: i64, external_above: usize) -> Result<(), OnnxError> {
    let mut model = model_proto(graph, opset)?;
    if model.encoded_len() > external_above {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let location = format!("{name}.data");
        let initializers = model.graph.as_mut().map(|g| &mut g.initializer[..]).unwrap_or_default();
        let blob = move_data_out(initializers, &location);
        replace(&path.with_file_name(&location), &blob)?;
    }
    replace(path, &model.encode_to_vec())
}

/// Moves the data of the larger initializers into one blob and leaves references to `location`.
fn move_data_out(initializers: &mut [TensorProto], location: &str) -> Vec<u8> {
    let mut blob = Vec::new();
    for tensor in initializers {
        let Some(raw) = tensor.raw_data.take_if(|raw| raw.len() >= 1024) else { continue };
        blob.resize(blob.len().next_multiple_of(EXTERNAL_ALIGNMENT), 0);
        tensor.data_location = Some(EXTERNAL);
        tensor.external_data =
            [("location", location.to_string()), ("offset", blob.len().to_string()), ("length", raw.len().to_string())]
                .map(|(key, value)| entry(key, &value))
                .to_vec();
        blob.extend(raw);
    }
    blob
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), OnnxError> {
    fewbits_files::replace(path, bytes).map_err(|source| OnnxError::Io { action: "write it", source })
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
}

fn model_proto(graph: &Graph, opset: i64) -> Result<ModelProto, OnnxError> {
    let opset = opset.max(required_opset(graph));
    if opset > MAX_OPSET {
        return Err(OnnxError::Opset(opset));
    }
    check_redefined(graph, opset)?;
    let nodes = graph.nodes.iter().map(|node| node_proto(graph, node, opset)).collect::<Result<Vec<_>, _>>()?;
    let mut domains: BTreeMap<&str, i64> = graph.domains.iter().map(|(d, v)| (d.as_str(), *v)).collect();
    for node in &graph.nodes {
        if let Op::Opaque(op) = &node.op {
            domains.entry(&op.domain).or_insert(1);
        }
    }
    domains.insert("", opset);
    let mut used: BTreeSet<&str> = nodes.iter().flat_map(|n| n.input.iter().map(String::as_str)).collect();
    used.extend(graph.nodes.iter().flat_map(captured).map(String::as_str));
    used.extend(graph.outputs.iter().map(|o| o.name.as_str()));
    let constants = graph.constants.iter().filter(|(name, _)| used.contains(name.as_str()));
    let initializer = constants.map(|(name, value)| encode(name, value)).collect();
    let set = |(d, v): (&&str, &i64)| OperatorSetIdProto { domain: Some(d.to_string()), version: Some(*v) };
    Ok(ModelProto {
        ir_version: Some(ir_version(opset)),
        producer_name: Some("fewbits".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        opset_import: domains.iter().map(set).collect(),
        metadata_props: graph.metadata.iter().map(|(k, v)| entry(k, v)).collect(),
        graph: Some(GraphProto {
            name: Some(if graph.name.is_empty() { "graph".into() } else { graph.name.clone() }),
            node: nodes,
            initializer,
            input: graph.inputs.iter().map(value_info).collect(),
            output: graph.outputs.iter().map(value_info).collect(),
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    })
}

fn node_proto(graph: &Graph, node: &Node, opset: i64) -> Result<NodeProto, OnnxError> {
    let domain = match &node.op {
        Op::Opaque(op) => op.domain.clone(),
        _ => String::new(),
    };
    let mut inputs = node.inputs.clone();
    let mut attrs = if domain.is_empty() { known_attrs(&node.op, opset) } else { node.op.def().attrs() };
    let op_type = node.op.name().to_string();
    if opset < 18 && domain.is_empty() && REDUCTIONS.contains(&op_type.as_str()) {
        // Constant, or `required_opset` would have asked for 18.
        if let Some(axes) = node.input(1).and_then(|name| graph.constant(name)).and_then(|t| t.to_i64()) {
            attrs.0.insert("axes".into(), Attr::Ints(axes));
        }
        inputs.truncate(1);
    }
    attrs.0.remove(CAPTURED);
    let attribute = attribute::encode_all(&attrs)?;
    inputs.truncate(inputs.len() - captured(node).len());
    let reads = |a: &AttributeProto| a.g.iter().chain(&a.graphs).flat_map(captured_names).collect::<Vec<_>>();
    if let Some(lost) = attribute.iter().flat_map(reads).find(|name| !captured(node).contains(name)) {
        let source = OpError::Unsupported(format!("renaming tensor `{lost}`, which a sub-graph reads"));
        return Err(OnnxError::Node { node: node.name.clone(), op_type, source });
    }
    Ok(NodeProto {
        input: inputs,
        output: node.outputs.clone(),
        name: Some(node.name.clone()),
        op_type: Some(op_type),
        domain: (!domain.is_empty()).then_some(domain),
        attribute,
        ..NodeProto::default()
    })
}

fn value_info(value: &ValueInfo) -> ValueInfoProto {
    let dim = |d: &Dim| DimensionProto {
        value: match d {
            Dim::Fixed(n) => Some(DimensionValue::DimValue(*n as i64)),
            Dim::Symbol(name) if name.is_empty() => None,
            Dim::Symbol(name) => Some(DimensionValue::DimParam(name.clone())),
        },
        denotation: None,
    };
    let shape = value.dims.as_ref().map(|dims| TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let untyped = value.dtype == DType::Raw(0) && shape.is_none();
    let tensor = type_proto::Tensor { elem_type: Some(type_code(value.dtype)), shape };
    let r#type = TypeProto { value: Some(type_proto::Value::Tensor(tensor)), denotation: None };
    ValueInfoProto { name: Some(value.name.clone()), r#type: (!untyped).then_some(r#type) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbits_graph::Tensor;
    use std::sync::Arc;

    fn graph() -> Graph {
        let mut graph = Graph { opset: 13, ..Graph::default() };
        let values = |n: usize| (0..n).map(|i| i as f32).collect();
        graph.constants.insert("large".into(), Arc::new(Tensor::f32(&[300], values(300))));
        graph.constants.insert("larger".into(), Arc::new(Tensor::f32(&[2, 300], values(600))));
        graph.constants.insert("small".into(), Arc::new(Tensor::i64(&[], vec![7])));
        let output = |name: &String| ValueInfo { name: name.clone(), dtype: DType::F32, dims: None };
        graph.outputs = graph.constants.keys().map(output).collect();
        graph
    }

    #[test]
    fn large_weights_go_to_a_second_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        write_split(&path, &graph(), 13, 1000).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 1000);
        assert_eq!(std::fs::metadata(folder.path().join("m.onnx.data")).unwrap().len(), 4096 + 2400);
        assert_eq!(crate::import(&path).unwrap().constants, graph().constants);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "temporary files are gone");
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        let error = write(&path, &graph(), 13).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_operator_set_is_at_least_what_the_graph_needs() {
        let set = |opset| crate::import_bytes(&export(&graph(), opset).unwrap(), None).unwrap().opset;
        assert_eq!([set(1), set(13), set(25)], [13, 13, 25]);
        assert!(matches!(export(&graph(), 26), Err(OnnxError::Opset(26))));
    }
}
