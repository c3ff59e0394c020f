"""How long an epoch of training LeNet, and its evaluation, take in PyTorch: one JSON line per measurement.

    training.py tune FOLDER THREADS BATCH               the fastest variants, as JSON
    training.py tuned FOLDER THREADS BATCH CHOICE       PyTorch well tuned, in eager mode: data in memory, no host round trips
    training.py notebook FOLDER THREADS BATCH           as the report's notebooks have it: a Dataset, a DataLoader, loops over samples

FOLDER holds `images` (u8, N x 28 x 28) and `labels` (u8, N), as scripts/bench writes them; CHOICE is what `tune` printed.
The other side is crates/network/examples/speed.rs.
"""

import json
import multiprocessing
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from classifiers import (
    Samples,
    evaluate,
    for_lenet,
    keep_large_blocks,
    lenet,
    notebook_epoch,
    notebook_evaluation,
    padded,
    sgd,
    timed,
    train,
)
from networks import LeNet
from torch import Tensor

CHUNKS = (100, 200, 500, 1000, 5000)
WARM_UP = 10_000


def read(folder: str) -> tuple[np.ndarray, np.ndarray]:
    labels = np.fromfile(Path(folder) / "labels", np.uint8)
    return np.fromfile(Path(folder) / "images", np.uint8).reshape(len(labels), 28, 28), labels


def load(folder: str) -> tuple[Tensor, Tensor]:
    pixels, labels = read(folder)
    return for_lenet(pixels), torch.from_numpy(labels).long()


def report(side: str, work: str, seconds: float, found: dict) -> None:
    print(json.dumps({"side": side, "work": work, "seconds": seconds, "found": found}), flush=True)


def model(choice: dict) -> LeNet:
    torch.manual_seed(0)
    return lenet(choice)


def optimiser_of(net: LeNet, fused: bool) -> torch.optim.SGD:
    return sgd(net, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.0, fused=fused)


def epoch(net: LeNet, images: Tensor, labels: Tensor, batch: int, choice: dict) -> dict:
    return train(net, optimiser_of(net, choice["fused"]), images, labels, batch, choice)


def tune(images: Tensor, labels: Tensor, batch: int) -> dict:
    keep_large_blocks()
    few, few_labels = images[:WARM_UP], labels[:WARM_UP]

    def fastest(variants: dict, work) -> dict:
        choices = [dict(zip(variants, values)) for values in product(*variants.values())]
        work(model(choices[0]), choices[0])
        seconds = [min(timed(lambda: work(model(choice), choice))[0] for _ in range(2)) for choice in choices]
        return choices[seconds.index(min(seconds))]

    # Evaluation on everything: which chunk is best depends on how long the allocator has been at it.
    layouts = {"relu_first": (True, False), "channels_last": (False, True)}
    return {
        "train": fastest({**layouts, "fused": (True, False)}, lambda m, c: epoch(m, few, few_labels, batch, c)),
        "evaluate": fastest({**layouts, "chunk": (100, 1000)}, lambda m, c: evaluate(m, images, labels, c)),
    }


def worker(folder: str, batch: int, choice: dict, barrier) -> None:
    keep_large_blocks()
    torch.set_num_threads(1)
    images, labels = load(folder)
    net = model(choice)
    epoch(net, images[:WARM_UP], labels[:WARM_UP], batch, choice)
    barrier.wait()
    epoch(net, images, labels, batch, choice)
    barrier.wait()


def tuned(folder: str, batch: int, choice: dict) -> None:
    keep_large_blocks()
    images, labels = load(folder)
    net = model(choice["train"])
    epoch(net, images[:WARM_UP], labels[:WARM_UP], batch, choice["train"])
    report("tuned", "train", *timed(lambda: epoch(net, images, labels, batch, choice["train"])))

    judged = model(choice["evaluate"])
    judged.load_state_dict(net.state_dict())
    # Which chunk is best depends on what the allocator has been through, so each has its turn and the fastest counts.
    results = []
    for chunk in CHUNKS:
        choice_of_chunk = {**choice["evaluate"], "chunk": chunk}
        evaluate(judged, images[:WARM_UP], labels[:WARM_UP], choice_of_chunk)
        results.append(timed(lambda: evaluate(judged, images, labels, choice_of_chunk)))
    report("tuned", "evaluate", *min(results, key=lambda result: result[0]))

    # Two models side by side: processes, so that Python's lock is in nobody's way.
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=worker, args=(folder, batch, choice["train"], barrier)) for _ in range(2)]
    for process in workers:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    report("tuned", "train-pair", (time.perf_counter() - start) / 2, {})
    for process in workers:
        process.join()


def notebook(folder: str, batch: int) -> None:
    samples = Samples(*read(folder), padded)
    torch.manual_seed(0)
    net = LeNet()
    optimiser = optimiser_of(net, fused=False)
    report("notebook", "train", *timed(lambda: notebook_epoch(net, optimiser, samples, batch)))
    report("notebook", "evaluate", *timed(lambda: notebook_evaluation(net, samples, batch)))


def main() -> None:
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    mode, folder, threads, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    if mode == "tune":
        print(json.dumps(tune(*load(folder), batch)))
    elif mode == "tuned" and len(sys.argv) == 6:
        tuned(folder, batch, json.loads(sys.argv[5]))
    elif mode == "notebook":
        notebook(folder, batch)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
