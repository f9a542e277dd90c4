#!/usr/bin/env python3
"""Makes images.npz: small JPEG files of every kind that is decoded here, and images resized by Pillow.

usage: make_images.py            (writes images.npz beside itself)
needs: pip install pillow numpy simplejpeg  (made with Pillow 13.0.0, libjpeg-turbo 3.2.0, numpy 2)

For each JPEG `k`: `jpeg/k/file` (bytes) and `jpeg/k/rgb` ([H, W, 3], what Pillow decodes). For each resize `k`:
`resize/k/in` and `resize/k/out`. The content is a formula and a seeded generator, not a photograph.
"""
import io, os
import numpy as np, simplejpeg
from PIL import Image

random = np.random.default_rng(7)


def picture(w, h):
    y, x = np.mgrid[:h, :w]
    waves = np.stack([np.sin(x / 5 + c) * np.cos(y / (3 + c)) for c in range(3)], -1) * 90 + 128
    waves[h // 3:h // 2, w // 4:w // 2] = random.integers(0, 256, 3)
    return np.clip(waves + random.normal(0, 12, (h, w, 3)), 0, 255).astype(np.uint8)


arrays, count = {}, 0
for (w, h) in [(37, 29), (16, 16), (5, 3), (3, 50), (1, 1)]:
    for sub in ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"]:
        for progressive in [False, True]:
            for options in [{"quality": 75}, {"quality": 96, "restart_marker_blocks": 2}]:
                if w != 37 and options["quality"] == 96:
                    continue
                data = io.BytesIO()
                if sub in ("4:4:0", "4:1:1"):  # Pillow does not write these
                    if progressive:
                        continue
                    data = io.BytesIO(simplejpeg.encode_jpeg(picture(w, h), options["quality"], "RGB", sub.replace(":", "")))
                else:
                    Image.fromarray(picture(w, h)).save(data, "JPEG", subsampling=sub, progressive=progressive, **options)
                arrays[f"jpeg/{count}/file"] = np.frombuffer(data.getvalue(), np.uint8)
                arrays[f"jpeg/{count}/rgb"] = np.asarray(Image.open(data).convert("RGB"))
                count += 1
for progressive in [False, True]:
    for options in [{"keep_rgb": True}, {"gray": True}, {"quality": 5}]:
        image = Image.fromarray(picture(20, 21))
        if options.pop("gray", False):
            image = image.convert("L")
        data = io.BytesIO()
        image.save(data, "JPEG", progressive=progressive, **{"quality": 75} | options)
        arrays[f"jpeg/{count}/file"] = np.frombuffer(data.getvalue(), np.uint8)
        arrays[f"jpeg/{count}/rgb"] = np.asarray(Image.open(data).convert("RGB"))
        count += 1
for k, (w, h, W, H) in enumerate([(40, 30, 17, 11), (40, 30, 40, 7), (13, 9, 40, 31), (50, 41, 49, 41), (64, 1, 3, 1), (7, 60, 1, 1), (24, 24, 23, 25), (2, 2, 33, 1)]):
    image = random.integers(0, 256, (h, w, 3)).astype(np.uint8)
    arrays[f"resize/{k}/in"] = image
    arrays[f"resize/{k}/out"] = np.asarray(Image.fromarray(image).resize((W, H), Image.BILINEAR))
np.savez_compressed(os.path.join(os.path.dirname(os.path.abspath(__file__)), "images.npz"), **arrays)
