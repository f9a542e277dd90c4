//! Weights and biases as a method rounds them at each width, made once, so that assignments are judged by what will ship.

use crate::{
    Error,
    methods::Method,
    progress::Progress,
    quantize::{Quantized, Settings},
    refine::{MEMORY, Runs, Stage},
};
use fewbits_kernels::Threads;
use fewbits_methods::{BlockMethod, Draft, Ground, Walk, layers, walk::walk_through};
use fewbits_quant::calibrate::{self, Policy};
use fewbits_search::Prepared;

/// What weights are rounded on.
pub struct Rounder<'a> {
    pub ground: Ground<'a>,
    /// The network with the grids of its activations.
    pub first: &'a Quantized,
    pub settings: &'a Settings,
    pub samples: &'a Runs<'a>,
    pub threads: &'a Threads,
}

/// What `method` makes of every layer at each of `widths`, all other layers at the same width.
///
/// # Errors
/// [`Error::Usage`] if the method does not round weights layer by layer or block by block; those of the method.
pub fn rounded(
    method: Method,
    widths: &[u8],
    rounder: &Rounder<'_>,
    progress: &dyn Progress,
) -> Result<Prepared, Error> {
    let Rounder { ground, first, settings, samples, threads } = *rounder;
    let mut prepared = Prepared::new();
    for &bits in widths {
        let Some(Stage::Walk(methods)) = Stage::of(method, settings, None) else {
            return Err(Error::Usage {
                what: format!("`{method}` does not round weights layer by layer"),
                hint: "search with mixed-clipping, comq, seq-mse, adaround or brecq inside".into(),
            });
        };
        let methods: Vec<&dyn BlockMethod> = methods.iter().map(|m| &**m).collect();
        let policy = Policy { weight_bits: bits, edge_bits: bits, ..settings.policy.clone() };
        let mut draft = Draft { graph: ground.float.clone(), grids: first.grids.clone() };
        let weights = calibrate::weights(ground.float, ground.placement, &policy)?;
        calibrate::add_weights(ground.float, ground.placement, &weights, &mut draft.grids);
        let mut walk = Walk::new(ground, samples, MEMORY, threads)?;
        walk_through(&mut walk, &mut draft, &methods, None, progress, |_, _| Ok::<_, Error>(()))?;
        for layer in layers(ground.float, ground.placement) {
            let names = [Some(&layer.weight), layer.bias.as_ref()].into_iter().flatten();
            let constants = names.filter_map(|name| Some((name.clone(), draft.graph.constant(name)?.clone())));
            prepared.insert((layer.weight.clone(), bits), constants.collect());
        }
    }
    Ok(prepared)
}
