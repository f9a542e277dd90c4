//! Every operator that ONNX Runtime computes on codes, on random shapes, attributes and grids: the integers of the executor are
//! those of ONNX Runtime on the exported file, element by element.

mod layers;

use crate::{
    random::{Builder, Case, Random, ints},
    runtime_is_exact, same_outputs,
};
use fewbits::Model;
use fewbits_graph::{
    Attr, Attrs, Grid, QuantParams, Tensor, TensorQuant,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;
use fewbits_onnx::{EmitOptions, emit_qdq, write};
use layers::{
    conv, conv_depthwise, conv_line, conv_pointwise, conv_transpose, gemm, matmul, matmul_of_activations, residual,
};

type Family = fn(Builder) -> Case;

/// How many cases of what.
const FAMILIES: &[(&str, usize, Family)] = &[
    ("conv", 90, conv),
    ("conv_pointwise", 30, conv_pointwise),
    ("conv_depthwise", 30, conv_depthwise),
    ("conv_line", 10, conv_line),
    ("gemm", 30, gemm),
    ("matmul", 15, matmul),
    ("matmul_of_activations", 10, matmul_of_activations),
    ("add", 25, |b| binary(b, "Add")),
    ("mul", 25, |b| binary(b, "Mul")),
    ("add_relu", 8, add_relu),
    ("concat", 20, concat),
    ("max_pool", 15, max_pool),
    ("average_pool", 20, average_pool),
    ("global_average_pool", 12, global_average_pool),
    ("sigmoid", 8, |b| pointwise(b, "Sigmoid", Attrs::default())),
    ("leaky_relu", 8, |b| pointwise(b, "LeakyRelu", Attrs::default().with("alpha", Attr::Float(0.1)))),
    ("silu", 6, silu),
    ("softmax", 8, softmax),
    ("movement", 40, movement),
    ("resize", 8, resize),
    ("low_bits_conv", 30, |b| conv(low_bits(b))),
    ("low_bits_depthwise", 15, |b| conv_depthwise(low_bits(b))),
    ("low_bits_gemm", 15, |b| gemm(low_bits(b))),
    ("low_bits_add", 15, |b| binary(low_bits(b), "Add")),
    ("low_bits_concat", 15, |b| concat(low_bits(b))),
    ("low_bits_average_pool", 10, |b| average_pool(low_bits(b))),
    ("low_bits_movement", 20, |b| movement(low_bits(b))),
    ("low_bits_max_pool", 8, |b| max_pool(low_bits(b))),
    ("low_bits_silu", 6, |b| silu(low_bits(b))),
    ("low_bits_residual", 40, |b| residual(low_bits(b))),
    ("full_range_conv", 20, |b| full_range(conv(b))),
    ("full_range_depthwise", 10, |b| full_range(conv_depthwise(b))),
    ("full_range_gemm", 10, |b| full_range(gemm(b))),
    ("full_range_low_bits_conv", 20, |b| full_range(conv(low_bits(b)))),
    ("island_relu", 6, |b| pointwise(b, "Relu", Attrs::default())),
    ("island_hard_sigmoid", 4, |b| pointwise(b, "HardSigmoid", Attrs::default())),
    ("island_hard_swish", 4, |b| pointwise(b, "HardSwish", Attrs::default())),
    ("island_tanh", 4, |b| pointwise(b, "Tanh", Attrs::default())),
    ("island_sub", 4, |b| binary(b, "Sub")),
    ("island_global_max_pool", 4, |b| pointwise(b, "GlobalMaxPool", Attrs::default())),
    ("island_conv_transpose", 6, conv_transpose),
];

/// Families that may differ by one step of the output grid, in few elements.
const GAPS: &[(&str, &str)] = &[
    ("island_conv_transpose", "ONNX Runtime sums floats in an order of its own"),
    ("island_tanh", "both compute tanh to within a few units in the last place"),
];

#[test]
fn integers_are_those_of_onnx_runtime_on_random_operators() {
    if !runtime_is_exact() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let threads = Threads::new(2);
    let mut files = Vec::new();
    for &(family, count, make) in FAMILIES {
        for i in 0..count {
            let case = make(Builder::new(family.bytes().fold(i as u64, |h, b| h * 31 + u64::from(b))));
            let model = folder.path().join(format!("{family}.{i}.onnx"));
            write(&model, &emit_qdq(&case.graph, &case.grids, &EmitOptions::default()).unwrap(), 13).unwrap();
            let read = Model::load(&model).unwrap();
            let grids = read.grids.as_ref().expect("the file has grids");
            let mut executor = Executor::new(&read.graph, Mode::Integer(grids), &threads);
            let outputs = executor.run(&case.inputs).unwrap_or_else(|e| panic!("{family}.{i}: {e}"));
            files.push((model, case, outputs));
        }
    }
    let pairs: Vec<_> = files
        .iter()
        .map(|(model, case, outputs)| {
            let inputs = case.graph.inputs.iter().zip(&case.inputs).map(|(v, t)| (v.name.as_str(), t)).collect();
            (model.clone(), inputs, case.graph.outputs.iter().zip(outputs).map(|(v, t)| (v.name.as_str(), t)).collect())
        })
        .collect();
    let Some(report) = same_outputs(folder.path(), &pairs) else { return };
    let (mut failures, mut flat) = (Vec::new(), 0);
    for (model, case, _) in &files {
        let name = model.file_stem().unwrap().to_string_lossy();
        let gap = GAPS.iter().any(|(family, _)| name.split('.').next() == Some(*family));
        for (output, row) in &report[model] {
            let step = case.grids.params(output).map_or(0.0, |p| f64::from(p.scale[0]));
            let fits =
                if gap { row.largest <= 1.01 * step && row.different * 20 <= row.elements } else { row.different == 0 };
            if !fits {
                let ops: Vec<_> = case.graph.nodes.iter().map(|n| format!("{:?}", n.op)).collect();
                let shapes: Vec<_> = case.inputs.iter().map(|t| &t.dims).collect();
                let grids = case.graph.inputs.iter().map(|v| v.name.as_str()).chain([output.as_str()]);
                let grids: Vec<_> = grids.map(|t| case.grids.params(t)).collect();
                failures.push(format!("{name} {output}: {row:?}, {shapes:?}, {ops:?}, {grids:?}"));
            }
            flat += usize::from(row.values == 1);
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), files.len(), failures.join("\n"));
    assert!(flat * 20 < files.len(), "{flat} cases have only one value, which tests nothing");
}

fn low_bits(mut b: Builder) -> Builder {
    b.bits = b.random.within(2..=7) as u8;
    b
}

/// Strides, padding and, if asked for, dilations of a window that fits `image`.
fn window(random: &mut Random, kernel: [usize; 2], image: [usize; 2], dilate: bool) -> Attrs {
    let attrs = ints("strides", &[random.pick(&[1, 1, 2, 3]), random.pick(&[1, 1, 2])]);
    if random.chance(25) {
        // ONNX Runtime computes SAME padding of undilated windows only.
        return attrs.with("auto_pad", Attr::Str(random.pick(&["SAME_UPPER", "SAME_LOWER", "VALID"]).into()));
    }
    let pads: Vec<usize> = (0..4).map(|i| if random.chance(30) { 0 } else { random.below(kernel[i % 2]) }).collect();
    let attrs = attrs.with("pads", Attr::Ints(pads.iter().map(|&p| p as i64).collect()));
    let dilation = |random: &mut Random, i: usize| match (image[i] - 1).checked_div(kernel[i] - 1) {
        Some(most) if most > 1 => random.within(1..=most.min(3)),
        _ => 1,
    };
    if !dilate || random.chance(70) {
        return attrs;
    }
    let dilations = [dilation(random, 0) as i64, dilation(random, 1) as i64];
    attrs.with("dilations", Attr::Ints(dilations.to_vec()))
}

fn image(random: &mut Random) -> [usize; 4] {
    [random.pick(&[1, 3]), random.pick(&[1, 3, 8, 15, 16, 17, 33]), random.within(1..=9), random.within(1..=9)]
}

fn binary(mut b: Builder, op: &str) -> Case {
    let dims = image(&mut b.random);
    let [n, c, ..] = dims;
    let x = b.input(&dims);
    let y = match b.random.below(5) {
        0 => b.input(&[n, c, 1, 1]),
        kind @ (1 | 2) => {
            let constant = if kind == 1 { b.constant("k", &[c, 1, 1], 2.0) } else { b.constant("k", &[], 2.0) };
            b.grid(&constant, None);
            constant
        }
        3 => x.clone(),
        _ => b.input(&dims),
    };
    let operands = if b.random.chance(30) { [y, x] } else { [x, y] };
    let output = b.node(op, Attrs::default(), &[&operands[0], &operands[1]]);
    b.grid(&output, None);
    b.finish(&[&output])
}

fn add_relu(mut b: Builder) -> Case {
    let dims = image(&mut b.random);
    let (x, y) = (b.input(&dims), b.input(&dims));
    let sum = b.node("Add", Attrs::default(), &[&x, &y]);
    let output = b.node("Relu", Attrs::default(), &[&sum]);
    b.grid(&output, Some((0.0, f32::INFINITY)));
    b.finish(&[&output])
}

fn concat(mut b: Builder) -> Case {
    let dims = image(&mut b.random);
    let axis = b.random.within(1..=3);
    let equal = b.random.chance(40);
    let inputs: Vec<String> = (0..b.random.within(2..=4))
        .map(|_| {
            let mut dims = dims;
            dims[axis] = b.random.within(1..=9);
            b.input(&dims)
        })
        .collect();
    if equal {
        let first = b.case.grids.0[&inputs[0]].clone();
        b.case.grids.0.extend(inputs.iter().map(|name| (name.clone(), first.clone())));
    }
    let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let output = b.node("Concat", Attrs::default().with("axis", Attr::Int(axis as i64)), &names);
    if equal && b.random.chance(50) {
        let grid = b.case.grids.0[&inputs[0]].clone();
        b.case.grids.0.insert(output.clone(), grid);
    } else {
        b.grid(&output, None);
    }
    b.finish(&[&output])
}

fn pool(b: &mut Builder, op: &str) -> [String; 2] {
    let kernel = [b.random.within(1..=4), b.random.within(1..=4)];
    let dims = image(&mut b.random);
    let dims = [dims[0], dims[1], kernel[0] + dims[2], kernel[1] + dims[3]];
    let input = b.input(&dims);
    let ceil = b.random.chance(20);
    let attrs = window(&mut b.random, kernel, [dims[2], dims[3]], false)
        .with("ceil_mode", Attr::Int(ceil.into()))
        .with("kernel_shape", Attr::Ints(kernel.map(|k| k as i64).to_vec()));
    let include = b.random.chance(40) && op == "AveragePool";
    let attrs = if include { attrs.with("count_include_pad", Attr::Int(1)) } else { attrs };
    let output = b.node(op, attrs, &[&input]);
    [input, output]
}

fn max_pool(mut b: Builder) -> Case {
    let [input, output] = pool(&mut b, "MaxPool");
    b.same_grid(&output, &input);
    b.finish(&[&output])
}

fn average_pool(mut b: Builder) -> Case {
    let [_, output] = pool(&mut b, "AveragePool");
    b.grid(&output, None);
    b.finish(&[&output])
}

fn global_average_pool(mut b: Builder) -> Case {
    let mut dims = image(&mut b.random);
    dims[2] = b.random.within(1..=20);
    let input = b.input(&dims);
    let output = b.node("GlobalAveragePool", Attrs::default(), &[&input]);
    b.grid(&output, None);
    b.finish(&[&output])
}

fn pointwise(mut b: Builder, op: &str, attrs: Attrs) -> Case {
    let dims = image(&mut b.random);
    let input = b.input(&dims);
    let output = b.node(op, attrs, &[&input]);
    b.grid(&output, None);
    b.finish(&[&output])
}

fn silu(mut b: Builder) -> Case {
    let dims = image(&mut b.random);
    let input = b.input(&dims);
    let gate = b.node("Sigmoid", Attrs::default(), &[&input]);
    b.grid(&gate, None);
    let output = b.node("Mul", Attrs::default(), &[&input, &gate]);
    b.grid(&output, None);
    b.finish(&[&output])
}

fn softmax(mut b: Builder) -> Case {
    let dims = [b.random.pick(&[1, 3]), b.random.within(1..=5), b.random.within(2..=40)];
    let input = b.input(&dims);
    let output = b.node("Softmax", Attrs::default().with("axis", Attr::Int(-1)), &[&input]);
    // A grid that holds 0 … 1: beyond it, ONNX Runtime writes zeros.
    let (grid, scale) = (b.activation_grid(), b.random.pick(&[1.0 / 255.0, 1.0 / 256.0, 1.0 / 200.0]));
    let params = QuantParams::per_tensor(grid, scale, grid.qmin());
    b.case.grids.0.insert(output.clone(), TensorQuant::Quantized(params));
    b.finish(&[&output])
}

fn movement(mut b: Builder) -> Case {
    let [n, c, h, w] = image(&mut b.random);
    let (h, w) = (h + 1, w + 1);
    let input = b.input(&[n, c, h, w]);
    let integers = |b: &mut Builder, name: &str, values: &[i64]| {
        b.add_constant(name, Tensor::i64(&[values.len()], values.to_vec()))
    };
    let output = match b.random.below(8) {
        0 => {
            let shape = integers(&mut b, "shape", &[0, -1, w as i64]);
            b.node("Reshape", Attrs::default(), &[&input, &shape])
        }
        1 => b.node("Flatten", Attrs::default().with("axis", Attr::Int(1)), &[&input]),
        2 => {
            let order = b.random.pick(&[[0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2], [1, 0, 2, 3]]);
            b.node("Transpose", ints("perm", &order), &[&input])
        }
        3 => {
            let [starts, ends, axes, steps] =
                [("starts", [1, 0]), ("ends", [99, 99]), ("axes", [2, 3]), ("steps", [1, 2])]
                    .map(|(name, values)| integers(&mut b, name, &values));
            b.node("Slice", Attrs::default(), &[&input, &starts, &ends, &axes, &steps])
        }
        4 => {
            let pads = integers(&mut b, "pads", &[0, 1, 0, 2, 0, 0, 1, 1]);
            b.node("Pad", Attrs::default(), &[&input, &pads])
        }
        5 => {
            let axes = integers(&mut b, "axes", &[2]);
            b.node("Unsqueeze", Attrs::default(), &[&input, &axes])
        }
        6 => {
            let indices = integers(&mut b, "indices", &[c as i64 - 1, 0, 0]);
            b.node("Gather", Attrs::default().with("axis", Attr::Int(1)), &[&input, &indices])
        }
        _ => {
            let (start, end, axes) =
                (integers(&mut b, "start", &[0]), integers(&mut b, "end", &[1]), integers(&mut b, "axes", &[3]));
            let cut = b.node("Slice", Attrs::default(), &[&input, &start, &end, &axes]);
            b.same_grid(&cut, &input);
            b.node("Squeeze", Attrs::default(), &[&cut, &axes])
        }
    };
    b.same_grid(&output, &input);
    b.finish(&[&output])
}

fn resize(mut b: Builder) -> Case {
    let dims = image(&mut b.random);
    let input = b.input(&dims);
    let scales = [1.0, 1.0, b.random.pick(&[2.0, 3.0]), b.random.pick(&[2.0, 1.0])];
    let scales = b.add_constant("scales", Tensor::f32(&[4], scales.to_vec()));
    let attrs = Attrs::default()
        .with("mode", Attr::Str("nearest".into()))
        .with("coordinate_transformation_mode", Attr::Str("asymmetric".into()))
        .with("nearest_mode", Attr::Str("floor".into()));
    let output = b.node("Resize", attrs, &[&input, "", &scales]);
    b.same_grid(&output, &input);
    b.finish(&[&output])
}

/// One scale for each weight tensor, and all codes that its width has: the lowest one occurs.
fn full_range(mut case: Case) -> Case {
    let weights = case.graph.nodes.iter().filter_map(|n| n.input(1)).map(String::from);
    for (i, name) in weights.enumerate() {
        let Some(TensorQuant::Quantized(old)) = case.grids.0.get(&name) else { continue };
        let grid = Grid { narrow: false, ..old.grid };
        let largest = 0.5 / (1 << (grid.bits - 1)) as f32;
        let scale = largest * [0.6, 0.8, 0.97][(case.inputs[0].len() + i) % 3];
        case.grids.0.insert(name.clone(), TensorQuant::Quantized(QuantParams::per_tensor(grid, scale, 0)));
    }
    case
}
