"""What the PyTorch sides of the benchmarks share: images made ready, an epoch and an evaluation, in two styles.

*Tuned*: data in memory, indexed batches, no host round trips. *Notebook*: a Dataset, a DataLoader, loops over samples.
"""

import ctypes
import time
from collections.abc import Callable

import numpy as np
import torch
from networks import LeNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

MEAN, DEVIATION = 0.1307, 0.3081


def keep_large_blocks() -> None:
    """glibc's allocator keeps blocks up to 32 MiB, instead of mapping each afresh."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 32 << 20)
        libc.mallopt(m_trim_threshold, 512 << 20)


def for_lenet(pixels: np.ndarray) -> Tensor:
    """`[N, 28, 28]` in the middle of 32 x 32, scaled by the mean and standard deviation of MNIST."""
    images = F.pad(torch.from_numpy(pixels).unsqueeze(1).float(), (2, 2, 2, 2))
    return images.div_(255.0).sub_(MEAN).div_(DEVIATION)


def lenet(choice: dict, device: str = "cpu") -> LeNet:
    model = LeNet(choice["relu_first"]).to(device)
    return model.to(memory_format=torch.channels_last) if choice["channels_last"] else model


def sgd(
    model: nn.Module, lr: float, momentum: float, nesterov: bool, weight_decay: float, fused: bool
) -> torch.optim.SGD:
    settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "fused": fused}
    return torch.optim.SGD(model.parameters(), lr=lr, **settings)


def laid_out(x: Tensor, choice: dict) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if choice.get("channels_last") else x


def sums(device: torch.device) -> tuple[Tensor, Tensor]:
    """Where losses and hits are added up, to be read once."""
    return torch.zeros((), dtype=torch.double, device=device), torch.zeros((), dtype=torch.long, device=device)


def train(
    model: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor, batch: int, choice: dict
) -> dict:
    """An epoch. `choice["piece"]`: a batch is computed in pieces of so many examples, whose gradients add up."""
    total, hits = sums(labels.device)
    for chosen in torch.randperm(len(labels), device=labels.device).split(batch):
        optimiser.zero_grad(set_to_none=True)
        for part in chosen.split(choice.get("piece", batch)):
            x, y = laid_out(images.index_select(0, part), choice), labels.index_select(0, part)
            outputs = model(x)
            loss = F.cross_entropy(outputs, y)
            (loss if len(part) == len(chosen) else loss * (len(part) / len(chosen))).backward()
            with torch.no_grad():
                total += loss.detach() * len(y)
                hits += (outputs.argmax(1) == y).sum()
        optimiser.step()
    return {"loss": float(total) / len(labels), "accuracy": float(hits) / len(labels)}


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, choice: dict) -> dict:
    total, hits = sums(labels.device)
    with torch.inference_mode():
        for x, y in zip(images.split(choice["chunk"]), labels.split(choice["chunk"])):
            outputs = model(laid_out(x, choice))
            total += F.cross_entropy(outputs, y, reduction="sum")
            hits += (outputs.argmax(1) == y).sum()
    return {"loss": float(total) / len(labels), "accuracy": float(hits) / len(labels)}


def timed(work: Callable[[], dict]) -> tuple[float, dict]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


class Samples(Dataset):
    """One sample at a time, transformed when it is asked for."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: Callable[[Tensor], Tensor]):
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(torch.from_numpy(self.pixels[index]).unsqueeze(0).float() / 255), int(self.labels[index])


def padded(image: Tensor) -> Tensor:
    """The transform for LeNet."""
    image = F.pad(image, (2, 2, 2, 2), value=0.0)
    return (image - MEAN) / DEVIATION


def count_hits(outputs: Tensor, y: Tensor) -> int:
    """Sample by sample, as the report's notebooks do."""
    return sum(1 for scores, label in zip(outputs, y) if scores.argmax().item() == label.item())


def notebook_epoch(
    model: nn.Module, optimiser: torch.optim.Optimizer, samples: Samples, batch: int, device: str = "cpu"
) -> dict:
    total, hits = 0.0, 0
    for x, y in DataLoader(samples, batch_size=batch, shuffle=True):
        x, y = x.to(device), y.to(device)
        optimiser.zero_grad()
        outputs = model(x)
        loss = F.cross_entropy(outputs, y)
        loss.backward()
        optimiser.step()
        total += loss.item() * len(y)
        hits += count_hits(outputs, y)
    return {"loss": total / len(samples), "accuracy": hits / len(samples)}


def notebook_evaluation(model: nn.Module, samples: Samples, batch: int, device: str = "cpu") -> dict:
    total, hits = 0.0, 0
    with torch.no_grad():
        for x, y in DataLoader(samples, batch_size=batch):
            x, y = x.to(device), y.to(device)
            outputs = model(x)
            total += F.cross_entropy(outputs, y).item() * len(y)
            hits += count_hits(outputs, y)
    return {"loss": total / len(samples), "accuracy": hits / len(samples)}
