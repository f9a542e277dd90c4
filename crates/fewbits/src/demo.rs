//! The built-in network and pictures, as a model and data.

use crate::{Error, Model};
use fewbits_data::{Dataset, Image};
use fewbits_demo::images::{self, CALIBRATION_SEED, CLASS_NAMES, SIDE, TEST_SEED};

/// Pictures that the demo calibrates on.
pub const CALIBRATION_SAMPLES: usize = 256;
/// Pictures that the demo evaluates on.
pub const TEST_SAMPLES: usize = 2000;

/// The built-in network.
///
/// # Errors
/// [`Error::Onnx`] never happens: the file is part of the program.
pub fn model() -> Result<Model, Error> {
    Model::from_bytes("demo.onnx", fewbits_demo::MODEL)
}

/// Pictures for calibration.
pub fn calibration_set() -> Dataset {
    draw(CALIBRATION_SEED, CALIBRATION_SAMPLES)
}

/// Pictures for evaluation.
pub fn test_set() -> Dataset {
    draw(TEST_SEED, TEST_SAMPLES)
}

fn draw(seed: u64, count: usize) -> Dataset {
    let draw = |index| {
        let (pixels, label) = images::image(seed, index);
        (Image { width: SIDE, height: SIDE, rgb: pixels.to_vec() }, label)
    };
    let (pictures, labels) = (0..count as u64).map(draw).unzip();
    Dataset::from_images(pictures, labels, CLASS_NAMES.map(str::to_owned).to_vec())
}
