//! Why tensors differ, in words: differences, the second network, and what its grids make of the first one's values enter, sentences
//! leave. All was measured but the noise of weights, which is estimated, and taken for no more than was measured.

use super::{
    FLOAT_THRESHOLD_DB, TensorDifference,
    on_grid::{NARROW, OnGrid},
};
use fewbits_graph::{Graph, Node, QuantParams, op::Role};
use serde::Serialize;
use std::collections::BTreeMap;

/// Tensors that are explained because they add most noise.
const NOISIEST: usize = 3;
/// What makes this share of the noise is named.
const NAMED: f64 = 0.2;
/// From this share on, noise counts as another tensor's.
const MOSTLY: f64 = 0.5;
/// Values that use less than this share of the codes have outliers; channels fewer than this are not worth a word.
const FEW: f64 = 0.25;

/// What makes a tensor noisy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Most of the noise was in its inputs.
    Inherited,
    /// The noise was in its inputs, and more of the signal than of the noise is lost here.
    Cancellation,
    /// Values lie beyond the grid.
    Clipping,
    /// A few values make the grid wide, the others use few of its codes.
    Outliers,
    /// Channels are far smaller than others on the same scale.
    NarrowChannels,
    /// The grid is filled, and still coarse.
    FewBits,
    /// A constant differs between the two networks.
    Constants,
    /// Nothing that was measured says why.
    Unknown,
}

/// One reason why a tensor is noisy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Tensor name.
    pub tensor: String,
    /// What it is.
    pub cause: Cause,
    /// The same in words.
    pub message: String,
}

/// What explanations are drawn from.
pub(super) struct Evidence<'a> {
    /// The first network and the second one.
    pub(super) graphs: [&'a Graph; 2],
    /// Grids of the second one, by tensor.
    pub(super) grids: BTreeMap<&'a str, &'a QuantParams>,
    /// The first network's values on them.
    pub(super) on_grids: &'a BTreeMap<String, OnGrid>,
    /// What was measured, in graph order.
    pub(super) tensors: &'a [TensorDifference],
    /// SQNR below which tensors are called different, dB.
    pub(super) threshold_db: f64,
}

/// Explains the tensors that add most noise, the first that differs, and the one that differs most.
pub(super) fn explanations(evidence: &Evidence<'_>) -> Vec<Explanation> {
    let differ = || evidence.tensors.iter().filter(|t| t.sqnr_db < FLOAT_THRESHOLD_DB);
    let mut chosen: Vec<&TensorDifference> = differ().filter(|t| t.noise_added > 0.0).collect();
    chosen.sort_by(|x, y| y.noise_added.total_cmp(&x.noise_added));
    chosen.truncate(NOISIEST);
    let first = differ().find(|t| t.sqnr_db < evidence.threshold_db);
    let worst = differ().min_by(|x, y| x.sqnr_db.total_cmp(&y.sqnr_db));
    for tensor in [first, worst].into_iter().flatten() {
        if !chosen.iter().any(|t| t.name == tensor.name) {
            chosen.push(tensor);
        }
    }
    chosen.into_iter().flat_map(|tensor| evidence.of(tensor)).collect()
}

impl Evidence<'_> {
    fn of(&self, tensor: &TensorDifference) -> Vec<Explanation> {
        let nodes = self.nodes_behind(&tensor.name);
        let made = self.made_here(tensor, &nodes);
        let unexplained = made.is_empty() && tensor.noise_added >= NAMED * noise(tensor.sqnr_db);
        let found: Vec<(Cause, String)> = match unexplained {
            true => vec![self.unlike(&nodes)],
            false => self.inherited(tensor, &nodes).into_iter().chain(made).collect(),
        };
        let explanation = |(cause, message)| Explanation { tensor: tensor.name.clone(), cause, message };
        found.into_iter().map(explanation).collect()
    }

    fn measured(&self, name: &str) -> Option<&TensorDifference> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// The nodes that compute `name` from tensors that were measured: a layer and what it is fused with.
    fn nodes_behind(&self, name: &str) -> Vec<&Node> {
        let (mut found, mut open): (Vec<&Node>, _) = (Vec::new(), vec![name]);
        while let Some(name) = open.pop() {
            let node = self.graphs[1].nodes.iter().find(|node| node.outputs.iter().any(|o| o == name));
            let Some(node) = node.filter(|node| found.iter().all(|other| !std::ptr::eq(*other, *node))) else {
                continue;
            };
            open.extend(node.present_inputs().filter(|input| self.measured(input).is_none()));
            found.push(node);
        }
        found
    }

    fn inherited(&self, tensor: &TensorDifference, nodes: &[&Node]) -> Option<(Cause, String)> {
        let share = 1.0 - tensor.noise_added / noise(tensor.sqnr_db);
        let noisiest = self.noisiest_input(nodes).filter(|_| share >= MOSTLY)?;
        let message = format!(
            "{:.0} % of its noise came in with `{}`, which is at {:.1} dB: look there first",
            100.0 * share,
            noisiest.name,
            noisiest.sqnr_db
        );
        Some((Cause::Inherited, message))
    }

    fn noisiest_input(&self, nodes: &[&Node]) -> Option<&TensorDifference> {
        let inputs = nodes.iter().flat_map(|node| node.present_inputs()).filter_map(|input| self.measured(input));
        inputs.min_by(|x, y| x.sqnr_db.total_cmp(&y.sqnr_db))
    }

    /// What grids on the tensor, on weights, and on inputs that only layers see do to the values.
    fn made_here(&self, tensor: &TensorDifference, nodes: &[&Node]) -> Vec<(Cause, String)> {
        let least = NAMED * tensor.noise_added;
        let mut found = Vec::new();
        if tensor.noise_added <= 0.0 {
            return found;
        }
        for name in std::iter::once(tensor.name.as_str()).chain(nodes.iter().flat_map(|node| node.present_inputs())) {
            let what = if name == tensor.name { "its values".into() } else { format!("its input `{name}`") };
            // Inputs that were measured have had their noise counted.
            let counted = name != tensor.name && self.measured(name).is_some();
            if let (Some(values), Some(params), false) = (self.on_grids.get(name), self.grids.get(name), counted) {
                found.extend(on_grid(&what, values, params, values.rounding(), least));
            }
        }
        for node in nodes {
            let roles = node.op.def().quant_rule();
            let Some(Role::Weight { channel_axis }) = node.input(1).map(|_| roles.role(1)) else { continue };
            let Some((name, params)) = node.input(1).and_then(|name| Some((name, *self.grids.get(name)?))) else {
                continue;
            };
            let weight = self.graphs[1].constant(name).and_then(|t| Some((t.as_f32()?, &t.dims)));
            let values = weight.and_then(|(values, dims)| OnGrid::of(values, dims, channel_axis, params));
            let power = |name: &str| self.on_grids.get(name).map(OnGrid::power);
            if let Some(values) = values
                && let (Some(input), Some(output)) = (power(&node.inputs[0]), power(&tensor.name))
            {
                // As if errors of weights were independent: where they make up for each other, as learned roundings do, there is less.
                let expected = values.noise_gain() * input / output.max(f64::MIN_POSITIVE);
                let rounding = expected.min(tensor.noise_added);
                found.extend(on_grid(&format!("the weights `{name}`"), &values, params, rounding, least));
            }
        }
        found
    }

    /// What differs between the two networks but grids, if anything does.
    fn unlike(&self, nodes: &[&Node]) -> (Cause, String) {
        let [a, b] = self.graphs;
        let unlike = |name: &&str| matches!((a.constant(name), b.constant(name)), (Some(x), Some(y)) if x != y);
        let constant = nodes.iter().flat_map(|node| node.present_inputs()).find(unlike);
        // Those of a quantized network are all rounded.
        if let Some(name) = constant.filter(|_| self.grids.is_empty()) {
            return (Cause::Constants, format!("`{name}` is not the same in both networks"));
        }
        let alike = |node: &&Node| a.nodes.iter().any(|other| other.outputs == node.outputs && other.op == node.op);
        match self.noisiest_input(nodes).filter(|input| input.sqnr_db < FLOAT_THRESHOLD_DB) {
            Some(input) if nodes.iter().all(alike) => (
                Cause::Cancellation,
                format!(
                    "its own rounding explains little of it: it loses more of the signal than of the noise that came in with `{}`, which is at {:.1} dB",
                    input.name, input.sqnr_db
                ),
            ),
            _ => {
                (Cause::Unknown, "neither inputs nor grids explain it: the two networks compute it differently".into())
            }
        }
    }
}

/// What a grid does to `values`, called `what`, where that is at least the relative noise `least`.
fn on_grid(what: &str, values: &OnGrid, params: &QuantParams, rounding: f64, least: f64) -> Vec<(Cause, String)> {
    let mut found = Vec::new();
    let ends = params.tensor_params().map(|_| params.range(0));
    if values.clipping() >= least && values.clipped() > 0.0 {
        let beyond = ends.map_or("their grid".into(), |(lo, hi)| format!("the grid's {lo:.3} … {hi:.3}"));
        let (share, db) = (100.0 * values.clipped(), decibels(values.clipping()));
        found.push((
            Cause::Clipping,
            format!("{share:.2} % of {what} lie beyond {beyond} and are clipped: {db} from that alone"),
        ));
    }
    if rounding < least || rounding == 0.0 {
        return found;
    }
    let (used, codes, db) = (values.codes_of_most(), values.codes(), decibels(rounding));
    let (narrow, channels) = (values.narrow_channels(), values.channels());
    if (used as f64) < FEW * codes as f64 {
        let range = ends.map_or(String::new(), |(lo, hi)| format!(" {lo:.3} … {hi:.3}"));
        let message = format!(
            "99.9 % of {what} share {used} of {codes} codes, since outliers stretch the range{range}: {db} from rounding alone"
        );
        found.push((Cause::Outliers, message));
    }
    if narrow > 0 && narrow as f64 >= FEW * channels as f64 {
        let widest = values.widest_channel();
        let message = format!(
            "{narrow} of {channels} channels of {what} span less than {NARROW} codes, beside one that spans {widest:.0}: one scale for all is too coarse for them"
        );
        found.push((Cause::NarrowChannels, message));
    }
    if found.iter().all(|(cause, _)| *cause == Cause::Clipping) {
        let message = format!("{} bits are few for {what}: {db} from rounding alone", params.grid.bits);
        found.push((Cause::FewBits, message));
    }
    found
}

/// Relative noise of a signal-to-noise ratio.
fn noise(db: f64) -> f64 {
    10f64.powf(-0.1 * db)
}

fn decibels(noise: f64) -> String {
    format!("{:.1} dB", -10.0 * noise.log10())
}
