#!/usr/bin/env python3
"""Makes detections.json: random truth and detections scored by pycocotools, and detector outputs decoded by numpy.

usage: make_detections.py         (writes detections.json and instances.json beside itself)
needs: pip install numpy pycocotools   (made with pycocotools 2.0, numpy 2)
"""
import contextlib, io, json, os
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

here = os.path.dirname(os.path.abspath(__file__))
random = np.random.default_rng(11)
categories = [{"id": c, "name": f"thing {c}"} for c in (7, 3, 90, 12)]
images = [{"id": 100 + 3 * i, "file_name": f"{i}.jpg", "width": 300, "height": 200} for i in range(15)]
objects, found = [], []
for image in images:
    for _ in range(random.integers(0, 9)):
        w, h = [float(v) for v in np.round(random.choice([12, 40, 120]) * random.uniform(0.6, 1.4, 2), 2)]
        x, y = [float(v) for v in np.round(random.uniform(0, 150, 2), 2)]
        category = int(random.choice([3, 7, 90]))
        objects.append({"id": len(objects) + 1, "image_id": image["id"], "category_id": category, "bbox": [x, y, w, h],
                        "area": round(w * h * float(random.uniform(0.5, 1)), 3), "iscrowd": int(random.random() < 0.12)})
        for _ in range(random.integers(0, 4)):
            box = np.array([x, y, w, h]) + random.normal(0, 0.12, 4) * [w, h, w, h]
            found.append({"image_id": image["id"], "category_id": category if random.random() < 0.85 else 12,
                          "bbox": [round(float(v), 2) for v in np.maximum(box, 1)], "score": round(float(random.random()), 2)})
for _ in range(120):  # more than the hundred that count
    found.append({"image_id": 100, "category_id": 3, "bbox": [1.0, 1.0, 20.0, 20.0], "score": round(float(random.random()), 2)})
truth = {"images": images, "categories": categories, "annotations": objects}
json.dump(truth, open(os.path.join(here, "instances.json"), "w"), separators=(",", ":"))
with contextlib.redirect_stdout(io.StringIO()):
    gt = COCO(os.path.join(here, "instances.json"))
    e = COCOeval(gt, gt.loadRes(found), "bbox")
    e.evaluate(); e.accumulate(); e.summarize()

sigmoid = lambda x: 1 / (1 + np.exp(-x))


def nms(box, score, label, iou):
    order, kept = list(np.argsort(-score, kind="stable")), []
    while order and len(kept) < 100:
        i = order.pop(0)
        kept.append([int(label[i]), float(score[i]), *map(float, box[i])])

        def keep(j):
            w = min(box[i, 2], box[j, 2]) - max(box[i, 0], box[j, 0])
            h = min(box[i, 3], box[j, 3]) - max(box[i, 1], box[j, 1])
            area = lambda b: (b[2] - b[0]) * (b[3] - b[1])
            common = max(w, 0) * max(h, 0)
            return label[i] != label[j] or common / (area(box[i]) + area(box[j]) - common + 1e-9) <= iou
        order = [j for j in order if keep(j)]
    return kept


W, H, size, classes = 50, 40, 32, 3
anchors = [[[10.0, 14.0], [20.0, 9.0]], [[4.0, 6.0], [7.0, 3.0]]]
heads = [random.normal(-0.5, 1.5, (2 * (5 + classes), g, g)).astype(np.float32).round(3) for g in (2, 4)]
rows = []
for z, pairs in zip(heads, anchors):
    g = z.shape[1]
    z = z.reshape(2, 5 + classes, g, g)
    for k, (aw, ah) in enumerate(pairs):
        for r in range(g):
            for q in range(g):
                t = z[k, :, r, q]
                cx, cy = (sigmoid(t[0]) + q) / g * W, (sigmoid(t[1]) + r) / g * H
                bw, bh = np.exp(t[2]) * aw / size * W, np.exp(t[3]) * ah / size * H
                for c in range(classes):
                    s = sigmoid(t[4]) * sigmoid(t[5 + c])
                    if s > 0.005:
                        rows.append([np.clip(cx - bw / 2, 0, W), np.clip(cy - bh / 2, 0, H), np.clip(cx + bw / 2, 0, W), np.clip(cy + bh / 2, 0, H), s, c])
rows = np.array(rows)
yolov3 = {"outputs": [z.ravel().tolist() for z in heads], "shapes": [[1, *z.shape] for z in heads], "anchors": json.dumps(anchors),
          "boxes": nms(rows[:, :4], rows[:, 4], rows[:, 5], 0.45)}

z = np.concatenate([random.normal(0, 1, (21, 4)), random.uniform(0, 1, (21, 1 + classes))], 1).astype(np.float32).round(3)
ratio, rows, row = min(size / W, size / H), [], 0
for stride in (8, 16, 32):
    for r in range(size // stride):
        for q in range(size // stride):
            t = z[row]
            row += 1
            cx, cy, bw, bh = (t[0] + q) * stride, (t[1] + r) * stride, np.exp(t[2]) * stride, np.exp(t[3]) * stride
            box = np.array([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2], float) / ratio
            for c in range(classes):
                if t[4] * t[5 + c] > 0.005:
                    rows.append([*box.clip(0, [W, H, W, H]), t[4] * t[5 + c], c])
rows = np.array(rows)
yolox = {"outputs": [z.ravel().tolist()], "shapes": [[1, 21, 8]], "boxes": nms(rows[:, :4], rows[:, 4], rows[:, 5], 0.65)}
json.dump({"detections": found, "stats": [float(s) for s in e.stats[:6]], "width": W, "height": H, "size": size, "yolov3": yolov3, "yolox": yolox},
          open(os.path.join(here, "detections.json"), "w"), separators=(",", ":"))
