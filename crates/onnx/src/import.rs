//! A model file → [`Graph`]: decoding, then each node raised to its canonical form.
//!
//! What enters: bytes, and the folder where external data lies. What leaves: a sorted graph whose operators have the
//! attribute and input forms of [`fewbits_graph::op::CANONICAL_OPSET`]. Operators that Fewbits does not know, or whose
//! attributes it would lose, become [`Op::Opaque`].

use crate::{
    attribute,
    error::{MAX_OPSET, MIN_OPSET, OnnxError},
    proto::{
        AttributeProto, DimensionValue, GraphProto, ModelProto, NodeProto, ValueInfoProto, attribute_type, data_type,
        type_proto::Value,
    },
    qlinear,
    raise::{Raiser, RawNode},
    tensor, versions,
};
use fewbits_graph::{Attr, Dim, Graph, GraphError, Node, Op, OpError, ValueInfo, op::Opaque};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

/// Attribute of an opaque node that counts the inputs its sub-graphs read from the outer graph. Those names stand at the
/// end of [`Node::inputs`], so that no pass removes what a sub-graph needs.
pub(crate) const CAPTURED: &str = "fewbits.captured";

/// Reads a model file.
///
/// # Errors
/// [`OnnxError::File`] with the path and what is wrong in the file.
pub fn import(path: &Path) -> Result<Graph, OnnxError> {
    let read = std::fs::read(path).map_err(|source| OnnxError::Io { action: "read it", source });
    let folder = path.parent().unwrap_or(Path::new("."));
    read.and_then(|bytes| import_bytes(&bytes, Some(folder)))
        .map_err(|source| OnnxError::File { path: path.to_path_buf(), source: Box::new(source) })
}

/// Reads a model from memory. `folder` is where its external data lies, if it has any.
///
/// # Errors
/// Every kind of [`OnnxError`] but `File`.
pub fn import_bytes(bytes: &[u8], folder: Option<&Path>) -> Result<Graph, OnnxError> {
    refuse_other_formats(bytes)?;
    let model = ModelProto::decode(bytes).map_err(OnnxError::Decode)?;
    let mut domains = BTreeMap::new();
    for set in &model.opset_import {
        domains.insert(canonical_domain(set.domain()).to_string(), set.version());
    }
    let Some(proto) = model.graph else {
        return Err(OnnxError::NotOnnx { found: "it has no graph", hint: "export the model again" });
    };
    let opset = domains.remove("").unwrap_or(0);
    if !(MIN_OPSET..=MAX_OPSET).contains(&opset) {
        return Err(OnnxError::Opset(opset));
    }
    if let Some(function) = model.functions.first() {
        return Err(OnnxError::Unsupported {
            what: format!("the model-local function `{}`", function.name()),
            hint: "inline it with onnx.inliner.inline_local_functions",
        });
    }
    let mut graph = read_graph(proto, opset, folder)?;
    graph.domains = domains;
    let pair = |p: crate::proto::StringStringEntryProto| (p.key().to_string(), p.value().to_string());
    graph.metadata = model.metadata_props.into_iter().map(pair).collect();
    Ok(graph)
}

/// Recognises files that people pass by mistake.
fn refuse_other_formats(bytes: &[u8]) -> Result<(), OnnxError> {
    let (found, hint) = match bytes {
        [] => ("the file is empty", "download or export it again"),
        b if b.starts_with(b"version https://git-lfs") => {
            ("a Git LFS pointer", "run `git lfs pull` to fetch the model")
        }
        b if b.starts_with(b"PK\x03\x04") => {
            ("a zip archive, perhaps a PyTorch file", "export it with torch.onnx.export")
        }
        b if b.starts_with(b"\x89HDF") => ("an HDF5 file, perhaps a Keras model", "convert it with tf2onnx"),
        b if b.get(4..8) == Some(b"TFL3") => ("a TensorFlow Lite model", "convert it with tf2onnx --tflite"),
        b if b.starts_with(b"\x93NUMPY") => ("a NumPy array", "pass the model, not the data"),
        b if b.iter().take(256).all(|c| matches!(c, b'\t' | b'\n' | b'\r' | 0x20..=0x7e)) => {
            ("a text file", "pass the binary .onnx file")
        }
        _ => return Ok(()),
    };
    Err(OnnxError::NotOnnx { found, hint })
}

fn canonical_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn read_graph(mut proto: GraphProto, opset: i64, folder: Option<&Path>) -> Result<Graph, OnnxError> {
    if !proto.sparse_initializer.is_empty() {
        let hint = "store the weights as dense initializers";
        return Err(OnnxError::Unsupported { what: "a sparse initializer".into(), hint });
    }
    let mut graph = Graph { name: proto.name.take().unwrap_or_default(), opset, ..Graph::default() };
    let mut strings = Vec::new();
    for mut initializer in std::mem::take(&mut proto.initializer) {
        let name = initializer.name.take().unwrap_or_default();
        if initializer.data_type == Some(data_type::STRING) {
            // Strings are no tensor data for Fewbits: they travel in a Constant node.
            let value = AttributeProto {
                name: Some("value".into()),
                t: Some(initializer),
                r#type: Some(attribute_type::TENSOR),
                ..AttributeProto::default()
            };
            let op_type = Some("Constant".into());
            strings.push(NodeProto { output: vec![name], op_type, attribute: vec![value], ..NodeProto::default() });
            continue;
        }
        let value = tensor::decode(initializer, folder).map_err(OnnxError::tensor(&name))?;
        if graph.constants.insert(name.clone(), Arc::new(value)).is_some() {
            return Err(OnnxError::graph(GraphError::Duplicate { tensor: name }));
        }
    }
    proto.node.splice(0..0, strings);

    // Files of IR version 3 list initializers among the inputs.
    let values = |list: &[ValueInfoProto]| list.iter().map(value_info).collect::<Result<Vec<_>, _>>();
    graph.inputs = values(&proto.input)?;
    graph.inputs.retain(|v| !graph.constants.contains_key(&v.name));
    graph.outputs = values(&proto.output)?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = graph.inputs.iter().find(|v| !seen.insert(&v.name)) {
        return Err(OnnxError::graph(GraphError::Duplicate { tensor: twice.name.clone() }));
    }

    let mut names: HashSet<String> = graph.constants.keys().cloned().collect();
    names.extend(graph.inputs.iter().map(|v| v.name.clone()));
    names.extend(proto.node.iter().flat_map(|n| n.output.iter().cloned()));
    let node_names = node_names(&proto.node);
    names.extend(node_names.iter().cloned());
    let known_ranks =
        graph.inputs.iter().chain(&graph.outputs).filter_map(|v| Some((v.name.clone(), v.dims.as_ref()?.len())));
    let mut ranks: HashMap<String, usize> = known_ranks.collect();
    ranks.extend(proto.value_info.iter().filter_map(|v| {
        let v = value_info(v).ok()?;
        Some((v.name, v.dims?.len()))
    }));
    ranks.extend(graph.constants.iter().map(|(name, t)| (name.clone(), t.dims.len())));

    let mut raiser =
        Raiser { opset, constants: std::mem::take(&mut graph.constants), names, ranks, dequantized: HashMap::new() };
    for (proto, name) in proto.node.into_iter().zip(node_names) {
        let raw = read_node(proto, name, folder)?;
        let label = (raw.name.clone(), raw.op_type.clone());
        let located = |source| OnnxError::Node { node: label.0.clone(), op_type: label.1.clone(), source };
        let mut expanded = Vec::new();
        for node in qlinear::rewrite(&mut raiser, raw).map_err(located)? {
            expanded.extend(raiser.raise(node).map_err(located)?);
        }
        for node in expanded {
            let op = operator(&node).map_err(located)?;
            graph.nodes.push(Node { name: node.name, op, inputs: node.inputs, outputs: node.outputs });
        }
    }
    graph.constants = raiser.constants;
    graph.sort().map_err(OnnxError::graph)?;
    Ok(graph)
}

/// The operator of a raised node. It is opaque if Fewbits does not know it, does not compute this form of it, or would
/// lose one of its attributes.
fn operator(node: &RawNode) -> Result<Op, OpError> {
    let opaque = || {
        let RawNode { domain, op_type, attrs, .. } = node.clone();
        Op::Opaque(Opaque { domain, op_type, attrs })
    };
    if !node.domain.is_empty() {
        return Ok(opaque());
    }
    let op = match Op::from_attrs(&node.op_type, &node.attrs) {
        Err(OpError::Unsupported(_)) => return Ok(opaque()),
        other => other?,
    };
    if !matches!(op, Op::Opaque(_)) {
        check_arity(node)?;
    }
    let kept = op.def().attrs();
    let lost = |(name, value): (&String, &Attr)| {
        !kept.0.contains_key(name) && !versions::has_no_effect(&node.op_type, name, value)
    };
    Ok(if node.attrs.0.iter().any(lost) { opaque() } else { op })
}

/// Checks that a known operator has the inputs it cannot do without, and no more than it has names for.
fn check_arity(node: &RawNode) -> Result<(), OpError> {
    let (least, most) = versions::inputs(&node.op_type);
    if let Some(index) = (0..least).find(|&i| node.inputs.get(i).is_none_or(String::is_empty)) {
        return Err(OpError::MissingInput { index });
    }
    if node.inputs.len() > most {
        return Err(OpError::Unsupported(format!(
            "{} inputs ({} has at most {most})",
            node.inputs.len(),
            node.op_type
        )));
    }
    if node.outputs.iter().all(String::is_empty) {
        return Err(OpError::Unsupported("a node without outputs".into()));
    }
    Ok(())
}

/// A unique name for each node: its own, `TYPE_OUTPUT` if it has none, with a number where that is taken.
fn node_names(nodes: &[NodeProto]) -> Vec<String> {
    let mut taken: HashSet<String> = nodes.iter().map(|n| n.name().to_string()).collect();
    let mut given = HashSet::new();
    let mut unique = |node: &NodeProto| {
        let own = node.name();
        if !own.is_empty() && given.insert(own.to_string()) {
            return own.to_string();
        }
        let output = node.output.iter().find(|o| !o.is_empty()).map_or("", String::as_str);
        let stem = if own.is_empty() { format!("{}_{output}", node.op_type()) } else { own.to_string() };
        let name = first_free(&stem, &taken);
        taken.insert(name.clone());
        name
    };
    nodes.iter().map(&mut unique).collect()
}

/// `stem`, or `stem_N` with the first `N` that is not taken.
pub(crate) fn first_free(stem: &str, taken: &HashSet<String>) -> String {
    let numbered = (1..).map(|i| format!("{stem}_{i}"));
    std::iter::once(stem.to_string())
        .chain(numbered)
        .find(|name| !taken.contains(name))
        .expect("the names never run out")
}

fn read_node(mut proto: NodeProto, name: String, folder: Option<&Path>) -> Result<RawNode, OnnxError> {
    let captured: BTreeSet<String> =
        proto.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).flat_map(captured_names).collect();
    let domain = canonical_domain(proto.domain()).to_string();
    let op_type = proto.op_type().to_string();
    let mut attrs = attribute::decode_all(std::mem::take(&mut proto.attribute), folder)?;
    let trim = |list: &mut Vec<String>| list.truncate(list.iter().rposition(|s| !s.is_empty()).map_or(0, |i| i + 1));
    trim(&mut proto.input);
    trim(&mut proto.output);
    let refused = |source| Err(OnnxError::Node { node: name.clone(), op_type: op_type.clone(), source });
    if op_type.is_empty() || proto.output.is_empty() {
        return refused(OpError::Unsupported("a node without an operator type or without outputs".into()));
    }
    if !proto.overload().is_empty() {
        return refused(OpError::Unsupported("overloaded functions".into()));
    }
    let mut inputs = proto.input;
    if !captured.is_empty() {
        attrs.0.insert(CAPTURED.into(), Attr::Int(captured.len() as i64));
        inputs.extend(captured);
    }
    Ok(RawNode { name, domain, op_type, inputs, outputs: proto.output, attrs })
}

/// The inputs of a node that are read only by its sub-graphs.
pub(crate) fn captured(node: &Node) -> &[String] {
    let count = match &node.op {
        Op::Opaque(op) => op.attrs.0.get(CAPTURED),
        _ => None,
    };
    match count {
        Some(Attr::Int(n)) => {
            let direct = usize::try_from(*n).ok().and_then(|n| node.inputs.len().checked_sub(n));
            direct.map_or(&[], |first| &node.inputs[first..])
        }
        _ => &[],
    }
}

/// Names that a sub-graph reads but does not make.
pub(crate) fn captured_names(graph: &GraphProto) -> BTreeSet<String> {
    let mut made: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    made.extend(graph.input.iter().map(|v| v.name()));
    made.extend(graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
    let outputs = graph.output.iter().map(|v| v.name().to_string());
    let inputs = graph.node.iter().flat_map(|n| n.input.iter().cloned());
    let nested = graph.node.iter().flat_map(|n| &n.attribute).flat_map(|a| a.g.iter().chain(&a.graphs));
    let read = outputs.chain(inputs).chain(nested.flat_map(captured_names));
    read.filter(|name| !name.is_empty() && !made.contains(name.as_str())).collect()
}

fn value_info(proto: &ValueInfoProto) -> Result<ValueInfo, OnnxError> {
    let name = proto.name().to_string();
    let (code, shape) = match proto.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        None => (0, None),
        Some(Value::Tensor(t)) => (t.elem_type(), t.shape.as_ref()),
        Some(_) => {
            let what = format!("the input or output `{name}`, which is not a tensor,");
            return Err(OnnxError::Unsupported { what, hint: "cut the model before it" });
        }
    };
    let dim = |value: &Option<DimensionValue>| match value {
        Some(DimensionValue::DimValue(n)) => usize::try_from(*n).map_or(Dim::Symbol(String::new()), Dim::Fixed),
        Some(DimensionValue::DimParam(name)) => Dim::Symbol(name.clone()),
        None => Dim::Symbol(String::new()),
    };
    let dims = shape.map(|s| s.dim.iter().map(|d| dim(&d.value)).collect());
    Ok(ValueInfo { name, dtype: tensor::dtype_of(code), dims })
}
