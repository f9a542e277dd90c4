//! ResNet (He et al. 2016): 18 and 50 layers as torchvision builds them (v1.5: the 3x3 convolution has the stride), 20 layers for
//! CIFAR with shortcuts without parameters (option A). Small inputs get a 3x3 stem of stride 1 and no pool.

use crate::{
    architecture::Config,
    net::{Act::Relu, Convolution, Init, Net, Value},
};
use fewbits_graph::ops::window::Window;

pub fn resnet18(net: &mut Net, image: Value, config: &Config) -> Vec<Value> {
    imagenet(net, &image, config, [2, 2, 2, 2], basic)
}

pub fn resnet50(net: &mut Net, image: Value, config: &Config) -> Vec<Value> {
    imagenet(net, &image, config, [3, 4, 6, 3], bottleneck)
}

/// Zero-padded shortcuts, 16 to 64 channels.
pub fn resnet20(net: &mut Net, image: Value, config: &Config) -> Vec<Value> {
    let mut x = net.conv_bn_act("stem", &image, Convolution::new(16, 3), Relu);
    for (stage, width) in [16, 32, 64].into_iter().enumerate() {
        for block in 0..3 {
            let name = format!("layer{}.{block}", stage + 1);
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let y = basic(net, &name, &x, width, stride);
            if stride == 2 {
                x = net.subsample(&format!("{name}.shortcut"), &x, width);
            }
            x = join(net, &name, &y, &x);
        }
    }
    classify(net, &x, config)
}

type Branch = fn(&mut Net, &str, &Value, usize, usize) -> Value;

fn imagenet(net: &mut Net, image: &Value, config: &Config, depths: [usize; 4], branch: Branch) -> Vec<Value> {
    let mut x = if config.small() {
        net.conv_bn_act("stem", image, Convolution::new(64, 3), Relu)
    } else {
        let x = net.conv_bn_act("stem", image, Convolution::new(64, 7).stride(2), Relu);
        net.max_pool("stem.pool", &x, Window::square(3, 2, 1))
    };
    for (stage, depth) in depths.into_iter().enumerate() {
        for block in 0..depth {
            let name = format!("layer{}.{block}", stage + 1);
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let y = branch(net, &name, &x, 64 << stage, stride);
            if y.channels != x.channels || stride == 2 {
                let projection = Convolution::new(y.channels, 1).stride(stride);
                x = net.conv_bn(&format!("{name}.shortcut"), &x, projection);
            }
            x = join(net, &name, &y, &x);
        }
    }
    classify(net, &x, config)
}

fn basic(net: &mut Net, name: &str, x: &Value, width: usize, stride: usize) -> Value {
    let y = net.conv_bn_act(&format!("{name}.1"), x, Convolution::new(width, 3).stride(stride), Relu);
    net.conv_bn(&format!("{name}.2"), &y, Convolution::new(width, 3))
}

fn bottleneck(net: &mut Net, name: &str, x: &Value, width: usize, stride: usize) -> Value {
    let y = net.conv_bn_act(&format!("{name}.1"), x, Convolution::new(width, 1), Relu);
    let y = net.conv_bn_act(&format!("{name}.2"), &y, Convolution::new(width, 3).stride(stride), Relu);
    net.conv_bn(&format!("{name}.3"), &y, Convolution::new(4 * width, 1))
}

fn join(net: &mut Net, name: &str, branch: &Value, shortcut: &Value) -> Value {
    let sum = net.add(&format!("{name}.add"), branch, shortcut);
    net.activation(name, &sum, Relu)
}

/// The classifier of `torch.nn.Linear`: weights uniform in ±1 / √channels.
fn classify(net: &mut Net, x: &Value, config: &Config) -> Vec<Value> {
    let bound = (x.channels as f64).sqrt().recip();
    vec![net.classifier(x, config.classes, Init::Uniform(bound))]
}
