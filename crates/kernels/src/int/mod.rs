//! Integer kernels (u8 activations, i8 weights, i32 sums).
