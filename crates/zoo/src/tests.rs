//! Every architecture against its published size, and through shape inference, a forward pass and a file.

use crate::{Options, ZooError, find, macs, parameters};
use fewbits_graph::{
    Dim, Graph, Op, Tensor,
    exec::{Executor, Mode},
};
use fewbits_kernels::Threads;

const CIFAR: Option<[usize; 3]> = Some([3, 32, 32]);

fn build(name: &str, options: Options) -> Graph {
    find(name).unwrap().build(&options).unwrap()
}

/// Parameters and million multiply-accumulates of the networks' sources: torchvision 0.29 (resnet18, resnet50, mobilenet_v2,
/// efficientnet_b0) and timm 1.0.19 (mixnet_s), counted by hooks on their layers; darknet's half BFLOPs (yolov3, yolov3_tiny)
/// with the parameters that ultralytics states; He et al. 2016, section 4.2 (resnet20); `kuangliu/pytorch-cifar` (32x32).
#[test]
fn sizes_are_the_published_ones() {
    let cases = [
        ("resnet18", None, 11_689_512, 1814.07),
        ("resnet50", None, 25_557_032, 4089.18),
        ("resnet20", None, 269_722, 40.55),
        ("mobilenet_v2", None, 3_504_872, 300.77),
        ("efficientnet_b0", None, 5_288_548, 385.81),
        ("mixnet_s", None, 4_134_606, 239.17),
        ("yolov3", None, 61_949_149, 65_864.0 / 2.0),
        ("yolov3_tiny", None, 8_852_366, 5_571.0 / 2.0),
        ("resnet18", CIFAR, 11_173_962, 555.42),
        ("resnet50", CIFAR, 23_520_842, 1297.83),
    ];
    let mut wrong = String::new();
    for (name, input, expected, million) in cases {
        let graph = build(name, Options { input, ..Options::default() });
        let input = input.unwrap_or(find(name).unwrap().input);
        let (count, macs) = (parameters(&graph), macs(&graph, input).unwrap() as f64 / 1e6);
        if count != expected || (macs - million).abs() > 0.002 * million {
            wrong.push_str(&format!("{name} {input:?}: {count} of {expected} parameters, {macs} of {million} MMACs\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn small_networks_are_small() {
    assert_eq!(parameters(&build("demo", Options::default())), 58_770);
    let graph = build("swishnet", Options::default());
    let macs = macs(&graph, [3, 32, 32]).unwrap();
    assert!((250_000..350_000).contains(&parameters(&graph)), "{}", parameters(&graph));
    assert!(macs <= 25_000_000, "{macs}");
}

#[test]
fn widths_are_those_of_torchvision() {
    let half = Options { width: 0.5, ..Options::default() };
    assert_eq!(parameters(&build("mobilenet_v2", half)), 1_968_680);
    let error = find("resnet18").unwrap().build(&half).unwrap_err();
    assert!(matches!(error, ZooError::Width { .. }) && error.hint().is_some());
}

/// The outputs for two images of noise are finite and differ between the images, and a file holds the whole graph.
fn runs_and_survives_a_file(name: &str, sides: &[usize]) {
    for &side in sides {
        let graph = build(name, Options { input: Some([3, side, side]), classes: Some(7), ..Options::default() });
        let image = crate::random::Random::new(5).normal(2 * 3 * side * side, 1.0);
        let image = Tensor::f32(&[2, 3, side, side], image);
        let threads = Threads::new(1);
        let outputs = Executor::new(&graph, Mode::Float, &threads).run(&[image]).unwrap();
        for (output, declared) in outputs.iter().zip(&graph.outputs) {
            let dims = declared.dims.as_deref().unwrap();
            assert_eq!(dims[0], Dim::Symbol("batch".into()));
            assert!(dims[1..].iter().zip(&output.dims[1..]).all(|(d, n)| *d == Dim::Fixed(*n)), "{name}");
            let values = output.as_f32().unwrap();
            let (first, second) = values.split_at(values.len() / 2);
            assert!(values.iter().all(|v| v.is_finite()) && first != second, "{name}: {values:?}");
        }
        let bytes = fewbits_onnx::export(&graph, graph.opset).unwrap();
        assert!(fewbits_onnx::import_bytes(&bytes, None).unwrap() == graph, "{name}");
    }
}

#[test]
fn residual_networks_run() {
    runs_and_survives_a_file("resnet18", &[32, 96]);
    runs_and_survives_a_file("resnet20", &[32]);
    runs_and_survives_a_file("resnet50", &[96]);
}

#[test]
fn mobile_networks_run() {
    for name in ["mobilenet_v2", "efficientnet_b0", "mixnet_s"] {
        runs_and_survives_a_file(name, &[32, 96]);
    }
    runs_and_survives_a_file("swishnet", &[32]);
    runs_and_survives_a_file("demo", &[32, 40]);
}

#[test]
fn detectors_run() {
    runs_and_survives_a_file("yolov3", &[64]);
    runs_and_survives_a_file("yolov3_tiny", &[96]);
}

#[test]
fn seeds_decide_the_weights() {
    let seeded = |seed| build("resnet20", Options { seed, ..Options::default() });
    assert_eq!(seeded(3), seeded(3));
    assert_ne!(seeded(3).constants["stem.conv.weight"], seeded(4).constants["stem.conv.weight"]);
}

/// Option A: the shortcut of a block that halves the image is made of picked pixels and zeros.
#[test]
fn resnet20_shortcuts_have_no_parameters() {
    let graph = build("resnet20", Options::default());
    let count = |wanted: fn(&Op) -> bool| graph.nodes.iter().filter(|n| wanted(&n.op)).count();
    assert_eq!(count(|op| matches!(op, Op::Conv(_))), 19);
    assert_eq!(count(|op| matches!(op, Op::Slice(_))), 2);
    assert_eq!(count(|op| matches!(op, Op::Pad(_))), 2);
}

#[test]
fn options_out_of_range_are_refused() {
    let refuse = |name: &str, options: Options| find(name).and_then(|a| a.build(&options)).unwrap_err();
    let input = |input| Options { input: Some(input), ..Options::default() };
    let errors = [
        refuse("resnet19", Options::default()),
        refuse("yolov3", input([3, 416, 400])),
        refuse("resnet18", input([3, 0, 32])),
        refuse("resnet18", Options { classes: Some(0), ..Options::default() }),
        refuse("mobilenet_v2", Options { width: f32::NAN, ..Options::default() }),
    ];
    let expected = [
        "no architecture `resnet19`",
        "yolov3 takes no input of 3x416x400",
        "resnet18 takes no input of 3x0x32",
        "0 classes",
        "mobilenet_v2 of width NaN",
    ];
    assert_eq!(errors.each_ref().map(ToString::to_string), expected);
    assert!(errors[0].hint().unwrap().contains("efficientnet_b0, mixnet_s"));
    assert!(errors.iter().all(|e| e.hint().is_some()));
}
