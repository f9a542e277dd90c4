//! fewbits-onnx
