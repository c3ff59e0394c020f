"""Curvature and loss surfaces of LeNet in PyTorch: the peers of `scripts/bench geometry`, one JSON line per measurement.

    geometry.py train   --data DIR --weights FILE      trains LeNet for two epochs and writes its weights (seed 0)
    geometry.py draw    --weights FILE --directions F  the vectors and directions that both sides use, drawn once (seed 0)
    geometry.py tune    PEER TASK …                    the peer's fastest settings for the task, as JSON
    geometry.py measure PEER TASK … --choice JSON      one measurement
    geometry.py top5    --data DIR --weights FILE      curvlinops' five largest eigenvalues; trains first where FILE is missing

with `… = --data DIR --weights FILE --directions FILE [--examples N] [--vectors K] [--tolerance T] [--points N] [--probes N]`
and these tasks and peers:

    hvp, ggn    products with the Hessian or the generalised Gauss-Newton matrix    curvlinops, pytorch
    top         the five largest eigenvalues of the Hessian                         curvlinops, pyhessian, pytorch
    trace       of the Hessian, by Hutchinson's estimator                           pyhessian, pytorch
    surface     the mean loss at N x N points of a plane                            pytorch

`pytorch` is PyTorch without such a library, at its best. DIR has a folder `mnist` of IDX files, packed or not; FILE is a
safetensors file with PyTorch's names. The matrices are those of the mean cross-entropy over the first N training images
(padded to 32x32, normalised), f32. Every time is that of warm code: what a peer keeps between calls is there already.

Our side is crates/lab/examples/geometry.rs; the head of bench_geometry.py says what it takes and prints.
"""

import argparse
import functools
import gc
import gzip
import json
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from classifiers import for_lenet, keep_large_blocks, laid_out, sgd, train
from networks import LeNet, flat
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd import forward_ad, grad
from torch.func import functional_call, jvp, vmap
from torch.nn import functional as F

CORES = torch.get_num_threads()
BLOCK = 8
TOP = 5
# Which way is the fastest is found on so many examples: some hundred MB of activations, far more than any cache.
TUNED_ON = 2_500

# V [K, P] to the matrix times each row, [K, P]: of the mean loss over the examples that it was made for.
Product = Callable[[Tensor], Tensor]


class Net(LeNet):
    """LeNet; `pool` says how a block ends, the same numbers each time: `relu-first` as it is usually written, `relu-last`
    with a quarter of the work, `views` by the maximum of strided views instead of max_pool2d."""

    def __init__(self, pool: str = "relu-first"):
        super().__init__(relu_first=pool == "relu-first")
        self.views = pool == "views"

    def pool(self, x: Tensor) -> Tensor:
        if not self.views:
            return super().pool(x)
        rows = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
        return F.relu(torch.maximum(rows[..., ::2], rows[..., 1::2]))


def network(weights: dict[str, Tensor], choice: dict) -> Net:
    net = Net(choice["pool"])
    net.load_state_dict(weights)
    return net.to(memory_format=torch.channels_last) if choice["channels_last"] else net


def read(folder: str, name: str, header: int) -> np.ndarray:
    for path in (Path(folder) / "mnist" / name, Path(folder) / "mnist" / f"{name}.gz"):
        if path.exists():
            content = path.read_bytes()
            content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
            return np.frombuffer(content, np.uint8, offset=header)
    sys.exit(f"geometry: {Path(folder) / 'mnist'} has no {name}, packed or not: name a folder that holds mnist in --data")


@functools.cache
def data(folder: str, count: int | None) -> tuple[Tensor, Tensor]:
    """The first so many training images, ready for LeNet, and their labels."""
    labels = read(folder, "train-labels-idx1-ubyte", 8)[:count]
    pixels = read(folder, "train-images-idx3-ubyte", 16).reshape(-1, 28, 28)[:count]
    if count is not None and len(labels) < count:
        sys.exit(f"geometry: --examples is {count}, but there are {len(labels)} training images")
    return for_lenet(pixels.copy()), torch.from_numpy(labels.copy()).long()


def split(vectors: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """`[…, P]` as tensors of the shapes of the parameters, `[…, shape]`."""
    parts = vectors.split([p.numel() for p in parameters], -1)
    return [part.reshape(*vectors.shape[:-1], *p.shape) for part, p in zip(parts, parameters)]


def joined(tensors: tuple[Tensor, ...] | list[Tensor], batch_dimensions: int) -> Tensor:
    return torch.cat([tensor.detach().flatten(batch_dimensions) for tensor in tensors], -1)


def chunks(images: Tensor, labels: Tensor, choice: dict) -> list[tuple[Tensor, Tensor]]:
    size = choice["chunk"]
    return [(laid_out(x, choice), y) for x, y in zip(images.split(size), labels.split(size))]


# The ways to a product. Each takes the network and the chunks, and sums over these.


def curvlinops_product(matrix: str) -> Callable[..., Product]:
    def make(net: Net, parts: list, choice: dict) -> Product:
        import curvlinops

        operator = {"hvp": curvlinops.HessianLinearOperator, "ggn": curvlinops.GGNLinearOperator}[matrix]
        count = sum(len(y) for _, y in parts)
        of = operator(
            net, nn.CrossEntropyLoss(), list(net.parameters()), parts, check_deterministic=False, num_data=count
        )

        def product(vectors: Tensor) -> Tensor:
            if choice["columns"] == "matrix":
                return (of @ vectors.T).T
            return torch.stack([of @ vector for vector in vectors])

        return product

    return make


def added(parts: list, count: int, of: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
    total = None
    for x, y in parts:
        found = of(x, y, len(y) / count)
        total = found if total is None else total.add_(found)
    return total


def count_of(parts: list) -> int:
    return sum(len(y) for _, y in parts)


def double_backward(net: Net, parts: list, choice: dict) -> Product:
    """`∇(∇L · v)`; the graph of a chunk's gradient serves all vectors, and, where `kept`, all later products too."""
    parameters, count = list(net.parameters()), count_of(parts)

    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return grad(F.cross_entropy(net(x), y, reduction="sum") / count, parameters, create_graph=True)

    kept = [gradient(x, y) for x, y in parts] if choice["kept"] else None

    def product(vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        for index, (x, y) in enumerate(parts):
            of = gradient(x, y) if kept is None else kept[index]
            for row, vector in enumerate(vectors):
                last = kept is None and row + 1 == len(vectors)
                found = grad(of, parameters, grad_outputs=split(vector, parameters), retain_graph=not last)
                total[row] += joined(found, 0)
        return total

    return product


def functional(net: Net, x: Tensor) -> Callable[..., Tensor]:
    names = [name for name, _ in net.named_parameters()]
    return lambda *values: functional_call(net, dict(zip(names, values)), (x,))


def forward_over_reverse(net: Net, parts: list, choice: dict) -> Product:
    """The derivative of the gradient along v, forwards: torch.func's jvp of grad."""
    parameters, count = list(net.parameters()), count_of(parts)
    values = tuple(p.detach() for p in parameters)

    def one(x: Tensor, y: Tensor, weight: float, *vector: Tensor) -> tuple[Tensor, ...]:
        outputs = functional(net, x)
        gradient = torch.func.grad(lambda *p: F.cross_entropy(outputs(*p), y), tuple(range(len(values))))
        return jvp(gradient, values, tuple(part * weight for part in vector))[1]

    return mapped_or_not(one, parameters, parts, count, choice)


def reverse_over_forward(net: Net, parts: list, choice: dict) -> Product:
    """The gradient of the derivative of the loss along v: one forward pass with tangents, one backward. The derivative of
    cross-entropy is written out, since PyTorch's for log_softmax changes in place what the backward pass needs."""
    parameters, count = list(net.parameters()), count_of(parts)
    names = [name for name, _ in net.named_parameters()]

    def one(x: Tensor, y: Tensor, weight: float, *vector: Tensor) -> tuple[Tensor, ...]:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, part) for p, part in zip(parameters, vector)]
            z, along = forward_ad.unpack_dual(functional_call(net, dict(zip(names, duals)), (x,)))
            slope = (z.softmax(1) - F.one_hot(y, z.shape[1])) * (weight / len(y))
            return grad((slope * along).sum(), parameters)

    return one_by_one(one, parameters, parts, count)


def one_by_one(one: Callable, parameters: list, parts: list, count: int) -> Product:
    def product(vectors: Tensor) -> Tensor:
        rows = [split(vector, parameters) for vector in vectors]
        return added(
            parts, count, lambda x, y, weight: torch.stack([joined(one(x, y, weight, *row), 0) for row in rows])
        )

    return product


def mapped_or_not(one: Callable, parameters: list, parts: list, count: int, choice: dict) -> Product:
    if choice["columns"] == "one":
        return one_by_one(one, parameters, parts, count)
    mapped = vmap(one, (None, None, None, *[0] * len(parameters)))

    def product(vectors: Tensor) -> Tensor:
        rows = split(vectors, parameters)
        return added(parts, count, lambda x, y, weight: joined(mapped(x, y, weight, *rows), 1))

    return product


def r_operator(net: Net, parts: list, choice: dict) -> Product:
    """Pearlmutter's R-operator (1994), layer by layer: first-order kernels only, and what does not depend on v (activations,
    winners of the pooling, gradients) is kept from product to product. Takes all vectors through the first convolution at once."""
    parameters, count = [p.detach() for p in net.parameters()], count_of(parts)
    w1, _, w2, _, w3, _, w4, _, w5, _ = parameters
    layer_1, layer_2 = net.conv1, net.conv2

    def pooled(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        largest, winners = F.max_pool2d(a, 2, return_indices=True)
        return F.relu(largest), winners, (largest > 0).to(a.dtype)

    def taken(a: Tensor, winners: Tensor) -> Tensor:
        return a.flatten(2).gather(2, winners.flatten(2)).view_as(winners)

    def spread(pooled: Tensor, winners: Tensor, side: int) -> Tensor:
        whole = pooled.new_zeros(*pooled.shape[:2], side * side)
        return whole.scatter_(2, winners.flatten(2), pooled.flatten(2)).view(*pooled.shape[:2], side, side)

    def to_weight(x: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
        return torch.nn.grad.conv2d_weight(x, weight.shape, delta)

    def to_input(x: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
        return torch.nn.grad.conv2d_input(x.shape, weight, delta)

    def still(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        h1, i1, m1 = pooled(layer_1(x))
        h2, i2, m2 = pooled(layer_2(h1))
        s3 = net.fc1(h2.flatten(1))
        h3 = F.relu(s3)
        s4 = net.fc2(h3)
        h4 = F.relu(s4)
        p = net.fc3(h4).softmax(1)
        d5 = (p - F.one_hot(y, 10)) / count
        m4, m3 = (s4 > 0).to(p.dtype), (s3 > 0).to(p.dtype)
        d4 = (d5 @ w5) * m4
        d3 = (d4 @ w4) * m3
        d2 = spread((d3 @ w3).view_as(h2) * m2, i2, 10)
        return dict(h1=h1, i1=i1, m1=m1, h2=h2, i2=i2, m2=m2, h3=h3, m3=m3, h4=h4, m4=m4, p=p, d5=d5, d4=d4, d3=d3, d2=d2)

    @torch.no_grad()
    def kept_of(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return still(x, y)

    kept = [kept_of(x, y) for x, y in parts] if choice["kept"] else None

    def one(x: Tensor, k: dict[str, Tensor], first: Tensor, vector: list[Tensor]) -> Tensor:
        _, _, v2, c2, v3, c3, v4, c4, v5, c5 = vector
        r1 = taken(first, k["i1"]) * k["m1"]
        r2 = taken(F.conv2d(torch.cat([k["h1"], r1], 1), torch.cat([v2, w2], 1), c2), k["i2"]) * k["m2"]
        h2, q2 = k["h2"].flatten(1), r2.flatten(1)
        r3 = torch.addmm(torch.addmm(c3, h2, v3.T), q2, w3.T) * k["m3"]
        r4 = torch.addmm(torch.addmm(c4, k["h3"], v4.T), r3, w4.T) * k["m4"]
        r5 = torch.addmm(torch.addmm(c5, k["h4"], v5.T), r4, w5.T)
        e5 = k["p"] * (r5 - (k["p"] * r5).sum(1, keepdim=True)) / count
        e4 = torch.addmm(k["d5"] @ v5, e5, w5) * k["m4"]
        e3 = torch.addmm(k["d4"] @ v4, e4, w4) * k["m3"]
        e2 = torch.addmm(k["d3"] @ v3, e3, w3).view_as(r2) * k["m2"]
        e2 = spread(e2, k["i2"], 10)
        # Two terms each: channels side by side make one convolution of them.
        both = torch.cat([e2, k["d2"]], 1)
        e1 = spread(to_input(k["h1"], torch.cat([w2, v2], 0), both) * k["m1"], k["i1"], 28)
        g2 = to_weight(k["h1"], w2, e2) + to_weight(r1, w2, k["d2"])
        return joined(
            [
                to_weight(x, w1, e1), e1.sum((0, 2, 3)),
                g2, e2.sum((0, 2, 3)),
                torch.addmm(e3.T @ h2, k["d3"].T, q2), e3.sum(0),
                torch.addmm(e4.T @ k["h3"], k["d4"].T, r3), e4.sum(0),
                torch.addmm(e5.T @ k["h4"], k["d5"].T, r4), e5.sum(0),
            ],
            0,
        )  # fmt: skip

    @torch.no_grad()
    def product(vectors: Tensor) -> Tensor:
        rows = [split(vector, parameters) for vector in vectors]
        weights, biases = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
        total = torch.zeros_like(vectors)
        for index, (x, y) in enumerate(parts):
            k = still(x, y) if kept is None else kept[index]
            first = F.conv2d(x, weights, biases).split(len(w1), 1)
            for row in range(len(rows)):
                total[row] += one(x, k, first[row], rows[row])
        return total

    return product


def gauss_newton(net: Net, parts: list, choice: dict) -> Product:
    """`Jᵀ S J v`, S the loss's Hessian with respect to the logits: one forward pass with tangents serves J and Jᵀ."""
    parameters, count = list(net.parameters()), count_of(parts)
    names = [name for name, _ in net.named_parameters()]

    def one(x: Tensor, y: Tensor, weight: float, *vector: Tensor) -> tuple[Tensor, ...]:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, part) for p, part in zip(parameters, vector)]
            z, along = forward_ad.unpack_dual(functional_call(net, dict(zip(names, duals)), (x,)))
            along, p = along.detach(), z.detach().softmax(1)
            curved = p * (along - (p * along).sum(1, keepdim=True)) * (weight / len(y))
            return grad(z, parameters, grad_outputs=curved)

    return one_by_one(one, parameters, parts, count)


def gauss_newton_func(net: Net, parts: list, choice: dict) -> Product:
    """The same by torch.func's jvp and vjp, mapped over the vectors or not."""
    parameters, count = list(net.parameters()), count_of(parts)
    values = tuple(p.detach() for p in parameters)

    def one(x: Tensor, y: Tensor, weight: float, *vector: Tensor) -> tuple[Tensor, ...]:
        outputs = functional(net, x)
        z, along = jvp(outputs, values, vector)
        p = z.softmax(1)
        curved = p * (along - (p * along).sum(1, keepdim=True)) * (weight / len(y))
        return torch.func.vjp(outputs, *values)[1](curved)

    return mapped_or_not(one, parameters, parts, count, choice)


WAYS: dict[str, dict[str, Callable[..., Product]]] = {
    "hvp": {
        "double-backward": double_backward,
        "reverse-over-forward": reverse_over_forward,
        "forward-over-reverse": forward_over_reverse,
        "r-operator": r_operator,
        "curvlinops": curvlinops_product("hvp"),
    },
    "ggn": {"dual": gauss_newton, "func": gauss_newton_func, "curvlinops": curvlinops_product("ggn")},
}


class Share:
    """A product over some of the examples, in the process that computes it."""

    mine: "Share | None" = None

    def __init__(self, options: dict, matrix: str, choice: dict, index: int):
        keep_large_blocks()
        warnings.filterwarnings("ignore")
        torch.set_num_threads(choice["threads"])
        images, labels = data(options["data"], options["examples"])
        part = slice(index * len(labels) // choice["processes"], (index + 1) * len(labels) // choice["processes"])
        self.weight = (part.stop - part.start) / len(labels)
        net = network(load_file(options["weights"]), choice)
        self.product = WAYS[matrix][choice["way"]](net, chunks(images[part], labels[part], choice), choice)

    def __call__(self, vectors: Tensor) -> Tensor:
        found = self.product(vectors)
        return found if self.weight == 1 else found * self.weight


@functools.cache
def workers(count: int) -> list[ProcessPoolExecutor]:
    """Processes of their own, by number, so that each keeps what it was given."""
    return [ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for _ in range(count)]


def become_share(*arguments) -> None:
    Share.mine = None  # first, so that the memory of the last serves the next
    Share.mine = Share(*arguments)


def of_share(vectors: np.ndarray) -> np.ndarray:
    return Share.mine(torch.from_numpy(vectors)).numpy()


class Matrix:
    """The product over all examples: here, or the sum over processes that each have their share of examples and cores."""

    def __init__(self, options: dict, matrix: str, choice: dict):
        self.here, self.others, self.products = None, [], 0
        if choice["processes"] == 1:
            self.here = Share(options, matrix, choice, 0)
            return
        self.others = workers(choice["processes"])
        ready = [one.submit(become_share, options, matrix, choice, index) for index, one in enumerate(self.others)]
        for one in ready:
            one.result()

    def __call__(self, vectors: Tensor) -> Tensor:
        self.products += len(vectors)
        if self.here:
            return self.here(vectors)
        waiting = [one.submit(of_share, vectors.numpy()) for one in self.others]
        return torch.from_numpy(sum(one.result() for one in waiting))


# What is measured. Each gives the seconds and what was found.


def directions(options: dict, name: str) -> Tensor:
    return load_file(options["directions"])[name]


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def measure_products(options: dict, matrix: str, choice: dict, repeats: int) -> dict:
    vectors = directions(options, "vectors")[: options["vectors"]].contiguous()
    of = Matrix(options, matrix, choice)
    of(vectors)
    seconds, found = timed(lambda: [of(vectors) for _ in range(repeats)][-1])
    return {
        "vectors": len(vectors),
        "products": repeats * len(vectors),
        "seconds": seconds,
        "norms": found.norm(dim=1).tolist(),
    }


def measure_eigsh(options: dict, choice: dict) -> dict:
    """scipy's eigsh (ARPACK's implicitly restarted Lanczos)."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    count = directions(options, "vectors").shape[1]
    start = np.random.default_rng(options["seed"]).standard_normal(count).astype(np.float32)
    of = Matrix(options, "hvp", choice)

    def matvec(vector: np.ndarray) -> np.ndarray:
        return of(torch.from_numpy(vector.astype(np.float32)).view(1, -1)).numpy()[0]

    operator = LinearOperator((count, count), matvec=matvec, dtype=np.float32)
    matvec(start)
    of.products = 0
    solve = {"k": TOP, "which": "LA", "tol": options["tolerance"], "v0": start}
    if choice.get("ncv"):
        solve["ncv"] = choice["ncv"]
    seconds, (values, found) = timed(lambda: eigsh(operator, **solve))
    products = of.products
    order = np.argsort(-values)
    vectors = torch.from_numpy(found.T[order].astype(np.float32).copy())
    values = torch.from_numpy(values[order].astype(np.float64).copy())
    residuals = residuals_of(of, values, vectors)
    return {"eigenvalues": values.tolist(), "residuals": residuals, "products": products, "seconds": seconds}


def residuals_of(product: Product, values: Tensor, vectors: Tensor) -> list[float]:
    """`‖H v - λ v‖ / |λ|`, v of norm 1; outside the time."""
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    beside = product(vectors).double() - values.unsqueeze(1) * vectors.double()
    return (beside.norm(dim=1) / values.abs()).tolist()


def pyhessian(options: dict, choice: dict):
    """PyHessian's object: on one batch of all examples, whose gradient's graph it keeps, or over chunks, where it cannot."""
    from pyhessian import hessian

    keep_large_blocks()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(choice["threads"])
    images, labels = data(options["data"], options["examples"])
    net = network(load_file(options["weights"]), choice)
    if choice["kept"]:
        return hessian(net, F.cross_entropy, data=(laid_out(images, choice), labels), cuda=False)
    return hessian(net, F.cross_entropy, dataloader=chunks(images, labels, choice), cuda=False)


def pyhessian_product(of) -> Product:
    """By the function that its own methods call."""
    from pyhessian.utils import hessian_vector_product

    def product(vectors: Tensor) -> Tensor:
        rows = []
        for vector in vectors:
            parts = split(vector, of.params)
            of.model.zero_grad()
            found = (
                of.dataloader_hv_product(parts)[1]
                if of.full_dataset
                else hessian_vector_product(of.gradsH, of.params, parts)
            )
            rows.append(joined(found, 0))
        return torch.stack(rows)

    return product


def measure_pyhessian_products(options: dict, choice: dict, repeats: int) -> dict:
    vectors = directions(options, "vectors")[: options["vectors"]].contiguous()
    product = pyhessian_product(pyhessian(options, choice))
    product(vectors[:1])
    seconds, found = timed(lambda: [product(vectors) for _ in range(repeats)][-1])
    return {
        "vectors": len(vectors),
        "products": repeats * len(vectors),
        "seconds": seconds,
        "norms": found.norm(dim=1).tolist(),
    }


def measure_pyhessian_top(options: dict, choice: dict) -> dict:
    """Power iteration with deflation; `tolerance` is of the change between two steps, as PyHessian has it."""
    import pyhessian.hessian as inside

    of = pyhessian(options, choice)
    product = pyhessian_product(of)
    product(directions(options, "vectors")[:1])
    torch.manual_seed(options["seed"])
    # One normalisation of a product a step; the count is not worth a patch of its code, the seconds are what is compared.
    calls = Counted(inside.group_product)
    inside.group_product = calls
    seconds, (values, vectors) = timed(
        lambda: of.eigenvalues(maxIter=options["most"], tol=options["tolerance"], top_n=TOP)
    )
    inside.group_product = calls.of
    pairs = sorted(zip(values, vectors), key=lambda pair: -pair[0])
    values = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    residuals = residuals_of(product, values, torch.stack([joined(vector, 0) for _, vector in pairs]))
    return {"eigenvalues": values.tolist(), "residuals": residuals, "products": calls.count, "seconds": seconds}


class Counted:
    """A function that counts its calls. PyHessian calls `group_product` of its main file once a product."""

    def __init__(self, of: Callable):
        self.of, self.count = of, 0

    def __call__(self, *arguments):
        self.count += 1
        return self.of(*arguments)


def estimate(values: list[float]) -> dict:
    """Hutchinson's mean and its standard error, as the probes' own spread tells it."""
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    return {"trace": mean, "standard_error": error, "probes": len(values), "values": [float(v) for v in values]}


def measure_pyhessian_trace(options: dict, choice: dict) -> dict:
    of = pyhessian(options, choice)
    of.trace(maxIter=1, tol=-1.0)
    torch.manual_seed(options["seed"])
    # A tolerance below 0 never ends it early.
    seconds, values = timed(lambda: of.trace(maxIter=options["probes"], tol=-1.0))
    return {**estimate(values), "seconds": seconds}


def measure_trace(options: dict, choice: dict) -> dict:
    count = directions(options, "vectors").shape[1]
    generator = torch.Generator().manual_seed(options["seed"])

    def probes(of: Matrix) -> list[float]:
        values: list[float] = []
        while len(values) < options["probes"]:
            signs = torch.randint(0, 2, (BLOCK, count), generator=generator).float().mul_(2).sub_(1)
            values += (of(signs) * signs).sum(1).tolist()
        return values

    of = Matrix(options, "hvp", choice)
    of(directions(options, "vectors")[:BLOCK].contiguous())
    seconds, values = timed(lambda: probes(of))
    return {**estimate(values), "seconds": seconds}


class Points:
    """Losses at points of the plane `θ + a u + b v`, in the process that computes them."""

    mine: "Points | None" = None

    def __init__(self, options: dict, choice: dict):
        keep_large_blocks()
        torch.set_num_threads(choice["threads"])
        images, labels = data(options["data"], options["examples"])
        self.parts, self.count = chunks(images, labels, choice), len(labels)
        self.net = network(load_file(options["weights"]), choice)
        self.theta = flat(self.net.parameters())
        self.u, self.v = directions(options, "u"), directions(options, "v")
        # The parameters are views of one vector, so that a point is two additions.
        self.here = self.theta.clone()
        for parameter, part in zip(self.net.parameters(), split(self.here, list(self.net.parameters()))):
            parameter.data = part

    @torch.inference_mode()
    def __call__(self, points: list[tuple[float, float]]) -> list[float]:
        losses = []
        for a, b in points:
            torch.add(self.theta, self.u, alpha=a, out=self.here).add_(self.v, alpha=b)
            total = torch.zeros((), dtype=torch.double)
            for x, y in self.parts:
                total += F.cross_entropy(self.net(x), y, reduction="sum")
            losses.append(total / self.count)
        return torch.stack(losses).tolist()


def become_points(options: dict, choice: dict, warm: list[tuple[float, float]]) -> None:
    Points.mine = Points(options, choice)
    Points.mine(warm)


def of_points(points: list[tuple[float, float]]) -> list[float]:
    return Points.mine(points)


def grid(points: int) -> list[tuple[float, float]]:
    """Rows of b, columns of a, both from -1 to 1."""
    axis = [2 * index / (points - 1) - 1 for index in range(points)]
    return [(a, b) for b in axis for a in axis]


def measure_surface(options: dict, choice: dict) -> dict:
    points, processes = grid(options["points"]), choice["processes"]
    if processes == 1:
        of = Points(options, choice)
        of(points[:1])
        seconds, losses = timed(lambda: of(points))
    else:
        pools = workers(processes)
        for one in [pool.submit(become_points, options, choice, points[:1]) for pool in pools]:
            one.result()

        def work() -> list[float]:
            waiting = [pool.submit(of_points, points[index::processes]) for index, pool in enumerate(pools)]
            losses = [0.0] * len(points)
            for index, one in enumerate(waiting):
                losses[index::processes] = one.result()
            return losses

        seconds, losses = timed(work)
    return {"points": len(losses), "seconds": seconds, "losses": losses}


# Which variant of a peer is the fastest: one setting after the other, each at its best value for those before.


def alternatives(peer: str, task: str, vectors: int) -> Iterator[tuple[dict, dict[str, list]]]:
    """Where to start, and what else each setting may be."""
    images = {"pool": ["relu-first", "relu-last", "views"], "channels_last": [False, True]}
    sizes = {"chunk": [50, 100, 500, 1000]}
    cores = [{"threads": CORES, "processes": 1}, {"threads": 1, "processes": CORES}]
    start = {"pool": "relu-last", "channels_last": False, "chunk": 200, "threads": CORES, "processes": 1}
    if task == "surface":
        yield start, {"cores": cores, **images, **sizes}
    elif peer == "pyhessian":
        # It has no way to use processes. One batch is all examples, so that chunks are for a loader.
        yield {**start, "kept": False}, {**images, **sizes, "kept": [True, False]}
    elif peer == "curvlinops":
        columns = {"columns": ["matrix", "one"]} if vectors > 1 else {}
        yield {**start, "way": "curvlinops", "columns": "matrix"}, {"cores": cores, **columns, **images, **sizes}
    elif task == "ggn":
        for way in ("dual", "func"):
            columns = {"columns": ["one", "matrix"]} if way == "func" and vectors > 1 else {}
            yield {**start, "way": way, "columns": "one"}, {"cores": cores, **columns, **images, **sizes}
    else:
        for way in ("double-backward", "reverse-over-forward", "forward-over-reverse", "r-operator"):
            begin = {**start, "way": way, "columns": "one", "kept": False}
            columns = {"columns": ["one", "matrix"]} if way == "forward-over-reverse" and vectors > 1 else {}
            kept = {"kept": [False, True]} if way in ("double-backward", "r-operator") else {}
            # The R-operator has its own pooling.
            variants = {"channels_last": images["channels_last"]} if way == "r-operator" else images
            yield begin, {"cores": cores, **kept, **columns, **variants, **sizes}


def trial(peer: str, task: str, options: dict, choice: dict) -> float:
    """Seconds of a piece of the task."""
    gc.collect()
    options = {**options, "examples": min(options["examples"], TUNED_ON)}
    if task == "surface":
        return measure_surface({**options, "points": 3}, choice)["seconds"]
    if peer == "pyhessian":
        return measure_pyhessian_products({**options, "vectors": 1}, choice, 4)["seconds"]
    matrix = "ggn" if task == "ggn" else "hvp"
    vectors = {"top": 1, "trace": BLOCK}.get(task, options["vectors"])
    found = measure_products({**options, "vectors": vectors}, matrix, choice, max(1, 4 // vectors))
    return found["seconds"] / found["products"]


def tune(peer: str, task: str, options: dict, told: bool = True) -> dict:
    vectors = {"top": 1, "trace": BLOCK}.get(task, options["vectors"])
    best: tuple[float, dict] | None = None
    for choice, settings in alternatives(peer, task, vectors):
        seconds = trial(peer, task, options, choice)
        tell(told, seconds, choice)
        for setting, values in settings.items():
            for value in values:
                other = {**choice, **(value if setting == "cores" else {setting: value})}
                if other == choice:
                    continue
                other_seconds = trial(peer, task, options, other)
                tell(told, other_seconds, other)
                if other_seconds < seconds:
                    seconds, choice = other_seconds, other
            # A start that is far behind another way's best will not catch up.
            if best and seconds > 3 * best[0]:
                break
        if best is None or seconds < best[0]:
            best = seconds, choice
    return best[1]


def tell(told: bool, seconds: float, choice: dict) -> None:
    if told:
        print(f"{seconds:.3f} s: {json.dumps(choice)}", file=sys.stderr, flush=True)


def measure(peer: str, task: str, options: dict, choice: dict) -> dict:
    if task in ("hvp", "ggn"):
        return measure_products(options, task, choice, options["repeats"])
    if task == "surface":
        return measure_surface(options, choice)
    if peer == "pyhessian":
        return (measure_pyhessian_top if task == "top" else measure_pyhessian_trace)(options, choice)
    return (measure_eigsh if task == "top" else measure_trace)(options, choice)


PEERS = {
    "hvp": ("curvlinops", "pytorch"),
    "ggn": ("curvlinops", "pytorch"),
    "top": ("curvlinops", "pyhessian", "pytorch"),
    "trace": ("pyhessian", "pytorch"),
    "surface": ("pytorch",),
}


def train_lenet(options: dict, epochs: int) -> None:
    """As the experiments train it: SGD with Nesterov momentum, batch 100."""
    keep_large_blocks()
    torch.manual_seed(0)
    net = LeNet(relu_first=False).to(memory_format=torch.channels_last)
    images, labels = data(options["data"], None)
    optimiser = sgd(net, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.0, fused=True)
    for _ in range(epochs):
        found = train(net, optimiser, images, labels, 100, {"channels_last": True})
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, options["weights"])
    print(json.dumps({"epochs": epochs, **found}))


def draw(options: dict) -> None:
    """`vectors` [8, P] of norm 1; `u` and `v` [P], each filter (row of a dense layer) as long as that of θ, biases 0 (Li et
    al. 2018, "Visualizing the loss landscape of neural nets")."""
    weights = load_file(options["weights"])
    shapes = LeNet().state_dict()
    generator = torch.Generator().manual_seed(0)
    count = sum(value.numel() for value in shapes.values())
    vectors = torch.randn(BLOCK, count, generator=generator)

    def direction() -> Tensor:
        parts = []
        for name in shapes:
            weight = weights[name]
            part = torch.randn(weight.shape, generator=generator)
            rows = part.flatten(1) if part.dim() > 1 else torch.zeros_like(part).unsqueeze(1)
            lengths = weight.flatten(1).norm(dim=1) if part.dim() > 1 else torch.ones(len(part))
            parts.append((rows * (lengths / rows.norm(dim=1).clamp_min(1e-12)).unsqueeze(1)).flatten())
        return torch.cat(parts)

    found = {"vectors": vectors / vectors.norm(dim=1, keepdim=True), "u": direction(), "v": direction()}
    save_file(found, options["directions"])


def top5(options: dict) -> None:
    if not Path(options["weights"]).exists():
        train_lenet(options, 2)
    scratch = Path(options["weights"]).with_suffix(".directions")
    draw({**options, "directions": str(scratch)})
    choice = {"way": "curvlinops", "columns": "matrix", "pool": "relu-first", "channels_last": False, "chunk": 500}
    choice |= {"threads": CORES, "processes": 1}
    try:
        print(json.dumps(measure_eigsh({**options, "directions": str(scratch)}, choice)))
    finally:
        scratch.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, usage=__doc__)
    parser.add_argument("mode", choices=("train", "draw", "tune", "measure", "top5"))
    parser.add_argument("peer", nargs="?", choices=("curvlinops", "pyhessian", "pytorch"))
    parser.add_argument("task", nargs="?", choices=tuple(PEERS))
    parser.add_argument("--data")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--directions")
    parser.add_argument("--choice", type=json.loads)
    for name, default in [("examples", 10_000), ("vectors", 1), ("points", 11), ("probes", 48), ("repeats", 3)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--most", type=int, default=100, help="PyHessian's steps per eigenvalue, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    mode, peer, task = options["mode"], options["peer"], options["task"]
    if mode != "draw" and not options["data"]:
        parser.error(f"{mode} needs --data")
    if mode == "train":
        train_lenet(options, 2)
    elif mode == "draw":
        draw(options)
    elif mode == "top5":
        top5(options)
    elif task is None or peer not in PEERS[task]:
        parser.error(f"{mode} needs a peer and its task: {PEERS}")
    elif mode == "tune":
        print(json.dumps(tune(peer, task, options)))
    elif options["choice"] is None:
        parser.error("measure needs --choice, as tune prints it")
    else:
        line = {"side": peer, "task": task, **measure(peer, task, options, options["choice"])}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
