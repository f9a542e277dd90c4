//! MobileNetV2 (Sandler et al. 2018, table 2), in any width. Small inputs keep their size through the stem and the second stage.

use crate::{
    architecture::Config,
    inverted_residual::Block,
    net::{Act::Relu6, Convolution, Init, Net, Value},
};

/// Expansion, channels, blocks, stride.
const STAGES: [[usize; 4]; 7] =
    [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]];

pub fn mobilenet_v2(net: &mut Net, image: Value, config: &Config) -> Vec<Value> {
    let wide = |channels| scaled(channels, config.width);
    let stem = Convolution::new(wide(32), 3).stride(config.early_stride());
    let mut x = net.conv_bn_act("stem", &image, stem, Relu6);
    for (stage, [expansion, channels, blocks, stride]) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            let stride = match (block, stage) {
                (0, 1) => config.early_stride(),
                (0, _) => stride,
                _ => 1,
            };
            let shape = Block {
                out: wide(channels),
                expansion,
                kernels: &[3],
                stride,
                act: Relu6,
                squeezed: 0,
                groups: [1, 1],
            };
            x = net.inverted_residual(&format!("stage{}.{block}", stage + 1), &x, shape);
        }
    }
    let head = scaled(1280, config.width.max(1.0));
    x = net.conv_bn_act("head", &x, Convolution::new(head, 1), Relu6);
    vec![net.classifier(&x, config.classes, Init::Normal(0.01))]
}

/// `channels · width`, rounded to a multiple of 8 that is at least 8 and loses at most a tenth.
fn scaled(channels: usize, width: f32) -> usize {
    let exact = channels as f32 * width;
    let rounded = ((exact + 4.0) as usize / 8 * 8).max(8);
    if (rounded as f32) < 0.9 * exact { rounded + 8 } else { rounded }
}
