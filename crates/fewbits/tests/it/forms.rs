//! Forms of operators that exporters write now and then, between two convolutions: the quantized file loads in ONNX Runtime, computes the
//! integers of Fewbits, and stays close to the float network.

use crate::{exactness, fewbits, random::Builder, runtime_is_exact};
use fewbits_graph::{Attr, Attrs, Graph, Tensor};
use std::path::Path;

type Middle = fn(&mut Builder, &str) -> String;

/// Name, operator set, and what stands between the convolutions: eight channels of 7 × 7.
const FORMS: &[(&str, i64, Middle)] = &[
    ("dilated_pool", 19, |b, x| pool(b, x, &[("dilations", &[2, 2]), ("pads", &[1; 4])], false)),
    ("undilated_pool", 19, |b, x| pool(b, x, &[("dilations", &[1, 1]), ("pads", &[1; 4])], false)),
    ("overhanging_pool", 13, |b, x| pool(b, x, &[], true)),
    ("overhanging_padded_pool", 13, |b, x| pool(b, x, &[("pads", &[1, 1, 0, 0]), ("strides", &[3, 3])], true)),
    ("border_of_zeros", 13, |b, x| {
        let pads = b.add_constant("pads", Tensor::i64(&[8], vec![0, 0, 1, 0, 0, 0, 1, 1]));
        b.node("Pad", Attrs::default(), &[x, &pads])
    }),
    ("pooled_border", 13, |b, x| {
        let pads = b.add_constant("pads", Tensor::i64(&[8], vec![0, 0, 1, 0, 0, 0, 1, 1]));
        let padded = b.node("Pad", Attrs::default(), &[x, &pads]);
        pool(b, &padded, &[], false)
    }),
    ("named_mask", 13, |b, x| named(b, x, "Dropout", Attrs::default())),
    ("named_indices", 13, |b, x| named(b, x, "MaxPool", Attrs::default().with("kernel_shape", Attr::Ints(vec![2, 2])))),
];

/// An operator with a second output that nothing reads.
fn named(b: &mut Builder, x: &str, op_type: &str, attrs: Attrs) -> String {
    let output = b.node(op_type, attrs, &[x]);
    b.case.graph.nodes.last_mut().unwrap().outputs.push("unread".into());
    output
}

fn pool(b: &mut Builder, x: &str, lists: &[(&str, &[i64])], overhangs: bool) -> String {
    let attrs = Attrs::default().with("kernel_shape", Attr::Ints(vec![2, 2])).with("strides", Attr::Ints(vec![2, 2]));
    let attrs = ["ceil_mode", "count_include_pad"]
        .into_iter()
        .fold(attrs, |attrs, name| attrs.with(name, Attr::Int(overhangs.into())));
    let attrs = lists.iter().fold(attrs, |attrs, (name, list)| attrs.with(name, Attr::Ints(list.to_vec())));
    b.node("AveragePool", attrs, &[x])
}

/// Convolution, Relu, the form, convolution, on eight images.
fn network(opset: i64, middle: Middle) -> (Graph, Tensor) {
    let mut b = Builder::new(5);
    let x = b.input(&[8, 3, 7, 7]);
    let (first, last) = (b.constant("first", &[8, 3, 3, 3], 0.3), b.constant("last", &[6, 8, 1, 1], 0.5));
    let padded = Attrs::default().with("pads", Attr::Ints(vec![1; 4]));
    let sums = b.node("Conv", padded, &[&x, &first]);
    let relu = b.node("Relu", Attrs::default(), &[&sums]);
    let between = middle(&mut b, &relu);
    let output = b.node("Conv", Attrs::default(), &[&between, &last]);
    let case = b.finish(&[&output]);
    (Graph { opset, ..case.graph }, case.inputs[0].clone())
}

#[test]
fn rare_forms_ship_and_stay_close() {
    if !runtime_is_exact() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for &(name, opset, middle) in FORMS {
        let (graph, inputs) = network(opset, middle);
        let (model, samples) = (folder.path().join(format!("{name}.onnx")), folder.path().join("samples.npy"));
        fewbits_onnx::write(&model, &graph, opset).unwrap();
        exactness::save(&samples, &inputs);
        if exactness::check(&model, &samples, folder.path(), &inputs, &[], ["8", "8"]).is_none() {
            return;
        }
        let outputs = |file: &str| run(folder.path(), file, &samples);
        let [float, integer] = [outputs(&format!("{name}.onnx")), outputs(&format!("{name}.w8a8.onnx"))];
        let energy = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>();
        let noise = energy(&mut float.iter().zip(&integer).map(|(a, b)| a - b));
        let decibels = 10.0 * (energy(&mut float.iter().copied()) / noise).log10();
        assert!(decibels > 30.0, "{name}: {decibels:.1} dB");
    }
}

/// The first output of a model file.
fn run(folder: &Path, file: &str, samples: &Path) -> Vec<f32> {
    let (model, outputs) = (folder.join(file), folder.join("run.npz"));
    let [model, data, npz] = [&model, samples, &outputs].map(|path| path.to_str().unwrap());
    fewbits(&["run", model, "--data", data, "-o", npz]);
    exactness::read(&outputs)[0].1.as_f32().unwrap().to_vec()
}
