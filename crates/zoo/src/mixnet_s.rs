//! MixNet-S (Tan and Le 2019, "MixConv", figure 6): depthwise convolutions with kernels from 3 to 11 side by side. Small inputs
//! keep their size through the stem and the second stage.
//!
//! Where the published network cuts a pointwise convolution into two over half the channels each, here stands one convolution
//! of two groups: the same function.

use crate::{
    architecture::Config,
    inverted_residual::Block,
    net::{
        Act::{self, Relu, Swish},
        Convolution, Init, Net, Value,
    },
};

/// Blocks, channels, expansion, stride, kernels, groups of the pointwise convolutions, divisor of squeezed channels (0: none).
type Row = (usize, usize, usize, usize, &'static [usize], [usize; 2], usize);

const ROWS: [Row; 11] = [
    (1, 16, 1, 1, &[3], [1, 1], 0),
    (1, 24, 6, 2, &[3], [2, 2], 0),
    (1, 24, 3, 1, &[3], [2, 2], 0),
    (1, 40, 6, 2, &[3, 5, 7], [1, 1], 2),
    (3, 40, 6, 1, &[3, 5], [2, 2], 2),
    (1, 80, 6, 2, &[3, 5, 7], [1, 2], 4),
    (2, 80, 6, 1, &[3, 5], [1, 2], 4),
    (1, 120, 6, 1, &[3, 5, 7], [2, 2], 2),
    (2, 120, 3, 1, &[3, 5, 7, 9], [2, 2], 2),
    (1, 200, 6, 2, &[3, 5, 7, 9, 11], [1, 1], 2),
    (2, 200, 6, 1, &[3, 5, 7, 9], [1, 2], 2),
];

pub fn mixnet_s(net: &mut Net, image: Value, config: &Config) -> Vec<Value> {
    let stem = Convolution::new(16, 3).stride(config.early_stride());
    let mut x = net.conv_bn_act("stem", &image, stem, Relu);
    for (row, (blocks, out, expansion, stride, kernels, groups, divisor)) in ROWS.into_iter().enumerate() {
        for block in 0..blocks {
            let stride = match (block, row) {
                (0, 1) => config.early_stride(),
                (0, _) => stride,
                _ => 1,
            };
            let squeezed = x.channels.checked_div(divisor).unwrap_or(0);
            let act: Act = if squeezed == 0 { Relu } else { Swish };
            let shape = Block { out, expansion, kernels, stride, act, squeezed, groups };
            x = net.inverted_residual(&format!("stage{}.{block}", row + 1), &x, shape);
        }
    }
    x = net.conv_bn_act("head", &x, Convolution::new(1536, 1), Relu);
    let bound = (config.classes as f64).sqrt().recip();
    vec![net.classifier(&x, config.classes, Init::Uniform(bound))]
}
