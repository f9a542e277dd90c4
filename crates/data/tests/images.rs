//! Decoding and resizing against Pillow: every pixel of every stored case is equal.

use std::{collections::BTreeMap, path::Path};

use fewbits_data::{Image, decode, npz, resize_bilinear};

type Arrays = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn golden() -> Arrays {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/images.npz");
    let arrays = npz::open(&path).expect("the stored arrays are there");
    let array = |(name, array): npz::Entry| {
        let array = array.expect("an array that is read");
        (name, (array.shape.clone(), array.read_u8(0, array.rows()).expect("bytes")))
    };
    arrays.into_iter().map(array).collect()
}

fn image(shape: &[usize], rgb: &[u8]) -> Image {
    Image { height: shape[0], width: shape[1], rgb: rgb.to_vec() }
}

#[test]
fn jpeg_equals_pillow() {
    let arrays = golden();
    let mut cases = 0;
    for (name, (_, file)) in arrays.iter().filter(|(n, _)| n.ends_with("/file")) {
        let (shape, rgb) = &arrays[&name.replace("/file", "/rgb")];
        let decoded = decode(file, Path::new(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let differing = decoded.rgb.iter().zip(rgb).filter(|(a, b)| a != b).count();
        assert_eq!((decoded.height, decoded.width, differing), (shape[0], shape[1], 0), "{name}");
        cases += 1;
    }
    assert_eq!(cases, 54);
}

#[test]
fn resize_equals_pillow() {
    let arrays = golden();
    let mut cases = 0;
    for (name, (shape, input)) in arrays.iter().filter(|(n, _)| n.ends_with("/in")) {
        let (out_shape, expected) = &arrays[&name.replace("/in", "/out")];
        let resized = resize_bilinear(&image(shape, input), out_shape[1], out_shape[0]);
        assert_eq!(resized, image(out_shape, expected), "{name}");
        cases += 1;
    }
    assert_eq!(cases, 8);
}

#[test]
fn garbled_jpegs_never_panic() {
    let arrays = golden();
    let mut state = 1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for (name, (_, file)) in arrays.iter().filter(|(n, _)| n.ends_with("/file")) {
        for cut in [0, 1, 2, 3, 20, file.len() / 2, file.len() * 3 / 4] {
            assert!(decode(&file[..cut], Path::new(name)).is_err(), "{name} cut at {cut}");
        }
        for _ in 0..60 {
            let mut bad = file.clone();
            for _ in 0..1 + random() % 4 {
                let at = random() % bad.len();
                bad[at] = random() as u8;
            }
            // Damage in the header may demand a large image: those sizes are refused or cheap to allocate.
            let _ = decode(&bad, Path::new(name));
        }
    }
}
