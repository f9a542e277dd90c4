//! A model file, read: its graph, the grids it carries if it is quantized already, and how its inputs are prepared.

use crate::Error;
use fewbits_data::Preprocess;
use fewbits_graph::{DType, Dim, Graph, Grids, Op, ValueInfo};
use std::path::{Path, PathBuf};

/// A model.
#[derive(Clone, Debug)]
pub struct Model {
    /// The file.
    pub path: PathBuf,
    /// The network; of a quantized file, the float network under its grids.
    pub graph: Graph,
    /// The grids of a quantized file.
    pub grids: Option<Grids>,
}

impl Model {
    /// Reads an ONNX file; QuantizeLinear / DequantizeLinear pairs are lifted into grids.
    ///
    /// # Errors
    /// [`Error::Onnx`] if the file is no readable model.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let graph = fewbits_onnx::import(path)?;
        Self::lift(path, graph)
    }

    /// As [`Model::load`], from bytes; `name` serves for messages.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, Error> {
        let graph = fewbits_onnx::import_bytes(bytes, None)?;
        Self::lift(Path::new(name), graph)
    }

    fn lift(path: &Path, graph: Graph) -> Result<Self, Error> {
        let quantized = graph.nodes.iter().any(|n| matches!(n.op, Op::QuantizeLinear(_) | Op::DequantizeLinear(_)));
        if !quantized {
            return Ok(Model { path: path.into(), graph, grids: None });
        }
        let lifted = fewbits_onnx::lift(&graph)?;
        let grids = (!lifted.grids.0.is_empty()).then_some(lifted.grids);
        Ok(Model { path: path.into(), graph: lifted.graph, grids })
    }

    /// The single float input of a network that data can be streamed through.
    ///
    /// # Errors
    /// [`Error::Model`] if there are several inputs, or the input is not float.
    pub fn input(graph: &Graph) -> Result<&ValueInfo, Error> {
        let refuse = |what: String| Error::Model {
            path: PathBuf::from(&graph.name),
            what,
            hint: "cut the model so that it takes one float32 image tensor",
        };
        match &graph.inputs[..] {
            [input] if input.dtype == DType::F32 => Ok(input),
            [input] => Err(refuse(format!("input `{}` is {}, not float32", input.name, input.dtype))),
            inputs => Err(refuse(format!("it has {} inputs, not one", inputs.len()))),
        }
    }

    /// The batch size, if the graph fixes it.
    pub fn fixed_batch(graph: &Graph) -> Option<usize> {
        match graph.inputs.first()?.dims.as_ref()?.first()? {
            Dim::Fixed(n) => Some((*n).max(1)),
            Dim::Symbol(_) => None,
        }
    }

    /// Height and width of the input, if the graph fixes them.
    pub fn input_size(&self) -> Option<(usize, usize)> {
        match self.graph.inputs.first()?.dims.as_deref()? {
            [_, _, Dim::Fixed(h), Dim::Fixed(w)] => Some((*h, *w)),
            _ => None,
        }
    }

    /// Shapes of the inputs with every symbol replaced: batch 1, image sides as the metadata or the graph say, else 224.
    pub fn example_shapes(&self) -> Vec<Vec<usize>> {
        let prepared = self.preprocess().ok().flatten().and_then(|p| p.output_size());
        let side = self.graph.metadata.get("input").and_then(|s| s.parse().ok());
        let (h, w) = prepared.or(side.map(|s| (s, s))).unwrap_or((224, 224));
        let concrete = |(axis, dim): (usize, &Dim)| match (dim, axis) {
            (Dim::Fixed(n), _) => *n,
            (Dim::Symbol(_), 2) => h,
            (Dim::Symbol(_), 3) => w,
            (Dim::Symbol(_), _) => 1,
        };
        let shape = |v: &ValueInfo| v.dims.iter().flatten().enumerate().map(concrete).collect();
        self.graph.inputs.iter().map(shape).collect()
    }

    /// How the file says its images are prepared.
    ///
    /// # Errors
    /// [`Error::Data`] if it says so in words that are not understood.
    pub fn preprocess(&self) -> Result<Option<Preprocess>, Error> {
        Ok(Preprocess::from_metadata(&self.graph.metadata, self.input_size(), &self.path)?)
    }
}
