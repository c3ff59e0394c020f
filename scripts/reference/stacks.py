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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from classifiers import keep_large_blocks
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional as F

NETWORKS = [[1, 190, 1], [1, 9, 17, 17, 4, 1], [1, 5, 10, 12, 12, 12, 4, 1]]
RMSPROP = {"lr": 1e-3, "weight_decay": 1e-4}
STACKS = (8, 32, 128)
CORES = torch.get_num_threads()


def name(widths: list[int]) -> str:
    return "-".join(map(str, widths))


def network(widths: list[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:]):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def data() -> tuple[Tensor, Tensor]:
    x = (torch.arange(300, dtype=torch.float32) * 0.01 - 1.5).unsqueeze(1)
    return x, torch.sin(5 * math.pi * x)


# Each way gives the parameters and a function that leaves their gradients in `grad` and returns the losses.
Way = tuple[list[Tensor], Callable[[], Tensor]]


def one(nets: list[nn.Sequential], x: Tensor, y: Tensor) -> Way:
    """A single network."""
    (net,) = nets
    parameters = list(net.parameters())

    def backward() -> Tensor:
        loss = F.mse_loss(net(x), y)
        clear(parameters)
        loss.backward()
        return loss.detach()

    return parameters, backward


def bmm(nets: list[nn.Sequential], x: Tensor, y: Tensor) -> Way:
    """A stack by batched matrix products, weights `[M, in, out]`: losses are summed, so no model touches another."""
    layers = list(zip(*nets))
    activation = layers[1][0] if len(layers) > 1 else nn.Identity()
    parameters = []
    for layer in layers[::2]:
        parameters.append(torch.stack([linear.weight.detach().t() for linear in layer]).requires_grad_())
        parameters.append(torch.stack([linear.bias.detach() for linear in layer]).unsqueeze(1).requires_grad_())
    inputs = x.expand(len(nets), -1, -1)

    def backward() -> Tensor:
        h = inputs
        for index in range(0, len(parameters), 2):
            h = torch.baddbmm(parameters[index + 1], h, parameters[index])
            if index + 2 < len(parameters):
                h = activation(h)
        losses = (h - y).square().mean((1, 2))
        clear(parameters)
        losses.sum().backward()
        return losses.detach()

    return parameters, backward


def mapped(nets: list[nn.Sequential], x: Tensor, y: Tensor) -> Way:
    """A stack by torch.func: weights `[M, out, in]`."""
    parameters, buffers = stack_module_state(nets)
    base = nets[0]
    gradients = vmap(grad_and_value(lambda p, b: F.mse_loss(functional_call(base, (p, b), (x,)), y)))

    def backward() -> Tensor:
        found, losses = gradients({k: p.detach() for k, p in parameters.items()}, buffers)
        for key, parameter in parameters.items():
            parameter.grad = found[key]
        return losses

    return list(parameters.values()), backward


WAYS: dict[str, Callable[[list[nn.Sequential], Tensor, Tensor], Way]] = {"one": one, "bmm": bmm, "vmap": mapped}


def clear(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None


def stepper(widths: list[int], choice: dict) -> Callable[[], Tensor]:
    nets = [network(widths) for _ in range(choice["models"])]
    parameters, backward = WAYS[choice["way"]](nets, *data())
    optimiser = torch.optim.RMSprop(parameters, foreach=choice["foreach"], **RMSPROP)

    def step() -> Tensor:
        losses = backward()
        optimiser.step()
        return losses

    return step


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
    keep_large_blocks()
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
