//! Detectors from annotation files to scores, on a network whose boxes are known.

use fewbits::{
    evaluate::{Boxes, Scores, evaluate_boxes},
    progress::Silent,
    stream::Source,
};
use fewbits_data::{Dataset, OpenOptions, Preprocess, Resize, detect::Decoder};
use fewbits_graph::{DType, Dim, Graph, Node, Op, Tensor, ValueInfo, exec::Mode, op::Attrs};
use std::{collections::BTreeMap, sync::Arc};

/// A network that sees one box in every image, in the form of YOLOX: from 8 to 16 in both directions, in an input of 32×32, with a score of
/// .6.
fn one_box() -> Graph {
    let value = |name: &str, dims: &[usize]| ValueInfo {
        name: name.into(),
        dtype: DType::F32,
        dims: Some(dims.iter().map(|&n| Dim::Fixed(n)).collect()),
    };
    let mut rows = vec![0.0; 21 * 6];
    // Row 1, column 1 of the grid with stride 8.
    rows[5 * 6..6 * 6].copy_from_slice(&[0.5, 0.5, 0.0, 0.0, 0.6, 1.0]);
    Graph {
        nodes: vec![Node {
            name: "rows".into(),
            op: Op::from_attrs("Identity", &Attrs::default()).unwrap(),
            inputs: vec!["constant".into()],
            outputs: vec!["rows".into()],
        }],
        inputs: vec![value("image", &[1, 3, 32, 32])],
        outputs: vec![value("rows", &[1, 21, 6])],
        constants: [("constant".to_string(), Arc::new(Tensor::f32(&[1, 21, 6], rows)))].into(),
        ..Graph::default()
    }
}

#[test]
fn boxes_lie_where_the_letterbox_says_and_unseen_images_do_not_count() {
    let folder = tempfile::tempdir().unwrap();
    for (name, height) in [("wide.png", 32), ("square.png", 64)] {
        image::RgbImage::new(64, height).save(folder.path().join(name)).unwrap();
    }
    // Both are half as large in the network's input; in the middle, the wide one lies 8 pixels below the top.
    let truth = r#"{"categories": [{"id": 1, "name": "thing"}],
        "images": [{"id": 1, "file_name": "wide.png", "width": 64, "height": 32},
                   {"id": 2, "file_name": "square.png", "width": 64, "height": 64}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [16, 0, 16, 16], "area": 256},
                        {"image_id": 2, "category_id": 1, "bbox": [16, 16, 16, 16], "area": 256}]}"#;
    let path = folder.path().join("instances.json");
    std::fs::write(&path, truth).unwrap();
    let dataset = Dataset::open(&path, &OpenOptions::default()).unwrap();
    let graph = one_box();
    let scores = |centred: bool, images: usize, boxes: Boxes| {
        let resize = Resize::Letterbox { height: 32, width: 32, fill: 0, centred };
        let preprocess = Preprocess { resize, ..Preprocess::default() };
        let source = Source { dataset: &dataset, preprocess: &preprocess, indices: (0..images).collect() };
        let Scores::Detection { coco, selection, .. } =
            evaluate_boxes(&graph, Mode::Float, &source, boxes, 1, &Silent).unwrap()
        else {
            panic!("it is a detector");
        };
        (coco.ap.unwrap().round(), coco.ar100.unwrap().round(), selection)
    };
    let (ap, recall, selection) = scores(true, 2, Boxes::default());
    assert_eq!((ap, recall, selection.score_threshold, selection.nms_iou), (100.0, 100.0, 0.005, 0.65));
    assert_eq!(scores(true, 1, Boxes::default()).0, 100.0);
    // In the corner, that of the wide image is found too low.
    assert_eq!(scores(false, 2, Boxes::default()).1, 50.0);
    assert_eq!(scores(false, 1, Boxes::default()).1, 0.0);
    let (ap, _, selection) = scores(true, 2, Boxes { score_threshold: Some(0.7), nms_iou: Some(0.5) });
    assert_eq!((ap, selection.score_threshold, selection.nms_iou), (0.0, 0.7, 0.5));
}

#[test]
fn anchors_of_the_zoo_are_those_of_darknet() {
    for (name, heads) in [("yolov3", vec![32, 16, 8]), ("yolov3_tiny", vec![32, 16])] {
        let options = fewbits_zoo::Options { input: Some([3, 64, 64]), classes: Some(1), ..Default::default() };
        let graph = fewbits_zoo::find(name).unwrap().build(&options).unwrap();
        let shapes: Vec<[usize; 4]> = heads.iter().map(|stride| [1, 18, 64 / stride, 64 / stride]).collect();
        let shapes: Vec<&[usize]> = shapes.iter().map(|shape| &shape[..]).collect();
        let stated = Decoder::guess(&shapes, &graph.metadata, (64, 64)).unwrap();
        assert_eq!(stated, Decoder::guess(&shapes, &BTreeMap::new(), (64, 64)).unwrap(), "{name}");
    }
}
