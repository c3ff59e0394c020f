"""What a GPU needs for a training step and an evaluation in PyTorch, eager and captured: one JSON line a measurement.

    card.py FOLDER      with MNIST's `images` and `labels`, raw bytes, as scripts/bench writes them

The other side is crates/network/examples/card.rs. Products are f32 on both sides, not TF32.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from networks import LeNet
from stacks import NETWORKS, RMSPROP, WAYS, data, name, network
from torch import Tensor
from torch.nn import functional as F

torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
WARM, REPEATS = 11, 5


def say(work: str, models: int, way: str, seconds: list[float], found: float) -> None:
    microseconds = 1e6 * statistics.median(seconds)
    line = {"side": "pytorch", "work": work, "models": models, "way": way, "microseconds": microseconds, "found": found}
    print(json.dumps(line), flush=True)


def timed(work: Callable[[], object], units: float) -> list[float]:
    """Seconds of a unit, each repeat to the end of what the device does."""
    found = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - begin) / units)
    return found


def captured(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """The step as a CUDA graph, after steps in earnest, and what it writes its losses to."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = step()
    return graph.replay, losses


def lenet(folder: Path) -> None:
    pixels = torch.from_numpy(np.fromfile(folder / "images", np.uint8).reshape(-1, 1, 28, 28))
    images = F.pad(pixels.cuda().float() / 255, (2, 2, 2, 2))
    labels = torch.from_numpy(np.fromfile(folder / "labels", np.uint8)).cuda().long()
    count = len(labels)
    for batch in (100, 500):
        for way in ("eager", "captured"):
            torch.manual_seed(0)
            net = LeNet(relu_first=False).cuda()
            optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
            places = torch.arange(batch).cuda()

            def step() -> Tensor:
                optimiser.zero_grad(set_to_none=True)
                loss = F.cross_entropy(net(images[places]), labels[places])
                loss.backward()
                optimiser.step()
                return loss.detach()

            run, losses = (captured(step)) if way == "captured" else (step, torch.zeros(1))
            total = torch.zeros((), dtype=torch.float64, device="cuda")

            def epoch() -> None:
                total.zero_()
                order = torch.randperm(count, device="cuda")
                for start in range(0, count, batch):
                    places.copy_(order[start : start + batch])
                    loss = run()
                    total.add_(losses if loss is None else loss)

            seconds = timed(epoch, count / batch)
            say(f"LeNet, batch {batch}", 1, way, seconds, total.item() * batch / count)

    def evaluate(chunk: int) -> float:
        hits = torch.zeros((), dtype=torch.long, device="cuda")
        with torch.inference_mode():
            for start in range(0, count, chunk):
                outputs = net(images[start : start + chunk])
                hits += (outputs.argmax(1) == labels[start : start + chunk]).sum()
        return hits.item() / count

    for chunk in (2_000, 10_000, 60_000):
        accuracy = evaluate(chunk)
        say("LeNet, evaluation of 60,000", 1, f"chunks of {chunk}", timed(lambda: evaluate(chunk), 1), accuracy)


def narrow() -> None:
    torch.set_default_device("cuda")
    for widths in NETWORKS:
        for way, models in (("one", 1), ("bmm", 1024), ("vmap", 1024)):
            for how in ("eager", "captured"):
                torch.manual_seed(0)
                nets = [network(widths) for _ in range(models)]
                parameters, backward = WAYS[way](nets, *data())
                optimiser = torch.optim.RMSprop(parameters, foreach=True, capturable=how == "captured", **RMSPROP)

                def step() -> Tensor:
                    losses = backward()
                    optimiser.step()
                    return losses

                try:
                    run, losses = captured(step) if how == "captured" else (step, None)
                    steps = 100
                    for _ in range(WARM):
                        run()
                    seconds = timed(lambda: [run() for _ in range(steps)], steps * models)
                    found = (step() if losses is None else losses).mean().item()
                    say(name(widths), models, f"{way}, {how}", seconds, found)
                except Exception as error:  # A way that does not go is a finding.
                    print(json.dumps({"work": name(widths), "way": f"{way}, {how}", "error": str(error)[:200]}), flush=True)


def ceilings() -> None:
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    seconds = min(timed(lambda: [target.copy_(source) for _ in range(10)], 10))
    a, b = torch.randn(8192, 8192, device="cuda"), torch.randn(8192, 8192, device="cuda")
    products = min(timed(lambda: a @ b, 1))
    small = torch.zeros(1, device="cuda")
    launch = min(timed(lambda: [small.add_(1) for _ in range(1000)], 1000))
    found = {
        "copy, TB/s": 2 * 4 * 2**28 / seconds / 1e12,
        "f32 product, TFLOP/s": 2 * 8192**3 / products / 1e12,
        "launch from Python, µs": 1e6 * launch,
    }
    print(json.dumps({"device": torch.cuda.get_device_name(), **found}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    ceilings()
    lenet(Path(sys.argv[1]))
    narrow()
