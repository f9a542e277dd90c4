"""old_models.py OUT_DIR: writes small models in the forms of old operator sets, and with unusual parts."""

import pathlib
import sys

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

OUT = pathlib.Path(sys.argv[1])
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def const(name, values, dtype=np.int64):
    return numpy_helper.from_array(np.array(values, dtype), name)


def model(name, opset, nodes, shape, initializers=(), ir=3, listed=True, outputs=("y",), types=None):
    """One file: input x of `shape`, output y of unknown shape. IR 3 lists the initializers among the inputs."""
    x = helper.make_tensor_value_info("x", FLOAT, shape)
    inputs = [x] + [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in initializers if listed]
    types = types or [FLOAT] * len(outputs)
    outs = [helper.make_tensor_value_info(o, t, None) for o, t in zip(outputs, types)]
    graph = helper.make_graph(nodes, name, inputs, outs, list(initializers))
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir), OUT / f"{name}.onnx")


def one(name, opset, op, shape, inputs=("x",), initializers=(), outputs=("y",), types=None, **attrs):
    node = helper.make_node(op, list(inputs), list(outputs), **attrs)
    model(name, opset, [node], shape, initializers, outputs=[o for o in outputs if o], types=types)


S4 = [2, 3, 4, 6]
one("clip", 7, "Clip", S4, min=-0.5, max=0.25)
one("clip_min", 10, "Clip", S4, min=-0.5)
one("clip_nothing", 10, "Clip", S4)
one("pad", 7, "Pad", S4, pads=[0, 0, 1, 2, 0, 1, 0, 3], value=1.5)
one("pad_reflect", 10, "Pad", S4, pads=[0, 0, 1, 2, 0, 0, 0, 3], mode="reflect")
one("slice", 7, "Slice", S4, starts=[1, -3], ends=[2, 99], axes=[0, 2])
one("slice_no_axes", 9, "Slice", S4, starts=[0, 1], ends=[1, 3])
one("squeeze", 7, "Squeeze", [2, 1, 3, 1], axes=[1])
one("squeeze_all", 11, "Squeeze", [2, 1, 3, 1])
one("unsqueeze", 11, "Unsqueeze", [2, 3], axes=[0, 3])
one("split", 7, "Split", S4, outputs=("y", "z"), axis=3, split=[2, 4])
one("split_even", 11, "Split", S4, outputs=("y", "z", "w"), axis=1)
one("split_even_13", 13, "Split", S4, outputs=("y", "z", "w"), axis=1)
one("reduce_mean", 7, "ReduceMean", S4, axes=[2, 3], keepdims=0)
one("reduce_mean_all", 11, "ReduceMean", S4)
one("reduce_max", 13, "ReduceMax", S4, axes=[1])
one("reduce_sum", 11, "ReduceSum", S4, axes=[-1])
one("dropout", 7, "Dropout", S4, ratio=0.3)
one("upsample", 7, "Upsample", S4, scales=[1.0, 1.0, 2.0, 3.0], mode="nearest")
one("upsample_linear", 7, "Upsample", S4, scales=[1.0, 1.0, 2.0, 3.0], mode="linear")
one("upsample_9", 9, "Upsample", S4, ("x", "s"), [const("s", [1, 1, 1.5, 2.5], np.float32)], mode="nearest")
one("resize_up", 10, "Resize", S4, ("x", "s"), [const("s", [1, 1, 1.7, 2], np.float32)], mode="nearest")
one("resize_down", 10, "Resize", S4, ("x", "s"), [const("s", [1, 1, 0.6, 0.5], np.float32)], mode="nearest")
one("resize_linear", 10, "Resize", S4, ("x", "s"), [const("s", [1, 1, 1.7, 0.5], np.float32)], mode="linear")
for opset in (7, 11):
    one(f"softmax_{opset}", opset, "Softmax", S4, axis=1)
    one(f"softmax_default_{opset}", opset, "Softmax", S4)
    one(f"softmax_last_{opset}", opset, "Softmax", S4, axis=3)
    one(f"softmax_flat_{opset}", opset, "Softmax", [4, 5], axis=1)
    one(f"log_softmax_{opset}", opset, "LogSoftmax", S4, axis=2)
one("softmax_negative", 11, "Softmax", S4, axis=-2)
one("hardmax", 11, "Hardmax", S4, axis=2)
one("top_k", 7, "TopK", S4, outputs=("y", "i"), types=[FLOAT, INT64], k=2)
one("scatter", 9, "Scatter", [2, 3], ("x", "i", "u"), [const("i", [[1, 0, 0]]), const("u", [[5, 6, 7]], np.float32)], axis=0)
C3 = [const(n, np.linspace(0.5, 1.5, 3), np.float32) for n in ("scale", "bias", "mean", "var")]
one("batch_norm", 7, "BatchNormalization", S4, ("x", "scale", "bias", "mean", "var"), C3, momentum=0.9, epsilon=1e-3)
one("batch_norm_8", 8, "BatchNormalization", S4, ("x", "scale", "bias", "mean", "var"), C3)
one("lrn", 7, "LRN", S4, size=3)
one("group_norm", 18, "GroupNormalization", [2, 4, 3], ("x", "s", "b"),
    [const("s", [1, 2], np.float32), const("b", [0.5, 0], np.float32)], num_groups=2)

make = helper.make_node
model("constants", 12, [
    make("Constant", [], ["f"], value_float=1.5), make("Constant", [], ["fs"], value_floats=[1.0, 2.0]),
    make("Constant", [], ["t"], value=const("t", [3.0], np.float32)),
    make("Add", ["x", "f"], ["a"]), make("Mul", ["a", "fs"], ["b"]), make("Sub", ["b", "t"], ["y"]),
], [3, 2], ir=7)
then = helper.make_graph([make("Add", ["outer", "w"], ["t"])], "then", [], [helper.make_tensor_value_info("t", FLOAT, None)])
other = helper.make_graph([make("Neg", ["outer"], ["e"])], "else", [], [helper.make_tensor_value_info("e", FLOAT, None)])
model("captures", 13, [
    make("Relu", ["x"], ["outer"]), make("ReduceMax", ["x"], ["m"], keepdims=0), make("Constant", [], ["zero"], value_float=0.0),
    make("Greater", ["m", "zero"], ["c"]), make("If", ["c"], ["y"], then_branch=then, else_branch=other),
], [3, 2], [const("w", [7, 8], np.float32)], ir=7, listed=False)
model("half", 13, [
    make("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), make("Mul", ["h", "w"], ["p"]), make("Cast", ["p"], ["y"], to=FLOAT),
], [3, 2], [const("w", [2.5, 0.5], np.float16)], ir=7, listed=False)
model("typed_fields", 13, [
    make("Mul", ["x", "w"], ["a"]), make("Cast", ["i"], ["f"], to=FLOAT), make("Add", ["a", "f"], ["b"]),
    make("Cast", ["d"], ["g"], to=FLOAT), make("Add", ["b", "g"], ["y"]),
], [3, 2], [
    helper.make_tensor("w", FLOAT, [2], [2.5, 0.5]), helper.make_tensor("i", TensorProto.INT8, [2], [-3, 4]),
    helper.make_tensor("d", TensorProto.DOUBLE, [2], [0.25, -1.5]),
], ir=7, listed=False)
model("microsoft", 13, [make("Gelu", ["x"], ["y"], domain="com.microsoft")], [3, 2], ir=7)
big = helper.make_graph([make("MatMul", ["x", "w"], ["y"])], "external", [helper.make_tensor_value_info("x", FLOAT, [2, 64])],
                        [helper.make_tensor_value_info("y", FLOAT, None)], [const("w", np.arange(64 * 64).reshape(64, 64), np.float32)])
save(helper.make_model(big, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), OUT / "external.onnx",
     save_as_external_data=True, location="external.data", size_threshold=16)
