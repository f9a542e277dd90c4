//! Cases of layers, which multiply: convolutions, matrix products, and branches that read what is added in fewer bits.

use super::{image, window};
use crate::random::{Builder, Case, ints};
use fewbits_graph::{Attr, Attrs, Tensor, passes::with_layer_input_slots};

/// Finishes a layer that wrote `sums`: an activation or none, and a grid.
fn layer(mut b: Builder, sums: String) -> Case {
    let output = match b.random.below(5) {
        0 | 1 => {
            let output = b.node("Relu", Attrs::default(), &[&sums]);
            b.grid(&output, Some((0.0, f32::INFINITY)));
            output
        }
        2 => {
            let low = b.add_constant("low", Tensor::f32(&[], vec![0.0]));
            let high = b.add_constant("high", Tensor::f32(&[], vec![6.0]));
            let output = b.node("Clip", Attrs::default(), &[&sums, &low, &high]);
            b.grid(&output, Some((0.0, 6.0)));
            output
        }
        _ => {
            b.grid(&sums, None);
            sums
        }
    };
    b.finish(&[&output])
}

fn convolution(mut b: Builder, x: [usize; 4], out: usize, groups: usize, kernel: [usize; 2]) -> Case {
    let input = b.input(&x);
    let weight = b.weight(&[out, x[1] / groups, kernel[0], kernel[1]], 0);
    let bias = b.bias(out, &input, &weight);
    let attrs = window(&mut b.random, kernel, [x[2], x[3]], true)
        .with("group", Attr::Int(groups as i64))
        .with("kernel_shape", Attr::Ints(kernel.map(|k| k as i64).to_vec()));
    let sums = b.node("Conv", attrs, &[&input, &weight, bias.as_deref().unwrap_or_default()]);
    layer(b, sums)
}

pub fn conv(mut b: Builder) -> Case {
    let r = &mut b.random;
    let kernel = [r.within(1..=7), r.within(1..=7)];
    let groups = r.pick(&[1, 1, 1, 2, 3]);
    let per_group = r.pick(&[1, 2, 3, 4, 7, 15, 16, 17, 31, 33]);
    let out = groups * r.pick(&[1, 3, 8, 15, 16, 17, 31, 32, 33, 48]);
    let x = [r.pick(&[1, 3]), groups * per_group, kernel[0] + r.below(9), kernel[1] + r.below(9)];
    convolution(b, x, out, groups, kernel)
}

pub fn conv_pointwise(mut b: Builder) -> Case {
    let r = &mut b.random;
    let (channels, out) = (r.within(1..=70), r.within(1..=70));
    let x = [r.pick(&[1, 3]), channels, r.within(1..=10), r.within(1..=10)];
    convolution(b, x, out, 1, [1, 1])
}

pub fn conv_depthwise(mut b: Builder) -> Case {
    let r = &mut b.random;
    let kernel = r.pick(&[[3, 3], [3, 3], [5, 5], [1, 3], [7, 7], [2, 4]]);
    let channels = r.pick(&[1, 2, 15, 16, 17, 31, 32, 33, 64, 65]);
    let x = [r.pick(&[1, 3]), channels, kernel[0] + r.below(12), kernel[1] + r.below(12)];
    let multiplier = r.pick(&[1, 1, 1, 2]);
    convolution(b, x, channels * multiplier, channels, kernel)
}

pub fn conv_line(mut b: Builder) -> Case {
    let (channels, out, kernel) = (b.random.within(1..=20), b.random.within(1..=20), b.random.within(1..=5));
    let dims = [b.random.pick(&[1, 3]), channels, kernel + b.random.below(20)];
    let input = b.input(&dims);
    let weight = b.weight(&[out, channels, kernel], 0);
    let bias = b.bias(out, &input, &weight);
    let attrs = ints("strides", &[b.random.within(1..=3)]).with("pads", Attr::Ints(vec![1, b.random.below(2) as i64]));
    let sums = b.node("Conv", attrs, &[&input, &weight, bias.as_deref().unwrap_or_default()]);
    layer(b, sums)
}

pub fn gemm(mut b: Builder) -> Case {
    let (depth, out) = (b.random.within(1..=90), b.random.within(1..=70));
    let rows = b.random.pick(&[1, 3, 5]);
    let input = b.input(&[rows, depth]);
    let transposed = b.random.chance(60);
    let (dims, axis) = if transposed { ([out, depth], 0) } else { ([depth, out], 1) };
    let weight = b.weight(&dims, axis);
    let bias = b.bias(out, &input, &weight);
    let attrs = Attrs::default().with("transB", Attr::Int(transposed.into()));
    let sums = b.node("Gemm", attrs, &[&input, &weight, bias.as_deref().unwrap_or_default()]);
    if b.random.chance(40) { b.finish(&[&sums]) } else { layer(b, sums) }
}

pub fn matmul(mut b: Builder) -> Case {
    let (depth, out) = (b.random.within(1..=70), b.random.within(1..=40));
    let dims = [b.random.pick(&[1, 3]), b.random.within(1..=6), depth];
    let from = b.random.below(2);
    let input = b.input(&dims[from..]);
    let weight = b.weight(&[depth, out], 1);
    let product = b.node("MatMul", Attrs::default(), &[&input, &weight]);
    b.grid(&product, None);
    b.finish(&[&product])
}

pub fn matmul_of_activations(mut b: Builder) -> Case {
    let [n, rows, depth, out] = [3, 6, 40, 20].map(|most| b.random.within(1..=most));
    let (x, y) = (b.input(&[n, rows, depth]), b.input(&[n, depth, out]));
    let product = b.node("MatMul", Attrs::default(), &[&x, &y]);
    b.grid(&product, None);
    b.finish(&[&product])
}

pub fn conv_transpose(mut b: Builder) -> Case {
    let dims = image(&mut b.random);
    let out = b.random.within(1..=9);
    let input = b.input(&dims);
    let weight = b.weight(&[dims[1], out, 2, 2], 1);
    let output = b.node("ConvTranspose", ints("strides", &[2, 2]), &[&input, &weight]);
    b.grid(&output, None);
    b.finish(&[&output])
}

/// A tensor of 8 bits that is added, pooled or put out, and that layers read in fewer bits, perhaps moved.
pub fn residual(mut b: Builder) -> Case {
    let bits = std::mem::replace(&mut b.bits, 8);
    // Signed tensors with several readers ONNX Runtime computes in float on x64.
    b.signed = Some(false);
    let [n, c, h, w] = image(&mut b.random);
    let same = |k: usize| ints("pads", &[k / 2; 4]);
    let input = b.input(&[n, c, h, w]);
    let convolve = |b: &mut Builder, read: &str, quantized_as: &str| {
        let kernel = b.random.pick(&[1, 3]);
        let weight = b.weight(&[c, c, kernel, kernel], 0);
        let bias = b.bias(c, quantized_as, &weight);
        b.node("Conv", same(kernel), &[read, &weight, bias.as_deref().unwrap_or_default()])
    };
    let first = convolve(&mut b, &input, &input);
    let stream = if b.random.chance(50) { b.node("Relu", Attrs::default(), &[&first]) } else { first };
    b.grid(&stream, None);
    let (moved, readers) = (b.random.chance(25), b.random.within(1..=2));
    let read = if moved {
        let pool = same(3).with("kernel_shape", Attr::Ints(vec![3, 3]));
        let pooled = b.node("MaxPool", pool, &[&stream]);
        b.same_grid(&pooled, &stream);
        pooled
    } else {
        stream.clone()
    };
    let slot = format!("{read}_layer_input");
    let mut outputs = Vec::new();
    for _ in 0..readers {
        let branch = convolve(&mut b, &read, &slot);
        b.grid(&branch, None);
        let sum = b.node("Add", Attrs::default(), &[&stream, &branch]);
        b.grid(&sum, None);
        outputs.push(sum);
    }
    if b.random.chance(30) {
        outputs.push(stream);
    }
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    b.case.graph.outputs = b.infos(&outputs);
    b.case.graph = with_layer_input_slots(&b.case.graph).expect("the graph is well formed");
    b.bits = bits;
    b.grid(&slot, None);
    b.case
}
