//! Weights and biases as a method rounds them at each width, made once, so that assignments are judged by what will ship.

use crate::{
    Error,
    methods::Method,
    progress::Progress,
    quantize::{Quantized, Settings},
    refine::{MEMORY, Runs, Stage},
};
use fewbits_graph::exec::rounded_constant;
use fewbits_kernels::Threads;
use fewbits_methods::{BlockMethod, Draft, Ground, Walk, layers, walk::walk_through};
use fewbits_quant::calibrate::{self, Policy};
use fewbits_search::Prepared;

/// The methods that round weights where they stand, layer by layer or block by block.
const ROUNDING: [Method; 8] = [
    Method::MixedClipping,
    Method::Aciq,
    Method::Omse,
    Method::SeqMse,
    Method::Comq,
    Method::AdaRound,
    Method::Brecq,
    Method::QDrop,
];

/// Whether a search can round with `method`.
///
/// # Errors
/// [`Error::Usage`] if not.
pub fn check(method: Option<Method>) -> Result<(), Error> {
    match method.filter(|method| !ROUNDING.contains(method)) {
        None => Ok(()),
        Some(method) => Err(Error::Usage {
            what: format!("`{method}` does not round weights layer by layer"),
            hint: format!("search with one of these inside: {}", ROUNDING.map(|method| method.to_string()).join(", ")),
        }),
    }
}

/// What weights are rounded on.
pub struct Rounder<'a> {
    pub ground: Ground<'a>,
    /// The network with the grids of its activations.
    pub first: &'a Quantized,
    pub settings: &'a Settings,
    pub samples: &'a Runs<'a>,
    pub threads: &'a Threads,
}

/// What `method`, which [`check`] accepts, makes of every layer at each of `widths`, all other layers at the same width.
///
/// # Errors
/// Those of the method.
pub fn rounded(
    method: Method,
    widths: &[u8],
    rounder: &Rounder<'_>,
    progress: &dyn Progress,
) -> Result<Prepared, Error> {
    let Rounder { ground, first, settings, samples, threads } = *rounder;
    let mut prepared = Prepared::new();
    for &bits in widths {
        let Some(Stage::Walk(methods)) = Stage::of(method, settings, None) else { continue };
        let methods: Vec<&dyn BlockMethod> = methods.iter().map(|m| &**m).collect();
        let policy = Policy { weight_bits: bits, edge_bits: bits, ..settings.policy.clone() };
        let mut draft = Draft { graph: ground.float.clone(), grids: first.grids.clone() };
        let weights = calibrate::weights(ground.float, ground.placement, &policy)?;
        calibrate::add_weights(ground.float, ground.placement, &weights, &mut draft.grids);
        let mut walk = Walk::new(ground, samples, MEMORY, threads)?;
        walk_through(&mut walk, &mut draft, &methods, None, progress, |_, _| Ok::<_, Error>(()))?;
        for layer in layers(ground.float, ground.placement) {
            let constant = |name: &String| Some((name.clone(), draft.graph.constant(name)?.clone()));
            // A weight that the method left alone goes to the nearest codes.
            let weight = constant(&layer.weight)
                .map(|(name, tensor)| (name, rounded_constant(&layer.weight, &tensor, &draft.grids)));
            let bias = layer.bias.as_ref().and_then(constant);
            prepared.insert((layer.weight.clone(), bits), weight.into_iter().chain(bias).collect());
        }
    }
    Ok(prepared)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`check`] accepts has to be done, not passed over.
    #[test]
    fn every_method_that_is_accepted_walks() {
        let settings = Settings::new("ort".parse().unwrap(), Policy::new(4, 8, 8));
        for method in ROUNDING {
            assert!(matches!(Stage::of(method, &settings, None), Some(Stage::Walk(_))), "{method}");
        }
    }
}
