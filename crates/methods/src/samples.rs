//! Samples as methods see them: prepared inputs of the network, by number.

use fewbits_graph::Tensor;
use std::error::Error;

/// The inputs of the network, run by run. A run holds as many samples as the network's batch size if that is fixed, else one.
pub trait Samples: Sync {
    /// How many runs there are.
    fn count(&self) -> usize;

    /// The inputs of run `i`, in the order of the graph's inputs.
    ///
    /// # Errors
    /// Whatever keeps a sample from being read.
    fn inputs(&self, i: usize) -> Result<Vec<Tensor>, Box<dyn Error + Send + Sync>>;
}

impl Samples for Vec<Vec<Tensor>> {
    fn count(&self) -> usize {
        Vec::len(self)
    }

    fn inputs(&self, i: usize) -> Result<Vec<Tensor>, Box<dyn Error + Send + Sync>> {
        Ok(self[i].clone())
    }
}

/// Which samples a loss is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those that decide.
    Fit,
    /// Others, which have a say whether to keep it.
    Held,
}
