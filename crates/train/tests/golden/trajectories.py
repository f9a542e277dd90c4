"""Ten training steps of a small network in PyTorch, in double precision: tests/golden/trajectories.safetensors.

    python trajectories.py            # made with torch 2.15 and numpy 2.4

The network is that of tests/trajectories.rs. Quantizers, folding and the update are written out here from their formulas:

    LSQ and LSQ+   u = (x - b) / s;  y = s * round(clamp(u, n, p)) + b;  gradients of s and b times 1 / sqrt(N * p)
    folding        v = conv(x, Q(w * r)) / r with r = gamma / sqrt(running variance + epsilon), no gradient through r;
                   statistics of batches are those of conv(x, w)

Of each case the file has the losses of all steps, the gradients of the first step, and everything learned after the last.
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

STEPS, RATE, MOMENTUM, DECAY, EPSILON = 10, 0.05, 0.9, 1e-4, 1e-5
BITS = 4
random = np.random.default_rng(2024)
tensors = {}


def normal(*shape, deviation=1.0):
    return (random.standard_normal(shape) * deviation).astype(np.float32)


def uniform(low, high, *shape):
    return random.uniform(low, high, shape).astype(np.float32)


def initial():
    """Parameters and running statistics by name."""
    start = {}
    for name, shape in {
        "conv1": (8, 3, 3, 3), "conv2": (8, 8, 3, 3), "conv3": (8, 1, 3, 3), "conv4": (16, 8, 3, 3), "conv5": (16, 16, 1, 1),
        "linear": (5, 16),
    }.items():
        start[f"{name}.weight"] = normal(*shape, deviation=(2 / np.prod(shape[1:])) ** 0.5)
    # A bias before a normalization has no gradient, unless statistics are frozen.
    for name, channels in {"conv2": 8, "conv5": 16, "linear": 5}.items():
        start[f"{name}.bias"] = normal(channels, deviation=0.1)
    for name, channels in {"bn1": 8, "bn2": 8, "bn3": 8, "bn4": 16}.items():
        start[f"{name}.scale"] = uniform(0.6, 1.4, channels) * np.where(np.arange(channels) == 1, -1, 1).astype(np.float32)
        start[f"{name}.bias"] = normal(channels, deviation=0.3)
        start[f"{name}.mean"] = normal(channels, deviation=0.3)
        start[f"{name}.variance"] = uniform(0.7, 1.8, channels)
    return start


images = normal(8, 3, 12, 12) + np.float32(0.2)
labels = random.integers(0, 5, 8)
start = initial()
for name, tensor in {"images": images, "labels": labels.astype(np.float32), **start}.items():
    tensors[name] = tensor


def fake_quantize(x, s, b, low, high, count, shape=()):
    """LSQ; `s` and `b` one number, or one for each channel, of `shape` to broadcast."""
    g = 1 / (count * high) ** 0.5
    s, b = ((p * g + (p * (1 - g)).detach()).reshape(shape) for p in (s, b))
    u = (x - b) / s
    inside = (low < u) & (u < high)
    code = torch.where(inside, u + (u.round() - u).detach(), u.detach().clamp(low, high))
    return code * s + b


class Network:
    """Parameters, and the functions that a case lays over them."""

    def __init__(self, quantized=False, offsets=False, fold=False, frozen=False):
        self.quantized, self.offsets, self.fold, self.frozen = quantized, offsets, fold, frozen
        self.running = {n: torch.tensor(v, dtype=torch.float64) for n, v in start.items() if n.endswith((".mean", ".variance"))}
        self.parameters = {n: torch.tensor(v, dtype=torch.float64) for n, v in start.items() if n not in self.running}
        self.starting = quantized

    def learned(self, name, values):
        """The numbers of the quantizer on `name`; in the first pass they are set to `values`."""
        if self.starting:
            self.parameters[f"{name}.quantizer"] = torch.tensor(np.float32(values), dtype=torch.float64)
        return self.parameters[f"{name}.quantizer"]

    def activation(self, name, x):
        if not self.quantized:
            return x
        high = 2**BITS - 1
        numbers = self.learned(name, [[2 * x.detach().abs().mean().item() / high**0.5]])
        return fake_quantize(x, numbers[0, 0], torch.zeros(()), 0, high, x[0].numel())

    def with_offset(self, name, x, signed):
        """Starts so that both ends are clipped."""
        if not self.offsets:
            return x
        low = -(2 ** (BITS - 1)) if signed else 0
        high = low + 2**BITS - 1
        least, most = x.min().item() * 0.7, x.max().item() * 0.7
        scale = (most - least) / (high - low)
        numbers = self.learned(name, [[scale, least - low * scale]])
        return fake_quantize(x, numbers[0, 0], numbers[0, 1], low, high, x[0].numel())

    def weight(self, name, factor=None):
        w = self.parameters[f"{name}.weight"]
        channels = (-1,) + (1,) * (w.dim() - 1)
        if factor is not None:
            w = w * factor.reshape(channels)
        if not self.quantized:
            return w
        high = 2 ** (BITS - 1) - 1
        rows = w.detach().abs().flatten(1)
        numbers = self.learned(f"{name}.weight", (2 * rows.mean(1, keepdim=True) / high**0.5).numpy())
        return fake_quantize(w, numbers[:, 0], torch.zeros(len(w)), -high - 1, high, w[0].numel(), channels)

    def conv_bn(self, i, x, stride=1, groups=1):
        """Convolution `i` and its normalization; the running statistics follow."""
        bn = f"bn{i}"
        gamma, beta = self.parameters[f"{bn}.scale"], self.parameters[f"{bn}.bias"]
        mean, variance = self.running[f"{bn}.mean"], self.running[f"{bn}.variance"]
        factor = (gamma / (variance + EPSILON).sqrt()).detach() if self.fold else None
        z = F.conv2d(x, self.weight(f"conv{i}", factor), None, stride, 1, 1, groups)
        if self.fold:
            z = z / factor.reshape(-1, 1, 1)
        bias = self.parameters.get(f"conv{i}.bias")
        v = z if bias is None else z + bias.reshape(-1, 1, 1)
        if not self.frozen:
            n = v.numel() / v.shape[1]
            center, spread = v.mean((0, 2, 3)), v.var((0, 2, 3), correction=0)
            if self.fold:
                # Statistics of the layer with float weights; gradients go through them as if they were those of `v`.
                plain = F.conv2d(x, self.parameters[f"conv{i}.weight"], bias, stride, 1, 1, groups).detach()
                float_center, float_spread = plain.mean((0, 2, 3)), plain.var((0, 2, 3), correction=0)
                square = ((v - float_center.reshape(-1, 1, 1)) ** 2).mean((0, 2, 3))
                center, spread = center + (float_center - center).detach(), square + (float_spread - square).detach()
            if not self.starting:
                self.running[f"{bn}.mean"] = 0.9 * mean + 0.1 * center.detach()
                self.running[f"{bn}.variance"] = 0.9 * variance + 0.1 * spread.detach() * n / (n - 1)
            mean, variance = center, spread
        scale = gamma / (variance + EPSILON).sqrt()
        return (v - mean.reshape(-1, 1, 1)) * scale.reshape(-1, 1, 1) + beta.reshape(-1, 1, 1)

    def forward(self):
        x = self.with_offset("image", torch.tensor(images, dtype=torch.float64), signed=False)
        first = self.activation("relu1", self.conv_bn(1, x).relu())
        x = self.with_offset("bn2", self.conv_bn(2, first), signed=True)
        x = self.activation("relu2", (x + first).relu())
        x = self.activation("clip3", self.conv_bn(3, x, groups=8).clamp(0, 1.5))
        x = self.activation("relu4", self.conv_bn(4, x, stride=2).relu())
        x = F.conv2d(x, self.weight("conv5"), self.parameters["conv5.bias"]).relu()
        x = self.activation("flatten", x.mean((2, 3)))
        return F.linear(x, self.weight("linear"), self.parameters["linear.bias"])


def run(case, **settings):
    network = Network(**settings)
    if network.starting:
        network.forward()
        network.starting = False
        for name in network.parameters:
            if name.endswith(".quantizer"):
                tensors[f"{case}.start.{name}"] = network.parameters[name].numpy().copy()
    for p in network.parameters.values():
        p.requires_grad_()
    weights = [p for n, p in network.parameters.items() if n.endswith(".weight")]
    others = [p for n, p in network.parameters.items() if not n.endswith(".weight")]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)
    losses = []
    for step in range(STEPS):
        loss = F.cross_entropy(network.forward(), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 0:
            tensors.update({f"{case}.gradient.{n}": p.grad.numpy().copy() for n, p in network.parameters.items()})
    tensors[f"{case}.losses"] = np.array(losses)
    tensors.update({f"{case}.end.{n}": p.detach().numpy() for n, p in (network.parameters | network.running).items()})
    print(f"{case:8}", " ".join(f"{loss:.4f}" for loss in losses))


run("float")
run("lsq", quantized=True)
run("offsets", quantized=True, offsets=True)
run("folded", quantized=True, fold=True)
run("frozen", quantized=True, fold=True, frozen=True)

header, data = {}, b""
for name, tensor in tensors.items():
    new = np.ascontiguousarray(tensor, dtype="<f4").tobytes()
    header[name] = {"dtype": "F32", "shape": list(np.shape(tensor)), "data_offsets": [len(data), len(data) + len(new)]}
    data += new
text = json.dumps(header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
path = pathlib.Path(__file__).with_suffix(".safetensors")
path.write_bytes(len(text).to_bytes(8, "little") + text + data)
