"""Writes crates/network/tests/fixtures/modules/*.pt: TorchScript modules as users save them, and some that cannot be used.

    $(scripts/reference/setup) scripts/reference/module_fixtures.py

`dense`, `regression` and `convolution` have the weights of geometry_fixtures.py, in f64; the others are f32 but for `smooth`.
"""

from io import BytesIO
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import torch
from geometry_fixtures import Convolutional
from networks import Dense, fill
from torch import Tensor, nn
from torch.nn import functional as F

FOLDER = Path(__file__).parents[2] / "crates/network/tests/fixtures/modules"


class Smooth(nn.Module):
    """[B, 1, 6, 6] to [B, 3] with what evaluation mode changes: batch normalisation, whose numbers of training are not 0 and 1, and dropout.
    One parameter is not trained."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(32, 3)
        fill(self, 4)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64), requires_grad=False)
        self.norm.running_mean.copy_(torch.tensor([0.1, -0.2]))
        self.norm.running_var.copy_(torch.tensor([0.5, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x)))
        return self.fc(self.drop(self.scale * x).flatten(1))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        fill(self, 5).float()
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Bad(nn.Module):
    """[B, 4] to [B, 3]."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        fill(self, 6).float()


class Detached(Bad):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).detach()


class Classes(Bad):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).argmax(1)


class Pair(Bad):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x), x


class InPlaceInput(Bad):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mul_(2.0))


class InPlaceParameter(Bad):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc.bias.add_(1.0)
        return self.fc(x)


class Random(Bad):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(x, 0.5, True))


class Attention(Bad):
    """libtorch has no second derivative of its kernel for attention on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        q = x.view(-1, 1, 2, 2)
        return self.fc(F.scaled_dot_product_attention(self.fc.weight[0, 0] * q, q, q).flatten(1))


class NotFinite(Bad):
    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.fc.weight[0, 0] = float("nan")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Frozen(NotFinite):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


def without_sources(file: bytes) -> BytesIO:
    """The same module without the names and lines of the sources that it came from."""
    slim = BytesIO()
    with ZipFile(BytesIO(file)) as old, ZipFile(slim, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(ZipInfo(entry.filename), old.read(entry))
    slim.seek(0)
    return slim


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    modules = {
        "dense": torch.jit.trace(fill(Dense([7, 9, 6, 4], F.relu), 1), torch.zeros(2, 7).double()),
        "regression": torch.jit.trace(fill(Dense([2, 7, 5, 3], torch.tanh), 1), torch.zeros(2, 2).double()),
        "convolution": torch.jit.trace(fill(Convolutional(8, [3], 6, 4), 1), torch.zeros(2, 1, 8, 8).double()),
        "digits": torch.jit.trace(fill(Dense([784, 2, 10], F.relu), 1).float(), torch.zeros(2, 784)),
    }
    # In training mode, as a user may leave them.
    for module in [Smooth, Tied, Detached, Classes, Pair, InPlaceInput, InPlaceParameter, Random, Attention, NotFinite, Frozen]:
        name = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in module.__name__).lstrip("-")
        modules[name] = torch.jit.script(module())
    for name, module in modules.items():
        path = FOLDER / f"{name}.pt"
        slim = without_sources(module.save_to_buffer())
        torch.jit.load(slim)
        path.write_bytes(slim.getvalue())
        print(f"{name}: {path.stat().st_size / 1e3:.1f} kB")


if __name__ == "__main__":
    main()
