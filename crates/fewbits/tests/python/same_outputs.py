"""same_outputs.py CASES.json: compares outputs that Fewbits computed with ONNX Runtime's, element by element.

CASES.json: [[MODEL.onnx, INPUTS.npz, OUTPUTS.npz], ...], arrays by name. Inputs are fed whole, or sample by sample where the
model fixes its batch size. Prints one JSON object: model -> output -> {elements, different, largest, values}.
"""

import json
import sys

import numpy as np
import onnxruntime as ort


def compare(model, inputs, outputs):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs, ours = np.load(inputs), np.load(outputs)
    feeds = {value.name: inputs[value.name] for value in session.get_inputs()}
    first = session.get_inputs()[0]
    samples = len(feeds[first.name])
    batch = first.shape[0] if isinstance(first.shape[0], int) else samples
    parts = [session.run(None, {n: x[i : i + batch] for n, x in feeds.items()}) for i in range(0, samples, batch)]
    rows = {}
    for k, value in enumerate(session.get_outputs()):
        want = np.concatenate([part[k] for part in parts])
        got = ours[value.name]
        assert got.shape == want.shape, f"{model}: {value.name} has shape {got.shape}, should have {want.shape}"
        apart = np.abs(want.astype(np.float64) - got)
        rows[value.name] = {
            "elements": want.size,
            "different": int((want != got).sum()),
            "largest": float(apart.max(initial=0)),
            "values": len(np.unique(want)),
        }
    return rows


print(json.dumps({case[0]: compare(*case) for case in json.load(open(sys.argv[1]))}))
