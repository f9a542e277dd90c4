//! Writes drawn pictures and their classes as two `.npy` files.
//!
//! `write_images SEED COUNT STEM` writes `STEM.images.npy`, u8 `[COUNT, 32, 32, 3]`, and `STEM.labels.npy`, u8 `[COUNT]`.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use fewbits_demo::images::{SIDE, image};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seed, count, stem] = arguments.as_slice() else {
        return Err("usage: write_images SEED COUNT STEM".into());
    };
    let (seed, count) = (seed.parse()?, count.parse()?);
    let mut images = create_npy(&format!("{stem}.images.npy"), &format!("{count}, {SIDE}, {SIDE}, 3"))?;
    let mut labels = create_npy(&format!("{stem}.labels.npy"), &format!("{count},"))?;
    for index in 0..count {
        let (pixels, label) = image(seed, index);
        images.write_all(&pixels)?;
        labels.write_all(&[label as u8])?;
    }
    images.flush()?;
    labels.flush()?;
    Ok(())
}

/// Creates a version 1.0 `.npy` file of bytes in C order; the array's bytes follow.
fn create_npy(path: &str, shape: &str) -> io::Result<BufWriter<File>> {
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape}), }}");
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(b"\x93NUMPY\x01\x00")?;
    // The header is padded so that the array begins at byte 128.
    file.write_all(&118_u16.to_le_bytes())?;
    writeln!(file, "{header:<117}")?;
    Ok(file)
}
