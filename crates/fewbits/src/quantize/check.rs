//! What has to hold before anything is quantized.

use super::Settings;
use crate::{Error, Model, stream::Source};
use fewbits_data::Batch;
use fewbits_graph::{
    DType, Graph, Tensor,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;
use std::collections::BTreeSet;

/// Shapes of the inputs as the data have them, for one run of the network.
pub(crate) fn data_shapes(model: &Model, source: &Source<'_>) -> Result<Vec<Vec<usize>>, Error> {
    Model::input(&model.graph)?;
    let first = source.indices.first().copied().ok_or_else(|| Error::Usage {
        what: "there are no calibration samples".into(),
        hint: "--samples must be at least 1".into(),
    })?;
    let mut shape = Batch::read(source.dataset, source.preprocess, &[first])?.shape;
    if let Some(n) = shape.first_mut() {
        *n = Model::fixed_batch(&model.graph).unwrap_or(1);
    }
    Ok(vec![shape])
}

/// Checks that nothing rounds weights anew whose channels have bits of their own: on their grids of 8 bits it would have them all.
pub(super) fn check_channel_bits(settings: &Settings) -> Result<(), Error> {
    let rounding = settings.methods.rounding();
    if !settings.policy.channel_bits || rounding.is_empty() && !settings.methods.explore(&settings.policy) {
        return Ok(());
    }
    let names: Vec<String> = rounding.iter().map(ToString::to_string).collect();
    Err(Error::Usage {
        what: match names.is_empty() {
            true => "--method auto rounds weights anew, which takes bits by channel back".into(),
            false => format!("{} would take bits by channel back", names.join(" and ")),
        },
        hint: "--granularity channel-bits goes with --method basic, none, equalize, absorb-bias, zero-point, bn-tune and bias corrections"
            .into(),
    })
}

/// Checks that the prepared graph computes what the model computes, on one made-up input.
///
/// # Errors
/// [`Error::Model`] if an output differs by more than one part in a thousand of its largest element.
pub(super) fn check_same(model: &Model, graph: &Graph, shapes: &[Vec<usize>], threads: usize) -> Result<(), Error> {
    let inputs: Vec<Tensor> = model.graph.inputs.iter().zip(shapes).map(|(v, dims)| example(v.dtype, dims)).collect();
    let threads = Threads::new(threads);
    let outputs = |graph: &Graph| Executor::new(graph, Mode::Float, &threads).run(&inputs);
    let (before, after) = (outputs(&model.graph), outputs(graph));
    let (before, after) = (before.map_err(Error::graph(&model.path))?, after.map_err(Error::graph(&model.path))?);
    for ((a, b), info) in before.iter().zip(&after).zip(&graph.outputs) {
        let (Some(a), Some(b)) = (a.as_f32(), b.as_f32()) else { continue };
        let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
        // A NaN on one side only is a difference; f32::max would pass it over.
        let difference = |(x, y): (&f32, &f32)| if x.is_nan() && y.is_nan() || x == y { 0.0 } else { (x - y).abs() };
        let worse = |m: f32, d: f32| if m.is_nan() || d.is_nan() { f32::NAN } else { m.max(d) };
        let apart = a.iter().zip(b).map(difference).fold(0f32, worse);
        if apart.is_nan() || apart > 1e-3 * largest.max(1e-6) {
            return Err(Error::Model {
                path: model.path.clone(),
                what: format!("preparation changed output `{}` by {apart} (largest element {largest})", info.name),
                hint: "this is a defect of Fewbits, or the model computes with numbers that are not finite",
            });
        }
    }
    Ok(())
}

/// A smooth, varied input: `sin` of the element's position.
fn example(dtype: DType, dims: &[usize]) -> Tensor {
    let count: usize = dims.iter().product();
    match dtype {
        DType::F32 => Tensor::f32(dims, (0..count).map(|i| (i as f32 * 0.37).sin()).collect()),
        DType::I64 => Tensor::i64(dims, vec![0; count]),
        DType::I32 => Tensor::i32(dims, vec![0; count]),
        DType::U8 => Tensor::u8(dims, vec![0; count]),
        DType::I8 => Tensor::i8(dims, vec![0; count]),
        DType::Bool | DType::Raw(_) => Tensor::bool(dims, vec![false; count]),
    }
}

pub(super) fn check_names(model: &Model, names: &BTreeSet<String>) -> Result<(), Error> {
    let known = |name: &&String| model.graph.nodes.iter().any(|n| n.name == **name);
    match names.iter().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => Err(Error::Usage {
            what: format!("`{}` has no node `{name}`", model.path.display()),
            hint: "`fewbits inspect` lists the nodes".into(),
        }),
    }
}
