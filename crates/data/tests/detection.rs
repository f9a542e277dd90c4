//! Detector outputs against numpy, and average precision against pycocotools.

use std::{collections::BTreeMap, path::PathBuf};

use fewbits_data::{
    Coco,
    detect::{Decoder, DetectError, Output},
    metrics::{CocoScores, Detection, coco_scores},
};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "golden", name].iter().collect()
}

fn stored() -> Value {
    serde_json::from_slice(&std::fs::read(golden("detections.json")).unwrap()).unwrap()
}

#[test]
fn equals_pycocotools() {
    let truth = Coco::read(&golden("instances.json")).unwrap();
    let stored = stored();
    let position = |ids: &[u64], id: &Value| ids.iter().position(|&i| Some(i) == id.as_u64()).unwrap();
    let detection = |d: &Value| Detection {
        image: position(&truth.image_ids, &d["image_id"]),
        class: position(&truth.category_ids, &d["category_id"]),
        score: d["score"].as_f64().unwrap(),
        bbox: std::array::from_fn(|i| d["bbox"][i].as_f64().unwrap()),
    };
    let detections: Vec<Detection> = stored["detections"].as_array().unwrap().iter().map(detection).collect();
    let scores = coco_scores(&truth, &detections);
    let found = [scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_medium, scores.ap_large];
    for (i, value) in found.into_iter().enumerate() {
        let expected = stored["stats"][i].as_f64().unwrap();
        assert!((value.unwrap() - expected).abs() < 1e-9, "score {i}: {value:?}, pycocotools says {expected}");
    }
    let nothing = Coco { annotations: Vec::new(), ..truth.clone() };
    assert_eq!(coco_scores(&nothing, &detections), CocoScores::default());
    assert_eq!(coco_scores(&truth, &[]).ap, Some(0.0));
}

#[test]
fn decoding_equals_numpy() {
    let stored = stored();
    let size = stored["size"].as_u64().unwrap() as usize;
    let original = (stored["width"].as_u64().unwrap() as usize, stored["height"].as_u64().unwrap() as usize);
    for kind in ["yolov3", "yolox"] {
        let case = &stored[kind];
        let data: Vec<Vec<f32>> = serde_json::from_value(case["outputs"].clone()).unwrap();
        let shapes: Vec<Vec<usize>> = serde_json::from_value(case["shapes"].clone()).unwrap();
        let outputs: Vec<Output<'_>> = data.iter().map(Vec::as_slice).zip(shapes.iter().map(Vec::as_slice)).collect();
        let anchors = case["anchors"].as_str().map(|a| ("anchors".to_owned(), a.to_owned()));
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let decoder = Decoder::guess(&shapes, &anchors.into_iter().collect(), (size, size)).unwrap();
        let boxes = decoder.decode(&outputs, 0, original).unwrap();
        let expected: Vec<[f64; 6]> = serde_json::from_value(case["boxes"].clone()).unwrap();
        assert_eq!(boxes.len(), expected.len(), "{kind}");
        for (found, expected) in boxes.iter().zip(&expected) {
            assert_eq!(found.class as f64, expected[0], "{kind}");
            let values = [f64::from(found.score)].into_iter().chain(found.corners);
            for (value, expected) in values.zip(&expected[1..]) {
                assert!((value - expected).abs() < 1e-4, "{kind}: {found:?} is not {expected:?}");
            }
        }
        assert!(matches!(decoder.decode(&outputs, 1, original), Err(DetectError::OutputLength { .. })));
        assert!(decoder.decode(&[], 0, original).is_err());
    }
}

#[test]
fn unknown_outputs_are_errors() {
    let guess = |shapes: &[&[usize]], metadata: &BTreeMap<_, _>| Decoder::guess(shapes, metadata, (32, 32));
    let none = BTreeMap::new();
    assert!(matches!(guess(&[&[1, 1000]], &none), Err(DetectError::UnknownOutputs { .. })));
    assert!(matches!(guess(&[&[1, 20, 85]], &none), Err(DetectError::UnknownOutputs { .. })));
    for text in ["", "[]", "[[[1, 2]]]", "[[[1]]]"] {
        let metadata = BTreeMap::from([("anchors".to_owned(), text.to_owned())]);
        let error = guess(&[&[1, 3, 4, 4]], &metadata).unwrap_err();
        assert!(matches!(error, DetectError::Anchors { .. }) && error.hint().is_some(), "{text}");
    }
}
