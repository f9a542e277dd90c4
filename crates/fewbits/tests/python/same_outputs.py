"""same_outputs.py INPUT.npy PAIRS.json: compares outputs that Fewbits computed with ONNX Runtime's, element by element.

PAIRS.json: [[MODEL.onnx, OUTPUTS.npz], ...]. INPUT.npy is fed whole, or sample by sample where the model fixes its batch size.
Prints one JSON object: model -> {output: [elements, different elements, largest difference]}.
"""

import json
import sys

import numpy as np
import onnxruntime as ort


def main(data, pairs):
    x = np.load(data)
    report = {}
    for model, outputs in json.load(open(pairs)):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0]
        batch = feed.shape[0] if isinstance(feed.shape[0], int) else len(x)
        names = [o.name for o in session.get_outputs()]
        parts = [session.run(None, {feed.name: x[i : i + batch]}) for i in range(0, len(x), batch)]
        ours = np.load(outputs)
        rows = {}
        for k, name in enumerate(names):
            want = np.concatenate([p[k] for p in parts])
            got = ours[name].reshape(want.shape)
            rows[name] = [int(want.size), int((want != got).sum()), float(np.abs(want - got).max())]
        report[model] = rows
    print(json.dumps(report))


main(*sys.argv[1:3])
