"""Our experiments as a user would write them in PyTorch: one process a run, what it found as one JSON line.

    experiments.py noop                            the imports alone
    experiments.py tune WORK SETTINGS              the fastest ways on this machine, as JSON
    experiments.py tuned WORK SETTINGS CHOICE      PyTorch well tuned, in eager mode; CHOICE being what `tune` printed
    experiments.py notebook WORK SETTINGS          as the report's notebooks have it; there is none for minimal-ratio

WORK: flatness, capacity, sensitivity, minimal-ratio. SETTINGS: the experiment's own, as JSON, with `device`, `threads`
and (but for minimal-ratio) `folder`, which holds MNIST's four IDX files. The other side are the binaries; the driver is
bench_experiments.py.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from classifiers import (
    Samples,
    evaluate,
    for_lenet,
    keep_large_blocks,
    laid_out,
    lenet,
    notebook_epoch,
    notebook_evaluation,
    padded,
    sgd,
    train,
)
from networks import LeNet, flat
from stacks import WAYS, data, network
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn import functional as F
from torch.utils.data import DataLoader

# Images in a trial of a variant, and in a piece of an evaluation that processes share.
TRIAL, PIECE = 6_000, 10_000
SPLITS = ("train", "test")


# Data


def read(settings: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Grey values `[N, 28, 28]` and labels of both splits."""
    folder, found = Path(settings["folder"]), {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels = np.fromfile(folder / f"{prefix}-labels-idx1-ubyte", np.uint8, offset=8)
        pixels = np.fromfile(folder / f"{prefix}-images-idx3-ubyte", np.uint8, offset=16)
        count = settings["images"][split] or len(labels)
        found[split] = pixels.reshape(-1, 28, 28)[:count], labels[:count]
    return found


def flattened(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).flatten(1).float().div_(255.0)


class Images:
    """Both splits in memory, once, as the networks take them."""

    def __init__(self, settings: dict, ready: Callable[[np.ndarray], Tensor]):
        def on_device(pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
            device = settings["device"]
            return ready(pixels).to(device), torch.from_numpy(labels).long().to(device)

        splits = read(settings)
        self.splits = {split: on_device(*splits[split]) for split in SPLITS}

    def count(self, split: str) -> int:
        return len(self.splits[split][1])

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        images, labels = self.splits["train"]
        return images[:count], labels[:count]


def alphas(settings: dict) -> list[float]:
    """The grid, with 0 and 1."""
    alpha = settings["alpha"]
    even = np.linspace(alpha["from"], alpha["to"], alpha["points"])
    return sorted({round(value, 12) for value in even.tolist()} | {0.0, 1.0})


def seeds(settings: dict) -> range:
    return range(settings["seed"], settings["seed"] + settings["seeds"])


def minima(settings: dict) -> list[dict]:
    return [settings["pairings"][0][side] for side in ("first", "second")]


def sgd_of(settings: dict, model: nn.Module, lr: float, fused: bool) -> torch.optim.SGD:
    return sgd(model, lr, settings["momentum"], settings["nesterov"], settings["weight_decay"], fused)


def perceptron(widths: Iterable[int]) -> nn.Sequential:
    return network([784, *widths, 10])


# Tuned: processes and variants


def side_by_side(work: Callable[[Any], Any], jobs: list, settings: dict, processes: int) -> list:
    """`work` on each job, by so many forked processes that share the cores; results in the jobs' order.

    Forked, imports and data are there once. For that, this process itself computes with one thread, except on a GPU,
    where there is but one process.
    """
    if settings["device"] != "cpu":
        return [work(job) for job in jobs]
    context = multiprocessing.get_context("fork")
    following = context.Value("l", 0)

    def compute(pipe) -> None:
        torch.set_num_threads(max(1, settings["threads"] // processes))
        found = {}
        while True:
            with following.get_lock():
                index = following.value
                following.value += 1
            if index >= len(jobs):
                break
            found[index] = work(jobs[index])
        pipe.send(found)

    workers = []
    for _ in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=compute, args=(theirs,))
        worker.start()
        theirs.close()  # So that the death of the worker is the end of its pipe.
        workers.append((worker, ours))
    found: dict[int, Any] = {}
    for worker, pipe in workers:
        try:
            found.update(pipe.recv())
        except EOFError:
            sys.exit("experiments: a worker died, its message is above")
        worker.join()
    return [found[index] for index in range(len(jobs))]


def modes(settings: dict) -> list[int]:
    """How many processes may share the cores."""
    return [settings["threads"], 1] if settings["device"] == "cpu" and settings["threads"] > 1 else [1]


def synchronised(settings: dict) -> float:
    if settings["device"] != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], Any], settings: dict, processes: int, repeats: int = 2) -> float:
    """How long `work` takes when each of so many processes does it at once, after a first time."""

    def trial(_: int) -> float:
        def once() -> float:
            start = synchronised(settings)
            work()
            return synchronised(settings) - start

        return min([once() for _ in range(repeats + 1)][1:])

    return max(side_by_side(trial, list(range(processes)), settings, processes))


def descend(variants: dict[str, tuple], cost: Callable[[dict], float]) -> tuple[dict, float]:
    """The fastest value of each key, one key after the other, and its cost."""
    choice = {key: values[0] for key, values in variants.items()}
    best = cost(choice)
    for key, values in variants.items():
        for value in values[1:]:
            other = {**choice, key: value}
            if (found := cost(other)) < best:
                choice, best = other, found
    return choice, best


def makespan(times: list[float], processes: int) -> float:
    """How long jobs of these times take, the longest first."""
    busy = [0.0] * processes
    for job in sorted(times, reverse=True):
        busy[busy.index(min(busy))] += job
    return max(busy)


# Tuned: classifiers


def layouts(settings: dict) -> dict[str, tuple]:
    return {"keep_blocks": (True, False)} if settings["device"] == "cpu" else {"keep_blocks": (False,)}


def for_networks(settings: dict) -> dict[str, tuple]:
    return {**layouts(settings), "channels_last": (True, False), "relu_first": (False, True)}


def set_up(choice: dict) -> None:
    if choice["keep_blocks"]:
        keep_large_blocks()


def tune_evaluation(
    settings: dict, images: Images, variants: dict, build: Callable[[dict], nn.Module], processes: int
) -> tuple[dict, float]:
    """The fastest evaluation, and the seconds of an image."""
    few = images.first(TRIAL)

    def cost(choice: dict) -> float:
        def work() -> None:
            set_up(choice)
            evaluate(build(choice), *few, choice)

        return seconds(work, settings, processes)

    choice, found = descend(variants, cost)
    return choice, found / len(few[1])


def tune_training(
    settings: dict,
    images: Images,
    variants: dict,
    build: Callable[[dict], tuple[nn.Module, torch.optim.Optimizer]],
    batch: int,
    processes: int,
) -> tuple[dict, float]:
    """The fastest training with a batch size, and the seconds of an epoch."""
    few = images.first(max(TRIAL, 2 * batch))
    pieces = {"piece": (batch, *(piece for piece in (1000, 250) if piece < batch))}

    def cost(choice: dict) -> float:
        def work() -> None:
            set_up(choice)
            train(*build(choice), *few, batch, choice)

        return seconds(work, settings, processes)

    choice, found = descend({**pieces, **variants}, cost)
    return choice, found * images.count("train") / len(few[1])


def judged(images: Images, epochs: int) -> int:
    """How many images are evaluated: the test images after each epoch, both splits at the end."""
    return (epochs + 1) * images.count("test") + images.count("train")


def tune_lenets(settings: dict, images: Images, jobs: list[tuple[int, float]], evaluations: int) -> dict:
    """For trainings by batch and lr, and then so many evaluations of both splits: variants, and how many processes."""
    device, epochs = settings["device"], settings["epochs"]
    chunks = {"chunk": (1000, 100, 200, 500, 5000)}
    best = {}
    for processes in modes(settings):
        judge, image = tune_evaluation(
            settings, images, {**chunks, **for_networks(settings)}, lambda c: lenet(c, device), processes
        )
        training, times = {}, []
        for batch, lr in dict.fromkeys(jobs):

            def build(choice: dict) -> tuple[nn.Module, torch.optim.Optimizer]:
                model = lenet(choice, device)
                return model, sgd_of(settings, model, lr, choice["fused"])

            variants = {**for_networks(settings), "fused": (True, False)}
            training[str(batch)], epoch = tune_training(settings, images, variants, build, batch, processes)
            times += [epochs * epoch + judged(images, epochs) * image] * jobs.count((batch, lr))
        pieces = [PIECE * image] * round(evaluations * judged(images, 0) / PIECE)
        phases = {
            "train": (makespan(times, processes), {"processes": processes, "evaluate": judge, **training}),
            "judge": (makespan(pieces, processes), {"processes": processes, **judge}),
        }
        for phase, found in phases.items():
            best[phase] = min(best.get(phase, found), found, key=lambda cost: cost[0])
    return {phase: choice for phase, (_, choice) in best.items()}


def both(model: nn.Module, images: Images, choice: dict) -> dict[str, dict]:
    return {split: evaluate(model, *images.splits[split], choice) for split in SPLITS}


def fit(
    model: nn.Module,
    judge: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Images,
    batch: int,
    epochs: int,
    choice: dict,
    judging: dict,
) -> dict:
    """Trains, with the test images evaluated after each epoch and both splits at the end."""
    curve = []
    for _ in range(epochs):
        row = train(model, optimiser, *images.splits["train"], batch, choice)
        if judge is not model:
            judge.load_state_dict(model.state_dict())
        curve.append((row, evaluate(judge, *images.splits["test"], judging)))
    return {"curve": curve, "end": both(judge, images, judging)}


def fit_lenet(settings: dict, images: Images, batch: int, lr: float, seed: int, choices: dict) -> tuple[LeNet, dict]:
    choice, judging = choices[str(batch)], choices["evaluate"]
    set_up(choice)
    torch.manual_seed(seed)
    model, judge = lenet(choice, settings["device"]), lenet(judging, settings["device"])
    optimiser = sgd_of(settings, model, lr, choice["fused"])
    return model, fit(model, judge, optimiser, images, batch, settings["epochs"], choice, judging)


def fill(model: nn.Module, theta: Tensor) -> nn.Module:
    """The model with these weights, in the layout that it has."""
    parameters = list(model.parameters())
    with torch.no_grad():
        for parameter, values in zip(parameters, theta.split([p.numel() for p in parameters])):
            parameter.copy_(values.view(parameter.shape))
    return model


def weighted(parts: list[tuple[dict, int]]) -> dict:
    """The evaluation of all from those of parts."""
    count = sum(number for _, number in parts)
    return {key: sum(found[key] * number for found, number in parts) / count for key in ("loss", "accuracy")}


# flatness


def flatness_jobs(settings: dict) -> list[tuple[int, int, float]]:
    """Seed, batch, lr: the smallest batches first, which take longest."""
    jobs = [(seed, minimum["batch"], minimum["lr"]) for seed in seeds(settings) for minimum in minima(settings)]
    return sorted(jobs, key=lambda job: job[1])


def tune_flatness(settings: dict) -> dict:
    jobs = [(batch, lr) for _, batch, lr in flatness_jobs(settings)]
    return tune_lenets(settings, Images(settings, for_lenet), jobs, settings["seeds"] * len(alphas(settings)))


def tuned_flatness(settings: dict, choice: dict) -> dict:
    images = Images(settings, for_lenet)

    def minimum(job: tuple[int, int, float]) -> np.ndarray:
        seed, batch, lr = job
        # Each minimum from weights and an order of its own.
        model, _ = fit_lenet(settings, images, batch, lr, 1000 * seed + batch, choice["train"])
        return flat(model.parameters()).cpu().numpy()

    jobs = flatness_jobs(settings)
    found = side_by_side(minimum, jobs, settings, choice["train"]["processes"])
    thetas = {job: torch.from_numpy(theta).to(settings["device"]) for job, theta in zip(jobs, found)}

    def measure(job: tuple[int, float, str, int]) -> tuple[dict, int]:
        seed, alpha, split, start = job
        set_up(choice["judge"])
        first, second = (thetas[seed, end["batch"], end["lr"]] for end in minima(settings))
        model = fill(lenet(choice["judge"], settings["device"]), (1 - alpha) * first + alpha * second)
        inputs, labels = (part[start : start + PIECE] for part in images.splits[split])
        return evaluate(model, inputs, labels, choice["judge"]), len(labels)

    pieces = [(split, start) for split in SPLITS for start in range(0, images.count(split), PIECE)]
    places = [(seed, alpha) for seed in seeds(settings) for alpha in alphas(settings)]
    jobs = [(*place, *piece) for place in places for piece in pieces]
    measured = dict(zip(jobs, side_by_side(measure, jobs, settings, choice["judge"]["processes"])))
    line = {
        (*place, split): weighted([measured[*place, *piece] for piece in pieces if piece[0] == split])
        for place in places
        for split in SPLITS
    }
    return ends_of(settings, line)


def ends_of(settings: dict, line: dict) -> dict:
    """Test accuracy at both minima, over seeds."""
    return {
        f"accuracy, α = {alpha:.0f}": fmean(line[seed, alpha, "test"]["accuracy"] for seed in seeds(settings))
        for alpha in (0.0, 1.0)
    }


def notebook_both(model: nn.Module, samples: dict[str, Samples], device: str) -> dict[str, dict]:
    return {split: notebook_evaluation(model, samples[split], 100, device) for split in SPLITS}


def notebook_fit(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    samples: dict[str, Samples],
    batch: int,
    epochs: int,
    device: str,
) -> dict:
    curve = []
    for _ in range(epochs):
        row = notebook_epoch(model, optimiser, samples["train"], batch, device)
        curve.append((row, notebook_evaluation(model, samples["test"], 100, device)))
    return {"curve": curve, "end": notebook_both(model, samples, device)}


def samples_of(settings: dict, transform: Callable[[Tensor], Tensor]) -> dict[str, Samples]:
    return {split: Samples(*both, transform) for split, both in read(settings).items()}


def notebook_flatness(settings: dict) -> dict:
    device, samples = settings["device"], samples_of(settings, padded)
    line = {}
    for seed in seeds(settings):
        states = []
        for minimum in minima(settings):
            torch.manual_seed(1000 * seed + minimum["batch"])
            model = LeNet().to(device)
            optimiser = sgd_of(settings, model, minimum["lr"], fused=False)
            notebook_fit(model, optimiser, samples, minimum["batch"], settings["epochs"], device)
            states.append(model.state_dict())
        model = LeNet().to(device)
        for alpha in alphas(settings):
            model.load_state_dict({key: (1 - alpha) * states[0][key] + alpha * states[1][key] for key in states[0]})
            for split, found in notebook_both(model, samples, device).items():
                line[seed, alpha, split] = found
    return ends_of(settings, line)


# capacity


def adam_of(report: dict, model: nn.Module, fused: bool) -> torch.optim.Adam:
    optimiser = report["optimiser"]
    return torch.optim.Adam(model.parameters(), lr=optimiser["lr"], weight_decay=optimiser["weight_decay"], fused=fused)


def net_name(widths: list[int]) -> str:
    return "-".join(map(str, widths))


def tune_capacity(settings: dict) -> dict:
    images, report, device = Images(settings, flattened), settings["report"], settings["device"]
    best = []
    for processes in modes(settings):
        chunks = {"chunk": (1000, 200, 5000, 10_000), **layouts(settings)}
        # The largest net stands for all.
        judge, image = tune_evaluation(
            settings, images, chunks, lambda _: perceptron(report["widths"][-1]).to(device), processes
        )
        training, times = {}, []
        for widths in report["widths"]:

            def build(choice: dict) -> tuple[nn.Module, torch.optim.Optimizer]:
                model = perceptron(widths).to(device)
                return model, adam_of(report, model, choice["fused"])

            variants = {"fused": (True, False), **layouts(settings)}
            found = tune_training(settings, images, variants, build, report["batch"], processes)
            training[net_name(widths)], epoch = found
            times.append(report["epochs"] * epoch + judged(images, report["epochs"]) * image)
        choice = {"processes": processes, "evaluate": judge, **training}
        best.append((makespan(times * settings["seeds"], processes), choice))
    return {"train": min(best, key=lambda cost: cost[0])[1]}


def mean_accuracy(found: list[dict]) -> dict:
    return {"accuracy, mean of the nets": fmean(one["end"]["test"]["accuracy"] for one in found)}


def tuned_capacity(settings: dict, choice: dict) -> dict:
    images, report, choices = Images(settings, flattened), settings["report"], choice["train"]

    def net(job: tuple[int, list[int]]) -> dict:
        seed, widths = job
        training, judging = choices[net_name(widths)], choices["evaluate"]
        set_up(training)
        torch.manual_seed(seed)
        model = perceptron(widths).to(settings["device"])
        optimiser = adam_of(report, model, training["fused"])
        return fit(model, model, optimiser, images, report["batch"], report["epochs"], training, judging)

    # The widest first, which take longest.
    jobs = [(seed, widths) for widths in sorted(report["widths"], reverse=True) for seed in seeds(settings)]
    return mean_accuracy(side_by_side(net, jobs, settings, choices["processes"]))


def notebook_capacity(settings: dict) -> dict:
    device, report, samples = settings["device"], settings["report"], samples_of(settings, torch.flatten)
    found = []
    for seed in seeds(settings):
        for widths in report["widths"]:
            torch.manual_seed(seed)
            model = perceptron(widths).to(device)
            optimiser = adam_of(report, model, fused=False)
            found.append(notebook_fit(model, optimiser, samples, report["batch"], report["epochs"], device))
    return mean_accuracy(found)


# sensitivity


def jacobian_by_passes(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and their Jacobian `[B, C, D]`: one pass backwards for each output, on one graph."""
    x = x.requires_grad_()
    outputs = model(x)
    rows = [torch.autograd.grad(outputs[:, c].sum(), x, retain_graph=c < 9)[0].flatten(1) for c in range(10)]
    return outputs.detach(), torch.stack(rows, 1)


def jacobian_at_once(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same, all outputs in one batched pass."""
    x = x.requires_grad_()
    outputs = model(x)
    directions = torch.eye(10, device=x.device).unsqueeze(1).expand(-1, len(x), -1)
    (rows,) = torch.autograd.grad(outputs, x, directions, is_grads_batched=True)
    return outputs.detach(), rows.flatten(2).transpose(0, 1)


def jacobian_by_func(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same by torch.func, example by example in one batch."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def outputs(image: Tensor) -> tuple[Tensor, Tensor]:
        found = functional_call(model, parameters, (image.unsqueeze(0),)).squeeze(0)
        return found, found

    rows, found = vmap(jacrev(outputs, has_aux=True))(x)
    return found, rows.flatten(2)


JACOBIANS = {"passes": jacobian_by_passes, "batched": jacobian_at_once, "jacrev": jacobian_by_func}


def norms(model: nn.Module, inputs: Tensor, labels: Tensor, choice: dict) -> dict[str, float]:
    """Sums over examples of the norms of ∂ℓ/∂x, ∂p/∂x and of the logits' Jacobian J, and of the square of the first.

    With G = J Jᵀ `[C, C]`, S = diag p - p pᵀ and r = p - y, their squares are rᵀ G r, tr(S G S) and tr G: one Jacobian
    is enough for all.
    """
    total = torch.zeros(4, dtype=torch.double, device=inputs.device)
    for x, y in zip(inputs.split(choice["chunk"]), labels.split(choice["chunk"])):
        outputs, jacobian = JACOBIANS[choice["way"]](model, laid_out(x.detach(), choice))
        gram = torch.bmm(jacobian, jacobian.transpose(1, 2)).double()
        p = outputs.double().softmax(1)
        residual = (p - F.one_hot(y, 10)).unsqueeze(2)
        softmax = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        squares = torch.stack([
            (residual * torch.bmm(gram, residual)).sum((1, 2)),
            (torch.bmm(softmax, gram) * softmax).sum((1, 2)),
            gram.diagonal(dim1=1, dim2=2).sum(1),
        ]).clamp_min(0)
        total += torch.cat([squares.sqrt().sum(1), squares[:1].sum(1)])
    return dict(zip(("input_gradient", "jacobian", "logit_jacobian", "square"), total.tolist()))


def parameter_gradient_norm(model: nn.Module, inputs: Tensor, labels: Tensor, piece: int, choice: dict) -> float:
    """The mean over weights and biases of the norm of each one's gradient on a batch."""
    model.zero_grad(set_to_none=True)
    for x, y in zip(inputs.split(piece), labels.split(piece)):
        (F.cross_entropy(model(laid_out(x, choice)), y, reduction="sum") / len(labels)).backward()
    return fmean(parameter.grad.double().norm().item() for parameter in model.parameters())


def tune_sensitivity(settings: dict) -> dict:
    images, device = Images(settings, for_lenet), settings["device"]
    jobs = [(batch, settings["lr"]) for _ in seeds(settings) for batch in settings["batches"]]
    choice = tune_lenets(settings, images, jobs, 0)
    few = images.first(500)
    best = []
    for processes in modes(settings):

        def cost(choice: dict) -> float:
            def work() -> None:
                set_up(choice)
                norms(lenet(choice, device).requires_grad_(False), *few, choice)

            return seconds(work, settings, processes)

        variants = {"way": tuple(JACOBIANS), "chunk": (100, 50, 250, 500), **for_networks(settings)}
        measure, found = descend(variants, cost)
        best.append((found / processes, {"processes": processes, **measure}))
    return {"train": choice["train"], "measure": min(best, key=lambda cost: cost[0])[1]}


def tuned_sensitivity(settings: dict, choice: dict) -> dict:
    images, device, training = Images(settings, for_lenet), settings["device"], choice["train"]

    def model_of(job: tuple[int, int]) -> tuple[np.ndarray, dict, float]:
        seed, batch = job
        model, found = fit_lenet(settings, images, batch, settings["lr"], seed, training)
        inputs, labels = images.splits["train"]
        last = torch.randperm(len(labels), device=device).split(batch)[-1]
        one = training[str(batch)]
        norm = parameter_gradient_norm(model, inputs[last], labels[last], one["piece"], one)
        return flat(model.parameters()).cpu().numpy(), found["end"], norm

    jobs = [(seed, batch) for batch in sorted(settings["batches"]) for seed in seeds(settings)]
    trained = dict(zip(jobs, side_by_side(model_of, jobs, settings, training["processes"])))
    thetas = {job: torch.from_numpy(theta).to(device) for job, (theta, _, _) in trained.items()}

    def measure(job: tuple[int, int, str, int]) -> dict[str, float]:
        *of, split, start = job
        set_up(choice["measure"])
        model = fill(lenet(choice["measure"], device), thetas[tuple(of)]).requires_grad_(False)
        stop = min(start + 1000, counts[split])
        inputs, labels = (part[start:stop] for part in images.splits[split])
        return norms(model, inputs, labels, choice["measure"])

    counts = {split: min(settings["examples"] or images.count(split), images.count(split)) for split in SPLITS}
    pieces = [(*job, split, start) for job in jobs for split in SPLITS for start in range(0, counts[split], 1000)]
    measured = list(zip(pieces, side_by_side(measure, pieces, settings, choice["measure"]["processes"])))
    found = {}
    for job in jobs:
        for split in SPLITS:
            parts = [part for piece, part in measured if piece[:3] == (*job, split)]
            found[*job, split] = means({key: sum(part[key] for part in parts) for key in parts[0]}, counts[split])
    ends = {job: (end, norm) for job, (_, end, norm) in trained.items()}
    return sensitivities(settings, ends, found)


def means(total: dict[str, float], count: int) -> dict[str, float]:
    """Means over examples, and the Frobenius norm of the mean loss's gradient."""
    square = total.pop("square")
    return {**{key: value / count for key, value in total.items()}, "frobenius": square**0.5 / count}


def sensitivities(settings: dict, ends: dict, found: dict) -> dict:
    """Of the smallest batch, over seeds: the larger ones learn too little in few epochs to be compared."""
    batch = min(settings["batches"])

    def mean(of: Callable[[int], float]) -> float:
        return fmean(of(seed) for seed in seeds(settings))

    values = {f"accuracy, batch {batch}": mean(lambda seed: ends[seed, batch][0]["test"]["accuracy"])}
    for measure in ("input_gradient", "frobenius", "jacobian", "logit_jacobian"):
        for split in SPLITS:
            values[f"norm, {measure}, {split}"] = mean(lambda seed: found[seed, batch, split][measure])
    return values


def notebook_norms(model: nn.Module, samples: Samples, count: int, device: str) -> dict[str, float]:
    """Batch by batch, one pass backwards for each loss, logit and probability; norms are read sample by sample."""
    total = {"input_gradient": 0.0, "jacobian": 0.0, "logit_jacobian": 0.0, "square": 0.0}
    subset = torch.utils.data.Subset(samples, range(count))
    for x, y in DataLoader(subset, batch_size=100):
        x, y = x.to(device).requires_grad_(), y.to(device)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
        for one in gradient:
            total["input_gradient"] += one.norm().item()
            total["square"] += one.norm().item() ** 2
        logits = model(x)
        for key, outputs in (("logit_jacobian", logits), ("jacobian", logits.softmax(1))):
            rows = [torch.autograd.grad(outputs[:, c].sum(), x, retain_graph=True)[0] for c in range(10)]
            for one in torch.stack(rows, 1):
                total[key] += one.norm().item()
    return total


def notebook_sensitivity(settings: dict) -> dict:
    device, samples = settings["device"], samples_of(settings, padded)
    ends, found = {}, {}
    for seed in seeds(settings):
        for batch in settings["batches"]:
            torch.manual_seed(seed)
            model = LeNet().to(device)
            optimiser = sgd_of(settings, model, settings["lr"], fused=False)
            end = notebook_fit(model, optimiser, samples, batch, settings["epochs"], device)["end"]
            x, y = next(iter(DataLoader(samples["train"], batch_size=batch, shuffle=True)))
            ends[seed, batch] = end, parameter_gradient_norm(model, x.to(device), y.to(device), batch, {})
            for split in SPLITS:
                count = min(settings["examples"] or len(samples[split]), len(samples[split]))
                found[seed, batch, split] = means(notebook_norms(model, samples[split], count, device), count)
    return sensitivities(settings, ends, found)


# minimal-ratio


def fit_stack(settings: dict, of: list[int], choice: dict, steps: int) -> tuple[Tensor, list[int]]:
    """Trains a network a seed; θ `[M, P]` where each run's gradient was small enough, or at the end, and its steps."""
    nets = []
    for seed in of:
        torch.manual_seed(seed)
        nets.append(network(settings["widths"], nn.LeakyReLU).to(settings["device"]))
    x, y = (part.to(settings["device"]) for part in data())
    parameters, backward = WAYS[choice["way"]](nets, x, y)
    adam, kind = settings["optimiser"], choice["adam"]
    optimiser = torch.optim.Adam(
        parameters, lr=adam["lr"], weight_decay=adam["weight_decay"], foreach=kind == "foreach", fused=kind == "fused"
    )
    end = [parameter.detach().clone() for parameter in parameters]
    done = torch.zeros(len(of), dtype=torch.bool, device=x.device)
    taken = torch.full((len(of),), steps)
    for step in range(steps + 1):
        backward()
        if step == steps:
            over = ~done
        else:
            gradient = torch.cat([parameter.grad.flatten(1) for parameter in parameters], 1)
            over = (gradient.norm(dim=1) < settings["gradient_norm"]) & ~done
        if over.any():
            for kept, parameter in zip(end, parameters):
                kept[over] = parameter.detach()[over]
            taken[over.cpu()] = step
            done |= over
            if done.all():
                break
        if step < steps:
            optimiser.step()
    # As nn.Linear has it: [out, in].
    rows = [part.transpose(1, 2) if choice["way"] == "bmm" else part for part in end]
    return torch.cat([part.flatten(1) for part in rows], 1), taken.tolist()


def loss_of(widths: list[int], theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error at θ `[P]` (or of each row, `[R, P]`), LeakyReLU between the layers."""
    h, start = x, 0
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        weight = theta[..., start : start + inputs * outputs].unflatten(-1, (outputs, inputs))
        start += inputs * outputs
        h = h @ weight.mT + theta[..., start : start + outputs].unsqueeze(-2)
        start += outputs
        if index + 2 < len(widths):
            h = F.leaky_relu(h)
    return (h - y).square().mean((-2, -1))


def by_rows(loss: Callable[[Tensor], Tensor], theta: Tensor, rows: int) -> Tensor:
    """The Hessian of one θ `[P]`: θ so many times, and the gradient of its gradients' products with the identity."""
    found = []
    for directions in torch.eye(len(theta), dtype=theta.dtype, device=theta.device).split(rows):
        stack = theta.repeat(len(directions), 1).requires_grad_()
        (first,) = torch.autograd.grad(loss(stack).sum(), stack, create_graph=True)
        found.append(torch.autograd.grad((first * directions).sum(), stack)[0])
    return torch.cat(found)


def hessians(settings: dict, thetas: Tensor, choice: dict) -> Tensor:
    """`[M, P, P]`, f64, of θ `[M, P]`."""
    x, y = (part.to(thetas.device).double() for part in data())

    def loss(theta: Tensor) -> Tensor:
        return loss_of(settings["widths"], theta, x, y)

    if choice["way"] == "rows":
        return torch.stack([by_rows(loss, theta, choice["rows"]) for theta in thetas])
    one = hessian(loss) if choice["way"] == "hessian" else jacrev(grad(loss))
    return vmap(one, chunk_size=choice["models"])(thetas)


def spectra(settings: dict, thetas: Tensor, choice: dict) -> tuple[list[float], list[float]]:
    """Losses, and the shares of eigenvalues that are clearly positive."""
    values = torch.linalg.eigvalsh(hessians(settings, thetas, choice))
    bound = settings["tolerance"] * values.abs().amax(1, keepdim=True)
    x, y = (part.to(thetas.device).double() for part in data())
    losses = loss_of(settings["widths"], thetas, x, y)
    return losses.tolist(), (values > bound).double().mean(1).tolist()


def tune_minimal_ratio(settings: dict) -> dict:
    few, every = 30, list(seeds(settings))
    training, curvature = [], []
    thetas = torch.cat([flat(network(settings["widths"]).parameters()).double().unsqueeze(0) for _ in range(4)])
    thetas = thetas.to(settings["device"])
    for processes in modes(settings):
        set_up_all = layouts(settings)
        for models in sorted({-(-len(every) // (processes * cut)) for cut in (1, 2, 4)}):
            of = list(islice(cycle(every), models))

            def cost(choice: dict) -> float:
                def work() -> None:
                    set_up(choice)
                    fit_stack(settings, of, choice, few)

                return seconds(work, settings, processes)

            variants = {"way": ("bmm", "vmap"), "adam": ("fused", "foreach", "loop"), **set_up_all}
            choice, found = descend(variants, cost)
            stacks = -(-len(every) // models)
            choice = {"processes": processes, "models": models, **choice}
            training.append((makespan([found] * stacks, processes), choice))

        def cost_of_spectra(choice: dict) -> float:
            def work() -> None:
                set_up(choice)
                spectra(settings, thetas, choice)

            return seconds(work, settings, processes, repeats=1)

        for variants in (
            {"way": ("hessian", "jacrev"), "models": (1, 2, 4), **set_up_all},
            {"way": ("rows",), "rows": (256, 64), **set_up_all},
        ):
            choice, found = descend(variants, cost_of_spectra)
            curvature.append((found / processes, {"processes": processes, **choice}))
    fastest = [min(found, key=lambda cost: cost[0])[1] for found in (training, curvature)]
    return dict(zip(("train", "curvature"), fastest))


def tuned_minimal_ratio(settings: dict, choice: dict) -> dict:
    training, curvature = choice["train"], choice["curvature"]

    def stack(of: list[int]) -> tuple[np.ndarray, list[int]]:
        set_up(training)
        theta, steps = fit_stack(settings, of, training, settings["epochs"])
        return theta.cpu().numpy(), steps

    every = list(seeds(settings))
    jobs = [every[start : start + training["models"]] for start in range(0, len(every), training["models"])]
    trained = side_by_side(stack, jobs, settings, training["processes"])
    thetas = torch.from_numpy(np.concatenate([theta for theta, _ in trained])).to(settings["device"]).double()

    def measure(part: Tensor) -> tuple[list[float], list[float]]:
        set_up(curvature)
        return spectra(settings, part, curvature)

    measured = side_by_side(measure, list(thetas.split(8)), settings, curvature["processes"])
    losses, ratios = ([value for part in measured for value in part[index]] for index in (0, 1))
    return {"loss": losses, "ratio": ratios, "steps": [step for _, steps in trained for step in steps]}


TUNES = {
    "flatness": tune_flatness,
    "capacity": tune_capacity,
    "sensitivity": tune_sensitivity,
    "minimal-ratio": tune_minimal_ratio,
}
TUNED = {
    "flatness": tuned_flatness,
    "capacity": tuned_capacity,
    "sensitivity": tuned_sensitivity,
    "minimal-ratio": tuned_minimal_ratio,
}
NOTEBOOKS = {"flatness": notebook_flatness, "capacity": notebook_capacity, "sensitivity": notebook_sensitivity}


def main() -> None:
    mode, *rest = sys.argv[1:] or [""]
    if mode == "noop" and not rest:
        return
    if len(rest) != (3 if mode == "tuned" else 2):
        sys.exit(__doc__)
    work, settings = rest[0], json.loads(rest[1])
    # In f32 as ours, not in TF32.
    torch.backends.cudnn.allow_tf32 = False
    # Before a fork, a process must have no threads: the workers set their own number.
    torch.set_num_threads(settings["threads"] if mode == "notebook" or settings["device"] != "cpu" else 1)
    if mode == "tune":
        found = TUNES[work](settings)
    elif mode == "tuned":
        found = TUNED[work](settings, json.loads(rest[2]))
    elif mode == "notebook":
        found = NOTEBOOKS[work](settings)
    else:
        sys.exit(__doc__)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
