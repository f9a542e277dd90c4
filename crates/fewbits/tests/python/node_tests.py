"""node_tests.py OUT_DIR: writes the ONNX operator test cases (onnx.backend.test) as files.

OUT_DIR/<operator>/<case>/model.onnx, input_<i>.pb and output_<i>.pb (TensorProto). Cases whose inputs or outputs are not
plain tensors are left out. Prints one JSON object: operator -> number of cases.
"""

import collections
import json
import pathlib
import sys
import warnings

import numpy as np
import onnx
from onnx import numpy_helper

OPERATORS = """
Conv ConvTranspose BatchNormalization Gemm MatMul Add Sub Mul Div Relu Clip LeakyRelu PRelu Sigmoid HardSigmoid HardSwish
Tanh Exp Softmax MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean Concat Split Slice Pad Reshape Flatten
Transpose Squeeze Unsqueeze Resize Upsample Shape Gather Cast Constant ConstantOfShape Identity Dropout QuantizeLinear
DequantizeLinear QLinearConv QLinearMatMul Sum Mean Max Min Gelu LRN LogSoftmax ArgMax ReduceL2 ReduceMin
""".split()


def tensor(value, info):
    if isinstance(value, onnx.TensorProto):
        return value
    if not isinstance(value, np.ndarray) and not np.isscalar(value):
        return None
    return numpy_helper.from_array(np.asarray(value), info.name)


def main(out):
    warnings.simplefilter("ignore")
    # Collecting runs every case of the package once.
    from onnx.backend.test.case.node import collect_testcases

    counts = collections.Counter({op: 0 for op in OPERATORS})
    for case in collect_testcases(None):
        nodes = case.model.graph.node
        operators = [node.op_type for node in nodes if node.domain == ""]
        if len(nodes) != 1 or not operators or operators[0] not in OPERATORS:
            continue
        graph = case.model.graph
        inputs, outputs = case.data_sets[0]
        files = [(f"input_{i}.pb", tensor(v, info)) for i, (v, info) in enumerate(zip(inputs, graph.input))]
        files += [(f"output_{i}.pb", tensor(v, info)) for i, (v, info) in enumerate(zip(outputs, graph.output))]
        if any(proto is None for _, proto in files):
            continue
        # Newer operator sets only add element types to these operators.
        for operator_set in case.model.opset_import:
            operator_set.version = min(operator_set.version, 25)
        folder = out / operators[0] / case.name
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(case.model, folder / "model.onnx")
        for name, proto in files:
            (folder / name).write_bytes(proto.SerializeToString())
        counts[operators[0]] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
