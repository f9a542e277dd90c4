#!/usr/bin/env python3
"""How close quantized classifiers are to the float one, in ONNX Runtime: top-1, agreement of top-1, SQNR of the outputs, and KL of the classes.

    python benches/agreement.py FLOAT.onnx QUANTIZED.onnx... --data LIST.csv --crop 224
    python benches/agreement.py FLOAT.onnx QUANTIZED.onnx... --data IMAGES.npy --labels LABELS.npy

LIST.csv has the columns `file` (beside it) and `class_index`; images are cropped in the centre and normalized with ImageNet's means and
deviations, or as TensorFlow's models want them (`--preprocess tf`). IMAGES.npy holds prepared ones, [N, C, H, W] float32. Top-1 of a few
hundred images says little: one image of 650 is 0.15 points. Needs numpy, onnxruntime and pillow.
"""

import argparse
import csv
import os

import numpy as np
import onnxruntime
from PIL import Image

PRESETS = {"imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), "tf": ([0.5] * 3, [0.5] * 3)}


def image(path, crop, preset):
    mean, deviation = PRESETS[preset]
    pixels = Image.open(path).convert("RGB")
    left, top = (round((side - crop) / 2) for side in pixels.size)
    pixels = np.asarray(pixels.crop((left, top, left + crop, top + crop)), np.float32) / 255
    return ((pixels - mean) / deviation).transpose(2, 0, 1).astype(np.float32)


def outputs(model, images):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0].reshape(1, -1) for image in images]).astype(np.float64)


def listed(path, crop, preset):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    images = [image(os.path.join(os.path.dirname(path), row["file"]), crop, preset) for row in rows]
    return images, np.array([int(row["class_index"]) for row in rows])


def log_probabilities(scores):
    if np.abs(scores.sum(1) - 1).max() < 1e-3 and scores.min() >= 0:
        # Behind a Softmax.
        scores = np.log(np.maximum(scores, 1e-12))
    scores = scores - scores.max(1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("float")
    parser.add_argument("quantized", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--preprocess", choices=PRESETS, default="imagenet")
    args = parser.parse_args()
    if args.data.endswith(".npy"):
        images, labels = np.load(args.data), np.load(args.labels)
    else:
        images, labels = listed(args.data, args.crop, args.preprocess)
    wanted = outputs(args.float, images)
    print("model,top1,agreement,sqnr_db,kl")
    for model in args.quantized:
        found = outputs(model, images)
        top1, agreement = (100 * np.mean(found.argmax(1) == right) for right in (labels, wanted.argmax(1)))
        sqnr = 10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum())
        right, likely = log_probabilities(wanted), log_probabilities(found)
        kl = (np.exp(right) * (right - likely)).sum(1).mean()
        print(f"{os.path.basename(model)},{top1:.2f},{agreement:.2f},{sqnr:.2f},{kl:.3f}")


if __name__ == "__main__":
    main()
