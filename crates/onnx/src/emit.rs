//! A float graph and its grids → a graph with QuantizeLinear / DequantizeLinear nodes, named as ONNX Runtime's quantizer
//! names them.
//!
//! Activations become `X → QuantizeLinear → DequantizeLinear → readers`, weights and biases integer constants behind a
//! DequantizeLinear. Inputs and outputs of the graph keep their names.

use crate::{
    codes::{Container, misfit, quantize},
    error::OnnxError,
    guard::guarded,
    import::{captured, first_free},
};
use fewbits_graph::{
    Attr, Attrs, Granularity, Graph, Grids, Node, Op, QuantParams, Tensor, TensorQuant,
    op::{Activation, Fact, OutRule},
    passes::is_layer_input_slot,
};
use fewbits_kernels::int::quantize::quantize_bias;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// Metadata key of the true widths: a JSON object from tensor names to bits, for tensors that use only part of their type.
pub const BITS_KEY: &str = "fewbits.bits";

/// How quantization is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmitOptions {
    /// Leave biases float (TensorRT) instead of 32-bit integers.
    pub float_bias: bool,
    /// Store weights of up to 2 and 4 bits in the types of that width (operator sets 25 and 21) instead of 8-bit ones.
    pub packed_weights: bool,
}

/// Lays `grids` over `graph` as nodes.
///
/// Weights are stored as `clamp(round_ties_even(w / s) + z)`, biases as `round_ties_even(b / f32(s_x · s_w))`. A grid of
/// fewer codes than its type gets a Clip to `(qmin − z) · s … (qmax − z) · s` before its QuantizeLinear. The operator before the
/// Clip (and before a Relu or Clip of the network that the grid implies) gets a Q/DQ pair of its own with the same scale: that
/// rounds to the same codes, and without it ONNX Runtime would compute the operator in float. A layer with float weights between
/// grids reads its input through a Max of one operand: without it ONNX Runtime would round the weights.
///
/// # Errors
/// [`OnnxError::Grid`] for a name that the graph does not have, or parameters that do not fit the tensor.
pub fn emit_qdq(graph: &Graph, grids: &Grids, options: &EmitOptions) -> Result<Graph, OnnxError> {
    let mut names: HashSet<String> = graph.constants.keys().cloned().collect();
    names.extend(graph.inputs.iter().map(|v| v.name.clone()));
    names.extend(graph.nodes.iter().flat_map(|n| n.outputs.iter().cloned()));
    if let Some(unknown) = grids.0.keys().find(|name| !names.contains(*name)) {
        return Err(OnnxError::Grid { tensor: unknown.clone(), reason: "the graph has no such tensor" });
    }
    names.extend(graph.nodes.iter().map(|n| n.name.clone()));
    let out = Graph { nodes: Vec::new(), ..graph.clone() };
    let (read_as, parameters, bits) = Default::default();
    let (consumers, guarded) = (graph.consumers(), guarded(graph, grids));
    let mut emitter = Emitter { graph, grids, options, consumers, guarded, out, names, read_as, parameters, bits };
    for input in &graph.inputs {
        emitter.activation(&input.name, &input.name, Rounding::None)?;
    }
    for node in &graph.nodes {
        emitter.node(node)?;
    }
    let Emitter { mut out, bits, .. } = emitter;
    if !bits.is_empty() {
        let text = serde_json::to_string(&bits).expect("strings and numbers are valid JSON");
        out.metadata.insert(BITS_KEY.into(), text);
    }
    out.prune();
    Ok(out)
}

/// What is known about the values of a tensor whose grid has fewer codes than its type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounding {
    /// Nothing.
    None,
    /// They come from an operator that can only run on codes if a Q/DQ pair follows it.
    Due,
    /// They are on a grid of the type already.
    Done,
    /// They are on the grid itself.
    Inherited,
}

struct Emitter<'a> {
    graph: &'a Graph,
    grids: &'a Grids,
    options: &'a EmitOptions,
    consumers: HashMap<&'a str, Vec<usize>>,
    /// Nodes that get a guard, by name.
    guarded: HashSet<String>,
    out: Graph,
    /// Every tensor and node name in use.
    names: HashSet<String>,
    /// Quantized tensor → the DequantizeLinear output that its readers read.
    read_as: HashMap<String, String>,
    /// Tensor that owns a grid, and width of its type → names of its scale and zero point.
    parameters: HashMap<(String, u8), [String; 2]>,
    bits: BTreeMap<String, u8>,
}

impl Emitter<'_> {
    fn fresh(&mut self, stem: &str) -> String {
        let name = first_free(stem, &self.names);
        self.names.insert(name.clone());
        name
    }

    fn constant(&mut self, stem: &str, value: Tensor) -> String {
        let name = self.fresh(stem);
        self.out.constants.insert(name.clone(), Arc::new(value));
        name
    }

    fn push(
        &mut self,
        name: &str,
        op_type: &str,
        attrs: Attrs,
        inputs: &[&str],
        output: &str,
    ) -> Result<(), OnnxError> {
        let name = self.fresh(name);
        let op = Op::from_attrs(op_type, &attrs).map_err(|source| OnnxError::Node {
            node: name.clone(),
            op_type: op_type.into(),
            source,
        })?;
        let inputs = inputs.iter().map(|s| s.to_string()).collect();
        self.out.nodes.push(Node { name, op, inputs, outputs: vec![output.into()] });
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<(), OnnxError> {
        let mut copy = node.clone();
        let direct = node.inputs.len() - captured(node).len();
        for name in copy.inputs[..direct].iter_mut().filter(|name| !name.is_empty()) {
            if let Some(value) = self.graph.constant(name)
                && !self.read_as.contains_key(name)
            {
                self.parameter(name, value)?;
            }
            if let Some(dequantized) = self.read_as.get(name) {
                name.clone_from(dequantized);
            }
        }
        if self.guarded.contains(&node.name) {
            let guard = self.fresh(&format!("{}_guard_Output", node.name));
            self.push(&format!("{}_guard", node.name), "Max", Attrs::default(), &[&copy.inputs[0]], &guard)?;
            copy.inputs[0] = guard;
        }
        let rounding = if self.inherits(node) {
            Rounding::Inherited
        } else if is_layer_input_slot(node) {
            Rounding::Done // nothing is computed that could run on codes
        } else if let Some(params) = self.implied_grid(node) {
            copy.inputs[0] = self.round(&node.inputs[0], node.output(), &params)?;
            Rounding::Done
        } else {
            Rounding::Due
        };
        let mut renamed = Vec::new();
        for name in copy.outputs.iter_mut().filter(|name| self.grids.params(name).is_some()) {
            let stem = name.clone();
            if self.graph.is_output(name) {
                *name = self.fresh(&format!("{name}_float"));
            }
            renamed.push((name.clone(), stem));
        }
        self.out.nodes.push(copy);
        renamed.iter().try_for_each(|(name, stem)| self.activation(name, stem, rounding))
    }

    /// Whether `node` moves elements of one grid about, so that no code outside the grid can appear.
    fn inherits(&self, node: &Node) -> bool {
        let pads_any = matches!(node.op, Op::Pad(_)) && node.input(2).is_some();
        let moves = node.op.def().quant_rule().output == OutRule::SameAsInput && !pads_any;
        let grid = node.input(0).and_then(|name| self.grids.params(name));
        moves && grid.is_some() && node.outputs.iter().all(|name| self.grids.params(name) == grid)
    }

    /// The grid of the output of `node`, if it has fewer codes than its type, and `node` is a Relu or Clip that cuts off nothing
    /// of the grid and alone reads what another node computes.
    fn implied_grid(&self, node: &Node) -> Option<QuantParams> {
        let (input, params) = (node.input(0)?, self.grids.params(node.output())?);
        let alone = self.consumers.get(input).is_some_and(|readers| readers.len() == 1) && !self.graph.is_output(input);
        let computed = self.graph.constant(input).is_none() && self.graph.inputs.iter().all(|v| v.name != input);
        if !is_partial(params)
            || params.tensor_params().is_none()
            || !alone
            || !computed
            || self.grids.params(input).is_some()
        {
            return None;
        }
        let bounds: Vec<Option<Fact>> =
            node.inputs.iter().map(|name| self.graph.constant(name).cloned().map(Fact::constant)).collect();
        let known = node.inputs.iter().zip(&bounds).skip(1).all(|(name, fact)| name.is_empty() || fact.is_some());
        let facts: Vec<Option<&Fact>> = bounds.iter().map(Option::as_ref).collect();
        let Some(Activation::Clamp { min, max }) = node.op.def().activation(&facts).filter(|_| known) else {
            return None;
        };
        let (low, high) = params.range(0);
        (min - low <= f32::EPSILON && high - max <= f32::EPSILON).then(|| params.clone())
    }

    /// A Q/DQ pair behind tensor `name` with the scale and zero point of `stem`; returns its output.
    fn round(&mut self, name: &str, stem: &str, params: &QuantParams) -> Result<String, OnnxError> {
        let container = Container { bits: 8, signed: params.grid.signed };
        let [scale, zero_point] = self.parameter_names(stem, params, container);
        let codes = self.fresh(&format!("{stem}_round_QuantizeLinear_Output"));
        let rounded = self.fresh(&format!("{stem}_round_DequantizeLinear_Output"));
        let operands = [name, &scale, &zero_point];
        self.push(&format!("{stem}_round_QuantizeLinear"), "QuantizeLinear", Attrs::default(), &operands, &codes)?;
        let operands = [&codes[..], &scale, &zero_point];
        self.push(
            &format!("{stem}_round_DequantizeLinear"),
            "DequantizeLinear",
            Attrs::default(),
            &operands,
            &rounded,
        )?;
        Ok(rounded)
    }

    /// Quantizes the tensor now called `name`, whose grid is that of `stem`; a graph output `stem` is written by the
    /// DequantizeLinear.
    fn activation(&mut self, name: &str, stem: &str, rounding: Rounding) -> Result<(), OnnxError> {
        let Some(params) = self.grids.params(stem) else { return Ok(()) };
        let refused = |reason| OnnxError::Grid { tensor: stem.to_string(), reason };
        if let Some(reason) = misfit(params, None) {
            return Err(refused(reason));
        }
        let container = Container { bits: 8, signed: params.grid.signed };
        let mut real = name.to_string();
        if is_partial(params) {
            self.bits.insert(stem.to_string(), params.grid.bits);
        }
        if is_partial(params) && rounding != Rounding::Inherited {
            params.tensor_params().ok_or_else(|| refused("fewer codes than the type has, for each channel"))?;
            if rounding == Rounding::Due {
                real = self.round(name, stem, params)?;
            }
            let (low, high) = params.range(0);
            let low = self.constant(&format!("{stem}_clip_min"), Tensor::f32(&[], vec![low]));
            let high = self.constant(&format!("{stem}_clip_max"), Tensor::f32(&[], vec![high]));
            let clipped = self.fresh(&format!("{stem}_Clip_Output"));
            self.push(&format!("{stem}_Clip"), "Clip", Attrs::default(), &[&real, &low, &high], &clipped)?;
            real = clipped;
        }
        let [scale, zero_point] = self.parameter_names(stem, params, container);
        let codes = self.fresh(&format!("{stem}_QuantizeLinear_Output"));
        let operands = [&real, &scale, &zero_point].map(String::as_str);
        self.push(&format!("{stem}_QuantizeLinear"), "QuantizeLinear", axis_attr(params), &operands, &codes)?;
        let dequantized =
            if name == stem { self.fresh(&format!("{stem}_DequantizeLinear_Output")) } else { stem.into() };
        let operands = [&codes, &scale, &zero_point].map(String::as_str);
        self.push(&format!("{stem}_DequantizeLinear"), "DequantizeLinear", axis_attr(params), &operands, &dequantized)?;
        self.read_as.insert(stem.into(), dequantized);
        Ok(())
    }

    /// Quantizes the constant `name` if it is a weight or a bias with a grid.
    fn parameter(&mut self, name: &str, value: &Tensor) -> Result<(), OnnxError> {
        let refused = |reason| OnnxError::Grid { tensor: name.to_string(), reason };
        let floats = || value.as_f32().ok_or_else(|| refused("only float32 constants can be quantized"));
        let codes_stem = format!("{name}_quantized");
        let (codes, attrs, [scale, zero_point]);
        if let Some(params) = self.grids.params(name) {
            if let Some(reason) = misfit(params, Some(&value.dims)) {
                return Err(refused(reason));
            }
            let container = self.weight_container(params);
            let all = container.grid();
            if !params.zero_point.iter().all(|z| (all.qmin()..=all.qmax()).contains(z)) {
                return Err(refused("a zero point is outside its type"));
            }
            if params.grid.bits != container.bits {
                self.bits.insert(name.into(), params.grid.bits);
            }
            codes = container.pack(&value.dims, &quantize(floats()?, &value.dims, params));
            attrs = axis_attr(params);
            [scale, zero_point] = self.parameter_names(name, params, container);
        } else if let Some(TensorQuant::BiasOf { input, weight }) = self.grids.0.get(name)
            && !self.options.float_bias
        {
            let (Some(scales), Some((input_scale, _)), Some(weights)) = (
                self.grids.bias_scales(name),
                self.grids.params(input).and_then(QuantParams::tensor_params),
                self.grids.params(weight),
            ) else {
                return Ok(()); // the sums are float, so the bias is
            };
            if !scales.iter().all(|s| *s > 0.0 && s.is_finite()) {
                return Err(refused("the product of the input and weight scales is not a positive number"));
            }
            if scales.len() > 1 && value.dims.last() != Some(&scales.len()) {
                return Err(refused("the number of biases differs from the number of weight scales"));
            }
            let dims: &[usize] = if scales.len() == 1 { &[] } else { &[scales.len()] };
            if floats()?.len() > scales.len() && scales.len() > 1 {
                return Err(refused("a bias must have one value for each output channel"));
            }
            codes = Tensor::i32(&value.dims, quantize_bias(floats()?, input_scale, &weights.scale));
            attrs = match value.dims.len() {
                rank @ 1.. if scales.len() > 1 => Attrs::default().with("axis", Attr::Int(rank as i64 - 1)),
                _ => Attrs::default(),
            };
            let zeros = Tensor::i32(dims, vec![0; scales.len()]);
            scale = self.constant(&format!("{codes_stem}_scale"), Tensor::f32(dims, scales));
            zero_point = self.constant(&format!("{codes_stem}_zero_point"), zeros);
        } else {
            return Ok(());
        }
        let codes = self.constant(&codes_stem, codes);
        let dequantized = self.fresh(&format!("{name}_DequantizeLinear_Output"));
        let operands = [&codes, &scale, &zero_point].map(String::as_str);
        self.push(&format!("{name}_DequantizeLinear"), "DequantizeLinear", attrs, &operands, &dequantized)?;
        self.read_as.insert(name.into(), dequantized);
        Ok(())
    }

    fn weight_container(&self, params: &QuantParams) -> Container {
        let bits = match params.grid.bits {
            2 if self.options.packed_weights => 2,
            3 | 4 if self.options.packed_weights => 4,
            _ => 8,
        };
        Container { bits, signed: params.grid.signed }
    }

    /// Scale and zero point of `name`; tensors that share a grid share them.
    fn parameter_names(&mut self, name: &str, params: &QuantParams, container: Container) -> [String; 2] {
        let mut owner = name;
        while let Some(TensorQuant::SameAs(other)) = self.grids.0.get(owner) {
            owner = other; // ends: `params` were found by the same steps
        }
        let key = (owner.to_string(), container.bits);
        if let Some(known) = self.parameters.get(&key) {
            return known.clone();
        }
        let dims: &[usize] = if params.granularity == Granularity::Tensor { &[] } else { &[params.scale.len()] };
        let scale = self.constant(&format!("{owner}_scale"), Tensor::f32(dims, params.scale.clone()));
        let zero_point = self.constant(&format!("{owner}_zero_point"), container.pack(dims, &params.zero_point));
        let names = [scale, zero_point];
        self.parameters.insert(key, names.clone());
        names
    }
}

/// Whether the 8-bit type has more codes than the grid.
fn is_partial(params: &QuantParams) -> bool {
    let all = Container { bits: 8, signed: params.grid.signed }.grid();
    (params.grid.qmin(), params.grid.qmax()) != (all.qmin(), all.qmax())
}

fn axis_attr(params: &QuantParams) -> Attrs {
    match params.granularity {
        Granularity::Channel { axis } => Attrs::default().with("axis", Attr::Int(axis as i64)),
        _ => Attrs::default(),
    }
}
