"""same_outputs.py [--optimized] A.onnx B.onnx [C.onnx D.onnx ...]: exits 0 if ONNX Runtime computes equal outputs for A and B
(C and D ...) on random inputs."""

import sys

import numpy as np
import onnxruntime as ort


def run(path, feeds, optimized):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if feeds is None:
        rng = np.random.default_rng(0)
        feeds = {}
        for value in session.get_inputs():
            shape = [d if isinstance(d, int) else 1 if i == 0 else 64 for i, d in enumerate(value.shape)]
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    values = session.run(None, feeds)
    return feeds, {v.name: x for v, x in zip(session.get_outputs(), values)}, [(v.name, v.type) for v in session.get_inputs()]


optimized = "--optimized" in sys.argv
paths = [arg for arg in sys.argv[1:] if not arg.startswith("--")]
failures = []
for a, b in zip(paths[::2], paths[1::2]):
    try:
        feeds, expected, inputs = run(a, None, optimized)
        _, found, same_inputs = run(b, feeds, optimized)
        assert inputs == same_inputs, f"inputs {inputs} and {same_inputs}"
        assert list(expected) == list(found), f"outputs {list(expected)} and {list(found)}"
        for name, value in expected.items():
            assert np.array_equal(value, found[name]), f"{name} differs by {np.abs(value - found[name]).max()} of {np.abs(value).max()}"
    except Exception as error:
        failures.append(f"{a} and {b}: {error}")
if failures:
    sys.exit("\n".join(failures))
