#!/usr/bin/env python3
"""Strategies of `fewbits search` at the bytes of uniform bits: what each finds, seed by seed, at equal evaluations.

    python benches/search_strategies.py --model m.onnx --calib CALIB --val VAL --out rows.csv --bits 4 --seeds 5 --evaluations 600 \\
        --flags "--preprocess imagenet --resize 0" --search "--method bias-correction"

Strategies that draw at random (rl, evolution, random) run once a seed, from random assignments (`--cold-start`); rl also from what the
sensitivities of layers say. Rows are added to the CSV: model, strategy, seed, damage (that of the search), score (top-1 or AP), bytes to
deploy, assignments tried, and seconds. At the end it says in how many seeds rl does less damage than random, and scores higher. Needs
`cargo build --release`.
"""

import argparse
import csv
import os
import shlex
import tempfile

from low_bit import program

FIXED = ["ofm", "kl", "hessian", "greedy"]
DRAWN = ["random", "evolution --cold-start", "rl --cold-start", "rl"]


def score(scores):
    return scores.get("top1", scores.get("ap"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fewbits", default="target/release/fewbits")
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--flags", default="", help="of every command, e.g. preprocessing")
    parser.add_argument("--search", default="", help="of quantizations and searches, e.g. --method")
    parser.add_argument("--inside", default="", help="of searches only, e.g. --inside mixed-clipping")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=600)
    parser.add_argument("--strategies", nargs="+", default=FIXED + DRAWN)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    flags, search, inside = map(shlex.split, (args.flags, args.search, args.inside))
    name = os.path.basename(args.model)
    fresh = not os.path.exists(args.out)
    found = {}
    with tempfile.TemporaryDirectory() as folder, open(args.out, "a", newline="") as file:
        rows = csv.writer(file)
        if fresh:
            rows.writerow(["model", "strategy", "seed", "damage", "score", "packed_bytes", "tried", "seconds"])

        def put(*row):
            rows.writerow([name, *row])
            file.flush()
            print(name, *row, flush=True)

        out = os.path.join(folder, "uniform.onnx")
        made = program(
            args.fewbits,
            ["quantize", args.model, "--calib", args.calib, *flags, *search, "--weights", str(args.bits), "-o", out],
        )
        size = made["size_bytes"]["packed"]
        of_uniform = score(program(args.fewbits, ["eval", out, "--data", args.val, *flags]))
        put(f"uniform {args.bits}", "", "", f"{of_uniform:.2f}", size, "", f"{made['seconds']:.1f}")
        for strategy in args.strategies:
            for seed in range(args.seeds if strategy in DRAWN else 1):
                plan = os.path.join(folder, "found.plan.json")
                command = ["search", args.model, "--calib", args.calib, "--val", args.val, *flags, *search, *inside]
                asked = ["--budget", f"size={size}", "--evaluations", str(args.evaluations), "--seed", str(seed)]
                made = program(args.fewbits, [*command, *asked, "--strategy", *strategy.split(), "-o", plan])
                assert made["bytes"] <= size, made["bytes"]
                found.setdefault(strategy, []).append((made["damage"], score(made["scores"])))
                tried = len(made["history"])
                put(
                    strategy,
                    seed,
                    f"{made['damage']:.5f}",
                    f"{score(made['scores']):.2f}",
                    made["bytes"],
                    tried,
                    f"{made['seconds']:.1f}",
                )
    for agent in (strategy for strategy in found if strategy.startswith("rl")):
        pairs = list(zip(found[agent], found.get("random", [])))
        damage = sum(a[0] < b[0] for a, b in pairs)
        higher = sum(a[1] > b[1] for a, b in pairs)
        print(f"{agent} against random: less damage in {damage} of {len(pairs)} seeds, a higher score in {higher}")


if __name__ == "__main__":
    main()
