"""Curvature and loss surfaces of LeNet: crates/lab/examples/geometry.rs against PyTorch (geometry.py), in turn.

Started by scripts/bench, which builds the example and sets the number of threads. What the example takes:

    geometry TASK --weights FILE --directions FILE --data DIR --examples N [--vectors K] [--tolerance T] [--points N]
             [--seed S] [--device D] --rounds R

- LeNet with the weights of FILE (safetensors, PyTorch's names), the mean cross-entropy over the first N training images of
  DIR/mnist (IDX, packed or not; padded to 32x32, normalised by 0.1307 and 0.3081), f32, no weight decay, all cores.
- `--directions`: safetensors, f32: `vectors` [8, P] of norm 1, `u` and `v` [P]; P flat in the order of PyTorch's state_dict.
- `--seed`: of whatever the task draws (a Lanczos start, the probes of a trace). `--rounds`: so many lines, one a measurement.
- `seconds` is of warm code: an untimed call comes first (for `top` and `trace` one product is enough), reading files and
  starting threads are not in it. What an algorithm computes once for a θ and needs in the task (first-order passes, say) may be
  kept from that first call on, as the peers keep theirs.

One line of JSON each, other keys are ignored:

    hvp, ggn  {"task": "hvp", "vectors": 8, "products": 8, "seconds": 1.2, "norms": [‖H v‖ of each vector]}
              the first K of `vectors` as one block, once or several times over (`products` in all)
    top       {"task": "top", "eigenvalues": [five, descending], "residuals": [‖H v - λ v‖ / |λ|], "products": 20, "seconds": 9.8}
              each residual at most T
    trace     {"task": "trace", "trace": 122.1, "standard_error": 2.4, "probes": 200, "seconds": 99.0}
              ends when the standard error is at most T times the trace; `probes` are products, of any estimator
    surface   {"task": "surface", "points": 2601, "seconds": 60.0, "losses": [all, rows of b, columns of a]}
              the mean loss at θ + a u + b v, a and b each N points from -1 to 1
    spectrum  {"task": "spectrum", "products": 100, "seconds": 50.0}
              has no peer (PyHessian's calls torch.eig, which PyTorch no longer has) and is not called here
"""

import argparse
import importlib.metadata
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from page import origin, told, write

HERE = Path(__file__).parent
NAMES = {"flatland": "Flatland", "curvlinops": "curvlinops", "pyhessian": "PyHessian", "pytorch": "PyTorch, tuned"}
EIGENVALUES = 5
# Relative: what rounding (f32) leaves of the norms of products and of losses.
OF_NORMS, OF_LOSSES = 1e-3, 1e-4
# PyHessian's tolerance is of the change between two steps, which says less than a residual: found to hold nonetheless.
OF_PYHESSIAN = 0.02
# Of the trace.
STANDARD_ERROR = 0.02


@dataclass
class Work:
    """What both sides do."""

    task: str
    text: str
    peers: tuple[str, ...]
    unit: str
    vectors: int = 1

    @property
    def rate(self) -> bool:
        """Products per second, not seconds."""
        return self.task in ("hvp", "ggn")


def works(points: int, device: str) -> dict[str, Work]:
    """All that is measured, by the names of --only. On a GPU, the peers that are there, PyHessian not among them."""
    there = {"pytorch"} | {name for name in ("curvlinops", "pyhessian") if device == "cpu" or name != "pyhessian" and find_spec(name)}
    every = all_works(points)
    for work in every.values():
        work.peers = tuple(peer for peer in work.peers if peer in there)
    return every


def all_works(points: int) -> dict[str, Work]:
    products = ("curvlinops", "pytorch")
    return {
        "hvp": Work("hvp", "Hessian-vector products, one vector", products, "products/s"),
        "block": Work("hvp", "Hessian-vector products, a block of 8", products, "products/s", vectors=8),
        "ggn": Work("ggn", "Gauss-Newton-vector products, one vector", products, "products/s"),
        "ggn-block": Work("ggn", "Gauss-Newton-vector products, a block of 8", products, "products/s", vectors=8),
        "top": Work("top", "the 5 largest eigenvalues", ("curvlinops", "pyhessian", "pytorch"), "s"),
        "trace": Work("trace", "the trace to a standard error of 2 %", ("pyhessian", "pytorch"), "s", vectors=8),
        "surface": Work("surface", f"a plane of {points} x {points} losses", ("pytorch",), "s"),
    }


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def ran(command: list[str]) -> str:
    """What it printed. In a session of its own, so that its processes end with it."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, errors = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode != 0:
        sys.exit(f"bench: {' '.join(command)[:200]} failed:\n{errors[-2000:]}")
    return out


class Bench:
    """Both sides, on the same files."""

    def __init__(self, options: argparse.Namespace, scratch: Path):
        self.options = options
        self.weights = options.weights or scratch / "weights.safetensors"
        self.directions = scratch / "directions.safetensors"
        self.choices: dict[str, dict[str, dict]] = {}
        # By peer, matrix and vectors: products are tuned once, for all that is made of them.
        self.tuned: dict[tuple[str, str, int], dict] = {}

    def files(self) -> list[str]:
        files = ["--data", self.options.data, "--weights", self.weights, "--directions", self.directions]
        return [*map(str, files), "--examples", str(self.options.examples), "--device", self.options.device]

    def python(self, *arguments: str) -> str:
        return ran([sys.executable, str(HERE / "geometry.py"), *arguments])

    def prepare(self) -> None:
        if not self.options.weights:
            say("training LeNet for two epochs")
            self.python("train", "--data", str(self.options.data), "--weights", str(self.weights))
        self.python("draw", "--weights", str(self.weights), "--directions", str(self.directions))

    def tune(self, name: str, work: Work) -> None:
        arguments = [*self.files(), "--vectors", str(work.vectors)]
        self.choices[name] = {}
        for peer in work.peers:
            matrix = "hvp" if work.task in ("top", "trace") else work.task
            key = (peer, matrix, 1 if peer == "pyhessian" else work.vectors)
            if key not in self.tuned:
                task = work.task if peer == "pyhessian" else matrix
                self.tuned[key] = json.loads(self.python("tune", peer, task, *arguments))
            choice = self.tuned[key]
            if work.task == "top" and "way" in choice:
                choice = json.loads(self.python("tune", peer, "top", *arguments, "--choice", json.dumps(choice)))
            self.choices[name][peer] = choice

    def ours(self, work: Work, seed: int) -> dict:
        tolerance = STANDARD_ERROR if work.task == "trace" else self.options.tolerance
        arguments = [*self.files(), "--vectors", str(work.vectors), "--tolerance", str(tolerance)]
        arguments += ["--points", str(self.options.points), "--seed", str(seed), "--rounds", "1"]
        return json.loads(ran([str(self.options.ours), work.task, *arguments]))

    def theirs(self, name: str, peer: str, work: Work, seed: int) -> dict:
        options = self.options
        arguments = [*self.files(), "--vectors", str(work.vectors), "--tolerance", str(options.tolerance)]
        arguments += ["--points", str(options.peer_points), "--probes", str(options.probes), "--seed", str(seed)]
        repeats = max(1, 4 // work.vectors) if options.device == "cpu" else 20
        arguments += ["--repeats", str(repeats), "--choice", json.dumps(self.choices[name][peer])]
        return json.loads(self.python("measure", peer, work.task, *arguments))


def near(what: str, ours: float, theirs: float, bound: float) -> None:
    if not abs(ours - theirs) <= bound * abs(theirs):
        sys.exit(f"bench: {what}: {ours} here, {theirs} at the peer, further apart than {bound}: the work differs")


def farthest(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))


def check(work: Work, peer: str, ours: dict, theirs: dict, options: argparse.Namespace) -> None:
    """A speed is worth nothing where the work was not the same."""
    if work.rate:
        if not len(ours["norms"]) == len(theirs["norms"]) == work.vectors:
            sys.exit(f"bench: {work.text}: {len(ours['norms'])} norms here, {len(theirs['norms'])} at the peer")
        for a, b in zip(ours["norms"], theirs["norms"]):
            near(f"{work.text}, ‖H v‖", a, b, OF_NORMS)
    elif work.task == "top":
        # An eigenvalue is within its residual of the truth, on either side.
        bound = OF_PYHESSIAN if peer == "pyhessian" else 2 * options.tolerance
        if not len(ours["eigenvalues"]) == len(theirs["eigenvalues"]) == EIGENVALUES:
            sys.exit(f"bench: {work.text}: {len(ours['eigenvalues'])} here, {len(theirs['eigenvalues'])} at the peer")
        for number, (a, b) in enumerate(zip(ours["eigenvalues"], theirs["eigenvalues"])):
            near(f"eigenvalue {number + 1}, {NAMES[peer]}", a, b, bound)
        if max(ours["residuals"]) > 1.01 * options.tolerance:
            sys.exit(f"bench: our residuals are {ours['residuals']}, above the tolerance")
    elif work.task == "trace":
        error = math.hypot(ours["standard_error"], theirs["standard_error"])
        far = abs(ours["trace"] - theirs["trace"])
        if not far <= 4 * error:
            traces = f"{ours['trace']} here, {theirs['trace']} at the peer"
            sys.exit(f"bench: trace: {traces}, further apart than 4 joint standard errors of {error}")
        if ours["standard_error"] > 1.001 * STANDARD_ERROR * abs(ours["trace"]):
            sys.exit(f"bench: our trace ended at a standard error of {ours['standard_error']}, above 2 %")
    else:
        side, few = options.points, options.peer_points
        step = (side - 1) // (few - 1)
        if (len(ours["losses"]), len(theirs["losses"])) != (side * side, few * few):
            sys.exit(f"bench: {len(ours['losses'])} losses here, {len(theirs['losses'])} at the peer")
        for row in range(few):
            for column in range(few):
                a, b = ours["losses"][step * (row * side + column)], theirs["losses"][row * few + column]
                near(f"loss at point ({column}, {row}) of {few} x {few}", a, b, OF_LOSSES)


def needed(found: list[dict]) -> int:
    """Probes until the standard error is 2 % of the trace, by the spread of all probes of all rounds."""
    values = [value for one in found for value in one["values"]]
    return math.ceil(statistics.variance(values) / (STANDARD_ERROR * statistics.fmean(values)) ** 2)


def numbers(work: Work, side: str, found: list[dict], options: argparse.Namespace) -> list[float]:
    """What the table compares, a round each: products per second, or seconds of the whole work."""
    if work.rate:
        return [one["products"] / one["seconds"] for one in found]
    if side != "flatland" and work.task == "trace":
        return [one["seconds"] * needed(found) / one["probes"] for one in found]
    if side != "flatland" and work.task == "surface":
        return [one["seconds"] * options.points**2 / one["points"] for one in found]
    return [one["seconds"] for one in found]


def how(work: Work, side: str, found: list[dict]) -> str:
    """How much work it was, from the first round."""
    one = found[0]
    if work.task == "top":
        products = statistics.median(one["products"] for one in found)
        return f"{products:.0f} products, residuals at most {max(max(one['residuals']) for one in found):.0e}"
    if work.task == "trace":
        count = statistics.median(one["probes"] for one in found) if side == "flatland" else needed(found)
        return f"{count:.0f} probes, trace {statistics.fmean(one['trace'] for one in found):.1f}"
    return f"{one['points']:,} points measured" if work.task == "surface" else ""


def ways(choice: dict) -> str:
    order = ("way", "columns", "pool", "channels_last", "chunk", "kept", "processes", "threads", "ncv")
    # What one vector, or a single batch of everything, makes meaningless is left out.
    hidden = {"columns"} if choice.get("columns") == "one" else set()
    hidden |= {"chunk"} if "way" not in choice and choice.get("kept") else set()
    return ", ".join(
        f"{key} {str(choice[key]).lower()}" for key in order if choice.get(key) is not None and key not in hidden
    )


def table(chosen: dict[str, Work], measured: dict, options: argparse.Namespace) -> list[str]:
    heads = ["work", "unit", "Flatland", "how", "peer", "the peer's", "how", "times faster"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, work in chosen.items():
        ours = numbers(work, "flatland", measured[name]["flatland"], options)
        for peer in work.peers:
            theirs = numbers(work, peer, measured[name][peer], options)
            # Round by round: what ran next to each other is compared.
            ratios = [a / b if work.rate else b / a for a, b in zip(ours, theirs)]
            cells = [
                work.text,
                work.unit,
                told(ours, 2),
                how(work, "flatland", measured[name]["flatland"]),
                NAMES[peer],
                told(theirs, 2),
                how(work, peer, measured[name][peer]),
                told(ratios, 2),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def agreement(chosen: dict[str, Work], measured: dict) -> list[str]:
    """How close the sides came, worst of all rounds."""
    parts = []
    for name, work in chosen.items():
        key = "norms" if work.rate else "eigenvalues" if work.task == "top" else None
        if key is None:
            continue
        for peer in work.peers:
            pairs = zip(measured[name]["flatland"], measured[name][peer])
            parts.append(f"{work.text}, {NAMES[peer]}: {max(farthest(a[key], b[key]) for a, b in pairs):.0e}")
    return [f"- Largest relative differences of norms and eigenvalues found: {'; '.join(parts)}."] if parts else []


def measure(bench: Bench, chosen: dict[str, Work]) -> dict:
    options = bench.options
    found: dict[str, dict[str, list[dict]]] = {}
    for name, work in chosen.items():
        say(f"{name}: choosing the peers' fastest ways")
        bench.tune(name, work)
        for peer, choice in bench.choices[name].items():
            say(f"{name}: {NAMES[peer]}: {ways(choice)}")
        found[name] = {side: [] for side in ("flatland", *work.peers)}
        for number in range(options.rounds):
            for side in ("flatland", *work.peers):
                one = bench.ours(work, number) if side == "flatland" else bench.theirs(name, side, work, number)
                found[name][side].append(one)
                brief = {key: value for key, value in one.items() if key not in ("losses", "values", "norms")}
                say(f"{name}, round {number + 1} of {options.rounds}: {NAMES[side]}: {json.dumps(brief)}")
                if side != "flatland":
                    check(work, side, found[name]["flatland"][number], one, options)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench geometry", allow_abbrev=False)
    parser.add_argument("--ours", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    defaults = {"rounds": 5, "examples": 10_000, "points": 51, "peer-points": 11, "probes": 48}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.peer_points < 2 or (options.points - 1) % (options.peer_points - 1) != 0:
        parser.error("--points must be one more than a multiple of --peer-points less 1, so that the grids share points")
    return options


def gpu() -> str:
    found = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return f"- GPU: {found.stdout.strip()}."


def main() -> None:
    options = arguments()
    # Ended from outside, too, it leaves neither files nor a side behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    every = works(options.points, options.device)
    names = options.only.split(",") if options.only else list(every)
    unknown = [name for name in names if name not in every]
    if unknown:
        sys.exit(f"bench: unknown to --only: {', '.join(unknown)}; known are {', '.join(every)}")
    chosen = {name: every[name] for name in names}
    with tempfile.TemporaryDirectory(prefix="flatland-bench-") as scratch:
        bench = Bench(options, Path(scratch))
        bench.prepare()
        measured = measure(bench, chosen)
    versions = ", ".join(
        f"{name} {importlib.metadata.version(package)}"
        for name, package in [("curvlinops", "curvlinops-for-pytorch"), ("PyHessian", "pyhessian"), ("SciPy", "scipy")]
        if find_spec(name.lower())
    )
    chosen_ways = ". ".join(
        f"{name}: " + "; ".join(f"{NAMES[peer]} ({ways(choice)})" for peer, choice in peers.items())
        for name, peers in bench.choices.items()
    )
    tasks = {work.task for work in chosen.values()}
    on_cpu = options.device == "cpu"
    lines = [
        f"LeNet (61,706 parameters) after two epochs, the first {options.examples:,} training images of MNIST (32x32, normalised), mean "
        f"cross-entropy, f32, no weight decay, tolerance {options.tolerance:g}, device {options.device}. The same weights, images and vectors for both sides, all "
        "cores for either. Both sides are warm: start-up, reading files and a first call are not in the times. Medians (min–max) "
        f"of {options.rounds} round(s), the sides in turn; above 1 in the last column means that Flatland is faster.",
        "", *table(chosen, measured, options), "",
        *(["- Eigenvalues: curvlinops and PyTorch, tuned, by SciPy's eigsh (ARPACK), which stops on residuals as ours, with the number of Lanczos vectors (ncv) that needs the fewest products" + ("; PyHessian by power "
           "iteration with deflation, whose tolerance is of the change between two steps" if on_cpu else "") + ". Residuals: ‖H v - λ v‖ / |λ|."]
          if "top" in tasks else []),
        *([f"- Trace: ours runs until its standard error is 2 % of the trace. The peers' Hutchinson runs {options.probes} probes a round; "
           "the probes that it needs are told by the spread of all its probes, (s / (2 % of the trace))², and its time is that many "
           "times a probe's."] if "trace" in tasks else []),
        *([f"- Plane: PyTorch measures {options.peer_points} x {options.peer_points} of its points and is scaled to all; ours measures all."]
          if "surface" in tasks else []),
        "- Both sides must have found the same: norms of products within 1e-3, eigenvalues within twice the tolerance (PyHessian: 2 %), "
        "traces within 4 joint standard errors, losses within 1e-4.",
        *agreement(chosen, measured),
        "- The peers' settings: the fastest of "
        + ("threads or a process a core, of " if on_cpu else "")
        + "ReLU before or after the pooling or its maximum by views, of two layouts, of chunks of "
        + ("50 to 1,000" if on_cpu else "500 to 10,000")
        + " and, for blocks, of a matrix or column after column, one setting at a time by short trials"
        + (" on 2,500 images, the least of three each; glibc's allocator told to keep blocks" if on_cpu else "")
        + f", eager mode (torch.compile was not tried). PyTorch, tuned: the fastest of double "
        "backward (its first-order graph kept or not), forward over reverse and reverse over forward mode, and Pearlmutter's R-operator written out for "
        f"LeNet ('kept': what does not depend on the vector is kept). Chosen: {chosen_ways}.",
        *([] if on_cpu else ["- f32 products on both sides, no TF32; ours asks for cuDNN's deterministic algorithms, PyTorch does not.", gpu()]),
        *([f"- {versions}."] if versions else []),
        *origin(),
    ]  # fmt: skip
    # A part does not replace the whole.
    part = "".join(f"-{name}" for name in names) if options.only else ""
    part += "" if options.device == "cpu" else f"-{options.device.partition(':')[0]}"
    title = f"Curvature and loss surfaces{'' if options.device == 'cpu' else ' on CUDA'}" + (f": {', '.join(names)}" if options.only else "")
    write(options.page, f"geometry{part}", title, lines)


if __name__ == "__main__":
    main()
