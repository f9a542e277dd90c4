#!/usr/bin/env python3
"""How far quantized classifiers are from the float one: Kullback-Leibler divergence of the classes and share of equal answers, in ONNX
Runtime. With some hundred images this tells settings apart where top-1 does not.

    python benches/divergence.py FLOAT.onnx QUANTIZED.onnx … --images IMAGES.npy [--labels LABELS.npy]

`IMAGES.npy` holds prepared images, [N, C, H, W] float32. Needs onnxruntime and numpy.
"""

import argparse

import numpy as np
import onnxruntime as ort


def log_probabilities(path, images, batch=32):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    logits = np.concatenate(parts).reshape(len(images), -1).astype(np.float64)
    if np.abs(logits.sum(1) - 1).max() < 1e-3 and logits.min() >= 0:
        # Behind a Softmax.
        logits = np.log(np.maximum(logits, 1e-12))
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("float")
    parser.add_argument("quantized", nargs="+")
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels")
    args = parser.parse_args()
    images = np.load(args.images)
    labels = np.load(args.labels) if args.labels else None
    wanted = log_probabilities(args.float, images)
    top1 = lambda found: "" if labels is None else f", top-1 {100 * np.mean(found.argmax(1) == labels):.2f}"
    print(f"{args.float}: {len(images)} images{top1(wanted)}")
    for path in args.quantized:
        found = log_probabilities(path, images)
        divergence = (np.exp(wanted) * (wanted - found)).sum(1).mean()
        agreement = 100 * np.mean(found.argmax(1) == wanted.argmax(1))
        print(f"{path}: divergence {divergence:.4f}, agreement {agreement:.2f} %{top1(found)}")


if __name__ == "__main__":
    main()
