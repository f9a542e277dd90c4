//! Every form of data: what is opened, what is read, what is refused, and that nothing panics.

use std::{
    fs,
    path::{Path, PathBuf},
};

use fewbits_data::{
    Batch, Channels, DataError, Dataset, Image, OpenOptions, Preprocess, Resize, Sample,
    npy::{self, Elements},
    npz,
};
use tempfile::TempDir;

/// A PNG of one colour.
fn write_png(path: &Path, width: u32, height: u32, colour: [u8; 3]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_pixel(width, height, image::Rgb(colour)).save(path).unwrap();
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(path: &Path) -> Result<Dataset, DataError> {
    Dataset::open(path, &OpenOptions::default())
}

/// The first pixel of a sample.
fn pixel(dataset: &Dataset, index: usize) -> Vec<u8> {
    match dataset.read(index).unwrap() {
        Sample::Image(image) => image.rgb[..3].to_vec(),
        Sample::Tensor { .. } => panic!("a tensor"),
    }
}

fn labels(dataset: &Dataset) -> Vec<Option<usize>> {
    (0..dataset.len()).map(|i| dataset.label(i)).collect()
}

#[test]
fn class_folders() {
    let root = folder();
    write_png(&root.path().join("dog/b.png"), 2, 2, [3, 0, 0]);
    write_png(&root.path().join("dog/a.png"), 2, 2, [2, 0, 0]);
    write_png(&root.path().join("cat/z.png"), 2, 2, [1, 0, 0]);
    fs::create_dir(root.path().join("empty")).unwrap();
    write_png(&root.path().join("fox/a.png"), 2, 2, [4, 0, 0]);
    fs::write(root.path().join("dog/notes.txt"), "no image").unwrap();
    fs::write(root.path().join("dog/.hidden.png"), "no image").unwrap();
    let dataset = open(root.path()).unwrap();
    // An empty class keeps its number.
    assert_eq!(dataset.class_names(), ["cat", "dog", "empty", "fox"]);
    assert_eq!(labels(&dataset), [Some(0), Some(1), Some(1), Some(3)]);
    assert_eq!((0..4).map(|i| pixel(&dataset, i)[0]).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(dataset.name(1).ends_with("dog/a.png"));
    assert_eq!(
        (dataset.spread(2), dataset.spread(9), dataset.first(Some(3))),
        (vec![0, 2], vec![0, 2, 1, 3], vec![0, 1, 2])
    );
}

/// Folders are sorted by class: the first samples of a spread, and every eighth, are of all of them all the same.
#[test]
fn spread_samples_are_spread_from_the_first_on() {
    let dataset = Dataset::from_tensors(vec![1], vec![vec![0.0]; 1000]);
    let numbers = dataset.spread(256);
    let even = |part: &[usize]| (0..8).all(|bin| (2..=6).contains(&part.iter().filter(|n| *n / 125 == bin).count()));
    assert!(even(&numbers[..32]) && even(&numbers.iter().copied().skip(7).step_by(8).collect::<Vec<_>>()));
    let mut sorted = numbers;
    sorted.sort_unstable();
    assert_eq!(sorted, (0..256).map(|i| i * 1000 / 256).collect::<Vec<_>>());
}

#[test]
fn plain_folders_and_empty_ones() {
    let root = folder();
    let error = open(root.path()).unwrap_err();
    assert!(matches!(error, DataError::Empty { deeper: None, .. }), "{error}");
    write_png(&root.path().join("train/cat/1.PNG"), 1, 1, [0; 3]);
    let error = open(root.path()).unwrap_err();
    assert!(error.hint().unwrap().contains("train"), "{error}");
    write_png(&root.path().join("plain/1.png"), 1, 1, [5; 3]);
    let dataset = open(&root.path().join("plain")).unwrap();
    assert_eq!((dataset.len(), dataset.label(0), dataset.has_labels()), (1, None, false));
    assert!(matches!(open(&root.path().join("missing")), Err(DataError::NotFound { .. })));
    fs::write(root.path().join("data.xyz"), "").unwrap();
    assert!(matches!(open(&root.path().join("data.xyz")), Err(DataError::Unrecognised { .. })));
}

#[test]
fn csv_lists() {
    let root = folder();
    write_png(&root.path().join("in, side/a.png"), 1, 1, [7; 3]);
    let list = root.path().join("list.csv");
    fs::write(&list, "\u{feff}class_index,file\r\n12,\"in, side/a.png\"\r\n\r\n").unwrap();
    let dataset = open(&list).unwrap();
    assert_eq!((labels(&dataset), pixel(&dataset, 0)), (vec![Some(12)], vec![7; 3]));
    let cases = [
        ("", "first line"),
        ("path,label\na.png,1\n", "first line"),
        ("file,class_index\nin, side/a.png\n", "line 2"),
        ("file,class_index\n\"in, side/a.png\",-1\n", "line 2"),
        ("file,class_index\n\"in, side/a.png\",1\nb.png,2\n", "line 3"),
        ("file,class_index\n", "no images"),
        ("\u{0}\u{1}\n", "first line"),
    ];
    for (text, part) in cases {
        fs::write(&list, text).unwrap();
        let error = open(&list).unwrap_err();
        assert!(error.to_string().contains(part) && error.hint().is_some(), "{text:?}: {error}");
    }
}

#[test]
fn arrays() {
    let root = folder();
    let path = |name: &str| root.path().join(name);
    let save = |name: &str, shape: &[usize], elements: Elements<'_>| -> PathBuf {
        npy::write(&mut fs::File::create(path(name)).unwrap(), shape, elements).unwrap();
        path(name)
    };
    let bytes: Vec<u8> = (0..24).collect();
    let planar = open(&save("planar.npy", &[2, 3, 2, 2], Elements::U8(&bytes))).unwrap();
    assert_eq!((pixel(&planar, 0), pixel(&planar, 1)), (vec![0, 4, 8], vec![12, 16, 20]));
    let interleaved = open(&save("interleaved.npy", &[2, 2, 2, 3], Elements::U8(&bytes))).unwrap();
    assert_eq!(pixel(&interleaved, 1), [12, 13, 14]);
    let grey = open(&save("grey.npy", &[6, 2, 2], Elements::U8(&bytes))).unwrap();
    assert_eq!((grey.len(), pixel(&grey, 5)), (6, vec![20; 3]));

    let floats: Vec<f32> = (0..12).map(|x| x as f32).collect();
    let x = save("x.npy", &[4, 3], Elements::F32(&floats));
    let y = save("y.npy", &[4, 1], Elements::I64(&[0, 1, 0, 9]));
    let dataset = Dataset::open(&x, &OpenOptions { labels: Some(y), ..Default::default() }).unwrap();
    assert_eq!(labels(&dataset), [0, 1, 0, 9].map(Some));
    let batch = Batch::read(&dataset, &Preprocess::default(), &[3, 1]).unwrap();
    assert_eq!((batch.shape, batch.data), (vec![2, 3], vec![9.0, 10.0, 11.0, 3.0, 4.0, 5.0]));

    let short = save("short.npy", &[2], Elements::I64(&[0, 1]));
    let refused =
        |labels: PathBuf| Dataset::open(&x, &OpenOptions { labels: Some(labels), ..Default::default() }).unwrap_err();
    assert!(matches!(refused(short), DataError::LabelCount { images: 4, labels: 2, .. }));
    let negative = save("negative.npy", &[4], Elements::I64(&[0, 1, -2, 3]));
    assert!(matches!(refused(negative), DataError::Label { index: 2, label: -2, .. }));
    assert!(matches!(refused(x.clone()), DataError::ArrayShape { .. }));
    assert!(matches!(open(&save("i.npy", &[2], Elements::I64(&[0, 1]))), Err(DataError::Dtype { .. })));
    assert!(matches!(open(&save("flat.npy", &[24], Elements::U8(&bytes))), Err(DataError::ArrayShape { .. })));
    assert!(matches!(open(&save("none.npy", &[0, 3, 2, 2], Elements::U8(&[]))), Err(DataError::Empty { .. })));

    let archive = path("a.npz");
    let labels_ = ("y", &[2][..], Elements::I64(&[1, 0]));
    npz::save(&archive, &[labels_, ("pictures", &[2, 2, 2, 3], Elements::U8(&bytes))]).unwrap();
    let dataset = open(&archive).unwrap();
    assert_eq!((labels(&dataset), pixel(&dataset, 1)), (vec![Some(1), Some(0)], vec![12, 13, 14]));
    npz::save(&archive, &[labels_]).unwrap();
    assert!(matches!(open(&archive), Err(DataError::NoImageArray { .. })));
}

#[test]
fn cifar_batches() {
    let root = folder();
    let record = |label: u8, fill: u8| {
        let mut record = vec![label];
        (0..3).for_each(|plane| record.extend([fill + plane; 1024]));
        record
    };
    let write = |name: &str, records: &[Vec<u8>]| fs::write(root.path().join(name), records.concat()).unwrap();
    write("test_batch.bin", &[record(9, 90)]);
    assert_eq!(open(root.path()).unwrap().len(), 1);
    write("data_batch_1.bin", &[record(3, 10), record(4, 20)]);
    write("data_batch_2.bin", &[record(5, 30)]);
    let dataset = open(root.path()).unwrap();
    assert_eq!(labels(&dataset), [3, 4, 5].map(Some));
    assert_eq!((pixel(&dataset, 1), pixel(&dataset, 2)), (vec![20, 21, 22], vec![30, 31, 32]));
    assert!(dataset.name(2).to_string_lossy().ends_with("data_batch_2.bin[0]"));
    assert_eq!(labels(&open(&root.path().join("test_batch.bin")).unwrap()), [Some(9)]);
    write("test_batch.bin", &[record(10, 0)]);
    assert!(matches!(open(&root.path().join("test_batch.bin")), Err(DataError::Label { label: 10, .. })));
    fs::write(root.path().join("test_batch.bin"), [0; 100]).unwrap();
    assert!(matches!(open(&root.path().join("test_batch.bin")), Err(DataError::Truncated { .. })));
}

#[test]
fn coco_annotations() {
    let root = folder();
    let path = root.path().join("instances_x.json");
    let good = r#"{"images":[{"id":5,"file_name":"a.png","width":4,"height":3}],"categories":[{"id":9,"name":"b"},{"id":2,"name":"a"}],
        "annotations":[{"id":1,"image_id":5,"category_id":9,"bbox":[0,1,2,3],"area":6,"iscrowd":0}]}"#;
    fs::write(&path, good).unwrap();
    assert!(open(&path).unwrap_err().hint().unwrap().contains("--images"));
    write_png(&root.path().join("pictures/a.png"), 4, 3, [1; 3]);
    let options = OpenOptions { images: Some(root.path().join("pictures")), ..Default::default() };
    let dataset = Dataset::open(&path, &options).unwrap();
    let coco = dataset.coco().unwrap();
    assert_eq!((dataset.len(), coco.category_ids.as_slice(), coco.annotations[0].class), (1, &[2, 9][..], 1));
    for (from, to) in [
        ("\"image_id\":5", "\"image_id\":6"),
        ("\"category_id\":9", "\"category_id\":1"),
        ("a.png", "b.png"),
        ("bbox", "box"),
    ] {
        fs::write(&path, good.replace(from, to)).unwrap();
        assert!(Dataset::open(&path, &options).is_err(), "{to}");
    }
    for cut in 0..good.len() {
        fs::write(&path, &good[..cut]).unwrap();
        assert!(Dataset::open(&path, &options).is_err(), "cut at {cut}");
    }
}

#[test]
fn batches_hold_the_samples_asked_for() {
    let root = folder();
    for i in 0..11u8 {
        write_png(&root.path().join(format!("{i:02}.png")), 5, 4, [i; 3]);
    }
    let dataset = open(root.path()).unwrap();
    let preprocess = Preprocess { crop: Some(2), ..Default::default() };
    let batch = Batch::read(&dataset, &preprocess, &[9, 10]).unwrap();
    assert_eq!((batch.shape, batch.indices), (vec![2, 3, 2, 2], vec![9, 10]));
    assert_eq!((batch.data[12], batch.original_sizes[1]), (10.0, (5, 4)));
}

#[test]
fn errors_name_the_file() {
    let root = folder();
    for i in 0..6 {
        write_png(&root.path().join(format!("{i}.png")), 4, 4, [i; 3]);
    }
    fs::write(root.path().join("4.png"), b"\x89PNG\r\n\x1a\n broken").unwrap();
    let dataset = open(root.path()).unwrap();
    let read = |indices: &[usize]| Batch::read(&dataset, &Preprocess::default(), indices);
    assert!(read(&[0, 1]).is_ok() && read(&[2, 3]).is_ok());
    assert!(read(&[4, 5]).unwrap_err().to_string().contains("4.png"));
    write_png(&root.path().join("4.png"), 5, 4, [0; 3]);
    let error = read(&[3, 4]).unwrap_err();
    assert!(matches!(&error, DataError::MixedShapes { path, .. } if path.ends_with("4.png")), "{error}");
    let resize =
        Preprocess { resize: Resize::Exact { height: 2, width: 2 }, channels: Channels::Gray, ..Default::default() };
    assert_eq!(Batch::read(&dataset, &resize, &[3, 4]).unwrap().shape, [2, 1, 2, 2]);
}

#[test]
fn a_subset_has_all_classes_whatever_their_order() {
    let image = || Image { width: 1, height: 1, rgb: vec![0; 3] };
    for label in [|i: usize| i % 10, |i: usize| i / 100] {
        let labels: Vec<usize> = (0..1000).map(label).collect();
        let dataset = Dataset::from_images((0..1000).map(|_| image()).collect(), labels.clone(), vec![]);
        let subset = dataset.subset(200);
        assert!(subset.len() == 200 && subset.is_sorted_by(|a, b| a < b));
        assert_eq!(subset, dataset.subset(200));
        for class in 0..10 {
            let count = subset.iter().filter(|&&i| labels[i] == class).count();
            assert!((8..=40).contains(&count), "class {class}: {count} of 200");
        }
        assert_eq!(dataset.subset(5000).len(), 1000);
    }
}
