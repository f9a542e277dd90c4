//! A temporary folder with the demo network and drawn pictures in the forms that the program reads.

use crate::fewbits;
use fewbits::demo;
use fewbits_data::{
    Sample,
    npy::{self, Elements},
};
use fewbits_demo::images;
use std::{
    fs::File,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The folder; it is removed in the end.
pub struct Desk(TempDir);

/// Pictures in [`Desk::pictures`].
const PICTURES: usize = 24;

impl Desk {
    /// `demo.onnx`, and `pictures/CLASS/N.png`, `pictures.npy` and `labels.npy`, which hold the same.
    pub fn new() -> Self {
        let desk = Desk(tempfile::tempdir().unwrap());
        std::fs::write(desk.path("demo.onnx"), fewbits_demo::MODEL).unwrap();
        let set = demo::test_set();
        let (mut bytes, mut labels) = (Vec::new(), Vec::new());
        // The folder's order, so that all forms hold the samples in one order.
        let mut indices: Vec<usize> = (0..PICTURES).collect();
        indices.sort_by_key(|&i| set.label(i));
        for i in indices {
            let Sample::Image(picture) = set.read(i).unwrap() else { unreachable!("the demo draws pictures") };
            let class = set.label(i).unwrap();
            let folder = desk.path(&format!("pictures/{class}"));
            std::fs::create_dir_all(&folder).unwrap();
            let (w, h) = (picture.width as u32, picture.height as u32);
            let file = Path::new(&folder).join(format!("{i:03}.png"));
            image::save_buffer(file, &picture.rgb, w, h, image::ExtendedColorType::Rgb8).unwrap();
            bytes.extend(picture.rgb);
            labels.push(class as i64);
        }
        desk.save("pictures.npy", &[PICTURES, images::SIDE, images::SIDE, 3], Elements::U8(&bytes));
        desk.save("labels.npy", &[PICTURES], Elements::I64(&labels));
        desk
    }

    /// A path below the folder.
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("temporary paths are UTF-8").to_string()
    }

    pub fn save(&self, name: &str, dims: &[usize], elements: Elements) -> String {
        npy::write(&mut File::create(self.path(name)).unwrap(), dims, elements).unwrap();
        self.path(name)
    }

    /// Draws pictures of some classes in turn into `NAME.npy`, and the positions of their classes in `classes` into
    /// `NAME.labels.npy`; returns both paths.
    pub fn draw(&self, name: &str, seed: u64, count: usize, classes: &[u64]) -> [String; 2] {
        let turn = |i: usize| (i / classes.len()) as u64 * 10 + classes[i % classes.len()];
        let pictures: Vec<_> = (0..count).map(|i| images::image(seed, turn(i)).0).collect();
        let labels: Vec<i64> = (0..count).map(|i| (i % classes.len()) as i64).collect();
        let shape = [count, images::SIDE, images::SIDE, 3];
        let pictures = self.save(&format!("{name}.npy"), &shape, Elements::U8(&pictures.concat()));
        [pictures, self.save(&format!("{name}.labels.npy"), &[count], Elements::I64(&labels))]
    }

    /// Quantizes the demo network; returns the file and its plan.
    pub fn quantized(&self) -> [String; 2] {
        let [file, plan] = [self.path("demo.int8.onnx"), self.path("demo.plan.json")];
        let data = self.path("pictures.npy");
        fewbits(&[
            "quantize",
            &self.path("demo.onnx"),
            "--calib",
            &data,
            "--ranges",
            "minmax",
            "-o",
            &file,
            "--plan",
            &plan,
        ]);
        [file, plan]
    }

    /// Names in a folder, sorted.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        let path = PathBuf::from(self.path(name));
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}
