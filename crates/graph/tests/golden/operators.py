"""ONNX Runtime's outputs for the samples of every operator.

    FEWBITS_SAMPLES=samples.txt cargo test -p fewbits-graph --test conformance -- --ignored write_samples
    python operators.py samples.txt > operators.txt          # onnx, onnxruntime

Each line of the result: operator, sample index, type, dimensions, elements. Samples outside ONNX Runtime's reach fall to onnx's
reference evaluator.
"""
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

# The canonical one; later ones for attributes that came later.
OPSETS = [18, 21]
TYPES = {"f32": np.float32, "i64": np.int64, "i32": np.int32, "u8": np.uint8, "i8": np.int8, "bool": np.bool_}
NAMES = {np.dtype(t): name for name, t in TYPES.items()}
CODES = {name: helper.np_dtype_to_tensor_dtype(np.dtype(t)) for name, t in TYPES.items()}


def tensor(words):
    kind, dims, elements = (words + [""])[:3]
    elements = [e for e in elements.split(",") if e]
    values = [e == "true" for e in elements] if kind == "bool" else [float(e) if kind == "f32" else int(e) for e in elements]
    return np.array(values, TYPES[kind]).reshape([int(d) for d in dims.split(",") if d])


def attribute(kind, text):
    items = [t for t in text.split(",") if t]
    read = {
        "int": lambda: int(text),
        "float": lambda: float(text),
        "str": lambda: text,
        "ints": lambda: [int(t) for t in items],
        "floats": lambda: [float(t) for t in items],
        "strs": lambda: items,
        "tensor": lambda: numpy_helper.from_array(tensor(text.split(" "))),
    }
    return read[kind]()


def outputs(name, attrs, inputs):
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    feeds = {n: x for n, x in zip(names, inputs) if x is not None}
    schema = onnx.defs.get_schema(name, OPSETS[0])
    # Variadic outputs: as many as the attribute or the second input says; else every output that is not training's.
    count = schema.min_output
    if name == "Split":
        count = attrs.get("num_outputs") or len(inputs[1])
    elif name == "MaxPool":
        count = 2
    outs = [f"y{i}" for i in range(count)]
    node = helper.make_node(name, names, outs, **attrs)
    infos = [helper.make_tensor_value_info(n, CODES[NAMES[x.dtype]], x.shape) for n, x in feeds.items()]
    for opset in OPSETS:
        # The element types of the outputs come from shape inference.
        graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name=o) for o in outs])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        try:
            model = onnx.shape_inference.infer_shapes(model)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return session.run(None, feeds)
        except Exception as error:
            print(f"{name} in opset {opset}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
    return ReferenceEvaluator(model).run(None, feeds)


def element(x):
    return ("true" if x else "false") if isinstance(x, np.bool_) else np.format_float_positional(x, trim="-") if isinstance(x, np.floating) and np.isfinite(x) else str(x)


def main():
    nodes = []
    for line in open(sys.argv[1]):
        words = line.rstrip("\n").split(" ")
        if words[0] == "node":
            nodes.append((words[1], int(words[2]), {}, []))
        elif words[0] == "attr":
            nodes[-1][2][words[1]] = attribute(words[2], " ".join(words[3:]))
        else:
            nodes[-1][3].append(None if words[0] == "absent" else tensor(words[1:]))
    for name, index, attrs, inputs in nodes:
        for y in outputs(name, attrs, inputs):
            y = np.asarray(y)
            print(name, index, NAMES[y.dtype], ",".join(map(str, y.shape)), ",".join(element(x) for x in y.ravel()))


main()
