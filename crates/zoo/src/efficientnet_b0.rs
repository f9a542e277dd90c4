//! EfficientNet-B0 (Tan and Le 2019, table 1), as torchvision builds it: SiLU, squeeze-and-excitation by a quarter of a block's
//! input. Stochastic depth and dropout act in training only and are left out. Small inputs keep their size through the stem and
//! the second stage.

use crate::{
    architecture::Config,
    inverted_residual::Block,
    net::{Act::Swish, Convolution, Init, Net, Value},
};

/// Expansion, kernel, stride, channels, blocks.
const STAGES: [[usize; 5]; 7] = [
    [1, 3, 1, 16, 1],
    [6, 3, 2, 24, 2],
    [6, 5, 2, 40, 2],
    [6, 3, 2, 80, 3],
    [6, 5, 1, 112, 3],
    [6, 5, 2, 192, 4],
    [6, 3, 1, 320, 1],
];

pub fn efficientnet_b0(net: &mut Net, image: Value, config: &Config) -> Vec<Value> {
    let stem = Convolution::new(32, 3).stride(config.early_stride());
    let mut x = net.conv_bn_act("stem", &image, stem, Swish);
    for (stage, [expansion, kernel, stride, out, blocks]) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            let stride = match (block, stage) {
                (0, 1) => config.early_stride(),
                (0, _) => stride,
                _ => 1,
            };
            let squeezed = (x.channels / 4).max(1);
            let shape = Block { out, expansion, kernels: &[kernel], stride, act: Swish, squeezed, groups: [1, 1] };
            x = net.inverted_residual(&format!("stage{}.{block}", stage + 1), &x, shape);
        }
    }
    x = net.conv_bn_act("head", &x, Convolution::new(1280, 1), Swish);
    let bound = (config.classes as f64).sqrt().recip();
    vec![net.classifier(&x, config.classes, Init::Uniform(bound))]
}
