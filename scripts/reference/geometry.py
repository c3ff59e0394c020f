"""Curvature and loss surfaces of LeNet in PyTorch: the peers of `scripts/bench geometry`, one JSON line per measurement.

    geometry.py train   --data DIR --weights FILE      trains LeNet for two epochs and writes its weights (seed 0)
    geometry.py draw    --weights FILE --directions F  the vectors and directions that both sides use, drawn once (seed 0)
    geometry.py tune    PEER TASK …                    the peer's fastest settings for the task, as JSON; with --choice only those
                                                       that are of this task and not of its products
    geometry.py measure PEER TASK … --choice JSON      one measurement
    geometry.py top5    --data DIR --weights FILE      curvlinops' five largest eigenvalues; trains first where FILE is missing

with `… = --data DIR --weights FILE --directions FILE [--examples N] [--vectors K] [--tolerance T] [--points N] [--probes N]
[--device D]`
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
from products import WAYS, Product, chunks, joined, network, split
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

CORES = torch.get_num_threads()
BLOCK = 8
TOP = 5
# Which way is the fastest is found on so many examples: some hundred MB of activations, far more than any cache.
TUNED_ON = 2_500
TRIALS = 3


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
        self.device = options["device"]
        net = network(load_file(options["weights"]), choice).to(self.device)
        images, labels = images[part].to(self.device), labels[part].to(self.device)
        self.product = WAYS[matrix][choice["way"]](net, chunks(images, labels, choice), choice)

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


def settle() -> None:
    """Waits for what a GPU still has to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(work: Callable[[], object]) -> tuple[float, object]:
    settle()
    start = time.perf_counter()
    found = work()
    settle()
    return time.perf_counter() - start, found


def measure_products(options: dict, matrix: str, choice: dict, repeats: int) -> dict:
    vectors = directions(options, "vectors")[: options["vectors"]].contiguous().to(options["device"])
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
        return of(torch.from_numpy(vector.astype(np.float32)).view(1, -1).to(options["device"])).cpu().numpy()[0]

    operator = LinearOperator((count, count), matvec=matvec, dtype=np.float32)
    matvec(start)
    of.products = 0
    solve = {"k": TOP, "which": "LA", "tol": options["tolerance"], "v0": start, "ncv": choice.get("ncv")}
    seconds, (values, found) = timed(lambda: eigsh(operator, **solve))
    products = of.products
    order = np.argsort(-values)
    vectors = torch.from_numpy(found.T[order].astype(np.float32).copy()).to(options["device"])
    values = torch.from_numpy(values[order].astype(np.float64).copy()).to(options["device"])
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
    of = pyhessian(options, choice)
    product = pyhessian_product(of)
    product(directions(options, "vectors")[:1])
    torch.manual_seed(options["seed"])
    # The package's name for this module is that of its class.
    inside = sys.modules["pyhessian.hessian"]
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
            signs = torch.randint(0, 2, (BLOCK, count), generator=generator).to(options["device"]).float().mul_(2).sub_(1)
            values += (of(signs) * signs).sum(1).tolist()
        return values

    of = Matrix(options, "hvp", choice)
    of(directions(options, "vectors")[:BLOCK].contiguous().to(options["device"]))
    seconds, values = timed(lambda: probes(of))
    return {**estimate(values), "seconds": seconds}


class Points:
    """Losses at points of the plane `θ + a u + b v`, in the process that computes them."""

    mine: "Points | None" = None

    def __init__(self, options: dict, choice: dict):
        keep_large_blocks()
        torch.set_num_threads(choice["threads"])
        images, labels = data(options["data"], options["examples"])
        device = options["device"]
        self.parts, self.count = chunks(images.to(device), labels.to(device), choice), len(labels)
        self.net = network(load_file(options["weights"]), choice).to(device)
        self.theta = flat(self.net.parameters())
        self.u, self.v = directions(options, "u").to(device), directions(options, "v").to(device)
        # The parameters are views of one vector, so that a point is two additions.
        self.here = self.theta.clone()
        for parameter, part in zip(self.net.parameters(), split(self.here, list(self.net.parameters()))):
            parameter.data = part

    @torch.inference_mode()
    def __call__(self, points: list[tuple[float, float]]) -> list[float]:
        losses = []
        for a, b in points:
            torch.add(self.theta, self.u, alpha=a, out=self.here).add_(self.v, alpha=b)
            total = torch.zeros((), dtype=torch.double, device=self.here.device)
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


def alternatives(peer: str, task: str, vectors: int, device: str) -> Iterator[tuple[dict, dict[str, list]]]:
    """Where to start, and what else each setting may be."""
    images = {"pool": ["relu-first", "relu-last", "views"], "channels_last": [False, True]}
    sizes = {"chunk": [50, 100, 500, 1000]}
    cores = [{"threads": CORES, "processes": 1}, {"threads": 1, "processes": CORES}]
    start = {"pool": "relu-last", "channels_last": False, "chunk": 200, "threads": CORES, "processes": 1}
    if device != "cpu":
        sizes, cores, start = {"chunk": [500, 2000, 5000, 10000]}, cores[:1], {**start, "chunk": 2000}
    if task == "surface":
        yield start, {"cores": cores, **images, **sizes}
    elif peer == "pyhessian":
        # It has no way to use processes. One batch is all examples, so that chunks are for a loader.
        yield {**start, "kept": False}, {**images, **sizes, "kept": [True, False]}
    elif peer == "curvlinops":
        columns = {"columns": ["matrix", "one"]} if vectors > 1 else {}
        yield {**start, "way": "curvlinops", "columns": "matrix"}, {"cores": cores, **columns, **images, **sizes}
    else:
        ways = {
            "hvp": ("double-backward", "reverse-over-forward", "forward-over-reverse", "r-operator"),
            "ggn": ("dual", "func", "r-operator"),
        }
        for way in ways["ggn" if task == "ggn" else "hvp"]:
            begin = {**start, "way": way, "columns": "one", "kept": False}
            mapped = vectors > 1 and way in ("forward-over-reverse", "func", "r-operator")
            columns = {"columns": ["one", "matrix"]} if mapped else {}
            kept = {"kept": [False, True]} if way in ("double-backward", "r-operator") else {}
            # The R-operator has its own pooling.
            variants = {"channels_last": images["channels_last"]} if way == "r-operator" else images
            yield begin, {"cores": cores, **kept, **columns, **variants, **sizes}


def trial(peer: str, task: str, options: dict, choice: dict) -> float:
    """Seconds of a piece of the task, on a CPU the least of TRIALS: what else the machine does must not choose the settings."""
    return min(piece(peer, task, options, choice) for _ in range(TRIALS if options["device"] == "cpu" else 1))


def piece(peer: str, task: str, options: dict, choice: dict) -> float:
    """Seconds of one trial."""
    gc.collect()
    on_cpu = options["device"] == "cpu"
    options = {**options, "examples": min(options["examples"], TUNED_ON)} if on_cpu else options
    if task == "surface":
        return measure_surface({**options, "points": 3}, choice)["seconds"]
    if peer == "pyhessian":
        return measure_pyhessian_products({**options, "vectors": 1}, choice, 4)["seconds"]
    matrix = "ggn" if task == "ggn" else "hvp"
    vectors = {"top": 1, "trace": BLOCK}.get(task, options["vectors"])
    repeats = max(1, 4 // vectors) if on_cpu else 3
    found = measure_products({**options, "vectors": vectors}, matrix, choice, repeats)
    return found["seconds"] / found["products"]


def tune(peer: str, task: str, options: dict, told: bool = True) -> dict:
    vectors = {"top": 1, "trace": BLOCK}.get(task, options["vectors"])
    best: tuple[float, dict] | None = None
    for choice, settings in alternatives(peer, task, vectors, options["device"]):
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


def tune_basis(options: dict, choice: dict) -> dict:
    """How many Lanczos vectors eigsh keeps: what needs the fewest products. It looks for convergence only when it has so many."""
    options = {**options, "examples": min(options["examples"], TUNED_ON)}
    choices = [{**choice, "ncv": ncv} for ncv in (None, 8, 10, 12, 14, 17)]
    return min(choices, key=lambda one: measure_eigsh(options, one)["products"])


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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--most", type=int, default=100, help="PyHessian's steps per eigenvalue, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    mode, peer, task = options["mode"], options["peer"], options["task"]
    # f32, as on our side.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if peer == "pyhessian" and options["device"] != "cpu":
        parser.error("pyhessian is for --device cpu here")
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
        choice = options["choice"] or tune(peer, task, options)
        print(json.dumps(tune_basis(options, choice) if task == "top" and peer != "pyhessian" else choice))
    elif options["choice"] is None:
        parser.error("measure needs --choice, as tune prints it")
    else:
        line = {"side": peer, "task": task, **measure(peer, task, options, options["choice"])}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
