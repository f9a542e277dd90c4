//! YOLOv3 (Redmon and Farhadi 2018) on Darknet-53, and its small version, as darknet's `yolov3.cfg` and `yolov3-tiny.cfg` lay
//! them out. The outputs are the raw heads `[batch, 3 · (5 + classes), height / stride, width / stride]`, coarsest first:
//! `head32`, `head16`, `head8`. Anchors belong to the decoder and stand in the metadata.

use crate::{
    architecture::Config,
    net::{Act::LeakyRelu, Convolution, Net, Value},
};
use fewbits_graph::ops::window::Window;

/// `[width, height]` of each head's anchors, in pixels.
pub const ANCHORS: &str = "[[[116,90],[156,198],[373,326]],[[30,61],[62,45],[59,119]],[[10,13],[16,30],[33,23]]]";
/// As [`ANCHORS`], for the small version.
pub const TINY_ANCHORS: &str = "[[[81,82],[135,169],[344,319]],[[10,14],[23,27],[37,58]]]";

pub fn yolov3(net: &mut Net, image: Value, config: &Config) -> Vec<Value> {
    let mut x = layer(net, "stem", &image, Convolution::new(32, 3));
    let mut stages = Vec::new();
    for (stage, blocks) in [1, 2, 8, 8, 4].into_iter().enumerate() {
        let name = format!("stage{}", stage + 1);
        let out = 64 << stage;
        x = layer(net, &format!("{name}.down"), &x, Convolution::new(out, 3).stride(2));
        for block in 0..blocks {
            let y = layer(net, &format!("{name}.{block}.1"), &x, Convolution::new(out / 2, 1));
            let y = layer(net, &format!("{name}.{block}.2"), &y, Convolution::new(out, 3));
            x = net.add(&format!("{name}.{block}.add"), &x, &y);
        }
        stages.push(x.clone());
    }
    let mut heads = Vec::new();
    for (stride, skip) in [(32, None), (16, Some(&stages[3])), (8, Some(&stages[2]))] {
        let neck = format!("neck{stride}");
        let width = 16 * stride;
        if let Some(skip) = skip {
            x = lateral(net, &neck, &x, width, skip);
        }
        for step in 0..5 {
            let convolution = if step % 2 == 0 { Convolution::new(width, 1) } else { Convolution::new(2 * width, 3) };
            x = layer(net, &format!("{neck}.{step}"), &x, convolution);
        }
        heads.push(head(net, stride, &x, 2 * width, config));
    }
    heads
}

pub fn yolov3_tiny(net: &mut Net, image: Value, config: &Config) -> Vec<Value> {
    let mut x = image;
    let mut skip = None;
    for (stage, out) in [16, 32, 64, 128, 256, 512].into_iter().enumerate() {
        x = layer(net, &format!("stage{}", stage + 1), &x, Convolution::new(out, 3));
        let pool = format!("stage{}.pool", stage + 1);
        if out == 512 {
            // Stride 1: one row and one column more at the end keep the size.
            x = net.max_pool(&pool, &x, Window { pads: vec![0, 0, 1, 1], ..Window::square(2, 1, 0) });
        } else {
            if out == 256 {
                skip = Some(x.clone());
            }
            x = net.max_pool(&pool, &x, Window::square(2, 2, 0));
        }
    }
    x = layer(net, "neck32.0", &x, Convolution::new(1024, 3));
    x = layer(net, "neck32.1", &x, Convolution::new(256, 1));
    let coarse = head(net, 32, &x, 512, config);
    let skip = skip.expect("one stage has 256 channels");
    x = lateral(net, "neck16", &x, 128, &skip);
    vec![coarse, head(net, 16, &x, 256, config)]
}

fn layer(net: &mut Net, name: &str, x: &Value, convolution: Convolution) -> Value {
    net.conv_bn_act(name, x, convolution, LeakyRelu)
}

/// `x` narrowed to `out` channels at twice the size, beside `skip`.
fn lateral(net: &mut Net, name: &str, x: &Value, out: usize, skip: &Value) -> Value {
    let x = layer(net, &format!("{name}.lateral"), x, Convolution::new(out, 1));
    let x = net.upsample(&format!("{name}.upsample"), &x);
    net.concat(&format!("{name}.concat"), &[x, skip.clone()])
}

fn head(net: &mut Net, stride: usize, x: &Value, width: usize, config: &Config) -> Value {
    let x = layer(net, &format!("head{stride}.0"), x, Convolution::new(width, 3));
    net.conv_bias(&format!("head{stride}"), &x, Convolution::new(3 * (5 + config.classes), 1))
}
