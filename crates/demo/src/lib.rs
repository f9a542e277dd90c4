//! What `fewbits demo` runs on: a small trained network, and pictures that are drawn when asked for.
//!
//! A seed and an index enter [`images::image`]; pixels and a class leave. [`MODEL`] is an ONNX file for those pictures.
//! This crate knows no ONNX, no graph and no quantization, and reads no file.

pub mod images;

/// The trained network, an ONNX file: `image` `[N, 3, 32, 32]` in, `logits` `[N, 10]` out.
///
/// It has 58,770 parameters, depthwise convolutions, linear bottlenecks, residual additions and a concatenation, and
/// keeps BatchNormalization as nodes of its own. Images are prepared as for CIFAR-10; the metadata say so too.
///
/// The weights come from 40,000 drawn pictures, 8 epochs, seed 0:
///
/// ```text
/// cargo run --release -p fewbits-demo --example write_images 1 40000 train
/// cargo run --release -p fewbits-demo --example write_images 3 10000 test
/// fewbits zoo demo -o initial.onnx
/// fewbits train initial.onnx --data train.images.npy --labels train.labels.npy \
///     --val test.images.npy --val-labels test.labels.npy --val-limit 2000 \
///     --method float --epochs 8 --optimizer adamw --learning-rate 0.015 --weight-decay 0.01 --warmup 0.5 --augment flip \
///     --out float -o crates/demo/assets/demo.onnx
/// ```
///
/// The file classifies 95.29 % of the first 10,000 pictures of [`images::TEST_SEED`] correctly.
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
