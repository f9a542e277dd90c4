//! SwishNet: a small network for 32x32 images made of EfficientNet's parts (inverted residuals, swish, squeeze-and-excitation),
//! cheap enough to train on a CPU. It stands in for EfficientNet-B0 and MixNet-S where those take too long.

use crate::{
    architecture::Config,
    inverted_residual::Block,
    net::{Act::Swish, Convolution, Init, Net, Value},
};

/// Expansion, kernel, stride, channels, blocks.
const STAGES: [[usize; 5]; 5] =
    [[1, 3, 1, 16, 1], [4, 3, 2, 24, 2], [4, 5, 2, 48, 3], [4, 3, 1, 64, 2], [4, 5, 2, 96, 2]];

pub fn swishnet(net: &mut Net, image: Value, config: &Config) -> Vec<Value> {
    let mut x = net.conv_bn_act("stem", &image, Convolution::new(16, 3), Swish);
    for (stage, [expansion, kernel, stride, out, blocks]) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if block == 0 { stride } else { 1 };
            let squeezed = x.channels / 4;
            let shape = Block { out, expansion, kernels: &[kernel], stride, act: Swish, squeezed, groups: [1, 1] };
            x = net.inverted_residual(&format!("stage{}.{block}", stage + 1), &x, shape);
        }
    }
    x = net.conv_bn_act("head", &x, Convolution::new(256, 1), Swish);
    vec![net.classifier(&x, config.classes, Init::Normal(0.01))]
}
