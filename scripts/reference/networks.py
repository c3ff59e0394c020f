"""The networks of the crates, written as PyTorch modules: the same names, hence the same files of weights."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class LeNet(nn.Module):
    """[B, 1, 32, 32] to [B, 10], 61,706 parameters. `relu_first`: as it is usually written; else ReLU after pooling,
    the same numbers with a quarter of the work."""

    def __init__(self, relu_first: bool = True):
        super().__init__()
        self.relu_first = relu_first
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def pool(self, x):
        return F.max_pool2d(F.relu(x), 2) if self.relu_first else F.relu(F.max_pool2d(x, 2))

    def forward(self, x):
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class PaddedConvolutions(nn.Module):
    """[B, 1, 28, 28] to [B, 10] through 28, 14, 7 and 3 (pooling leaves a remainder out)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 32, 5, padding=2)
        self.fc1 = nn.Linear(288, 10)

    def forward(self, x):
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        return self.fc1(x.flatten(1))


class Dense(nn.Module):
    """Widths with an activation between the layers."""

    def __init__(self, widths, activation):
        super().__init__()
        self.depth = len(widths) - 1
        self.activation = activation
        for index in range(self.depth):
            setattr(self, f"fc{index + 1}", nn.Linear(widths[index], widths[index + 1]))

    def forward(self, x):
        for index in range(self.depth):
            x = getattr(self, f"fc{index + 1}")(x)
            if index + 1 < self.depth:
                x = self.activation(x)
        return x


def uniform(salt: int, count: int) -> np.ndarray:
    """`count` numbers in [-1, 1): SplitMix64 of their index, so that Rust computes the same to the last bit."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(salt << 32)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def fill(module: nn.Module, salt: int) -> nn.Module:
    """Weights and biases from `uniform`, within 1/sqrt(fan_in), in f64."""
    module.double()
    theta = uniform(salt, sum(p.numel() for p in module.parameters()))
    offset, fan_in = 0, 1
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:  # a bias follows its weight and has its fan-in
                fan_in = parameter[0].numel()
            part = theta[offset : offset + parameter.numel()] / math.sqrt(fan_in)
            parameter.copy_(torch.from_numpy(part).view_as(parameter))
            offset += parameter.numel()
    return module


def flat(tensors) -> torch.Tensor:
    """One vector, in the order of the parameters."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
