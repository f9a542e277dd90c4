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
images = [{"id": 100 + 3 * i, "file_name": f"{i}.jpg", "width": 300, "height": 200} for i in random.permutation(15).tolist()]
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
for _ in range(40):  # a crowd beside single objects, with many detections of one score in it
    x, y = (round(float(v), 2) for v in random.uniform(20, 140, 2))
    found.append({"image_id": 103, "category_id": 3, "bbox": [x, y, 30.0, 25.0], "score": 0.5})
objects.append({"id": len(objects) + 1, "image_id": 103, "category_id": 3, "bbox": [10.0, 10.0, 170.0, 170.0], "area": 20000.0, "iscrowd": 1})
for area in (1024.0, 9216.0):  # the ends belong to both ranges
    objects.append({"id": len(objects) + 1, "image_id": 106, "category_id": 7, "bbox": [200.0, 20.0, area / 64, 64.0], "area": area, "iscrowd": 0})
    found.append({"image_id": 106, "category_id": 7, "bbox": [201.0, 20.0, area / 64, 64.0], "score": 0.7})
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


def yolov3(anchors, strides, size, shown, offset, iou, least, z):
    """z: heads; the image of W x H was resized to `shown` = (w, h) and pasted at `offset` into a square of `size`."""
    rows = []
    for z, pairs, stride in zip(z, anchors, strides):
        z, g = z.reshape(len(pairs), 5 + classes, size // stride, size // stride), size // stride
        for k, (aw, ah) in enumerate(pairs):
            for r in range(g):
                for q in range(g):
                    t = z[k, :, r, q].astype(float)
                    cx, cy = (sigmoid(t[0]) + q) / g * size, (sigmoid(t[1]) + r) / g * size
                    bw, bh = np.exp(t[2]) * aw, np.exp(t[3]) * ah
                    box = np.array([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2]) - [*offset, *offset]
                    box = (box / np.array([*shown, *shown]) * [W, H, W, H]).clip(0, [W, H, W, H])
                    rows += [[*box, s, c] for c in range(classes) if (s := sigmoid(t[4]) * sigmoid(t[5 + c])) > least]
    rows = np.array(rows)
    return nms(rows[:, :4], rows[:, 4], rows[:, 5], iou)


def heads(count, strides, size):
    return [random.normal(-0.5, 1.5, (count * (5 + classes), size // s, size // s)).astype(np.float32).round(3) for s in strides]


def case(size, z, boxes, **more):
    return {"size": size, "outputs": [z.ravel().tolist() for z in z], "shapes": [[1, *z.shape] for z in z], "boxes": boxes} | more


W, H, classes = 50, 40, 3
resize = lambda size: {"resize": {"exact": {"height": size, "width": size}}}
letterbox = lambda size, centred: {"resize": {"letterbox": {"height": size, "width": size, "fill": 114, "centred": centred}}}
anchors, strides, size = [[[10.0, 14.0], [20.0, 9.0]], [[4.0, 6.0], [7.0, 3.0]]], (16, 8), 32
z = heads(2, strides, size)
cases = {"yolov3, own anchors": case(size, z, yolov3(anchors, strides, size, (size, size), (0, 0), 0.45, 0.005, z), anchors=json.dumps(anchors), preprocess=resize(size))}
# Darknet's letterbox: 50 x 40 becomes 64 x 51 in a square of 64, 6 rows from the top.
full = {8: [[10, 13], [16, 30], [33, 23]], 16: [[30, 61], [62, 45], [59, 119]], 32: [[116, 90], [156, 198], [373, 326]]}
tiny = {16: [[10, 14], [23, 27], [37, 58]], 32: [[81, 82], [135, 169], [344, 319]]}
for name, table, strides in (("yolov3", full, (32, 16, 8)), ("yolov3-tiny", tiny, (16, 32))):
    z, selection = heads(3, strides, 64), {"score_threshold": 0.1, "nms_iou": 0.6}
    boxes = yolov3([table[s] for s in strides], strides, 64, (64, 51), (0, 6), 0.6, 0.1, z)
    cases[name] = case(64, z, boxes, preprocess=letterbox(64, True), selection=selection)

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
cases["yolox"] = case(size, [z], nms(rows[:, :4], rows[:, 4], rows[:, 5], 0.65), preprocess=letterbox(size, False))
json.dump({"detections": found, "stats": [float(s) for s in e.stats], "width": W, "height": H, "cases": cases},
          open(os.path.join(here, "detections.json"), "w"), separators=(",", ":"))
