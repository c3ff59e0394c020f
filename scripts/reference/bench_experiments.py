"""Whole runs of our experiments against the same work in PyTorch (experiments.py), in turn: time and peak memory.

Started by scripts/bench, which builds the binaries and sets the number of threads.
"""

import argparse
import contextlib
import csv
import gzip
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from page import origin, told, write

HERE = Path(__file__).parent
# Between two looks at the memory of a side.
LOOK = 0.05
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NAMES = {"flatland": "Flatland", "tuned": "PyTorch, tuned", "notebook": "PyTorch, notebook style"}
PAIRING = '{name="batch size",first={batch=100,lr=0.01},second={batch=500,lr=0.01}}'

# What a side found: a number, or one a run.
Found = dict[str, float | list[float]]


@dataclass
class Work:
    """What both sides do: the experiment, its settings, and how to read what our side found from its folder."""

    experiment: str
    sets: list[str]
    read: Callable[[Path], Found]
    text: str
    peers: tuple[str, ...] = ("tuned", "notebook")
    images: bool = True

    def arguments(self) -> list[str]:
        return [argument for assignment in self.sets for argument in ("--set", assignment)]


@dataclass
class Measured:
    """A whole process, from its start to its exit."""

    seconds: float
    mebibytes: float
    found: Found


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def rows(folder: Path, table: str, **where: str) -> list[dict[str, str]]:
    """The rows of a table of a run whose cells are these."""
    with open(folder / f"{table}.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in where.items())]


def mean_of(found: list[dict[str, str]], column: str) -> float:
    return statistics.fmean(float(row[column]) for row in found)


def read_flatness(folder: Path) -> Found:
    test = rows(folder, "interpolation", split="test")
    return {
        f"accuracy, α = {alpha}": mean_of([row for row in test if float(row["alpha"]) == alpha], "accuracy")
        for alpha in (0, 1)
    }


def read_capacity(folder: Path) -> Found:
    return {"accuracy, mean of the nets": mean_of(rows(folder, "capacity"), "test_accuracy")}


def read_sensitivity(folder: Path) -> Found:
    every = rows(folder, "sensitivity")
    batch = str(min(int(row["batch"]) for row in every))

    def value(measure: str, split: str) -> float:
        return mean_of(rows(folder, "sensitivity", batch=batch, measure=measure, split=split), "value")

    measures = {
        "input_gradient": "input_gradient_norm",
        "frobenius": "input_gradient_frobenius_norm",
        "jacobian": "jacobian_norm",
        "logit_jacobian": "logit_jacobian_norm",
    }
    return {
        f"accuracy, batch {batch}": value("accuracy", "test"),
        **{
            f"norm, {name}, {split}": value(measure, split)
            for name, measure in measures.items()
            for split in ("train", "test")
        },
    }


def read_minimal_ratio(folder: Path) -> Found:
    ends = rows(folder, "points", phase="training")
    columns = {"loss": "loss", "ratio": "minimal_ratio", "steps": "epochs"}
    return {name: [float(row[column]) for row in ends] for name, column in columns.items()}


def works(epochs: int, points: int) -> dict[str, Work]:
    """All that is measured, by name."""

    def flatness(seeds: int, text: str) -> Work:
        sets = [f"epochs={epochs}", f"seeds={seeds}", f"alpha.points={points}", f"pairings=[{PAIRING}]"]
        return Work("flatness", sets, read_flatness, text)

    scale = f"{epochs} epochs of 30"
    line = f"{scale}, {points} α of 50"
    report = min(epochs, 10)
    capacity = [f"report.epochs={report}", "wide.widths=[]"]
    sensitivity = [f"epochs={epochs}", "batches=[100,250,500,5000,10000]"]
    return {
        "flatness": flatness(1, f"flatness: batches 100 and 500, 1 seed; {line}"),
        "flatness-seeds": flatness(4, f"flatness: batches 100 and 500, 4 seeds; {line}"),
        "capacity": Work(
            "capacity", capacity, read_capacity, f"capacity: the report's ten nets; {report} epochs of 10"
        ),
        "sensitivity": Work(
            "sensitivity", sensitivity, read_sensitivity, f"sensitivity: batches 100 to 10,000; {scale}"
        ),
        "minimal-ratio": Work(
            "minimal-ratio",
            ["critical.steps=0"],
            read_minimal_ratio,
            "minimal-ratio: 100 runs of at most 4,000 steps and their Hessians; paper, without the search",
            ("tuned",),
            images=False,
        ),
    }


def family(root: int) -> list[int]:
    """A process with all that descend from it and live."""
    found, new = [], [root]
    while new:
        pid = new.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                new += map(int, task.read_text().split())
            except OSError:
                pass  # It has ended in the meantime.
    return found


def status(pid: int, file: str, key: str) -> int | None:
    """So many KiB, of a process that may have ended."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def resident(pid: int) -> int:
    return status(pid, "status", "VmRSS") or 0


def proportional(pid: int) -> int:
    """Shared pages are shared out. Where the kernel does not tell it, the resident set."""
    found = status(pid, "smaps_rollup", "Pss")
    return resident(pid) if found is None else found


def unwatched(command: list[str]) -> str:
    """What it printed."""
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        sys.exit(f"bench: {' '.join(command)[:200]} failed:\n{process.stderr}")
    return process.stdout


def watched(command: list[str]) -> tuple[float, float, str]:
    """Seconds from start to exit, MiB at the peak of the whole family, and what it printed."""
    start = time.perf_counter()
    # In a session of its own, so that its workers end with it.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    over, peak = threading.Event(), 0

    def look() -> None:
        nonlocal peak
        highest, last = 0, 0.0
        while not over.wait(LOOK):
            members = family(process.pid)
            now, size = time.monotonic(), sum(map(resident, members))
            # Proportional sizes cost the kernel some ten milliseconds: they are asked for when there is something new.
            if size > 1.01 * highest or now - last > 1:
                highest, last = max(highest, size), now
                peak = max(peak, sum(map(proportional, members)))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        out, errors = process.communicate()
        seconds = time.perf_counter() - start
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        over.set()
        watcher.join()
    if process.returncode != 0:
        sys.exit(f"bench: {' '.join(command)[:200]} failed:\n{errors}")
    return seconds, peak / 1024, out


class Bench:
    """Both sides, on the same files."""

    def __init__(self, binaries: Path, device: str, data: Path | None, scratch: Path):
        self.binaries, self.device, self.data, self.scratch = binaries, device, data, scratch
        self.threads = len(os.sched_getaffinity(0))
        self.choices: dict[str, dict] = {}

    def binary(self, work: Work) -> list[str]:
        return [str(self.binaries / work.experiment), *work.arguments()]

    def settings(self, work: Work) -> str:
        """As our side resolves them, for the other."""
        shown = unwatched([*self.binary(work), "--show-settings"])
        where = {"folder": str(self.data / "mnist")} if work.images else {}
        return json.dumps({**tomllib.loads(shown), "device": self.device, "threads": self.threads, **where})

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, str(HERE / "experiments.py"), *arguments]

    def tune(self, name: str, work: Work) -> None:
        self.choices[name] = json.loads(unwatched(self.python("tune", work.experiment, self.settings(work))))

    def ours(self, work: Work) -> Measured:
        with tempfile.TemporaryDirectory(dir=self.scratch) as out:
            data = ["--data-dir", str(self.data)] if work.images else []
            command = [*self.binary(work), "--device", self.device, "--quiet", "--out", out, *data]
            seconds, mebibytes, _ = watched(command)
            return Measured(seconds, mebibytes, work.read(Path(out) / work.experiment / "latest"))

    def theirs(self, side: str, name: str, work: Work) -> Measured:
        choice = [json.dumps(self.choices[name])] if side == "tuned" else []
        seconds, mebibytes, out = watched(self.python(side, work.experiment, self.settings(work), *choice))
        return Measured(seconds, mebibytes, json.loads(out))

    def start_up(self, work: Work) -> list[float]:
        """Seconds until our side knows its settings, and until the other has imported what it needs."""
        show = [*self.binary(work), "--show-settings"]
        sides = [[watched(show)[0], watched(self.python("noop"))[0]] for _ in range(3)]
        return [statistics.median(side) for side in zip(*sides)]


def tolerance_of_accuracy(epochs: int) -> float:
    """What seeds explain: more while training has only begun."""
    return 0.02 if epochs >= 3 else 0.05


def check(name: str, ours: Found, theirs: Found, epochs: int) -> None:
    """A speed is worth nothing where the work was not the same."""
    if ours.keys() != theirs.keys():
        sys.exit(f"bench: {name}: the sides found different things: {list(ours)} and {list(theirs)}")
    for key in ours:
        a, b = ours[key], theirs[key]
        if isinstance(a, list):
            error = (statistics.variance(a) / len(a) + statistics.variance(b) / len(b)) ** 0.5
            a, b = statistics.fmean(a), statistics.fmean(b)
            fits, bound = abs(a - b) <= 4 * error, f"4 standard errors, {4 * error:.4f}"
        elif key.startswith("accuracy"):
            tolerance = tolerance_of_accuracy(epochs)
            fits, bound = abs(a - b) <= tolerance, f"{100 * tolerance:.0f} points"
        else:
            fits, bound = max(a, b) <= 2 * min(a, b), "a factor of 2"
        if not fits:
            far = f"{key} is {a:.4f} here and {b:.4f} in PyTorch, further apart than {bound}"
            sys.exit(f"bench: {name}: {far}: the work differs")


def result(found: Found) -> str:
    """What a table tells of it."""
    parts = []
    for key, value in found.items():
        if isinstance(value, list):
            parts.append(f"mean {key} {statistics.fmean(value):,.{0 if key == 'steps' else 3}f}")
        elif key.startswith("accuracy"):
            parts.append(f"{key.removeprefix('accuracy, ')}: {100 * value:.2f} %")
    return "; ".join(parts)


def unpack(source: Path | None, target: Path) -> Path:
    """MNIST's files, unpacked, for both sides."""
    target.mkdir(parents=True)
    for name in IDX:
        candidates = [source / name, source / f"{name}.gz"] if source else []
        found = next((path for path in candidates if path.exists()), None)
        if found is None:
            sys.exit(
                "bench: experiments on images need MNIST's four IDX files in $FLATLAND_DATA/mnist or "
                f"../shared/data/mnist; {name} is missing (--only minimal-ratio does without)"
            )
        content = found.read_bytes()
        (target / name).write_bytes(gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content)
    return target.parent


def ways(choice: dict) -> str:
    """A choice of tuned variants, in words."""
    phases = []
    for phase, values in choice.items():
        plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
        nested = {key: value for key, value in values.items() if isinstance(value, dict)}
        parts = [", ".join(f"{key} {str(value).lower()}" for key, value in plain.items())]
        grouped: dict[str, list[str]] = {}
        for key, variant in nested.items():
            grouped.setdefault(", ".join(f"{k} {str(v).lower()}" for k, v in variant.items()), []).append(key)
        parts += [f"{' and '.join(keys)} ({text})" for text, keys in grouped.items()]
        phases.append(f"{phase}: {', '.join(parts)}")
    return "; ".join(phases)


def table(chosen: dict[str, Work], measured: dict[str, dict[str, list[Measured]]]) -> list[str]:
    heads = ["run", "Flatland, s", "peer", "peer, s", "peer / Flatland"]
    heads += ["Flatland, MiB", "peer, MiB", "Flatland / peer", "found: Flatland", "found: peer"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, work in chosen.items():
        ours = measured[name]["flatland"]
        for side in work.peers:
            theirs = measured[name].get(side)
            if not theirs:
                continue
            # Round by round: what ran next to each other is compared.
            pairs = list(zip(ours, theirs))
            cells = [
                work.text,
                told([one.seconds for one in ours], 2),
                NAMES[side],
                told([one.seconds for one in theirs], 2),
                told([their.seconds / our.seconds for our, their in pairs], 2),
                told([one.mebibytes for one in ours], 0),
                told([one.mebibytes for one in theirs], 0),
                told([our.mebibytes / their.mebibytes for our, their in pairs], 2),
                result(ours[0].found),
                result(theirs[0].found),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench experiments", allow_abbrev=False)
    parser.add_argument("--binaries", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--notebook-rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--only")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def measure(bench: Bench, chosen: dict[str, Work], rounds: int, notebook_rounds: int, epochs: int) -> dict:
    found: dict[str, dict[str, list[Measured]]] = {name: {} for name in chosen}
    for name, work in chosen.items():
        say(f"{name}: choosing PyTorch's fastest way")
        bench.tune(name, work)
        say(f"{name}: {ways(bench.choices[name])}")
        for number in range(rounds):
            sides = [side for side in work.peers if side != "notebook" or number < notebook_rounds]
            for side in ("flatland", *sides):
                one = bench.ours(work) if side == "flatland" else bench.theirs(side, name, work)
                found[name].setdefault(side, []).append(one)
                numbers = f"{one.seconds:.2f} s, {one.mebibytes:.0f} MiB; {result(one.found)}"
                say(f"{name}, round {number + 1} of {rounds}: {NAMES[side]}: {numbers}")
                check(name, found[name]["flatland"][0].found, one.found, epochs)
    return found


def main() -> None:
    options = arguments()
    # Ended from outside, too, it leaves neither files nor a side behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    every = works(options.epochs, options.points)
    names = options.only.split(",") if options.only else list(every)
    unknown = [name for name in names if name not in every]
    if unknown:
        sys.exit(f"bench: unknown to --only: {', '.join(unknown)}; known are {', '.join(every)}")
    chosen = {name: every[name] for name in names}
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        sys.exit("bench: --device cuda: PyTorch finds no usable GPU")
    with tempfile.TemporaryDirectory(prefix="flatland-bench-") as scratch:
        images = any(work.images for work in chosen.values())
        data = unpack(options.data, Path(scratch) / "data" / "mnist") if images else None
        bench = Bench(options.binaries, options.device, data, Path(scratch))
        start = bench.start_up(next(iter(chosen.values())))
        measured = measure(bench, chosen, options.rounds, options.notebook_rounds, options.epochs)
    notebook = f"{options.notebook_rounds} of notebook style, " if options.notebook_rounds < options.rounds else ""
    accuracy = 100 * tolerance_of_accuracy(options.epochs)
    images_read = "reading MNIST and " if images else ""
    on_gpu = "; memory of the GPU is not in it" if cuda else ""
    chosen_ways = ". ".join(f"{name}: {ways(bench.choices[name])}" for name in chosen)
    lines = [
        f"Whole runs, from the start of a process to its exit, {images_read}importing PyTorch included; device "
        f"{options.device}, {bench.threads} cores for either side. Our side also writes its tables, figures, weights "
        f"and page. Preset `paper`, scaled as the rows say. Medians (min–max) of {options.rounds} round(s), {notebook}"
        "the sides in turn; ratios of time above 1 mean that Flatland is faster, of memory below 1 that it needs less.",
        "", *table(chosen, measured), "",
        "- Memory: the peak of the sum of proportional set sizes (PSS) over a side's processes, read whenever their "
        f"resident sets, looked at every {1000 * LOOK:.0f} ms, have grown by a hundredth, and once a second{on_gpu}.",
        f"- Start-up alone: {start[0]:.2f} s until our binary has its settings, {start[1]:.2f} s for Python's imports.",
        f"- Both sides must have found the same: test accuracies within {accuracy:.0f} points, norms of gradients and "
        "Jacobians (batch 100) within a factor of 2, means over the runs of minimal-ratio within 4 standard errors of "
        "their difference.",
        "- PyTorch, tuned: data in memory, indexed batches, no host round trips within an epoch, forked processes with "
        "their share of the cores that see the same data, glibc's allocator told to keep blocks where faster; the "
        f"fastest of its variants in eager mode (torch.compile was not tried), found one setting at a time by short trials, "
        f"for time, not for memory. Chosen: {chosen_ways}.",
        "- minimal-ratio: our Hessians are a closed form for dense networks, PyTorch's are torch.func's.",
        "- PyTorch, notebook style: a Dataset and a DataLoader with transforms a sample, losses read at every step and hits "
        "counted sample by sample, as the report's notebooks do, one model after the other.",
        *([f"- GPU: {torch.cuda.get_device_name()}."] if cuda else []),
        *origin(),
    ]  # fmt: skip
    # A part does not replace the whole.
    part = "".join(f"-{name}" for name in names) if options.only else ""
    title = f"Whole experiments{' on CUDA' * cuda}" + (f": {', '.join(names)}" if options.only else "")
    write(options.page, f"experiments{'-cuda' * cuda}{part}", title, lines)


if __name__ == "__main__":
    main()
