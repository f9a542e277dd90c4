"""Compares training steps of fewbits with PyTorch's on this machine and prints ratios; needs `pip install torch torchvision`.

    cargo build --release -p fewbits-train --example bench_step
    python benches/compare_pytorch_training.py target/release/examples/bench_step --csv runs.csv --json summary.json

A step is forward, cross entropy, backward and SGD, on random images; float, and LSQ with 4-bit weights (each output channel) and
4-bit inputs (each tensor) of all layers. fewbits takes turns with PyTorch in these variants:

    eager       as it comes
    tuned       channels_last, and a malloc that keeps large blocks, which saves PyTorch most of its page faults
    learnable   LSQ only: tuned, with PyTorch's own fake-quantization operators with learned scales in place of composed ones
    compiled    tuned, with torch.compile, for the networks of `--compile`: compiling takes minutes. Left out, with a message,
                if it fails or takes more than three

CPU time is compared with one thread and wall time with two, both per step. Variants alternate, so that a machine that other
programs use slows all; a ratio is the median over the rounds of PyTorch's time over fewbits' in the same round. Above 1:
fewbits is faster. `--quick` takes small batches, one round and no torch.compile.
"""

import argparse
import csv
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time

NETWORKS = {"resnet20": ("3x32x32", 128, 32), "mobilenet_v2": ("3x224x224", 16, 4)}
VARIANTS = {"float": ["eager", "tuned", "compiled"], "lsq": ["eager", "tuned", "learnable", "compiled"]}
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}
COMPILING_SECONDS = 180
BITS = 4


def worker(architecture, mode, variant, image, batch):
    """PyTorch's side of the protocol of `bench_step`."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    start = time.perf_counter()

    class Block(nn.Module):
        """Of a ResNet for small images; the shortcut picks pixels and pads channels."""

        def __init__(self, channels, out, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
            self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
            self.stride, self.pad = stride, (out - channels) // 2

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.stride > 1:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return F.relu(y + x)

    def resnet20():
        layers, channels = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
        for out in (16, 32, 64):
            for _ in range(3):
                layers.append(Block(channels, out, 1 if out == channels else 2))
                channels = out
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def mobilenet_v2():
        import torchvision

        return torchvision.models.mobilenet_v2(dropout=0.0)

    class Lsq(nn.Module):
        """Learned step size quantization, scales as in the paper."""

        def __init__(self, signed, groups, count):
            super().__init__()
            self.low, self.high = (-(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1) if signed else (0, 2**BITS - 1)
            self.factor = 1 / (count * self.high) ** 0.5
            self.scale = nn.Parameter(torch.ones(groups))
            self.register_buffer("zero", torch.zeros(groups))

        def start(self, x):
            mean = x.abs().flatten(1).mean(1) if len(self.scale) > 1 else x.abs().mean().reshape(1)
            self.scale.data = 2 * mean.detach() / self.high**0.5

        def forward(self, x):
            one = len(self.scale) == 1
            if variant == "learnable" and one:
                return torch._fake_quantize_learnable_per_tensor_affine(x, self.scale, self.zero, self.low, self.high, self.factor)
            if variant == "learnable":
                return torch._fake_quantize_learnable_per_channel_affine(x, self.scale, self.zero, 0, self.low, self.high, self.factor)
            scale = self.scale * self.factor + (self.scale * (1 - self.factor)).detach()
            scale = scale if one else scale.reshape(-1, *[1] * (x.dim() - 1))
            u = torch.clamp(x / scale, self.low, self.high)
            return ((u.round() - u).detach() + u) * scale

    class Layer(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.input = layer, None
            self.weight = Lsq(True, len(layer.weight), layer.weight[0].numel())
            self.weight.start(layer.weight)

        def forward(self, x):
            if self.input is None:
                self.input = Lsq(bool(x.min() < 0), 1, x[0].numel())
                self.input.start(x)
            x, w = self.input(x), self.weight(self.layer.weight)
            if isinstance(self.layer, nn.Linear):
                return F.linear(x, w, self.layer.bias)
            return self.layer._conv_forward(x, w, self.layer.bias)

    def quantize(module):
        for name, child in module.named_children():
            if isinstance(child, (nn.Conv2d, nn.Linear)):
                setattr(module, name, Layer(child))
            else:
                quantize(child)

    torch.manual_seed(0)
    model = {"resnet20": resnet20, "mobilenet_v2": mobilenet_v2}[architecture]()
    sizes = [int(size) for size in image.split("x")]
    images, labels = torch.randn(batch, *sizes), torch.arange(batch) % 10
    if variant != "eager":
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    if mode == "lsq":
        quantize(model)
        with torch.no_grad():
            model.eval()(images[:2])
            model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    compute = torch.compile(model) if variant == "compiled" else model

    def step():
        loss = F.cross_entropy(compute(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    # Compiled code is made for a number of threads.
    for threads in (1, 2) if variant == "compiled" else (1,):
        torch.set_num_threads(threads)
        step()
    print(json.dumps({"ready_seconds": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        steps, threads = map(int, line.split())
        torch.set_num_threads(threads)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(steps):
            loss = step()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        with open("/proc/self/status") as status:
            peak = next(int(text.split()[1]) * 1024 for text in status if text.startswith("VmHWM:"))
        found = {"steps": steps, "wall_ms": wall * 1e3 / steps, "cpu_ms": cpu * 1e3 / steps, "peak_rss_bytes": peak, "loss": loss}
        print(json.dumps(found), flush=True)


class Child:
    """A program that makes training steps when asked."""

    def __init__(self, options, network, mode, variant):
        self.variant, self.steps = variant, {}
        arguments = [network, mode, *NETWORKS[network][:1], str(NETWORKS[network][2 if options.quick else 1])]
        if variant == "fewbits":
            command = [options.program, *arguments]
        else:
            command = [sys.executable, os.path.abspath(__file__), "--worker", variant, *arguments]
        environment = os.environ | (MALLOC if variant not in ("fewbits", "eager") else {})
        self.errors = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill up
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment, text=True)
        self.ready = self.answer(COMPILING_SECONDS)

    def answer(self, seconds=None):
        """The next line; `None` if the child ends, or says nothing for so long."""
        if not select.select([self.child.stdout], [], [], seconds)[0]:
            self.child.kill()
            return None
        line = self.child.stdout.readline()
        return json.loads(line) if line else None

    def run(self, threads, seconds):
        """Makes steps for about so long."""
        steps = self.steps.get(threads, 1)
        self.child.stdin.write(f"{steps} {threads}\n")
        self.child.stdin.flush()
        found = self.answer()
        if found is None:
            sys.exit(f"{self.variant} failed:\n{self.end()}")
        self.steps[threads] = max(1, round(seconds * 1e3 / found["wall_ms"]))
        return found

    def end(self):
        """What it said on standard error."""
        self.child.kill()
        self.child.communicate()
        self.errors.seek(0)
        return self.errors.read()


def compare(options, network, mode, deadline):
    """Rounds of all variants; at least one, and no further ones after `deadline`."""
    children, rows = [], []
    for variant in ["fewbits", *VARIANTS[mode]]:
        if variant == "compiled" and network not in options.compile:
            continue
        child = Child(options, network, mode, variant)
        if child.ready:
            children.append(child)
            continue
        error = child.end().strip().splitlines()
        print(f"{network} {mode}: {variant} left out, {error[-1] if error else 'no answer in time'}", flush=True)
        if variant == "fewbits":
            sys.exit(1)
    for threads in (1, 2):
        for child in children:
            child.run(threads, options.seconds)  # warms up, and tells how long a step takes
    for round_number in range(options.rounds):
        if round_number > 0 and time.monotonic() > deadline:
            break
        for threads in (1, 2):
            for child in children:
                found = child.run(threads, options.seconds)
                rows.append({"network": network, "mode": mode, "variant": child.variant, "threads": threads, "round": round_number, **found})
    for child in children:
        child.end()
    return rows


def summarize(rows):
    """Medians and ratios of a network and mode."""
    summary = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        entry = {key: rows[0][key] for key in ("network", "mode")} | {"variant": variant}
        for name, threads, key in (("cpu_ms_1_thread", 1, "cpu_ms"), ("wall_ms_2_threads", 2, "wall_ms")):
            times = {v: [r[key] for r in rows if r["variant"] == v and r["threads"] == threads] for v in ("fewbits", variant)}
            entry[name] = statistics.median(times[variant])
            entry[f"ratio_{name}"] = statistics.median(theirs / max(ours, 1e-9) for ours, theirs in zip(times["fewbits"], times[variant]))
        entry["peak_rss_mb"] = max(r["peak_rss_bytes"] for r in rows if r["variant"] == variant) / 1e6
        entry["rounds"] = 1 + max(r["round"] for r in rows)
        summary.append(entry)
    return summary


def surroundings():
    """What a result depends on."""
    import torch

    def output(command):
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    folder = os.path.dirname(os.path.abspath(__file__))
    model = None
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as cpuinfo:
            model = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), None)
    return {
        "command": " ".join(sys.argv),
        "commit": output(["git", "-C", folder, "rev-parse", "HEAD"]),
        "uncommitted_changes": bool(output(["git", "-C", folder, "status", "--porcelain"])),
        "rustc": output(["rustc", "--version"]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{model or platform.processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "load_before": os.getloadavg(),
    }


def main():
    if sys.argv[1:2] == ["--worker"]:
        variant, architecture, mode, image, batch = sys.argv[2:]
        return worker(architecture, mode, variant, image, int(batch))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the example bench_step")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--modes", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--rounds", type=int, default=5, help="at most")
    parser.add_argument("--seconds", type=float, default=1.5, help="about how long a variant is at work in a round")
    parser.add_argument("--minutes", type=float, default=7, help="no further rounds after this")
    parser.add_argument("--compile", nargs="*", default=["resnet20"], choices=NETWORKS, help="networks to try torch.compile on")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--csv", help="write every round here")
    parser.add_argument("--json", help="write medians, ratios and the surroundings here")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.compile = 1, 0.3, []
    about = surroundings()
    if about["load_before"][0] > 0.5:
        print("other programs use this machine: times with two threads will mean little", file=sys.stderr)
    groups = [(network, mode) for network in options.networks for mode in options.modes]
    end = time.monotonic() + options.minutes * 60
    rows, summary = [], []
    for i, (network, mode) in enumerate(groups):
        now = time.monotonic()
        found = compare(options, network, mode, now + (end - now) / (len(groups) - i))
        rows += found
        for entry in summarize(found):
            summary.append(entry)
            print(f"{network:13} {mode:6} {entry['variant']:10}"
                  f" 1 thread: CPU {entry['cpu_ms_1_thread']:8.1f} ms ({entry['ratio_cpu_ms_1_thread']:5.2f})"
                  f"   2 threads: {entry['wall_ms_2_threads']:8.1f} ms ({entry['ratio_wall_ms_2_threads']:5.2f})"
                  f"   {entry['peak_rss_mb']:6.0f} MB", flush=True)
    about["load_after"] = os.getloadavg()
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"surroundings": about, "summary": summary}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
