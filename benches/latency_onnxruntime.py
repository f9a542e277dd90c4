"""A latency table for `fewbits search --budget latency=… --latency-table FILE`, with the times of ONNX Runtime.

    python benches/latency_onnxruntime.py QUANTIZED.onnx --out FILE.json [--runs 50] [--threads 1]

`QUANTIZED.onnx` is what `fewbits quantize` wrote. Each layer's time is the median of ONNX Runtime's own profile over the runs, per image;
what the profile says of other nodes, and the time between nodes, is the rest. Layers are found by their node names, which ONNX Runtime
keeps when it fuses. ONNX Runtime computes codes of fewer than 8 bits as 8: to let a budget choose between widths, merge the tables of
devices that do not. A symbolic batch is taken for 1. Needs: onnx, onnxruntime, numpy."""

import argparse
import json
import os
import re
import statistics
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort


def layers(model):
    """Names of the nodes whose weight is dequantized: the rows of a table."""
    constants = {i.name for i in model.graph.initializer}
    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants}
    products = ("Conv", "Gemm", "MatMul", "ConvTranspose")
    return [n.name for n in model.graph.node if n.op_type in products and n.input[1] in dequantized]


def feed(session):
    generator = np.random.default_rng(0)
    found = {}
    for i in session.get_inputs():
        batch, *rest = i.shape
        if i.type != "tensor(float)" or not all(isinstance(d, int) for d in rest):
            raise SystemExit(f"error: input {i.name!r} is {i.type} {i.shape}; give it float elements and fixed dimensions behind the batch")
        shape = [batch if isinstance(batch, int) else 1, *rest]
        found[i.name] = generator.standard_normal(shape, dtype=np.float32)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", required=True)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rows = layers(onnx.load(args.model))
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.log_severity_level = 3
    plain = ort.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])
    inputs = feed(plain)
    images = next(iter(inputs.values())).shape[0]
    whole = []
    for run in range(args.runs + 3):
        begun = time.perf_counter_ns()
        plain.run(None, inputs)
        whole.append(time.perf_counter_ns() - begun)
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        profiled = ort.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])
        for _ in range(args.runs + 3):
            profiled.run(None, inputs)
        with open(profiled.end_profiling()) as file:
            events = json.load(file)
    times = {}
    for event in events:
        # Layout transformations give a node a new name: the old one and a number.
        found = re.fullmatch(r"(.*?)(_token_\d+)?_kernel_time", event["name"]) if event.get("cat") == "Node" else None
        if found:
            times.setdefault(found[1], []).append(1000 * event["dur"])
    missing = [name for name in rows if name not in times]
    if missing:
        raise SystemExit(f"error: the profile has no node named {missing[0]!r} ({len(missing)} of {len(rows)} layers are missing)")
    of = {name: int(statistics.median(times[name][3:]) / images) for name in rows}
    rest = max(0, int(statistics.median(whole[3:]) / images) - sum(of.values()))
    table = {"rest": rest, "layers": {name: {"8/8": ns} for name, ns in of.items()}}
    with open(args.out, "w") as file:
        json.dump(table, file, indent=2)
    print(f"{args.out}: {len(of)} layers {sum(of.values()) / 1e6:.2f} ms, rest {rest / 1e6:.2f} ms")


if __name__ == "__main__":
    main()
