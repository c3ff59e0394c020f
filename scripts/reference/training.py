"""How long an epoch of training LeNet, and its evaluation, take in PyTorch: one JSON line per measurement.

    training.py tune FOLDER THREADS BATCH               the fastest variants, as JSON
    training.py tuned FOLDER THREADS BATCH CHOICE       PyTorch as fast as it goes: data in memory, no host round trips
    training.py notebook FOLDER THREADS BATCH           as tutorials have it: a Dataset, a DataLoader, loops over samples

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
from networks import LeNet
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

CHUNKS = (100, 200, 500, 1000, 5000)
WARM_UP = 10_000


def read(folder: str) -> tuple[np.ndarray, np.ndarray]:
    labels = np.fromfile(Path(folder) / "labels", np.uint8)
    return np.fromfile(Path(folder) / "images", np.uint8).reshape(len(labels), 28, 28), labels


def load(folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """28 x 28 in the middle of 32 x 32, scaled by the mean and standard deviation of MNIST."""
    pixels, labels = read(folder)
    images = F.pad(torch.from_numpy(pixels).unsqueeze(1).float(), (2, 2, 2, 2))
    return images.div_(255.0).sub_(0.1307).div_(0.3081), torch.from_numpy(labels).long()


def report(side: str, work: str, seconds: float, found: dict) -> None:
    print(json.dumps({"side": side, "work": work, "seconds": seconds, "found": found}), flush=True)


def model(choice: dict) -> LeNet:
    torch.manual_seed(0)
    lenet = LeNet(choice["relu_first"])
    return lenet.to(memory_format=torch.channels_last) if choice["channels_last"] else lenet


def sgd(lenet: LeNet, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(lenet.parameters(), lr=1e-2, momentum=0.9, nesterov=True, fused=fused)


def train(lenet: LeNet, images, labels, batch: int, choice: dict) -> dict:
    """An epoch; loss and hits are summed in tensors and read once."""
    optimiser = sgd(lenet, choice["fused"])
    total, hits = torch.zeros((), dtype=torch.double), torch.zeros((), dtype=torch.long)
    for chosen in torch.randperm(len(labels)).split(batch):
        x, y = images.index_select(0, chosen), labels.index_select(0, chosen)
        if choice["channels_last"]:
            x = x.contiguous(memory_format=torch.channels_last)
        outputs = lenet(x)
        loss = F.cross_entropy(outputs, y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            total += loss.detach() * len(y)
            hits += (outputs.argmax(1) == y).sum()
    return {"loss": float(total) / len(labels), "accuracy": float(hits) / len(labels)}


def evaluate(lenet: LeNet, images, labels, choice: dict) -> dict:
    total, hits = torch.zeros((), dtype=torch.double), torch.zeros((), dtype=torch.long)
    with torch.inference_mode():
        for x, y in zip(images.split(choice["chunk"]), labels.split(choice["chunk"])):
            if choice["channels_last"]:
                x = x.contiguous(memory_format=torch.channels_last)
            outputs = lenet(x)
            total += F.cross_entropy(outputs, y, reduction="sum")
            hits += (outputs.argmax(1) == y).sum()
    return {"loss": float(total) / len(labels), "accuracy": float(hits) / len(labels)}


def timed(work) -> tuple[float, dict]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def tune(images, labels, batch: int) -> dict:
    few, few_labels = images[:WARM_UP], labels[:WARM_UP]

    def fastest(variants: dict, work) -> dict:
        choices = [dict(zip(variants, values)) for values in product(*variants.values())]
        work(model(choices[0]), choices[0])
        seconds = [min(timed(lambda: work(model(choice), choice))[0] for _ in range(2)) for choice in choices]
        return choices[seconds.index(min(seconds))]

    # Evaluation on everything: which chunk is best depends on how long the allocator has been at it.
    layouts = {"relu_first": (True, False), "channels_last": (False, True)}
    return {
        "train": fastest({**layouts, "fused": (True, False)}, lambda m, c: train(m, few, few_labels, batch, c)),
        "evaluate": fastest({**layouts, "chunk": (100, 1000)}, lambda m, c: evaluate(m, images, labels, c)),
    }


def worker(folder: str, batch: int, choice: dict, barrier) -> None:
    torch.set_num_threads(1)
    images, labels = load(folder)
    lenet = model(choice)
    train(lenet, images[:WARM_UP], labels[:WARM_UP], batch, choice)
    barrier.wait()
    train(lenet, images, labels, batch, choice)
    barrier.wait()


def tuned(folder: str, batch: int, choice: dict) -> None:
    images, labels = load(folder)
    lenet = model(choice["train"])
    train(lenet, images[:WARM_UP], labels[:WARM_UP], batch, choice["train"])
    report("tuned", "train", *timed(lambda: train(lenet, images, labels, batch, choice["train"])))

    judged = model(choice["evaluate"])
    judged.load_state_dict(lenet.state_dict())
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


class Images(Dataset):
    """One sample at a time, transformed when it is asked for."""

    def __init__(self, folder: str):
        self.pixels, self.labels = read(folder)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        image = torch.from_numpy(self.pixels[index]).unsqueeze(0).float() / 255
        image = F.pad(image, (2, 2, 2, 2), value=0.0)
        return (image - 0.1307) / 0.3081, int(self.labels[index])


def count_hits(outputs, y) -> int:
    return sum(1 for scores, label in zip(outputs, y) if scores.argmax().item() == label.item())


def notebook(folder: str, batch: int) -> None:
    samples = Images(folder)
    torch.manual_seed(0)
    lenet = LeNet()
    optimiser = sgd(lenet, fused=False)

    def epoch() -> dict:
        total, hits = 0.0, 0
        for x, y in DataLoader(samples, batch_size=batch, shuffle=True):
            optimiser.zero_grad()
            outputs = lenet(x)
            loss = F.cross_entropy(outputs, y)
            loss.backward()
            optimiser.step()
            total += loss.item() * len(y)
            hits += count_hits(outputs, y)
        return {"loss": total / len(samples), "accuracy": hits / len(samples)}

    def judge() -> dict:
        total, hits = 0.0, 0
        with torch.no_grad():
            for x, y in DataLoader(samples, batch_size=batch):
                outputs = lenet(x)
                total += F.cross_entropy(outputs, y).item() * len(y)
                hits += count_hits(outputs, y)
        return {"loss": total / len(samples), "accuracy": hits / len(samples)}

    report("notebook", "train", *timed(epoch))
    report("notebook", "evaluate", *timed(judge))


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
