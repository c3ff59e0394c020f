"""Writes the section of docs/benchmarks.md on how time grows, from what crates/lab/examples/scaling.rs measured.

    scaling.py RESULTS TARGET       RESULTS: its JSON lines; COMMAND, ROUNDS and BUSY in the environment
"""

import json
import os
import statistics
import sys
from pathlib import Path

from page import origin, told, write

# Within 10 % of the best.
NEAR = 1.1


def read(file: Path) -> dict:
    """Values over the rounds: over → series → x → [value]."""
    found: dict = {}
    for text in file.read_text().splitlines():
        line = json.loads(text)
        series = found.setdefault(line["over"], {}).setdefault(line["series"], {})
        series.setdefault(line["x"], []).append(line["value"])
    return found


def medians(series: dict) -> dict:
    return {x: statistics.median(values) for x, values in sorted(series.items())}


def table(head: str, places: list[float], rows: list[tuple[str, list[str]]], last: list[str]) -> list[str]:
    names = [head, *(f"{place:,.0f}" for place in places), *last]
    return ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"] + ["| " + " | ".join([name, *cells]) + " |" for name, cells in rows]


def some(places: list[float], count: int) -> list[float]:
    """The first, the last, and evenly many between them."""
    return places if len(places) <= count else [places[round(i * (len(places) - 1) / (count - 1))] for i in range(count)]


def models(found: dict) -> list[str]:
    places = some(sorted(next(iter(found.values()))), 6)
    rows = []
    for name, series in found.items():
        middle = medians(series)
        best = min(middle.values())
        knee = min(x for x, value in middle.items() if value <= NEAR * best)
        rows.append((name, [*(told(series[x], 1) for x in places), f"{best:.1f}", f"{knee:,.0f}"]))
    head = "µs per model and step; models:"
    return table(head, places, rows, ["best", "first within 10 % of it"])


def images(found: dict) -> list[str]:
    places = some(sorted(next(iter(found.values()))), 7)
    rows, sentences = [], []
    for name, series in found.items():
        middle = medians(series)
        first, last = min(middle), max(middle)
        times = middle[last] / middle[first]
        rows.append((name, [told([1e3 * value for value in series[x]], 1) for x in places]))
        per_image = {x: 1e6 * value / x for x, value in middle.items()}
        sentences.append(f"{name}: {times:.0f} times ({per_image[first]:.1f} µs an image at {first:,.0f}, {per_image[last]:.1f} µs at {last:,.0f})")
    growth = f"From {first:,.0f} to {last:,.0f} images, {last / first:.0f} times as many, time grows: " + "; ".join(sentences) + "."
    return [*table("LeNet, ms; images:", places, rows, []), "", growth]


def workers(found: dict) -> list[str]:
    places = some(sorted(next(iter(found.values()))), 8)
    rows = []
    for name, series in found.items():
        middle = medians(series)
        most = max(middle.values())
        knee = min(x for x, value in middle.items() if value >= most / NEAR)
        digits = 2 if most < 100 else 0
        rows.append((name, [*(told(series[x], digits) for x in places), f"{most / middle[places[0]]:.2f}", f"{knee:.0f}"]))
    return table("model-epochs per second; workers:", places, rows, ["most, in that of one worker", "first within 10 % of it"])


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = read(Path(sys.argv[1]))
    write(Path(sys.argv[2]), "scaling", "How time grows", [
        "![Time per model and step over the models of a stack, time over images, throughput over workers](figures/scaling.png)",
        "",
        f"f32, one thread a worker; noise of MNIST's shape. Medians (min–max) of {os.environ['ROUNDS']} round(s), all measurements in turn. Small networks: "
        "300 points, full batch, RMSprop, mean squared error, by our own kernels and by libtorch's operators (batched products, "
        "autograd). LeNet: batch 100, SGD with Nesterov momentum, cross-entropy. Workers: each trains "
        "a LeNet on 10,000 images, or a stack of 32 networks, whose epoch is a step.",
        "", *models(found["models"]),
        "", *images(found["images"]),
        "", *workers(found["workers"]),
        "", *origin(),
    ])


if __name__ == "__main__":
    main()
