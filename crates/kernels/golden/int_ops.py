"""Writes int_ops.bin: results of ONNX Runtime's quantized CPU kernels on small inputs.

    python int_ops.py        (made with onnxruntime 1.31.1, onnx 1.23.2, numpy; x86-64 with AVX-512)

Every graph is Q/DQ around one operator, opened in a default session, and must contain the expected QLinear kernel. Images are NHWC in the
file. A record is: name, then arrays; `u32 len, utf-8`, `u32 count`, then per array `u32 kind (0 u8, 1 i8, 2 i32, 3 f32), u32 len, bytes`.
"""
import struct
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T, helper as H, numpy_helper as NH

F = np.float32
rng = np.random.default_rng(20)
KINDS = {np.dtype(np.uint8): 0, np.dtype(np.int8): 1, np.dtype(np.int32): 2, np.dtype(F): 3}
records = []


def record(name, *arrays):
    out = [struct.pack("<I", len(name)), name.encode(), struct.pack("<I", len(arrays))]
    for a in map(np.asarray, arrays):
        out += [struct.pack("<II", KINDS[a.dtype], a.size), np.ascontiguousarray(a).tobytes()]
    records.append(b"".join(out))


class Graph:
    def __init__(self):
        self.nodes, self.inits, self.inputs, self.feeds = [], [], [], {}

    def const(self, a):
        self.inits.append(NH.from_array(np.asarray(a), f"c{len(self.inits)}"))
        return self.inits[-1].name

    def op(self, kind, *inputs, **attributes):
        self.nodes.append(H.make_node(kind, inputs, [f"t{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def dq(self, x, scale, zero, axis=None):
        attributes = {} if axis is None else {"axis": axis}
        return self.op("DequantizeLinear", x, self.const(np.asarray(scale, F)), self.const(zero), **attributes)

    def input(self, q, scale, zero):
        """A float input whose values quantize to `q`, behind Q and DQ."""
        name = f"x{len(self.inputs)}"
        self.inputs.append(H.make_tensor_value_info(name, T.FLOAT, q.shape))
        self.feeds[name] = ((q.astype(np.int64) - int(zero)) * np.float64(scale)).astype(F)
        return self.dq(self.op("QuantizeLinear", name, self.const(F(scale)), self.const(zero)), scale, zero)

    def run(self, y, kernel, grid=None):
        """Runs the graph up to `y`, quantized on `grid` = (scale, zero) if given; checks that `kernel` was used."""
        kind = T.FLOAT
        if grid is not None:
            y = self.op("QuantizeLinear", y, self.const(F(grid[0])), self.const(np.uint8(grid[1])))
            kind = T.UINT8
        graph = H.make_graph(self.nodes, "g", self.inputs, [H.make_tensor_value_info(y, kind, None)], self.inits)
        model = H.make_model(graph, opset_imports=[H.make_opsetid("", 13)], ir_version=8)
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(tempfile.gettempdir()) / "int_ops_optimized.onnx")
        options.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kernels = [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]
        assert kernel in kernels, (kernel, kernels)
        return session.run(None, self.feeds)[0]


def scale():
    return F(rng.choice([0.02, 0.5, 1 / 255, 0.0371, 6 / 255, 0.0625]) * rng.choice([1, rng.uniform(0.3, 3)]))


def zero():
    return np.uint8(rng.choice([0, 128, 255, rng.integers(256)]))


def u8(*shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def nhwc(a):
    return a.transpose(0, 2, 3, 1)


def scalars(*values):
    return np.array(values, F)


def quantize():
    for _ in range(4):
        s, z = scale(), zero()
        x = np.concatenate([rng.normal(size=301) * 60 * s, np.arange(-200, 200) * F(0.5) * s, [np.nan, np.inf, -np.inf, 3e38, -3e38]]).astype(F)
        g = Graph()
        g.inputs.append(H.make_tensor_value_info("x", T.FLOAT, x.shape))
        g.feeds["x"] = x
        record("quantize", scalars(s, z), x, g.run("x", "QuantizeLinear", (s, z)))


def binary():
    for op in ("Add", "Mul"):
        for i in range(8):
            (sa, sb, sy), (za, zb, zy) = [scale() for _ in range(3)], [zero() for _ in range(3)]
            if i == 7:
                sy = F(sy * 1e-9)  # far beyond i32
            for length in (333, 1):
                a, b = u8(333), u8(length)
                g = Graph()
                y = g.run(g.op(op, g.input(a, sa, za), g.input(b, sb, zb)), "QLinear" + op, (sy, zy))
                record(op, scalars(sa, za, sb, zb, sy, zy), a, b, y)


def tables():
    q = np.arange(256).astype(np.uint8)
    for _ in range(5):
        sx, sy, zx, zy = scale(), scale(), zero(), zero()
        alpha = F(rng.uniform(0, 0.5))
        for op, attributes in (("Sigmoid", {}), ("LeakyRelu", {"alpha": float(alpha)})):
            g = Graph()
            record(op, scalars(sx, zx, sy, zy, alpha), g.run(g.op(op, g.input(q, sx, zx), **attributes), "QLinear" + op, (sy, zy)))
        g = Graph()
        y = g.run(g.op("Concat", g.input(q, sx, zx), g.input(q, sy, zy), axis=0), "QLinearConcat", (sy, zy))
        assert (y[256:] == q).all()
        record("Concat", scalars(sx, zx, sy, zy, 0), y[:256])


def pools():
    for i in range(10):
        sx, sy, zx, zy = F(rng.uniform(0.01, 0.05)), F(rng.uniform(0.01, 0.05)), zero(), zero()
        n, h, w, c = 1 + i % 2, int(rng.integers(5, 12)), int(rng.integers(5, 12)), int(rng.choice([3, 16, 37]))
        x = u8(n, c, h, w)
        g = Graph()
        y = g.run(g.op("GlobalAveragePool", g.input(x, sx, zx)), "QLinearGlobalAveragePool", (sy, zy))
        record("GlobalAveragePool", scalars(sx, zx, sy, zy), np.array([n, h * w, c], np.int32), nhwc(x), y)
        kernel, stride = [int(v) for v in rng.integers(1, 5, 2)], [int(v) for v in rng.integers(1, 4, 2)]
        pads = [int(rng.integers(0, k)) for k in kernel * 2]
        include = int(i % 3 == 0)
        for op, kernel_name, grid in (("MaxPool", "MaxPool", (sx, zx)), ("AveragePool", "QLinearAveragePool", (sy, zy))):
            attributes = {"kernel_shape": kernel, "strides": stride, "pads": pads, "ceil_mode": int(i % 4 == 1 and op == "MaxPool")}
            if op == "AveragePool":
                attributes["count_include_pad"] = include
            g = Graph()
            y = g.run(g.op(op, g.input(x, sx, zx), **attributes), kernel_name, grid)
            shape = [n, h, w, *y.shape[2:], c, *kernel, *stride, *pads, include]
            record(op, scalars(sx, zx, *grid), np.array(shape, np.int32), nhwc(x), nhwc(y))


def softmax():
    for i in range(6):
        sx, zx = scale(), zero()
        sy, zy = (F(1 / 256), np.uint8(0)) if i % 2 else (scale(), zero())
        x = u8(3, [10, 100, 37][i % 3])
        g = Graph()
        record("Softmax", scalars(sx, sy, zy), x, g.run(g.op("Softmax", g.input(x, sx, zx), axis=-1), "QLinearSoftmax", (sy, zy)))


def convolutions():
    # n, h, w, channels in and out, kernel, stride, dilation, pads, groups
    shapes = [
        (1, 9, 8, 3, 18, 3, 3, 2, 2, 1, 1, 0, 0, 1, 1, 1),
        (2, 6, 5, 20, 33, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1),
        (1, 7, 7, 16, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1),
        (1, 8, 9, 35, 35, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 35),
        (1, 9, 9, 72, 72, 5, 5, 2, 2, 1, 1, 2, 2, 2, 2, 72),
        (1, 9, 9, 8, 12, 3, 2, 1, 2, 2, 1, 0, 1, 2, 3, 4),
    ]
    for i, shape in enumerate(shapes):
        n, h, w, c, o, kh, kw, sh, sw, dh, dw, *pads, groups = shape
        k = c // groups * kh * kw
        for signed in (False, True):
            sx, zx, zy = scale(), zero(), zero()
            weights = rng.integers(-127, 128, (o, c // groups, kh, kw)).astype(np.int8)
            w_scale = rng.uniform(0.002, 0.02, o).astype(F)
            if i % 2:
                sx, w_scale = F(0.125), (2.0 ** -rng.integers(5, 8, o)).astype(F)  # many exact ties
            sy = F(2.0 ** np.round(np.log2(sx * 0.7 * np.sqrt(k))))
            x, bias = u8(n, c, h, w), rng.integers(-20000, 20000, o).astype(np.int32)
            kind, shift = (np.int8, 128) if signed else (np.uint8, 0)
            g = Graph()
            operands = [
                g.input((x.astype(int) - shift).astype(kind), sx, kind(int(zx) - shift)),
                g.dq(g.const(weights), w_scale, np.zeros(o, np.int8), 0),
                g.dq(g.const(bias), (sx * w_scale).astype(F), np.zeros(o, np.int32), 0),
            ]
            y = g.op("Conv", *operands, strides=[sh, sw], dilations=[dh, dw], pads=pads, group=groups)
            zero_out = kind(int(zy) - shift)
            y = g.dq(g.op("QuantizeLinear", y, g.const(sy), g.const(zero_out)), sy, zero_out)
            y = np.rint(g.run(y, "QLinearConv").astype(np.float64) / np.float64(sy)).astype(int) + int(zy)
            record("Conv", np.array(shape, np.int32), scalars(sx, zx, sy, zy), w_scale, weights, bias, nhwc(x), nhwc(y).astype(np.uint8))


def products():
    for i in range(4):
        m, k, n = [(1, 130, 33), (5, 64, 20), (1, 37, 100), (9, 16, 16)][i]
        sx, zx, zy = scale(), zero(), zero()
        w_scale = rng.uniform(0.002, 0.02, n).astype(F)
        sy = F(sx * np.sqrt(k) * 0.7)
        x, weights, bias = u8(m, k), rng.integers(-127, 128, (k, n)).astype(np.int8), rng.integers(-20000, 20000, n).astype(np.int32)
        for grid in ((sy, zy), None):
            g = Graph()
            operands = [
                g.input(x, sx, zx),
                g.dq(g.const(weights), w_scale, np.zeros(n, np.int8), 1),
                g.dq(g.const(bias), (sx * w_scale).astype(F), np.zeros(n, np.int32), 0),
            ]
            y = g.run(g.op("Gemm", *operands), "QGemm", grid)
            record("Gemm" if grid else "GemmToFloat", np.array([m, k, n], np.int32), scalars(sx, zx, sy, zy), w_scale, weights, bias, x, y)


if __name__ == "__main__":
    for part in (quantize, binary, tables, pools, softmax, convolutions, products):
        part()
    Path(__file__).with_suffix(".bin").write_bytes(b"".join(records))
    print(len(records), "records", sum(map(len, records)), "bytes")
