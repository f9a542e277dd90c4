"""Makes activations.bin: inputs, then ONNX Runtime's outputs of each function, as little-endian f32.

Made with onnx 1.23.2 and onnxruntime 1.31.1 on x86-64 with AVX-512. Usage: python activations.py
"""
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

rng = np.random.default_rng(0)
edges = [0, 1, -1, 18, -18, 17.999, 18.001, -18.001, 9, -9, 8.999, 9.001, 88.7, 88.73, 89, -87.3, -87.4, -103.9, -103.98, -104,
         -150, 1e30, -1e30, np.inf, -np.inf, 1e-40, -1e-40, 3, -3]
x = np.concatenate([rng.normal(0, 3, 150), rng.uniform(-110, 95, 77), edges]).astype(np.float32)


def run(*nodes):
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(*n[:3], **n[3]) for n in nodes], "g", [value("x")], [value("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


outputs = [
    run(("Sigmoid", ["x"], ["y"], {})),
    run(("Tanh", ["x"], ["y"], {})),
    run(("Exp", ["x"], ["y"], {})),
    run(("HardSigmoid", ["x"], ["y"], {"alpha": 0.2, "beta": 0.5})),
    run(("HardSwish", ["x"], ["y"], {})),
    run(("LeakyRelu", ["x"], ["y"], {"alpha": 0.1})),
    run(("Sigmoid", ["x"], ["s"], {}), ("Mul", ["x", "s"], ["y"], {})),
]
np.concatenate([x, *outputs]).astype("<f4").tofile("activations.bin")
