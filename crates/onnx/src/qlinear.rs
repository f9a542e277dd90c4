//! Operator-format quantization (QLinearConv …) → DequantizeLinear, float operator, QuantizeLinear.

use crate::raise::{Raiser, RawNode};
use fewbits_graph::{Attr, OpError, Tensor};

/// Domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// Where an operator-format node keeps its quantized tensors: positions of (codes, scale, zero point) triples of the
/// inputs, and of the (scale, zero point) of the output.
struct Form {
    op_type: &'static str,
    domain: &'static str,
    float: &'static str,
    operands: &'static [usize],
    output: usize,
}

const fn form(
    op_type: &'static str,
    domain: &'static str,
    float: &'static str,
    operands: &'static [usize],
    output: usize,
) -> Form {
    Form { op_type, domain, float, operands, output }
}

const FORMS: &[Form] = &[
    form("QLinearConv", "", "Conv", &[0, 3], 6),
    form("QLinearMatMul", "", "MatMul", &[0, 3], 6),
    form("QLinearAdd", MICROSOFT, "Add", &[0, 3], 6),
    form("QLinearMul", MICROSOFT, "Mul", &[0, 3], 6),
    form("QLinearSigmoid", MICROSOFT, "Sigmoid", &[0], 3),
    form("QLinearLeakyRelu", MICROSOFT, "LeakyRelu", &[0], 3),
    form("QLinearAveragePool", MICROSOFT, "AveragePool", &[0], 3),
    form("QLinearGlobalAveragePool", MICROSOFT, "GlobalAveragePool", &[0], 3),
    form("QLinearSoftmax", MICROSOFT, "Softmax", &[0], 3),
    form("QGemm", MICROSOFT, "Gemm", &[0, 3], 7),
    form("QLinearConcat", MICROSOFT, "Concat", &[], 0),
];

/// The nodes that `node` stands for: itself, unless it is an operator-format one.
pub(crate) fn rewrite(raiser: &mut Raiser, mut node: RawNode) -> Result<Vec<RawNode>, OpError> {
    let Some(form) = FORMS.iter().find(|f| f.op_type == node.op_type && f.domain == node.domain) else {
        return Ok(vec![node]);
    };
    // Kept as it is: channels-last variants have no float operator of the same layout.
    if matches!(node.attrs.0.remove("channels_last"), Some(Attr::Int(n)) if n != 0) {
        node.attrs.0.insert("channels_last".into(), Attr::Int(1));
        return Ok(vec![node]);
    }
    let mut nodes = Vec::new();
    let triples: Vec<usize> =
        if form.float == "Concat" { (2..node.inputs.len()).step_by(3).collect() } else { form.operands.to_vec() };
    let mut inputs = Vec::new();
    for (k, &at) in triples.iter().enumerate() {
        // Scales of a weight run along the output channels: axis 0 for a convolution, the last one for a product.
        let axis = match (k, form.float) {
            (1, "MatMul") => Some(-1),
            (1, "Gemm") if node.attrs.int("transB")?.unwrap_or(0) == 0 => Some(1),
            (1, "Conv" | "Gemm") => Some(0),
            _ => None,
        };
        inputs.push(dequantized(raiser, &mut nodes, &node, at, axis)?);
    }
    match form.float {
        "Conv" => inputs.extend(bias(raiser, &mut nodes, &node, 8, 1.0)?),
        "Gemm" => {
            let alpha = node.attrs.float("alpha")?.unwrap_or(1.0);
            inputs.extend(bias(raiser, &mut nodes, &node, 6, alpha)?);
        }
        "Softmax" => softmax_axis(raiser, &mut node)?,
        _ => {}
    }
    let output = node.outputs[0].clone();
    let scale = node.input(form.output).map(String::from);
    let mut float = RawNode { op_type: form.float.into(), domain: String::new(), inputs, ..node.clone() };
    let Some(scale) = scale else {
        nodes.push(float); // QGemm without an output scale has a float output
        return Ok(nodes);
    };
    let real = raiser.fresh(&format!("{output}_float"));
    float.outputs = vec![real.clone()];
    nodes.push(float);
    let name = raiser.fresh(&format!("{output}_QuantizeLinear"));
    let mut operands = vec![real.as_str(), &scale];
    operands.extend(node.input(form.output + 1));
    nodes.push(RawNode::new(name, "QuantizeLinear", &operands, &output));
    Ok(nodes)
}

/// The dequantized form of the triple at input `at`; tensors that several nodes read are dequantized once.
fn dequantized(
    raiser: &mut Raiser,
    nodes: &mut Vec<RawNode>,
    node: &RawNode,
    at: usize,
    axis: Option<i64>,
) -> Result<String, OpError> {
    let codes = node.input(at).ok_or(OpError::MissingInput { index: at })?;
    let scale = node.input(at + 1).ok_or(OpError::MissingInput { index: at + 1 })?;
    let mut operands = vec![codes, scale];
    operands.extend(node.input(at + 2));
    dequantize(raiser, nodes, &operands, axis)
}

fn dequantize(
    raiser: &mut Raiser,
    nodes: &mut Vec<RawNode>,
    operands: &[&str],
    axis: Option<i64>,
) -> Result<String, OpError> {
    let per_axis = raiser.constants.get(operands[1]).is_some_and(|s| s.len() > 1);
    let rank = raiser.constants.get(operands[0]).map(|codes| codes.dims.len() as i64);
    let axis = axis.filter(|_| per_axis).map(|a| if a < 0 { rank.map_or(a, |r| a + r) } else { a });
    let mut key: Vec<String> = operands.iter().map(|s| s.to_string()).collect();
    key.push(axis.unwrap_or_default().to_string());
    if let Some(known) = raiser.dequantized.get(&key) {
        return Ok(known.clone());
    }
    let name = raiser.fresh(&format!("{}_DequantizeLinear", operands[0]));
    let output = raiser.fresh(&format!("{name}_Output"));
    let mut made = RawNode::new(name, "DequantizeLinear", operands, &output);
    if let Some(axis) = axis {
        made = made.with("axis", Attr::Int(axis));
    }
    nodes.push(made);
    raiser.dequantized.insert(key, output.clone());
    Ok(output)
}

/// The bias at input `at`, dequantized with `f32(scale_x · scale_w[c])`, times `alpha` for QGemm.
fn bias(
    raiser: &mut Raiser,
    nodes: &mut Vec<RawNode>,
    node: &RawNode,
    at: usize,
    alpha: f32,
) -> Result<Option<String>, OpError> {
    let Some(codes) = node.input(at) else { return Ok(None) };
    let scales = |i: usize| {
        let constant = node.input(i).and_then(|name| raiser.constants.get(name));
        constant.and_then(|t| t.as_f32()).ok_or(OpError::NotConstant { index: i })
    };
    let ([input], weights) = (scales(1)?, scales(4)?) else {
        return Err(OpError::Unsupported("an input scale per channel".into()));
    };
    let products: Vec<f32> = weights.iter().map(|w| alpha * (input * w)).collect();
    let dims: &[usize] = if products.len() == 1 { &[] } else { &[products.len()] };
    let scale = raiser.constant(&format!("{codes}_scale"), Tensor::f32(dims, products.clone()));
    // A bias of QGemm may have leading axes; its columns are last.
    let rank = raiser.constants.get(codes).map_or(1, |t| t.dims.len() as i64);
    dequantize(raiser, nodes, &[codes, &scale], Some((rank - 1).max(0))).map(Some)
}

/// QLinearSoftmax states the operator set whose Softmax it means.
fn softmax_axis(raiser: &Raiser, node: &mut RawNode) -> Result<(), OpError> {
    let version = node.attrs.int("opset")?.unwrap_or(raiser.opset);
    node.attrs.0.remove("opset");
    let old = |v: i64| v < 13;
    if old(version) == old(raiser.opset) {
        return Ok(());
    }
    let axis = node.attrs.int("axis")?.unwrap_or(if old(version) { 1 } else { -1 });
    let last = axis == -1 || node.input(0).and_then(|x| raiser.ranks.get(x)).is_some_and(|&r| axis + 1 == r as i64);
    if !last {
        return Err(OpError::Unsupported(format!("a QLinearSoftmax of version {version} in this file")));
    }
    node.attrs.0.insert("axis".into(), Attr::Int(-1));
    Ok(())
}
