"""Writes crates/geometry/tests/fixtures/*.safetensors: curvature as torch.func computes it in f64, for small networks.

    $(scripts/reference/setup) scripts/reference/geometry_fixtures.py

A file a case, with θ flat in the order of PyTorch's state_dict, P its length, N examples, K vectors; `L` the mean loss:

    theta [P], inputs [N, …], targets [N] (classes) or [N, D], vectors [K, P]
    loss [], gradient [P]
    hvp [K, P]          H v, the Jacobian-vector product of the gradient (jvp of grad)
    ggnvp [K, P]        Jᵀ (∂²L/∂z²) J v, z the outputs: jvp of the network, the loss's Hessian, vjp of the network
    eigenvalues [P]     of the exact Hessian, ascending; trace [], frobenius [] (its Frobenius norm)
    ggn_eigenvalues [P], ggn_trace []

Products and matrices come from different compositions of torch.func and must agree, or nothing is written.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from networks import Dense, fill, flat, uniform
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp
from torch.nn import functional as F

FOLDER = Path(__file__).parents[2] / "crates/geometry/tests/fixtures"
VECTORS = 3


class Convolutional(nn.Module):
    """`channels`: of each block of convolution 3x3, ReLU, 2x2 max-pooling; then a dense layer, ReLU, a dense layer."""

    def __init__(self, side: int, channels: list[int], hidden: int, classes: int):
        super().__init__()
        self.depth = len(channels)
        for index, (before, after) in enumerate(zip([1, *channels], channels)):
            setattr(self, f"conv{index + 1}", nn.Conv2d(before, after, 3))
            side = (side - 2) // 2
        self.fc1 = nn.Linear(channels[-1] * side * side, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(self.depth):
            x = F.max_pool2d(F.relu(getattr(self, f"conv{index + 1}")(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def numbers(salt: int, *shape: int) -> Tensor:
    return torch.from_numpy(uniform(salt, torch.Size(shape).numel())).view(shape)


def classes(count: int, of: int) -> Tensor:
    return torch.arange(count) * 7 % of


def squared_error(z: Tensor, targets: Tensor) -> Tensor:
    """F.mse_loss's number; its derivative in forward mode fails in PyTorch 2.11 ("ZeroTensors are immutable")."""
    return (z - targets).square().mean()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def curvature(
    module: nn.Module, inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    fill(module, 1)
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    theta = flat(module.parameters())

    def outputs(theta: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in shapes.values()])
        return functional_call(module, {k: p.view(s) for (k, s), p in zip(shapes.items(), parts)}, (inputs,))

    def of_outputs(z: Tensor) -> Tensor:
        return loss(z, targets)

    def of_theta(theta: Tensor) -> Tensor:
        return of_outputs(outputs(theta))

    def ggnvp(v: Tensor) -> Tensor:
        z, along = jvp(outputs, (theta,), (v,))
        curved = jvp(grad(of_outputs), (z,), (along,))[1]
        return vjp(outputs, theta)[1](curved)[0]

    vectors = numbers(5, VECTORS, len(theta))
    hvp = torch.stack([jvp(grad(of_theta), (theta,), (v,))[1] for v in vectors])
    ggn_products = torch.stack([ggnvp(v) for v in vectors])

    whole = hessian(of_theta)(theta)
    jacobian = jacrev(outputs)(theta).flatten(0, 1)
    z = outputs(theta).detach()
    of_loss = hessian(of_outputs)(z).reshape(z.numel(), z.numel())
    ggn = jacobian.T @ of_loss @ jacobian
    for name, found, expected in [
        ("Hessian and its transpose", whole, whole.T),
        ("HVPs and the Hessian", hvp, vectors @ whole),
        ("GGN products and the GGN", ggn_products, vectors @ ggn),
    ]:
        if not relative(found, expected) < 1e-10:
            raise SystemExit(f"geometry_fixtures: {name} differ by {relative(found, expected):.1e}")
    return {
        "theta": theta,
        "inputs": inputs,
        "targets": targets,
        "vectors": vectors,
        "loss": of_theta(theta),
        "gradient": grad(of_theta)(theta),
        "hvp": hvp,
        "ggnvp": ggn_products,
        "eigenvalues": torch.linalg.eigvalsh(whole),
        "trace": whole.trace(),
        "frobenius": whole.norm(),
        "ggn_eigenvalues": torch.linalg.eigvalsh(ggn),
        "ggn_trace": ggn.trace(),
    }


def main() -> None:
    torch.set_num_threads(1)
    cases = {
        # [1, 8, 8] to [3, 3, 3] by one block, then 6 and 4 units.
        "convolution": (Convolutional(8, [3], 6, 4), numbers(2, 12, 1, 8, 8), classes(12, 4), F.cross_entropy),
        # [1, 10, 10] to [2, 4, 4] to [3, 1, 1] by two blocks, then 5 and 4 units: an inner convolution has a gradient
        # with respect to its input.
        "two-convolutions": (Convolutional(10, [2, 3], 5, 4), numbers(2, 9, 1, 10, 10), classes(9, 4), F.cross_entropy),
        "dense": (Dense([7, 9, 6, 4], F.relu), numbers(2, 10, 7), classes(10, 4), F.cross_entropy),
        "regression": (Dense([2, 7, 5, 3], torch.tanh), numbers(2, 11, 2), numbers(3, 11, 3), squared_error),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, case in cases.items():
        found = curvature(*case)
        path = FOLDER / f"{name}.safetensors"
        save_file({key: value.detach().contiguous() for key, value in found.items()}, path)
        path.chmod(0o644)  # safetensors writes it for its owner only
        top = ", ".join(f"{value:.6f}" for value in found["eigenvalues"].flip(0)[:3])
        size = f"{path.stat().st_size / 1e3:.0f} kB, {len(found['theta'])} parameters"
        print(f"{name}: {size}, top eigenvalues {top}, smallest {found['eigenvalues'][0]:.6f}, trace {found['trace']:.6f}")


if __name__ == "__main__":
    main()
