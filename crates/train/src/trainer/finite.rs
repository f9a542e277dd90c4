//! Where a training diverges: the tensor, or the leaf, whose numbers are the first that are not finite.

use super::run::Run;
use crate::TrainError;
use fewbits_data::LabelledBatch;
use fewbits_graph::{DType, ValueInfo, exec::infer, tape::Tape};

impl Run<'_> {
    /// The first tensor, in the order of the graph, that is not finite for `batch`; the output if that cannot be told.
    pub(super) fn first_not_finite(&self, batch: &LabelledBatch) -> String {
        if batch.data.iter().any(|x| !x.is_finite()) {
            return self.network.graph().inputs[0].name.clone();
        }
        self.search(batch).unwrap_or_else(|| self.setup.graph.outputs[0].name.clone())
    }

    /// Makes the forward pass of the step again, with every tensor as an output.
    fn search(&self, batch: &LabelledBatch) -> Option<String> {
        let mut graph = self.network.graph().clone();
        let shapes = [batch.shape.clone()];
        let facts = infer(&graph, &shapes).ok()?;
        let float =
            |name: &&String| facts.get(*name).is_some_and(|fact| fact.dtype == DType::F32 && fact.value.is_none());
        let names: Vec<String> = graph.nodes.iter().flat_map(|node| &node.outputs).filter(float).cloned().collect();
        let output = |name: &String| ValueInfo { name: name.clone(), dtype: DType::F32, dims: None };
        graph.outputs = names.iter().map(output).collect();
        let mut config = self.config();
        config.forward_only = true;
        let mut leaves = self.leaves.clone();
        let mut tape = Tape::compile(&graph, &leaves, &shapes, &config).ok()?;
        tape.forward(&mut leaves, &[&batch.data], self.setup.threads);
        let found = (0..names.len()).find(|&i| tape.output(i).iter().any(|x| !x.is_finite()))?;
        Some(names[found].clone())
    }

    /// Names the first leaf with a number that is not finite.
    pub(super) fn check(&self, numbers: &[f32], what: &'static str) -> Result<(), TrainError> {
        // One sum tells for all: it is finite if every number is (or overflows, which the search below settles).
        if numbers.iter().map(|x| x.abs()).sum::<f32>().is_finite() {
            return Ok(());
        }
        let bad = self.leaves.parameters.iter().find(|leaf| numbers[leaf.range.clone()].iter().any(|x| !x.is_finite()));
        match bad {
            Some(leaf) => Err(TrainError::NotFinite { step: self.step, what, tensor: leaf.name.clone() }),
            None => Ok(()),
        }
    }
}
