//! Float kernels (f32, NHWC).
