//! What each layer does to the network at each width, all others left float.
//!
//! A float network and samples enter; a table leaves. The network is walked block by block. For each layer the float tensors that
//! lead up to it are computed once per sample; only the layer and what follows it, up to where the damage is looked at, is computed
//! for each width.

pub(crate) mod cut;
mod probe;
mod table;

use crate::{Metric, Rounding, SearchError, cost};
use fewbits_graph::{Grids, Tensor};
use fewbits_kernels::Threads;
use fewbits_methods::{Draft, Ground, Layer, Progress, Samples, Walk};
use probe::Probe;
use std::sync::Arc;
pub(crate) use table::add;
pub use table::{InputDamage, LayerDamage, Level, Sensitivity};

/// How sensitivities are measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What damage is.
    pub metric: Metric,
    /// Where it is looked at.
    pub level: Level,
    /// Widths of weights, ascending.
    pub widths: Vec<u8>,
    /// How weights are rounded.
    pub rounding: Rounding,
    /// Bytes of samples' tensors that are kept in memory.
    pub memory: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            metric: Metric::default(),
            level: Level::default(),
            widths: vec![2, 3, 4, 5, 6, 8],
            rounding: Rounding::default(),
            memory: 2 << 30,
        }
    }
}

/// Measures every layer of `ground`. With `activations`, the layer's input is rounded to its grid there as well.
///
/// Results do not depend on the number of threads. Cost for `L` layers, `B` widths and `N` samples: about `L·N` float blocks, and
/// `L·B·N` layers (local), halves of blocks (block) or halves of networks (network); weighted as local, and `L·N` halves of networks.
///
/// # Errors
/// Those of the samples, the network and its weights; [`SearchError::NoLayers`].
pub fn measure(
    ground: Ground<'_>,
    samples: &dyn Samples,
    activations: Option<&Grids>,
    config: &Config,
    threads: &Threads,
    progress: &dyn Progress,
) -> Result<Sensitivity, SearchError> {
    let mut walk = Walk::new(ground, samples, config.memory, threads)?;
    let mut probe = Probe::new(ground, samples, activations, config, threads)?;
    let float = Draft { graph: ground.float.clone(), grids: Grids::default() };
    let mut layers: Vec<LayerDamage> = vec![];
    progress.begin("sensitivity", fewbits_methods::layers(ground.float, ground.placement).len());
    while let Some(block) = walk.block().cloned() {
        for layer in &block.layers {
            let found = probe.layer(&walk, layer)?;
            add(&mut layers, found);
            progress.step();
        }
        probe.keep(&walk)?;
        walk.advance(&float)?;
    }
    progress.end();
    if layers.is_empty() {
        return Err(SearchError::NoLayers);
    }
    Ok(Sensitivity {
        metric: Some(config.metric),
        level: config.level,
        widths: config.widths.clone(),
        layers,
        input_widths: vec![],
        inputs: vec![],
    })
}

/// What `layer` is, and its damage at each width. `activations` have the grid of its input.
pub(crate) fn describe(
    ground: &Ground<'_>,
    layer: &Layer,
    activations: Option<&Grids>,
    rounding: Rounding,
    damage: Vec<f64>,
) -> LayerDamage {
    let node = &ground.float.nodes[layer.node];
    let dims = &weight(ground, layer).dims;
    let input = activations.and_then(|grids| grids.params(&layer.input));
    LayerDamage {
        layer: node.name.clone(),
        weight: layer.weight.clone(),
        input: ground.placement.owner(&layer.input).into(),
        edge: layer.edge,
        elements: dims.iter().product::<usize>() as u64,
        rows: dims[layer.axis] as u64,
        scales: rounding.scales(dims, layer.axis) as u64,
        macs: cost::macs(node, ground.facts),
        input_bits: input.map_or(8, |params| params.grid.bits),
        damage,
    }
}

pub(crate) fn weight<'a>(ground: &Ground<'a>, layer: &Layer) -> &'a Arc<Tensor> {
    ground.float.constant(&layer.weight).expect("a layer's weight is a constant")
}

#[cfg(test)]
mod tests;
