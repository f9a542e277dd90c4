#!/usr/bin/env python3
"""Accuracy of low-bit post-training quantization: quantizes a model in several ways and evaluates each in integers.

    python benches/low_bit.py --model m.onnx --calib CALIB --val VAL --out rows.csv \
        --flags "--preprocess imagenet --resize 0" --rows "8/8 none" "4/8 none" "4/8 auto" "8/8 comq --granularity tensor"

A row is WEIGHTS/ACTIVATIONS METHOD, and further flags of `fewbits quantize`. Rows are added to the CSV: model, float top-1 (or AP), the row,
top-1 (or AP), size, seconds, further flags, and the steps that were kept. Needs `cargo build --release`.
"""

import argparse
import csv
import json
import os
import shlex
import subprocess
import tempfile


def program(binary, arguments):
    result = subprocess.run([binary, *arguments, "--format", "json", "-q"], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fewbits", default="target/release/fewbits")
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--limit", default=None)
    parser.add_argument("--calib-flags", default="")
    parser.add_argument("--val-flags", default="")
    parser.add_argument("--flags", default="")
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    flags, calib_flags, val_flags = map(shlex.split, (args.flags, args.calib_flags, args.val_flags))
    score = lambda model: (lambda found: found.get("top1", found.get("ap")))(
        program(args.fewbits, ["eval", model, "--data", args.val, *flags, *val_flags, *(["--limit", args.limit] if args.limit else [])])
    )
    name = os.path.basename(args.model)
    base = score(args.model)
    fresh = not os.path.exists(args.out)
    with tempfile.TemporaryDirectory() as folder, open(args.out, "a", newline="") as file:
        rows = csv.writer(file)
        if fresh:
            rows.writerow(["model", "float", "weights", "activations", "method", "score", "packed_bytes", "seconds", "flags", "kept"])
        for row in args.rows:
            bits, method, *more = shlex.split(row)
            weights, activations = bits.split("/")
            out = os.path.join(folder, "out.onnx")
            asked = ["--weights", weights, "--activations", activations, "--method", method, *more]
            made = program(args.fewbits, ["quantize", args.model, "--calib", args.calib, *flags, *calib_flags, *asked, "-o", out])
            found = [name, f"{base:.2f}", weights, activations, method, f"{score(out):.2f}", made["size_bytes"]["packed"]]
            kept = " ".join(step["methods"] for step in made["steps"] if step["kept"])
            rows.writerow([*found, f"{made['seconds']:.1f}", " ".join(more), kept])
            file.flush()
            print(*found)


if __name__ == "__main__":
    main()
