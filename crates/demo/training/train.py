"""Trains the built-in model of `fewbits demo` on drawn pictures, writes it as ONNX, and measures the file.

usage: train.py TRAIN_STEM TEST_STEM OUT.onnx [EPOCHS]

TRAIN_STEM and TEST_STEM are what `write_images` was given. The network has what makes small convolutional networks
hard to quantize: depthwise convolutions, residual additions, linear bottlenecks and a concatenation. The file keeps
BatchNormalization as nodes of its own.
"""

import json
import sys
import time

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

SEED = 0
BATCH = 128
PREPROCESS = {
    "resize": "keep",
    "crop": None,
    "channels": "rgb",
    "scale": 255,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}


class ConvUnit(nn.Module):
    """Convolution and BatchNormalization, then an activation (`relu6`, `relu`) or none (a linear bottleneck)."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1, activation=None):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.activation = activation

    def forward(self, x):
        x = self.bn(self.conv(x))
        return {None: lambda v: v, "relu": F.relu, "relu6": F.relu6}[self.activation](x)

    def emit(self, graph, name, x):
        stride, kernel = self.conv.stride[0], self.conv.kernel_size[0]
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        weight = graph.constant(f"{name}.conv.weight", self.conv.weight)
        x = graph.node("Conv", f"{name}.conv", [x, weight], **attributes, group=self.conv.groups)
        parts = {"scale": self.bn.weight, "bias": self.bn.bias, "mean": self.bn.running_mean, "var": self.bn.running_var}
        statistics = [graph.constant(f"{name}.bn.{part}", value) for part, value in parts.items()]
        x = graph.node("BatchNormalization", f"{name}.bn", [x, *statistics], epsilon=self.bn.eps)
        if self.activation == "relu":
            x = graph.node("Relu", f"{name}.relu", [x])
        elif self.activation == "relu6":
            x = graph.node("Clip", f"{name}.relu6", [x, graph.scalar("relu6.min", 0), graph.scalar("relu6.max", 6)])
        return x


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project; the input is added where the shapes agree."""

    def __init__(self, inputs, outputs, expansion, stride=1):
        super().__init__()
        width = inputs * expansion
        self.expand = ConvUnit(inputs, width, 1, activation="relu6") if expansion > 1 else None
        self.depthwise = ConvUnit(width, width, 3, stride, groups=width, activation="relu6")
        self.project = ConvUnit(width, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.expand(x) if self.expand else x
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y

    def emit(self, graph, name, x):
        y = self.expand.emit(graph, f"{name}.expand", x) if self.expand else x
        y = self.depthwise.emit(graph, f"{name}.depthwise", y)
        y = self.project.emit(graph, f"{name}.project", y)
        return graph.node("Add", f"{name}.add", [x, y]) if self.residual else y


class Fire(nn.Module):
    """SqueezeNet's expansion: a 1×1 and a 3×3 convolution side by side, concatenated."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.point = ConvUnit(inputs, outputs // 2, 1, activation="relu")
        self.square = ConvUnit(inputs, outputs // 2, 3, activation="relu")

    def forward(self, x):
        return torch.cat([self.point(x), self.square(x)], 1)

    def emit(self, graph, name, x):
        branches = [self.point.emit(graph, f"{name}.point", x), self.square.emit(graph, f"{name}.square", x)]
        return graph.node("Concat", f"{name}.concat", branches, axis=1)


class Network(nn.Module):
    """Logits `[N, 10]` of images `[N, 3, 32, 32]`."""

    def __init__(self):
        super().__init__()
        self.features = nn.ModuleDict({
            "stem": ConvUnit(3, 16, 3, 2, activation="relu6"),
            "block1": InvertedResidual(16, 16, 1),
            "block2": InvertedResidual(16, 24, 4, 2),
            "block3": InvertedResidual(24, 24, 3),
            "fire": Fire(24, 40),
            "block4": InvertedResidual(40, 40, 3),
            "block5": InvertedResidual(40, 56, 3, 2),
            "block6": InvertedResidual(56, 56, 2),
            "head": ConvUnit(56, 96, 1, activation="relu"),
        })
        self.classifier = nn.Linear(96, 10)

    def forward(self, x):
        for unit in self.features.values():
            x = unit(x)
        return self.classifier(x.mean((2, 3)))

    def emit(self, graph):
        x = "image"
        for name, unit in self.features.items():
            x = unit.emit(graph, name, x)
        x = graph.node("GlobalAveragePool", "pool", [x])
        x = graph.node("Flatten", "flatten", [x], axis=1)
        weight = graph.constant("classifier.weight", self.classifier.weight)
        bias = graph.constant("classifier.bias", self.classifier.bias)
        graph.node("Gemm", "classifier", [x, weight, bias], output="logits", transB=1)


class OnnxGraph:
    """Collects nodes and initializers; a node's output bears the node's name."""

    def __init__(self):
        self.nodes, self.initializers = [], {}

    def node(self, op, name, inputs, output=None, **attributes):
        output = output or f"{name}.out"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name, tensor):
        self.initializers[name] = numpy_helper.from_array(tensor.detach().numpy().astype(np.float32), name)
        return name

    def scalar(self, name, value):
        return self.constant(name, torch.tensor(float(value)))

    def model(self):
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
        graph = helper.make_graph(self.nodes, "fewbits_demo", [image], [logits], list(self.initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="fewbits-demo")
        model.ir_version = 8
        helper.set_model_props(model, {"fewbits.preprocess": json.dumps(PREPROCESS)})
        onnx.checker.check_model(model, full_check=True)
        return model


def load(stem):
    images = torch.from_numpy(np.load(f"{stem}.images.npy")).permute(0, 3, 1, 2)
    return images, torch.from_numpy(np.load(f"{stem}.labels.npy")).long()


def preprocess(images):
    return (images.float() / 255 - 0.5) / 0.25


@torch.no_grad()
def accuracy(logits, images, labels):
    """Share of the images whose class has the largest of the logits that the function `logits` computes."""
    hits = [(logits(preprocess(x)).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500))]
    return sum(hits).item() / len(labels)


def onnx_function(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"image": x.contiguous().numpy()})[0])


def train(network, images, labels, epochs, after_epoch):
    """Adam with a one-cycle rate; every other batch, by chance, is mirrored, as no class depends on its handedness."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        network.train()
        order = torch.randperm(len(labels))
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            x = preprocess(images[batch])
            x = x.flip(3) if torch.rand(()) < 0.5 else x
            loss = F.cross_entropy(network(x), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        after_epoch(epoch, loss.item())


def main():
    train_stem, test_stem, output = sys.argv[1:4]
    epochs = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    network = Network().to(memory_format=torch.channels_last)
    print(f"torch {torch.__version__}, {sum(p.numel() for p in network.parameters())} parameters", flush=True)
    test, start = load(test_stem), time.time()

    def progress(epoch, loss):
        seconds = time.time() - start
        print(f"epoch {epoch}: loss {loss:.3f}, test {accuracy(network.eval(), *test):.4f}, {seconds:.0f} s", flush=True)

    train(network, *load(train_stem), epochs, progress)
    graph = OnnxGraph()
    network.eval().emit(graph)
    onnx.save(graph.model(), output)
    print(f"{output} in ONNX Runtime {onnxruntime.__version__}: test {accuracy(onnx_function(output), *test):.4f}")


if __name__ == "__main__":
    main()
