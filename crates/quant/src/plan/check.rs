//! Whether a plan fits a model. A plan is a file that people edit, so nothing in it is taken on trust.

use super::{Plan, identity::model_sha256};
use crate::error::QuantError;
use fewbits_graph::{Granularity, Graph, QuantParams, Tensor, TensorQuant};
use std::collections::HashSet;

impl Plan {
    /// Checks everything that the executor and the exporter rely on: the plan is for this very graph, its tensors exist, scales
    /// are positive normal numbers, one for each channel of a weight, zero points are codes, shared grids exist, and changed
    /// constants have the shapes of the old ones.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn check(&self, graph: &Graph) -> Result<(), QuantError> {
        let found = model_sha256(graph);
        if found != self.model_sha256 {
            return Err(QuantError::OtherModel { expected: self.model_sha256.clone(), found });
        }
        let mut known: HashSet<&str> = graph.constants.keys().map(String::as_str).collect();
        known.extend(graph.inputs.iter().map(|v| v.name.as_str()));
        known.extend(graph.nodes.iter().flat_map(|n| &n.outputs).map(String::as_str));
        let exists = |name: &str| match known.contains(name) {
            true => Ok(()),
            false => Err(QuantError::UnknownTensor { tensor: name.into() }),
        };
        for (name, quant) in &self.tensors.0 {
            exists(name)?;
            let has_grid = |of: &str| match self.tensors.params(of) {
                Some(_) => Ok(()),
                None => Err(QuantError::NoGrid { tensor: name.clone(), of: of.into() }),
            };
            match quant {
                TensorQuant::Float => {}
                TensorQuant::Quantized(params) => check_params(name, params, graph.constant(name).map(|t| &**t))?,
                TensorQuant::SameAs(of) => has_grid(of)?,
                TensorQuant::BiasOf { input, weight } => {
                    has_grid(input)?;
                    has_grid(weight)?;
                }
            }
        }
        for (name, tensor) in &self.patches {
            let old = graph.constant(name).ok_or_else(|| QuantError::UnknownTensor { tensor: name.clone() })?;
            if (old.dtype(), &old.dims) != (tensor.dtype(), &tensor.dims) {
                let describe = |t: &Tensor| format!("{} {:?}", t.dtype(), t.dims);
                let (expected, found) = (describe(old), describe(tensor));
                return Err(QuantError::PatchShape { tensor: name.clone(), expected, found });
            }
        }
        Ok(())
    }
}

fn check_params(name: &str, params: &QuantParams, constant: Option<&Tensor>) -> Result<(), QuantError> {
    let tensor = || name.to_string();
    let grid = params.grid;
    if !(1..=8).contains(&grid.bits) {
        return Err(QuantError::Bits { tensor: tensor(), bits: grid.bits });
    }
    // The shape of an activation is known at run time only; grids by channel are for weights.
    let groups = match (params.granularity, constant) {
        (Granularity::Tensor, _) => 1,
        (Granularity::Channel { axis }, Some(weight)) if axis < weight.dims.len() => weight.dims[axis],
        (Granularity::Block { axis, size: size @ 1.. }, Some(weight)) if axis < weight.dims.len() => {
            weight.len() / weight.dims[axis].max(1) * weight.dims[axis].div_ceil(size)
        }
        (granularity, _) => {
            let dims = constant.map(|t| t.dims.clone()).unwrap_or_default();
            return Err(QuantError::Granularity { tensor: tensor(), granularity, dims });
        }
    };
    for (what, found) in [("scales", params.scale.len()), ("zero points", params.zero_point.len())] {
        if found != groups {
            return Err(QuantError::Length { tensor: tensor(), what, expected: groups, found });
        }
    }
    if let Some(index) = params.scale.iter().position(|s| !(s.is_normal() && *s > 0.0)) {
        return Err(QuantError::Scale { tensor: tensor(), index, scale: params.scale[index] });
    }
    if let Some(index) = params.zero_point.iter().position(|z| !(grid.qmin()..=grid.qmax()).contains(z)) {
        return Err(QuantError::ZeroPoint { tensor: tensor(), index, zero_point: params.zero_point[index], grid });
    }
    Ok(())
}
