//! Integer constants → float constants and their grids: weights, then the biases whose scales follow from them.

use super::{Codes, Lifter};
use crate::{
    codes::{Container, dequantize, misfit, quantize, unpack},
    import::first_free,
};
use fewbits_graph::{DType, Granularity, Grid, Node, QuantParams, Tensor, TensorQuant};
use fewbits_kernels::int::quantize::quantize_bias;
use std::{collections::HashSet, sync::Arc};

impl<'a> Lifter<'a> {
    /// DequantizeLinear nodes of constants that are not lifted yet.
    fn constant_dequantizers(&self) -> Vec<(usize, &'a Node, &'a str, &'a Tensor)> {
        let constant = |(i, node): (usize, &'a Node)| {
            let name = node.input(0)?;
            Some((i, node, name, self.graph.constants.get(name)?.as_ref()))
        };
        let nodes = self.nodes_of("DequantizeLinear").filter_map(constant);
        nodes.filter(|(i, ..)| !self.lifted.contains(i)).collect()
    }

    pub(super) fn weights(&mut self) {
        let mut groups: Vec<(&str, Codes, String)> = Vec::new();
        for (i, node, name, value) in self.constant_dequantizers() {
            let lifted = Codes::read(self.graph, node).and_then(|codes| {
                if codes.dtype == DType::I32 {
                    return Ok(());
                }
                self.check_result(node)?;
                if codes.dtype != value.dtype() {
                    return Err("codes and zero point differ in type");
                }
                let known = groups.iter().find(|(n, c, _)| *n == name && *c == codes).map(|g| g.2.clone());
                let target = known.map_or_else(|| self.weight(name, value, &codes), Ok)?;
                self.renamed.insert(node.output().into(), target.clone());
                self.lifted.insert(i);
                groups.push((name, codes, target));
                Ok(())
            });
            if let Err(reason) = lifted {
                self.reasons.insert(i, reason);
            }
        }
    }

    /// Makes the float constant of integer codes and lays its grid over it.
    fn weight(&mut self, name: &str, value: &Tensor, codes: &Codes) -> Result<String, &'static str> {
        let container = Container::of(codes.dtype).ok_or("16-bit or other wide codes")?;
        let integers = unpack(value).ok_or("the codes are damaged")?;
        let target = self.float_name(name);
        let lowest = integers.iter().copied().min().unwrap_or(0);
        let grid = |bits: u8| {
            let grid = Grid { bits, ..container.grid() };
            Grid { narrow: grid.signed && lowest > grid.qmin(), ..grid }
        };
        let holds = |bits: &u8| integers.iter().all(|q| (grid(*bits).qmin()..=grid(*bits).qmax()).contains(q));
        let bits =
            self.bits.get(&target).copied().filter(|b| (2..=8).contains(b)).filter(holds).unwrap_or(container.bits);
        let params = codes.params(grid(bits), Some(value.dims.len())).ok_or("the axis is out of range")?;
        if misfit(&params, Some(&value.dims)).is_some() {
            return Err("the parameters do not fit the tensor");
        }
        let floats = dequantize(&integers, &value.dims, &params);
        if quantize(&floats, &value.dims, &params) != integers {
            return Err("float32 cannot hold the values");
        }
        self.constants.insert(target.clone(), Arc::new(Tensor::f32(&value.dims, floats)));
        self.grids.0.insert(target.clone(), TensorQuant::Quantized(params));
        Ok(target)
    }

    pub(super) fn biases(&mut self) {
        for (i, node, name, value) in self.constant_dequantizers() {
            let Some(integers) = value.as_i32() else { continue };
            let lifted = Codes::read(self.graph, node).and_then(|codes| {
                self.check_result(node)?;
                self.bias(node, name, value, integers, &codes)
            });
            match lifted {
                Ok(()) => drop(self.lifted.insert(i)),
                Err(reason) => drop(self.reasons.insert(i, reason)),
            }
        }
    }

    fn bias(&mut self, node: &Node, name: &str, value: &Tensor, q: &[i32], codes: &Codes) -> Result<(), &'static str> {
        let full = Grid { bits: 32, signed: true, narrow: false };
        let params = codes.params(full, Some(value.dims.len())).ok_or("the axis is out of range")?;
        let groups = codes.scale.len();
        let inner: usize = match params.granularity {
            Granularity::Channel { axis } if value.dims.get(axis) == Some(&groups) => {
                value.dims[axis + 1..].iter().product()
            }
            Granularity::Channel { .. } => return Err("the parameters do not fit the tensor"),
            _ => value.len().max(1),
        };
        let group = |i: usize| i / inner % groups;
        let real = |(i, &q): (usize, &i32)| q.wrapping_sub(codes.zero_point[group(i)]) as f32 * codes.scale[group(i)];
        let floats: Vec<f32> = q.iter().enumerate().map(real).collect();
        let state = self.bias_state(node, codes);
        if let Some((TensorQuant::BiasOf { input, weight }, _)) = &state {
            let (input_scale, weights) = (self.grids.params(input), self.grids.params(weight));
            let input_scale = input_scale.and_then(QuantParams::tensor_params).map(|(s, _)| s);
            let again = input_scale.zip(weights).map(|(s, w)| quantize_bias(&floats, s, &w.scale));
            if again.as_deref() != Some(q) {
                return Err("float32 cannot hold the bias codes");
            }
        }
        let target = self.float_name(name);
        self.renamed.insert(node.output().into(), target.clone());
        self.constants.insert(target.clone(), Arc::new(Tensor::f32(&value.dims, floats)));
        if let Some((state, _)) = state {
            self.grids.0.insert(target, state);
        }
        Ok(())
    }

    /// The bias state that all readers of `node` agree on: scales are the products of their input's and weight's.
    fn bias_state(&self, node: &Node, codes: &Codes) -> Option<(TensorQuant, Vec<f32>)> {
        let mut states = self.readers(node.output()).iter().map(|&i| {
            let reader = &self.graph.nodes[i];
            let is_bias = matches!(reader.op.name(), "Conv" | "ConvTranspose" | "Gemm")
                && reader.inputs.iter().position(|s| s == node.output()) == Some(2);
            let (input, weight) = (self.float_side(reader.input(0)?), self.float_side(reader.input(1)?));
            let (input_scale, _) = self.grids.params(&input)?.tensor_params()?;
            let products: Vec<f32> = self.grids.params(&weight)?.scale.iter().map(|s| input_scale * s).collect();
            (is_bias && products == codes.scale && codes.zero_point.iter().all(|&z| z == 0))
                .then_some((TensorQuant::BiasOf { input, weight }, products))
        });
        let first = states.next()??;
        states.all(|other| other.is_some_and(|o| o.1 == first.1)).then_some(first)
    }

    fn check_result(&self, node: &Node) -> Result<(), &'static str> {
        let result = node.output();
        match self.graph.is_output(result) || self.captured.contains(result) {
            true => Err("the constant is a graph output or read by a sub-graph"),
            false => Ok(()),
        }
    }

    /// The name of the float constant for the codes called `name`.
    fn float_name(&self, name: &str) -> String {
        let graph = self.graph;
        // Only a constant that nothing reads as integers any more may change its type under the same name.
        let codes = |i: &usize| -> Option<Codes> {
            let node = &graph.nodes[*i];
            let dequantizes = node.op.name() == "DequantizeLinear" && self.check_result(node).is_ok();
            dequantizes.then(|| Codes::read(graph, node).ok()).flatten()
        };
        let all_lifted = || {
            let readers = self.readers(name);
            let first = readers.first().and_then(codes);
            let alike = first.is_some() && readers.iter().all(|i| codes(i) == first);
            readers.len() == 1 || (alike && first.is_some_and(|c| c.dtype != DType::I32))
        };
        let mut taken: HashSet<String> = graph.constants.keys().chain(self.constants.keys()).cloned().collect();
        taken.extend(graph.inputs.iter().map(|v| v.name.clone()));
        taken.extend(graph.nodes.iter().flat_map(|n| n.outputs.iter().cloned()));
        taken.extend(self.renamed.values().cloned());
        match name.strip_suffix("_quantized").filter(|stem| !stem.is_empty()) {
            Some(stem) => first_free(stem, &taken),
            None if all_lifted() && !self.constants.contains_key(name) => name.into(),
            None => first_free(&format!("{name}_float"), &taken),
        }
    }
}
