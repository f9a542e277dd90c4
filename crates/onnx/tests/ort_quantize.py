"""ort_quantize.py IN.onnx OUT.onnx qdq|qoperator: quantizes with ONNX Runtime's own tool on one random input."""

import logging
import sys

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

logging.disable(logging.CRITICAL)


class Random(CalibrationDataReader):
    def __init__(self, path):
        rng = np.random.default_rng(0)
        graph = onnx.load(path).graph
        weights = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in weights]
        shapes = {v.name: [d.dim_value or (1 if i == 0 else 64) for i, d in enumerate(v.type.tensor_type.shape.dim)] for v in inputs}
        self.feeds = iter([{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}])

    def get_next(self):
        return next(self.feeds, None)


source, target, form = sys.argv[1:]
quantize_static(
    source,
    target,
    Random(source),
    quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
    per_channel=True,
    activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8,
)
