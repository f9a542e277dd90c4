use super::super::testing::Maker;
use crate::ops::{Concat, Flatten, MaxPool, Relu, window::Window};

#[test]
fn behind_a_concat_of_convolutions_it_goes_into_each() {
    let mut maker = Maker::default();
    maker.conv("x", "a", [4, 3, 1, 1]);
    maker.conv("x", "bb", [2, 3, 1, 1]);
    maker.node(Concat { axis: 1 }, &["a", "bb"], "c");
    maker.norm("c", "d", 6);
    maker.conv("d", "e", [3, 6, 3, 3]);
    assert_eq!(maker.prepared("e"), ["Conv", "Conv", "Concat", "Conv"]);
}

#[test]
fn behind_a_flattened_pixel_it_goes_into_the_convolution() {
    let mut maker = Maker::default();
    maker.conv("x", "a", [4, 3, 6, 6]);
    maker.node(Flatten { axis: 1 }, &["a"], "f");
    maker.norm("f", "g", 4);
    assert_eq!(maker.prepared("g"), ["Conv", "Flatten"]);
    // With more than one pixel the columns are no channels.
    let mut maker = Maker::default();
    maker.conv("x", "a", [4, 3, 5, 5]);
    maker.node(Flatten { axis: 1 }, &["a"], "f");
    maker.norm("f", "g", 16);
    assert_eq!(maker.prepared("g"), ["Conv", "Flatten", "BatchNormalization"]);
}

#[test]
fn between_pooling_and_an_activation_it_is_a_depthwise_convolution() {
    let mut maker = Maker::default();
    maker.conv("x", "a", [4, 3, 1, 1]);
    maker.node(MaxPool { window: Window::square(2, 2, 0), ceil_mode: false, column_major: false }, &["a"], "p");
    maker.norm("p", "n", 4);
    maker.node(Relu {}, &["n"], "r");
    maker.conv("r", "y", [2, 4, 3, 3]);
    assert_eq!(maker.prepared("y"), ["Conv", "MaxPool", "Conv", "Relu", "Conv"]);
    // In front of the first layer, and behind the last, it stays what it is.
    let mut maker = Maker::default();
    maker.norm("x", "n", 3);
    maker.node(Relu {}, &["n"], "r");
    maker.conv("r", "y", [2, 3, 3, 3]);
    maker.node(MaxPool { window: Window::square(2, 2, 0), ceil_mode: false, column_major: false }, &["y"], "p");
    maker.norm("p", "z", 2);
    assert_eq!(maker.prepared("z"), ["BatchNormalization", "Relu", "Conv", "MaxPool", "BatchNormalization"]);
}
