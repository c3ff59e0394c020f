"""How long a training step of small dense networks takes in PyTorch, per model: one JSON line a network.

    stacks.py tune                    the fastest way for each network, as JSON
    stacks.py tuned STEPS CHOICE      that way, CHOICE being what `tune` printed
    stacks.py notebook STEPS          one network at a time, its loss read after each step, as notebooks have it

300 points, full batch, RMSprop, ReLU. The other side is crates/network/examples/stack.rs.
"""

import json
import math
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional as F

NETWORKS = [[1, 190, 1], [1, 9, 17, 17, 4, 1], [1, 5, 10, 12, 12, 12, 4, 1]]
RMSPROP = {"lr": 1e-3, "weight_decay": 1e-4}
WAYS = ("one", "bmm", "vmap")
STACKS = (8, 32, 128)
CORES = torch.get_num_threads()


def name(widths: list[int]) -> str:
    return "-".join(map(str, widths))


def network(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = (torch.arange(300, dtype=torch.float32) * 0.01 - 1.5).unsqueeze(1)
    return x, torch.sin(5 * math.pi * x)


def one(widths: list[int], foreach: bool):
    """A step of a single network."""
    x, y = data()
    model = network(widths)
    optimiser = torch.optim.RMSprop(model.parameters(), foreach=foreach, **RMSPROP)

    def step():
        loss = F.mse_loss(model(x), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def bmm(widths: list[int], models: int, foreach: bool):
    """A step of a stack by batched matrix products: the losses are summed, so that no model touches another."""
    x, y = data()
    nets = [network(widths) for _ in range(models)]
    linear = [[net[i] for net in nets] for i in range(0, 2 * len(widths) - 2, 2)]
    weights = [torch.stack([l.weight.detach().t() for l in layer]).requires_grad_() for layer in linear]
    biases = [torch.stack([l.bias.detach() for l in layer]).unsqueeze(1).requires_grad_() for layer in linear]
    optimiser = torch.optim.RMSprop([*weights, *biases], foreach=foreach, **RMSPROP)
    inputs = x.expand(models, -1, -1)

    def step():
        h = inputs
        for index, (weight, bias) in enumerate(zip(weights, biases)):
            h = torch.baddbmm(bias, h, weight)
            if index + 1 < len(weights):
                h = F.relu(h)
        losses = (h - y).square().mean((1, 2))
        optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()
        optimiser.step()
        return losses.detach()

    return step


def mapped(widths: list[int], models: int, foreach: bool):
    """A step of a stack by torch.func."""
    x, y = data()
    nets = [network(widths) for _ in range(models)]
    parameters, buffers = stack_module_state(nets)
    base = nets[0]
    optimiser = torch.optim.RMSprop(parameters.values(), foreach=foreach, **RMSPROP)
    gradients = vmap(grad_and_value(lambda p, b: F.mse_loss(functional_call(base, (p, b), (x,)), y)))

    def step():
        found, losses = gradients({k: p.detach() for k, p in parameters.items()}, buffers)
        for key, parameter in parameters.items():
            parameter.grad = found[key]
        optimiser.step()
        return losses

    return step


def stepper(widths: list[int], choice: dict):
    if choice["way"] == "one":
        return one(widths, choice["foreach"])
    return (bmm if choice["way"] == "bmm" else mapped)(widths, choice["models"], choice["foreach"])


def measure(widths: list[int], choice: dict, steps: int, read: bool = False) -> tuple[float, float]:
    """Seconds per model and step, and the mean loss at the end; of several processes, each with a stack of its own."""
    processes = choice["processes"]
    if processes == 1:
        return alone(widths, choice, steps, read)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        # Each is loaded and warm before they start together.
        list(pool.map(alone, [widths] * processes, [choice] * processes, [10] * processes))
        found = list(pool.map(alone, [widths] * processes, [choice] * processes, [steps] * processes))
    return max(seconds for seconds, _ in found) / processes, sum(loss for _, loss in found) / processes


def alone(widths: list[int], choice: dict, steps: int, read: bool = False) -> tuple[float, float]:
    torch.manual_seed(0)
    torch.set_num_threads(choice["threads"])
    step = stepper(widths, choice)
    for _ in range(max(3, steps // 10)):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        loss = step()
        if read:
            loss.item()
    seconds = time.perf_counter() - start
    return seconds / (steps * choice["models"]), float(loss.mean())


def tune() -> dict:
    chosen = {}
    for widths in NETWORKS:
        choices = [
            {"way": way, "models": models, "threads": threads, "processes": processes, "foreach": foreach}
            for way in WAYS
            for models in ((1,) if way == "one" else STACKS)
            for threads, processes in {(1, 1), (CORES, 1), (1, CORES)}
            for foreach in (False, True)
        ]
        chosen[name(widths)] = min(choices, key=lambda c: measure(widths, c, max(10, 3000 // c["models"]))[0])
    return chosen


def report(side: str, widths: list[int], found: tuple[float, float]) -> None:
    line = {"side": side, "work": name(widths), "seconds": found[0], "found": {"loss": found[1]}}
    print(json.dumps(line), flush=True)


def main() -> None:
    mode, *rest = sys.argv[1:] or [""]
    if mode == "tune" and not rest:
        print(json.dumps(tune()))
    elif mode == "tuned" and len(rest) == 2:
        for widths in NETWORKS:
            choice = json.loads(rest[1])[name(widths)]
            report("tuned", widths, measure(widths, choice, int(rest[0])))
    elif mode == "notebook" and len(rest) == 1:
        for widths in NETWORKS:
            choice = {"way": "one", "models": 1, "threads": CORES, "processes": 1, "foreach": False}
            report("notebook", widths, measure(widths, choice, int(rest[0]), read=True))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
