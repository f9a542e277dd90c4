//! Networks as exporters write them, from the float file to the integers: the program quantizes them, and every element of every
//! output is that of ONNX Runtime on the exported file.

use crate::{
    exactness::{read, save},
    fewbits,
    random::{Builder, Case, ints},
    runtime_is_exact, same_outputs,
};
use fewbits_graph::{Attr, Attrs, Dim, Tensor};
use fewbits_onnx::write;
use std::path::PathBuf;

/// What stands between the first and the last layer: from a tensor `[N, 8, 8, 8]` to one of the number of channels that is returned.
type Middle = fn(&mut Builder, &str) -> (String, usize);

/// A convolution and a Relu, `middle`, a convolution, and the mean over the image.
fn network(middle: Middle) -> Case {
    let mut b = Builder::new(7);
    let x = b.input(&[4, 3, 8, 8]);
    let first = b.constant("first", &[8, 3, 1, 1], 0.6);
    let c = b.node("Conv", Attrs::default(), &[&x, &first]);
    let r = b.node("Relu", Attrs::default(), &[&c]);
    let (m, channels) = middle(&mut b, &r);
    let last = b.constant("last", &[10, channels, 1, 1], 0.4);
    let c = b.node("Conv", Attrs::default(), &[&m, &last]);
    let g = b.node("GlobalAveragePool", Attrs::default(), &[&c]);
    let y = b.node("Flatten", Attrs::default(), &[&g]);
    b.finish(&[&y])
}

fn int(name: &str, value: i64) -> Attrs {
    Attrs::default().with(name, Attr::Int(value))
}

fn index(b: &mut Builder, name: &str, values: &[i64]) -> String {
    let dims: &[usize] = if values.len() == 1 { &[] } else { &[values.len()] };
    b.add_constant(name, Tensor::i64(dims, values.to_vec()))
}

/// Quantizes each of `cases` with the program; the outputs must be those of ONNX Runtime, and like the float ones.
fn check(cases: &[(&str, Case, &[&str])]) {
    if !runtime_is_exact() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: String| folder.path().join(name);
    let text = |path: &PathBuf| path.to_str().unwrap().to_string();
    let mut runs = Vec::new();
    for (name, case, flags) in cases {
        let [model, data, quantized, outputs] =
            ["onnx", "npy", "int8.onnx", "npz"].map(|extension| path(format!("{name}.{extension}")));
        write(&model, &case.graph, 13).unwrap();
        save(&data, &case.inputs[0]);
        let run = |file: &PathBuf| {
            fewbits(&["run", &text(file), "--data", &text(&data), "-o", &text(&outputs)]);
            read(&outputs)
        };
        let float = run(&model);
        let rules = ["--ranges", "minmax", "--method", "none", "--samples", "4"];
        let quantize = ["quantize", &text(&model), "--calib", &text(&data), "-o", &text(&quantized)];
        fewbits(&[&quantize[..], &rules, flags].concat());
        let integers = run(&quantized);
        let db = sqnr_db(&float[0].1, &integers[0].1);
        assert!(db > 20.0, "{name}: {db} dB");
        runs.push((quantized, integers));
    }
    let pairs: Vec<_> = runs
        .iter()
        .zip(cases)
        .map(|((file, outputs), (_, case, _))| {
            let named = outputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            (file.clone(), vec![("x0", &case.inputs[0])], named)
        })
        .collect();
    let Some(report) = same_outputs(folder.path(), &pairs) else { return };
    for (file, rows) in report {
        for (output, row) in rows {
            assert_eq!(row.different, 0, "{} {output}: {row:?}", file.display());
        }
    }
}

fn sqnr_db(float: &Tensor, other: &Tensor) -> f64 {
    let (x, y) = (float.as_f32().unwrap(), other.as_f32().unwrap());
    let power = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    10.0 * (power(&mut x.iter().copied()) / power(&mut x.iter().zip(y).map(|(x, y)| x - y))).log10()
}

#[test]
fn tensors_that_follow_from_shapes_have_grids() {
    let zeros: Middle = |b, r| {
        let shape = b.node("Shape", Attrs::default(), &[r]);
        let zeros = b.node("ConstantOfShape", Attrs::default(), &[&shape]);
        (b.node("Concat", int("axis", 1), &[r, &zeros]), 16)
    };
    let coordinates: Middle = |b, r| {
        let [zero, one, three] = [0, 1, 3].map(|i| index(b, &format!("i{i}"), &[i]));
        let row = index(b, "row", &[1, 1, 1, -1]);
        let shape = b.node("Shape", Attrs::default(), &[r]);
        let width = b.node("Gather", Attrs::default(), &[&shape, &three]);
        let range = b.node("Range", Attrs::default(), &[&zero, &width, &one]);
        let range = b.node("Cast", int("to", 1), &[&range]);
        let row = b.node("Reshape", Attrs::default(), &[&range, &row]);
        (b.node("Add", Attrs::default(), &[r, &row]), 8)
    };
    let factor: Middle = |b, r| {
        let three = index(b, "i3", &[3]);
        let shape = b.node("Shape", Attrs::default(), &[r]);
        let width = b.node("Gather", Attrs::default(), &[&shape, &three]);
        let width = b.node("Cast", int("to", 1), &[&width]);
        let root = b.node("Sqrt", Attrs::default(), &[&width]);
        let divided = b.node("Div", Attrs::default(), &[r, &root]);
        (b.node("Mul", Attrs::default(), &[&divided, &root]), 8)
    };
    let cases = [("zeros", zeros), ("coordinates", coordinates), ("factor", factor)];
    check(&cases.map(|(name, middle)| (name, network(middle), &[][..])));
}

/// The mean over the image, flattened, and a Gemm with the addend `dims`.
fn with_addend(dims: &[usize]) -> Case {
    let mut b = Builder::new(8);
    let x = b.input(&[4, 3, 8, 8]);
    let [first, last] = [("first", [8, 3, 1, 1].as_slice()), ("last", &[8, 10])].map(|(n, d)| b.constant(n, d, 0.6));
    let addend = b.constant("addend", dims, 1.0);
    let c = b.node("Conv", Attrs::default(), &[&x, &first]);
    let r = b.node("Relu", Attrs::default(), &[&c]);
    let g = b.node("GlobalAveragePool", Attrs::default(), &[&r]);
    let f = b.node("Flatten", Attrs::default(), &[&g]);
    let y = b.node("Gemm", Attrs::default(), &[&f, &last, &addend]);
    b.finish(&[&y])
}

#[test]
fn gemms_add_what_stretches_to_their_shape() {
    let dims: [&[usize]; 6] = [&[], &[1], &[10], &[1, 10], &[4, 1], &[4, 10]];
    let names = ["scalar", "one", "channels", "row", "column", "matrix"];
    // With rows of its own the addend fixes how many samples the network takes at once, which its input has to say.
    let fixed = |mut case: Case| {
        case.graph.inputs[0].dims.as_mut().unwrap()[0] = Dim::Fixed(4);
        case
    };
    let case = |dims: &[usize]| if dims.first() == Some(&4) { fixed(with_addend(dims)) } else { with_addend(dims) };
    check(&std::array::from_fn::<_, 6, _>(|i| (names[i], case(dims[i]), &[][..])));
}

#[test]
fn products_with_stacks_of_matrices_stay_float() {
    let stack: Middle = |b, r| {
        let weight = b.constant("stack", &[1, 8, 8], 0.5);
        let shape = index(b, "shape", &[-1, 8, 8, 8]);
        let product = b.node("MatMul", Attrs::default(), &[r, &weight]);
        (b.node("Reshape", Attrs::default(), &[&product, &shape]), 8)
    };
    check(&[("stack", network(stack), &[])]);
}

#[test]
fn layers_that_are_kept_float_are_so_in_onnx_runtime_too() {
    fn conv(b: &mut Builder, x: &str) -> String {
        let weight = b.constant("kept", &[8, 8, 3, 3], 0.3);
        b.node("Conv", ints("pads", &[1; 4]), &[x, &weight])
    }
    fn transposed(b: &mut Builder, x: &str, groups: usize) -> (String, usize) {
        let weight = b.constant("kept", &[8, 8 / groups, 2, 2], 0.3);
        let attrs = ints("strides", &[2, 2]).with("group", Attr::Int(groups as i64));
        (b.node("ConvTranspose", attrs, &[x, &weight]), 8)
    }
    let alone: Middle = |b, r| (conv(b, r), 8);
    let with_relu: Middle = |b, r| {
        let sums = conv(b, r);
        (b.node("Relu", Attrs::default(), &[&sums]), 8)
    };
    let behind_pool: Middle = |b, r| {
        let pooled = b.node("MaxPool", ints("kernel_shape", &[2, 2]), &[r]);
        let sums = conv(b, &pooled);
        (b.node("MaxPool", ints("kernel_shape", &[2, 2]), &[&sums]), 8)
    };
    let grouped: Middle = |b, r| transposed(b, r, 8);
    let in_one_group: Middle = |b, r| transposed(b, r, 1);
    let kept = |name| ["--keep-float", name];
    let ([second, third], none): (_, &[&str]) = ([kept("n2"), kept("n3")], &[]);
    check(&[
        ("alone", network(alone), &second),
        ("with_relu", network(with_relu), &second),
        ("behind_pool", network(behind_pool), &third),
        ("transposed", network(in_one_group), &second),
        ("grouped", network(grouped), none),
        ("scaled", scaled_gemm(), none),
    ]);
}

/// Two layers with a Gemm between them that scales its product.
fn scaled_gemm() -> Case {
    let mut b = Builder::new(9);
    let x = b.input(&[4, 3, 8, 8]);
    let [first, middle, last] = [("first", [8, 3, 1, 1].as_slice()), ("middle", &[8, 10]), ("last", &[10, 6])]
        .map(|(n, d)| b.constant(n, d, 0.6));
    let c = b.node("Conv", Attrs::default(), &[&x, &first]);
    let g = b.node("GlobalAveragePool", Attrs::default(), &[&c]);
    let f = b.node("Flatten", Attrs::default(), &[&g]);
    let half = Attrs::default().with("alpha", Attr::Float(0.5));
    let m = b.node("Gemm", half, &[&f, &middle]);
    let y = b.node("Gemm", Attrs::default(), &[&m, &last]);
    b.finish(&[&y])
}

#[test]
fn clips_to_numbers_above_zero_are_computed() {
    let clip: Middle = |b, r| {
        let weight = b.constant("second", &[8, 8, 1, 1], 0.5);
        let [low, high] = [("low", 0.05), ("high", 3.0)].map(|(n, v)| b.add_constant(n, Tensor::f32(&[], vec![v])));
        let sums = b.node("Conv", Attrs::default(), &[r, &weight]);
        (b.node("Clip", Attrs::default(), &[&sums, &low, &high]), 8)
    };
    check(&[("clip", network(clip), &[])]);
}

#[test]
fn elementwise_operators_among_float_ones_are_not_rounded() {
    let silu: Middle = |b, r| {
        let weight = b.constant("second", &[8, 8, 1, 1], 1.5);
        let one = b.add_constant("one", Tensor::f32(&[], vec![1.0]));
        let x = b.node("Conv", Attrs::default(), &[r, &weight]);
        let negative = b.node("Neg", Attrs::default(), &[&x]);
        let power = b.node("Exp", Attrs::default(), &[&negative]);
        let sum = b.node("Add", Attrs::default(), &[&power, &one]);
        (b.node("Div", Attrs::default(), &[&x, &sum]), 8)
    };
    check(&[("silu", network(silu), &[])]);
}
