//! The network of `fewbits demo`: small, and with what makes small convolutional networks hard to quantize: depthwise
//! convolutions, residual additions, linear bottlenecks (Sandler et al. 2018) and a concatenation (SqueezeNet's, Iandola et al.
//! 2016).

use crate::{
    architecture::Config,
    inverted_residual::Block,
    net::{
        Act::{Relu, Relu6},
        Convolution, Init, Net, Value,
    },
};

/// Channels, expansion, stride.
const BEFORE: [[usize; 3]; 3] = [[16, 1, 1], [24, 4, 2], [24, 3, 1]];
/// The same, behind the concatenation.
const BEHIND: [[usize; 3]; 3] = [[40, 3, 1], [56, 3, 2], [56, 2, 1]];

pub fn demo(net: &mut Net, image: Value, config: &Config) -> Vec<Value> {
    let mut x = net.conv_bn_act("stem", &image, Convolution::new(16, 3).stride(2), Relu6);
    x = blocks(net, x, 1, BEFORE);
    let point = net.conv_bn_act("fire.point", &x, Convolution::new(20, 1), Relu);
    let square = net.conv_bn_act("fire.square", &x, Convolution::new(20, 3), Relu);
    x = net.concat("fire.concat", &[point, square]);
    x = blocks(net, x, 4, BEHIND);
    x = net.conv_bn_act("head", &x, Convolution::new(96, 1), Relu);
    let bound = (x.channels as f64).sqrt().recip();
    vec![net.classifier(&x, config.classes, Init::Uniform(bound))]
}

fn blocks(net: &mut Net, mut x: Value, first: usize, list: [[usize; 3]; 3]) -> Value {
    for (number, [out, expansion, stride]) in (first..).zip(list) {
        let shape = Block { out, expansion, kernels: &[3], stride, act: Relu6, squeezed: 0, groups: [1, 1] };
        x = net.inverted_residual(&format!("block{number}"), &x, shape);
    }
    x
}
