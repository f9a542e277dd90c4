#!/usr/bin/env python3
"""Time and memory of what post-training methods and sensitivities cost, start and end of the program included.

    python benches/method_speed.py --model m.onnx --calib CALIB --flags "--preprocess imagenet --resize 0 --crop 224" \\
        --out rows.csv

Measures on the given model: equalization, bias correction and MSE ranges; the similarity of output feature maps for every layer at six widths
from 64 images; 600 episodes of HAQ's agent on 512 images (up to half an hour); AdaRound at W4A8 with 2,000 iterations for each layer from 512 images (minutes). Needs `cargo build --release`.
"""

import argparse
import csv
import os
import shlex
import subprocess
import tempfile
import time

TASKS = {
    "equalize, bias correction, MSE": "quantize {model} --calib {calib} --samples 512 --weights 4 --activations 8 "
    "--method equalize,bias-correction --ranges mse -o {out}/a.onnx",
    "ofm sensitivity, 6 widths, 64 images": "search {model} --calib {calib} --samples 64 --damage-samples 64 --bits 2,3,4,5,6,8 --strategy ofm "
    "--patience 0 --method none --budget avg-bits=4 -o {out}/b.plan.json",
    "rl, 600 episodes, 512 images": "search {model} --calib {calib} --samples 512 --damage-samples 512 --strategy rl --cold-start --episodes 600 "
    "--time-budget 2h --method none --budget avg-bits=4 -o {out}/d.plan.json",
    "adaround, 2000 iterations, 512 images": "quantize {model} --calib {calib} --samples 512 --weights 4 --activations 8 --method adaround "
    "--iterations 2000 -o {out}/c.onnx",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fewbits", default="target/release/fewbits")
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--flags", default="")
    parser.add_argument("--only", default="", help="part of the name of what is measured")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    rows = []
    for name, command in TASKS.items():
        if args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            parts = shlex.split(command.format(model=args.model, calib=args.calib, out=folder))
            begun = time.perf_counter()
            process = subprocess.Popen([args.fewbits, *parts, *shlex.split(args.flags), "-q"], stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - begun
        if status:
            raise SystemExit(f"{name}: failed")
        cpu = used.ru_utime + used.ru_stime
        rows.append([os.path.basename(args.model), name, f"{seconds:.1f}", f"{cpu:.1f}", used.ru_maxrss // 1024])
        print(*rows[-1], sep=", ", flush=True)
    is_new = not os.path.exists(args.out)
    with open(args.out, "a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["model", "task", "wall_s", "cpu_s", "memory_mb"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
