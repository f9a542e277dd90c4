//! What a QuantizeLinear or DequantizeLinear node states by constants.

use crate::codes::unpack;
use fewbits_graph::{Attr, DType, Granularity, Graph, Grid, Node, QuantParams};

/// Scale, zero point and code type of a QuantizeLinear or DequantizeLinear node.
#[derive(Clone, PartialEq)]
pub(super) struct Codes {
    pub scale: Vec<f32>,
    pub zero_point: Vec<i32>,
    axis: Option<i64>,
    pub dtype: DType,
}

impl Codes {
    /// The constants of node `node`, or why they cannot be lifted.
    pub fn read(graph: &Graph, node: &Node) -> Result<Self, &'static str> {
        for (name, value) in &node.op.def().attrs().0 {
            match (name.as_str(), value) {
                ("axis" | "saturate", _) | ("block_size" | "output_dtype" | "precision", Attr::Int(0)) => {}
                ("block_size", _) => return Err("scales for blocks"),
                _ => return Err("a type stated by an attribute"),
            }
        }
        let constant = |i| node.input(i).and_then(|name| graph.constant(name));
        let scale = constant(1).ok_or("the scale is computed")?;
        let values = scale.as_f32().ok_or("the scale is not float32")?.to_vec();
        if values.is_empty() || !values.iter().all(|s| *s > 0.0 && s.is_finite()) {
            return Err("a scale is not a positive number");
        }
        let (zero_point, mut dtype) = match (node.input(2), constant(2)) {
            (None, _) => (vec![0; values.len()], DType::U8),
            (_, Some(zero)) => {
                let codes = unpack(zero).filter(|z| z.len() == values.len());
                (codes.ok_or("16-bit or other wide codes")?, zero.dtype())
            }
            _ => return Err("the zero point is computed"),
        };
        if let (None, Some(codes)) = (node.input(2), constant(0).filter(|_| node.op.name() == "DequantizeLinear")) {
            dtype = codes.dtype(); // without a zero point the type is that of the codes
        }
        let axis = match node.op.def().attrs().0.get("axis") {
            Some(Attr::Int(axis)) => *axis,
            _ => 1,
        };
        match scale.dims.len() {
            0 => Ok(Codes { scale: values, zero_point, axis: None, dtype }),
            1 => Ok(Codes { axis: (values.len() > 1).then_some(axis), scale: values, zero_point, dtype }),
            _ => Err("scales for blocks"),
        }
    }

    /// As parameters of a tensor; `rank` turns a negative axis into a position.
    pub fn params(&self, grid: Grid, rank: Option<usize>) -> Option<QuantParams> {
        let granularity = match self.axis {
            None => Granularity::Tensor,
            Some(axis) => {
                let axis = if axis < 0 { axis + rank? as i64 } else { axis };
                Granularity::Channel { axis: usize::try_from(axis).ok()? }
            }
        };
        Some(QuantParams { grid, granularity, scale: self.scale.clone(), zero_point: self.zero_point.clone() })
    }
}
