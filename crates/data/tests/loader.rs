//! The loader: batches depend on the seed, the epoch and their number alone, and hold what a plain loop would make.

use std::path::Path;

use fewbits_data::{
    Augment, DataError, Dataset, Image, LabelledBatch, Loader, LoaderOptions, OpenOptions, Preprocess, Resize,
};

const OPTIONS: LoaderOptions =
    LoaderOptions { batch: 4, seed: 11, shuffle: true, drop_last: false, limit: None, workers: 1 };

/// Image `i` of 5×4 is filled with `10·i + 1`, its class is `i`.
fn images(count: usize) -> Dataset {
    let image = |i: usize| Image { width: 5, height: 4, rgb: vec![10 * i as u8 + 1; 60] };
    Dataset::from_images((0..count).map(image).collect(), (0..count).collect(), Vec::new())
}

fn loader(augment: &str, options: LoaderOptions) -> Loader {
    let preprocess = Preprocess { scale: 2.0, ..Default::default() };
    Loader::new(images(18), preprocess, augment.parse().unwrap(), options).unwrap()
}

type Contents = (Vec<f32>, Vec<usize>, Vec<usize>);

fn contents(batch: Result<LabelledBatch, DataError>) -> Contents {
    let batch = batch.unwrap();
    (batch.data.clone(), batch.shape.clone(), batch.labels.clone())
}

fn epoch(loader: &Loader, number: u64, first: usize) -> Vec<Contents> {
    loader.epoch(number, first).map(contents).collect()
}

#[test]
fn batches_hold_the_samples_of_their_labels() {
    let batches = epoch(&loader("none", OPTIONS), 0, 0);
    assert_eq!(batches.iter().map(|b| b.1[0]).collect::<Vec<_>>(), [4, 4, 4, 4, 2]);
    for (data, shape, labels) in &batches {
        assert_eq!(shape[1..], [3, 4, 5]);
        for (sample, &label) in data.chunks_exact(60).zip(labels) {
            assert!(sample.iter().all(|&v| v == (10 * label + 1) as f32 / 2.0), "{label}: {sample:?}");
        }
    }
    let mut labels: Vec<usize> = batches.iter().flat_map(|b| b.2.clone()).collect();
    assert_ne!(labels, (0..18).collect::<Vec<_>>());
    labels.sort_unstable();
    assert_eq!(labels, (0..18).collect::<Vec<_>>());
}

#[test]
fn options_of_order_and_last_batch() {
    let plain = loader("none", LoaderOptions { shuffle: false, drop_last: true, limit: None, ..OPTIONS });
    let labels: Vec<usize> = epoch(&plain, 3, 0).into_iter().flat_map(|b| b.2).collect();
    assert_eq!(labels, (0..16).collect::<Vec<_>>());
    assert_eq!((plain.batches(), plain.epoch(0, 1).len()), (4, 3));
    assert_eq!(plain.epoch(0, 4).count(), 0);
    assert_eq!(plain.epoch(0, 9).count(), 0);
}

#[test]
fn any_number_of_workers_gives_the_same_batches() {
    let one = loader("crop1,flip,jitter0.5", OPTIONS);
    let three = loader("crop1,flip,jitter0.5", LoaderOptions { workers: 3, ..OPTIONS });
    assert_eq!(one.settings(), three.settings(), "what decides the batches");
    let expected: Vec<_> = (0..3).map(|e| epoch(&one, e, 0)).collect();
    assert_eq!(expected, (0..3).map(|e| epoch(&three, e, 0)).collect::<Vec<_>>());
    // Order and pixels change from epoch to epoch, and with the seed.
    assert_ne!(expected[0], expected[1]);
    assert_ne!(expected[0], epoch(&loader("crop1,flip,jitter0.5", LoaderOptions { seed: 12, ..OPTIONS }), 0, 0));
    let still = loader("crop1", LoaderOptions { shuffle: false, ..OPTIONS });
    assert_ne!(epoch(&still, 0, 0), epoch(&still, 1, 0));
}

#[test]
fn an_epoch_resumed_in_the_middle_continues_alike() {
    let whole = epoch(&loader("crop1,flip", OPTIONS), 5, 0);
    for first in 0..=whole.len() {
        let resumed = loader("crop1,flip", LoaderOptions { workers: 2, ..OPTIONS });
        assert_eq!(epoch(&resumed, 5, first), whole[first..]);
    }
}

#[test]
fn dropped_epochs_stop_and_memory_is_used_again() {
    let loader = loader("none", LoaderOptions { batch: 1, workers: 2, ..OPTIONS });
    let mut addresses = std::collections::BTreeSet::new();
    for number in 0..20 {
        let mut batches = loader.epoch(number, 0);
        for _ in 0..9 {
            addresses.insert(batches.next().unwrap().unwrap().data.as_ptr() as usize);
        }
    }
    // Per worker: two that wait and one at work; and the one in use.
    assert!(addresses.len() <= 7, "{}", addresses.len());
}

fn write(folder: &Path, name: &str, side: u32) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_fn(side, side, |x, y| image::Rgb([x as u8 * 9, y as u8 * 9, 77])).save(path).unwrap();
}

#[test]
fn files_are_resized_and_wrong_ones_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a/1.png", 12);
    write(folder.path(), "b/2.png", 16);
    let open = |preprocess: Preprocess, augment: &str| {
        let dataset = Dataset::open(folder.path(), &OpenOptions::default()).unwrap();
        Loader::new(dataset, preprocess, augment.parse().unwrap(), LoaderOptions { shuffle: false, ..OPTIONS }).unwrap()
    };
    let resized = Preprocess { resize: Resize::Shorter(10), crop: Some(8), ..Default::default() };
    let loader = open(resized.clone(), "none");
    // What is kept from the first epoch serves the second.
    assert_eq!(epoch(&loader, 0, 0), epoch(&loader, 1, 0));
    let dataset = Dataset::open(folder.path(), &OpenOptions::default()).unwrap();
    let plain = fewbits_data::Batch::read(&dataset, &resized, &[0, 1]).unwrap();
    assert_eq!(epoch(&loader, 0, 0), [(plain.data, plain.shape, vec![0, 1])]);
    assert_eq!(epoch(&open(resized, "rrc6,flip"), 0, 0)[0].1, [2, 3, 6, 6]);

    let mixed = open(Preprocess::default(), "none").epoch(0, 0).next().unwrap().unwrap_err();
    assert!(matches!(&mixed, DataError::MixedShapes { path, .. } if path.ends_with("b/2.png")), "{mixed}");
    std::fs::write(folder.path().join("b/2.png"), b"no image").unwrap();
    let broken = open(Preprocess::default(), "none").epoch(0, 0).next().unwrap().unwrap_err();
    assert!(broken.to_string().contains("2.png"), "{broken}");
}

#[test]
fn what_cannot_be_trained_on_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "1.png", 4);
    let unlabelled = Dataset::open(folder.path(), &OpenOptions::default()).unwrap();
    let error = Loader::new(unlabelled, Preprocess::default(), Augment::default(), OPTIONS).unwrap_err();
    assert!(matches!(error, DataError::NoLabels { .. }) && error.hint().is_some());
}
