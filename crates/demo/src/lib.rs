//! What `fewbits demo` runs on: a small trained network, and pictures that are drawn when asked for.
//!
//! A seed and an index enter [`images::image`]; pixels and a class leave. [`MODEL`] is an ONNX file for those pictures.
//! This crate knows no ONNX, no graph and no quantization, and reads no file.

pub mod images;

/// The trained network, an ONNX file: `image` `[N, 3, 32, 32]` in, `logits` `[N, 10]` out.
///
/// It has 58,770 parameters, depthwise convolutions, linear bottlenecks, residual additions and a concatenation, and
/// keeps BatchNormalization as nodes of its own. The input is `(pixel / 255 − 0.5) / 0.25`; the metadata say so too.
///
/// The weights come from 40,000 drawn pictures, five epochs, seed 0, PyTorch 2.15.0 (two CPU threads):
///
/// ```text
/// cargo run --release -p fewbits-demo --example write_images 1 40000 train
/// cargo run --release -p fewbits-demo --example write_images 3 10000 test
/// python crates/demo/training/train.py train test crates/demo/assets/demo.onnx
/// ```
///
/// In ONNX Runtime 1.31.1 the file classifies 92.94 % of the first 10,000 pictures of [`images::TEST_SEED`] correctly.
/// PyTorch does not promise the same weights on another machine or with another number of threads.
pub const MODEL: &[u8] = include_bytes!("../assets/demo.onnx");

#[cfg(test)]
mod tests {
    use super::MODEL;

    #[test]
    fn model_is_small_and_tells_its_preprocessing() {
        assert!(MODEL.len() <= 300_000, "{} bytes", MODEL.len());
        let key = b"fewbits.preprocess";
        assert!(MODEL.windows(key.len()).any(|bytes| bytes == key));
    }
}
