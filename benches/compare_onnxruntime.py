"""Compares fewbits with ONNX Runtime on this machine and prints ratios; needs `pip install onnx onnxruntime numpy`.

Speed: images per second of `fewbits bench` over those of ONNX Runtime, for each model, batch and number of threads. The two
alternate, so that a machine that other programs use slows both; a ratio is the median over the rounds, and the ratio of the
fastest runs stands beside it. Above 1: fewbits is faster.

    python benches/compare_onnxruntime.py target/release/fewbits --float a.onnx b.onnx --int8 a.int8.onnx

Calibration: time, CPU time and peak memory of `fewbits quantize` and of `quantize_static` (MinMax, QDQ) on the same array:

    python benches/compare_onnxruntime.py target/release/fewbits --quantize a.onnx --calib images.npy
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time


def example(session, batch):
    """One input with `batch` images; unknown sizes are 3 channels of 224 × 224."""
    import numpy as np

    declared = session.get_inputs()[0]
    sizes = {0: batch, 1: 3}
    shape = [d if isinstance(d, int) else sizes.get(axis, 224) for axis, d in enumerate(declared.shape)]
    return {declared.name: np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}


def time_onnxruntime(model, batch, threads, runs):
    """Images per second: median and fastest of `runs`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = example(session, batch)
    images = next(iter(feed.values())).shape[0]
    seconds = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - start)
    seconds = seconds[2:]
    return images / statistics.median(seconds), images / min(seconds)


def time_fewbits(program, model, batch, threads, runs):
    """As `time_onnxruntime`."""
    arguments = ["--batch", batch, "--threads", threads, "--runs", runs, "--format", "json", "--quiet"]
    command = [program, "bench", model, *map(str, arguments)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found["batch"] / found["median_seconds"], found["batch"] / found["fastest_seconds"]


def has_fixed_batch(model):
    """Whether the file allows one batch size only."""
    import onnx

    sizes = onnx.load(model, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return len(sizes) > 0 and sizes[0].HasField("dim_value")


def compare_speed(options, kind, models, rows):
    for model in models:
        batches = [1] if has_fixed_batch(model) else options.batches
        for batch in batches:
            for threads in options.threads:
                runs = max(3, options.images // batch)
                ours, theirs = [], []
                for round_number in range(options.rounds):
                    ours.append(time_fewbits(options.fewbits, model, batch, threads, runs))
                    theirs.append(time_onnxruntime(model, batch, threads, runs))
                    rows.append(["speed", kind, os.path.basename(model), batch, threads, round_number, *ours[-1], *theirs[-1]])
                median = statistics.median(a[0] / b[0] for a, b in zip(ours, theirs))
                best = max(a[1] for a in ours) / max(b[1] for b in theirs)
                name = f"{os.path.basename(model)} ({kind})"
                print(f"{name:40} batch {batch:3} threads {threads}: {median:5.2f} (fastest runs {best:5.2f})", flush=True)


QUANTIZE_STATIC = """
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
import onnxruntime

model, array, samples, output = sys.argv[1:]
name = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()[0].name
images = np.load(array, mmap_mode="r")[: int(samples)]

class Reader(CalibrationDataReader):
    def __init__(self):
        self.rest = iter(images)
    def get_next(self):
        image = next(self.rest, None)
        return None if image is None else {name: np.asarray(image[None], dtype=np.float32)}

quantize_static(model, output, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                calibrate_method=CalibrationMethod.MinMax)
"""


def measured(command):
    """Seconds, CPU seconds and peak megabytes of a command."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as printed:
        child = subprocess.Popen(command, stdout=printed, stderr=subprocess.PIPE)
        error = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        printed.seek(0)
        output = printed.read()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{error.decode(errors='replace')}")
    unit = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss counts bytes on macOS, kilobytes elsewhere
    peak = usage.ru_maxrss / unit
    if output.startswith(b"{"):
        # The system's figure never falls below what this interpreter held when it started the program.
        peak = (json.loads(output).get("peak_rss_bytes") or peak * 1e6) / 1e6
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, peak


def compare_calibration(options, model, rows):
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "quantized.onnx")
        arguments = ["--calib", options.calib, "--samples", str(options.samples), "--preprocess", "none", "--quiet", "--format", "json"]
        commands = {
            f"fewbits --ranges {rule}": [options.fewbits, "quantize", model, *arguments, "--ranges", rule, "-o", output]
            for rule in options.ranges
        }
        commands["quantize_static, MinMax"] = [
            sys.executable, "-c", QUANTIZE_STATIC, model, options.calib, str(options.samples), output,
        ]
        found = {}
        for name, command in commands.items():
            rounds = []
            for round_number in range(options.rounds):
                rounds.append(measured(command))
                rows.append(["calibration", name, os.path.basename(model), options.samples, "", round_number, *rounds[-1], ""])
            found[name] = [statistics.median(column) for column in zip(*rounds)]
        theirs = found["quantize_static, MinMax"]
        for name, (seconds, cpu, megabytes) in found.items():
            print(f"{name:34} {seconds:7.2f} s, CPU {cpu:7.2f} s, {megabytes:6.0f} MB;"
                  f" ONNX Runtime takes {theirs[0] / seconds:5.2f} × the time", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fewbits", help="the program")
    parser.add_argument("--float", nargs="+", default=[], metavar="MODEL", help="float models to time")
    parser.add_argument("--int8", nargs="+", default=[], metavar="MODEL", help="quantized models to time")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--images", type=int, default=96, help="images timed per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quantize", metavar="MODEL", help="float model whose calibration is timed")
    parser.add_argument("--calib", metavar="ARRAY.npy", help="preprocessed images [n, 3, h, w] for --quantize")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--ranges", nargs="+", default=["minmax"], help="range rules of fewbits")
    parser.add_argument("--csv", help="also write every round here")
    options = parser.parse_args()
    if options.quantize and not options.calib:
        parser.error("--quantize needs --calib")
    rows = []
    compare_speed(options, "float", options.float, rows)
    compare_speed(options, "int8", options.int8, rows)
    if options.quantize:
        compare_calibration(options, options.quantize, rows)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["what", "kind", "model", "batch_or_samples", "threads", "round",
                             "fewbits_median_images_per_s_or_s", "fewbits_fastest_images_per_s_or_cpu_s",
                             "onnxruntime_median_images_per_s_or_mb", "onnxruntime_fastest_images_per_s"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
