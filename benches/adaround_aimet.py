#!/usr/bin/env python3
"""Time of AdaRound for all layers beside AIMET's, at W4A8 with the same iterations on the same images, in turns.

    python benches/adaround_aimet.py --model m.onnx --images 64 --iterations 10 30 --out rows.csv

AIMET takes minutes for each ten iterations, so few are made, and what one costs is the difference between the two runs. Images are drawn
at random: what is in them does not change the time. Batches are those of each program (16 and 32), which is part of what it does.
Needs `cargo build --release`, and aimet-onnx in the Python that runs this.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time


def aimet(model, images, iterations):
    """AdaRound by AIMET: weights of 4 bits with a scale for each channel, activations of 8."""
    import aimet_onnx
    import numpy as np
    import onnx

    network, images = onnx.load(model), np.load(images)
    inputs = [{network.graph.input[0].name: images[i : i + 32]} for i in range(0, len(images), 32)]
    sim = aimet_onnx.QuantizationSimModel(network, param_type=aimet_onnx.int4, activation_type=aimet_onnx.int8)
    aimet_onnx.apply_adaround(sim, inputs, num_iterations=iterations)
    sim.compute_encodings(inputs)


def seconds(command):
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fewbits", default="target/release/fewbits")
    parser.add_argument("--model", required=True)
    parser.add_argument("--shape", default="3x224x224")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--iterations", type=int, nargs=2, default=[10, 30])
    parser.add_argument("--out")
    parser.add_argument("--aimet-on", metavar="IMAGES.npy", help="run AIMET's once and nothing else")
    args = parser.parse_args()
    if args.aimet_on:
        return aimet(args.model, args.aimet_on, args.iterations[0])
    if not args.out:
        parser.error("the following arguments are required: --out")
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        images, out = os.path.join(folder, "images.npy"), os.path.join(folder, "out.onnx")
        shape = [int(n) for n in args.shape.split("x")]
        np.save(images, np.random.default_rng(0).standard_normal([args.images, *shape], dtype=np.float32))
        ours = [args.fewbits, "quantize", args.model, "--calib", images, "--samples", str(args.images), "-o", out, "-q"]
        ours += ["--weights", "4", "--activations", "8", "--method", "adaround", "--edge-bits", "4", "--no-mirror", "--iterations"]
        theirs = [sys.executable, __file__, "--model", args.model, "--aimet-on", images, "--iterations"]
        programs = {"fewbits": lambda n: [*ours, str(n)], "AIMET": lambda n: [*theirs, str(n), str(n)]}
        is_new = not os.path.exists(args.out)
        with open(args.out, "a", newline="") as file:
            rows = csv.writer(file)
            if is_new:
                rows.writerow(["model", "images", "program", "iterations", "seconds"])
            for iterations in args.iterations:
                for name, command in programs.items():
                    row = [os.path.basename(args.model), args.images, name, iterations, f"{seconds(command(iterations)):.1f}"]
                    rows.writerow(row)
                    file.flush()
                    print(*row, sep=", ", flush=True)


if __name__ == "__main__":
    main()
