//! A temporary folder with the demo network and drawn pictures in the forms that the program reads.

use crate::fewbits;
use fewbits::demo;
use fewbits_data::{
    Sample,
    npy::{self, Elements},
};
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
        let side = fewbits_demo::images::SIDE;
        desk.save("pictures.npy", &[PICTURES, side, side, 3], Elements::U8(&bytes));
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
