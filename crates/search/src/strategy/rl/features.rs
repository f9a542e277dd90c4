//! What the agent is told of a layer.

use super::replay::STATE;
use crate::{Item, Kind};
use fewbits_graph::Op;
use fewbits_methods::{Ground, Layer, layers};

/// A layer in numbers. A fully connected layer has stride 0 and kernel 1, and reads one pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Features {
    /// As many groups as input channels.
    pub depthwise: bool,
    /// Channels that it reads.
    pub in_channels: usize,
    /// Channels that it writes.
    pub out_channels: usize,
    /// Step between positions.
    pub stride: usize,
    /// Height of the kernel.
    pub kernel: usize,
    /// Elements of the weight.
    pub weights: usize,
    /// Height × width of its input.
    pub pixels: usize,
    /// Its number among the layers.
    pub index: usize,
}

/// Those of the layer of each item; an input has those of the first layer that reads it. A tensor that no layer has gives zeros.
pub fn features(ground: &Ground<'_>, items: &[Item]) -> Vec<Features> {
    let layers = layers(ground.float, ground.placement);
    let of_item = |item: &Item| {
        let name = |layer: &Layer| match item.kind {
            Kind::Weight => layer.weight == item.name,
            Kind::Input => ground.placement.owner(&layer.input) == item.name,
        };
        layers.iter().position(name).map_or(Features::default(), |index| of_layer(ground, &layers[index], index))
    };
    items.iter().map(of_item).collect()
}

fn of_layer(ground: &Ground<'_>, layer: &Layer, index: usize) -> Features {
    let dims = |name: &str| ground.facts.get(name).map_or(&[][..], |fact| &fact.dims);
    let weight = ground.float.constant(&layer.weight).map_or(&[][..], |weight| &weight.dims);
    let (weights, pixels) = (weight.iter().product(), dims(&layer.input).iter().skip(2).product());
    let out_channels = weight.get(layer.axis).copied().unwrap_or(0);
    let window = match &ground.float.nodes[layer.node].op {
        Op::Conv(conv) => Some((&conv.window, conv.group)),
        Op::ConvTranspose(conv) => Some((&conv.window, conv.group)),
        _ => None,
    };
    let Some((window, groups)) = window else {
        let in_channels = weights / out_channels.max(1);
        return Features { in_channels, out_channels, kernel: 1, weights, pixels: 1, index, ..Features::default() };
    };
    let in_channels = dims(&layer.input).get(1).copied().unwrap_or(0);
    let stride = window.strides.first().copied().unwrap_or(1);
    let kernel = weight.get(2).copied().unwrap_or(1);
    Features { depthwise: groups == in_channels, in_channels, out_channels, stride, kernel, weights, pixels, index }
}

/// The features of all items, brought to `[0, 1]` column by column; a column of equal numbers is 0.
pub fn normalised(features: &[Features]) -> Vec<[f32; STATE - 2]> {
    let mut rows: Vec<[f32; STATE - 2]> = features
        .iter()
        .map(|f| {
            let numbers = [f.in_channels, f.out_channels, f.stride, f.kernel, f.weights, f.pixels, f.index];
            let [inputs, outputs, stride, kernel, weights, pixels, index] = numbers.map(|n| n as f32);
            [f32::from(u8::from(f.depthwise)), inputs, outputs, stride, kernel, weights, pixels, index]
        })
        .collect();
    for column in 0..STATE - 2 {
        let least = rows.iter().map(|row| row[column]).fold(f32::INFINITY, f32::min);
        let range = rows.iter().map(|row| row[column]).fold(f32::NEG_INFINITY, f32::max) - least;
        rows.iter_mut().for_each(|row| row[column] = if range > 0.0 { (row[column] - least) / range } else { 0.0 });
    }
    rows
}
