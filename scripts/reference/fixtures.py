"""Writes crates/network/tests/fixtures/*.safetensors: what PyTorch 2.11 computes in f64, for tests/pytorch.rs.

    $(scripts/reference/setup) scripts/reference/fixtures.py

Weights and inputs come from `uniform` (networks.py), which the tests compute as well; only results are stored.
"""

from pathlib import Path

import torch
from networks import Dense, LeNet, PaddedConvolutions, fill, flat, uniform
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

FOLDER = Path(__file__).parents[2] / "crates/network/tests/fixtures"
STEPS = 20


def inputs(*shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.from_numpy(uniform(2, count)).view(shape)


def labels(count: int, classes: int) -> torch.Tensor:
    return torch.arange(count) * 7 % classes


def gradients() -> dict[str, torch.Tensor]:
    """Outputs, mean loss and its gradient at one θ: `<case>.outputs`, `<case>.loss`, `<case>.gradient`."""
    cases = {
        "lenet": (LeNet(), inputs(4, 1, 32, 32), labels(4, 10)),
        "padded": (PaddedConvolutions(), inputs(4, 1, 28, 28), labels(4, 10)),
        "relu": (Dense([20, 16, 14, 10], F.relu), inputs(6, 20), labels(6, 10)),
        "leaky": (Dense([1, 4, 9, 10, 4, 1], F.leaky_relu), inputs(16, 1), torch.from_numpy(uniform(3, 16)).view(16, 1)),
    }
    found = {}
    for name, (module, x, targets) in cases.items():
        fill(module, 1)
        outputs = module(x)
        loss = F.cross_entropy(outputs, targets) if targets.dim() == 1 else F.mse_loss(outputs, targets)
        loss.backward()
        found[f"{name}.outputs"] = outputs.detach()
        found[f"{name}.loss"] = loss.detach()
        found[f"{name}.gradient"] = flat(parameter.grad for parameter in module.parameters())
    return found


def trajectories() -> dict[str, torch.Tensor]:
    """θ after each of 20 full-batch steps, `[20, P]`, for each optimiser."""
    sgd, adam, rmsprop = torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop
    optimisers = {
        "sgd": lambda p: sgd(p, lr=0.1),
        "sgd-decay": lambda p: sgd(p, lr=0.1, weight_decay=0.01),
        "momentum": lambda p: sgd(p, lr=0.05, momentum=0.9),
        "nesterov": lambda p: sgd(p, lr=0.05, momentum=0.9, nesterov=True),
        "nesterov-decay": lambda p: sgd(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
        "adam": lambda p: adam(p, lr=0.01),
        "adam-decay": lambda p: adam(p, lr=0.01, weight_decay=0.01),
        "rmsprop": lambda p: rmsprop(p, lr=0.001),
        "rmsprop-decay": lambda p: rmsprop(p, lr=0.001, weight_decay=0.01),
    }
    found = {}
    for name, make in optimisers.items():
        module = fill(Dense([4, 6, 3], F.leaky_relu), 1)
        optimiser = make(module.parameters())
        x, targets = inputs(8, 4), labels(8, 3)
        path = []
        for _ in range(STEPS):
            optimiser.zero_grad()
            F.cross_entropy(module(x), targets).backward()
            optimiser.step()
            path.append(flat(module.parameters()))
        found[name] = torch.stack(path)
    return found


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(gradients(), FOLDER / "gradients.safetensors")
    save_file(trajectories(), FOLDER / "trajectories.safetensors")
    # As a PyTorch user would save it, with PyTorch's own initialisation.
    torch.manual_seed(0)
    lenet: nn.Module = LeNet()
    save_file(lenet.state_dict(), FOLDER / "lenet-state-dict.safetensors")
    with torch.no_grad():
        save_file({"outputs": lenet(inputs(4, 1, 32, 32).float())}, FOLDER / "lenet-outputs.safetensors")
    for path in FOLDER.iterdir():
        path.chmod(0o644)  # safetensors writes them for their owner only
    total = sum(path.stat().st_size for path in FOLDER.iterdir())
    print(f"{FOLDER}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
