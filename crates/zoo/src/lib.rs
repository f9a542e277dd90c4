//! Well-known convolutional architectures as graphs, initialised for training.
