//! Quantizers with learned parameters, one method a file.
