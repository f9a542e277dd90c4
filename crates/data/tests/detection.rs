//! Detector outputs against numpy, and average precision against pycocotools.

use std::{collections::BTreeMap, path::PathBuf};

use fewbits_data::{
    Coco, Framing, Preprocess, Resize,
    detect::{Decoder, DetectError, Output, Selection},
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
    let precisions = [scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_medium, scores.ap_large];
    let recalls = [scores.ar1, scores.ar10, scores.ar100, scores.ar_small, scores.ar_medium, scores.ar_large];
    let found = [precisions, recalls].concat();
    assert_eq!(stored["stats"].as_array().unwrap().len(), found.len());
    assert_eq!(scores.percent().ar_large, scores.ar_large.map(|s| 100.0 * s));
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
    let original = (stored["width"].as_u64().unwrap() as usize, stored["height"].as_u64().unwrap() as usize);
    for (name, case) in stored["cases"].as_object().unwrap() {
        let size = case["size"].as_u64().unwrap() as usize;
        let data: Vec<Vec<f32>> = serde_json::from_value(case["outputs"].clone()).unwrap();
        let shapes: Vec<Vec<usize>> = serde_json::from_value(case["shapes"].clone()).unwrap();
        let outputs: Vec<Output<'_>> = data.iter().map(Vec::as_slice).zip(shapes.iter().map(Vec::as_slice)).collect();
        let anchors = case["anchors"].as_str().map(|a| ("anchors".to_owned(), a.to_owned()));
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let decoder = Decoder::guess(&shapes, &anchors.into_iter().collect(), (size, size)).unwrap();
        let resize: Resize = serde_json::from_value(case["preprocess"]["resize"].clone()).unwrap();
        let framing = Framing::of(&Preprocess { resize, ..Preprocess::default() }, original);
        let selection = match case["selection"].as_object() {
            Some(stated) => Selection {
                score_threshold: stated["score_threshold"].as_f64().unwrap() as f32,
                nms_iou: stated["nms_iou"].as_f64().unwrap(),
            },
            None => decoder.selection(),
        };
        let boxes = decoder.decode(&outputs, 0, original, &framing, &selection).unwrap();
        let expected: Vec<[f64; 6]> = serde_json::from_value(case["boxes"].clone()).unwrap();
        assert!(expected.len() > 5 && boxes.len() == expected.len(), "{name}: {}", boxes.len());
        for (found, expected) in boxes.iter().zip(&expected) {
            assert_eq!(found.class as f64, expected[0], "{name}");
            let values = [f64::from(found.score)].into_iter().chain(found.corners);
            for (value, expected) in values.zip(&expected[1..]) {
                assert!((value - expected).abs() < 1e-4, "{name}: {found:?} is not {expected:?}");
            }
        }
        let decode = |outputs: &[Output<'_>], entry| decoder.decode(outputs, entry, original, &framing, &selection);
        assert!(matches!(decode(&outputs, 1), Err(DetectError::OutputLength { .. })));
        assert!(decode(&[], 0).is_err());
    }
}

#[test]
fn unknown_outputs_are_errors() {
    let guess = |shapes: &[&[usize]], metadata: &BTreeMap<_, _>| Decoder::guess(shapes, metadata, (32, 32));
    let none = BTreeMap::new();
    assert!(matches!(guess(&[&[1, 1000]], &none), Err(DetectError::UnknownOutputs { .. })));
    assert!(matches!(guess(&[&[1, 20, 85]], &none), Err(DetectError::UnknownOutputs { .. })));
    // Two heads of one stride, and a number of channels that three anchors cannot have.
    for heads in [[[1, 24, 2, 2], [1, 24, 2, 2]], [[1, 25, 2, 2], [1, 24, 1, 1]]] {
        let shapes: Vec<&[usize]> = heads.iter().map(|h| &h[..]).collect();
        assert!(matches!(guess(&shapes, &none), Err(DetectError::UnknownOutputs { .. })), "{heads:?}");
    }
    for text in ["", "[]", "[[[1, 2]]]", "[[[1]]]"] {
        let metadata = BTreeMap::from([("anchors".to_owned(), text.to_owned())]);
        let error = guess(&[&[1, 3, 4, 4]], &metadata).unwrap_err();
        assert!(matches!(error, DetectError::Anchors { .. }) && error.hint().is_some(), "{text}");
    }
}
