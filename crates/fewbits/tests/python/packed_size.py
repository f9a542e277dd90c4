"""Bytes to deploy quantized files, counted from the files alone: a line for each.

Weights are packed at their true widths (metadata `fewbits.bits`), each output channel from a whole byte on, with 4 bytes for a scale; biases
and float parameters take 4 bytes each; every grid of an activation takes 5 bytes.
"""

import json
import math
import sys

import onnx
from onnx import TensorProto

# Inputs that hold learned numbers where a node stays float.
LEARNED = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "Add": (0, 1), "Mul": (0, 1), "PRelu": (1,)}


def size(path):
    model = onnx.load(path)
    bits = json.loads(next((e.value for e in model.metadata_props if e.key == "fewbits.bits"), "{}"))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    total, counted, grids = 0, set(), set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            grids.add(node.input[1])
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            codes, scale = constants[node.input[0]], constants[node.input[1]]
            if codes.name in counted:
                continue
            counted.add(codes.name)
            if codes.data_type == TensorProto.INT32:
                total += 4 * math.prod(codes.dims)
                continue
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            scales = math.prod(scale.dims)
            rows = codes.dims[axis] if codes.dims else 1
            width = bits.get(codes.name.removesuffix("_quantized"), 8)
            total += rows * math.ceil(math.prod(codes.dims) // rows * width / 8) + 4 * scales
        for place in LEARNED.get(node.op_type, ()):
            name = node.input[place] if place < len(node.input) else ""
            if name in constants and constants[name].data_type == TensorProto.FLOAT and name not in counted:
                counted.add(name)
                total += 4 * math.prod(constants[name].dims)
    return total + 5 * len(grids)


for path in sys.argv[1:]:
    print(size(path))
