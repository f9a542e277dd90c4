//! Images per second of the loader on one worker: `cargo run --release -p fewbits-data --example loader_speed -- FOLDER [AUGMENT]`.

use std::{error::Error, path::Path, time::Instant};

use fewbits_data::{Augment, Dataset, Loader, LoaderOptions, OpenOptions, Preprocess};

#[expect(clippy::print_stdout, reason = "the numbers are what the program is for")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give a folder of images")?;
    let augment: Augment = arguments.next().as_deref().unwrap_or("crop4,flip").parse()?;
    let dataset = Dataset::open(Path::new(&folder), &OpenOptions::default())?;
    let preprocess = Preprocess::preset("cifar10", None).ok_or("`cifar10` is a preset")?;
    let options = LoaderOptions { batch: 128, seed: 0, shuffle: true, drop_last: true, limit: None, workers: 1 };
    let loader = Loader::new(dataset, preprocess, augment, options)?;
    for epoch in 0..3 {
        let start = Instant::now();
        let mut images = 0;
        for batch in loader.epoch(epoch, 0) {
            images += batch?.labels.len();
        }
        println!("epoch {epoch}: {:.0} images/s", images as f64 / start.elapsed().as_secs_f64());
    }
    Ok(())
}
