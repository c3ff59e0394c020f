"""What the benchmarks of scripts/bench share: how a table tells its numbers, and where it goes."""

import os
import platform
import re
import statistics
import subprocess
from pathlib import Path

import torch


def told(values: list[float], digits: int) -> str:
    """Median (smallest–largest)."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def origin() -> list[str]:
    """The machine, the versions, the command; and whether other programs were at work."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = run("git", "rev-parse", "--short", "HEAD") or "none"
    commit += " with changes" if run("git", "status", "--porcelain", "--untracked-files=no") else ""
    busy = os.environ["BUSY"]
    return [
        f"- Machine: {cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores. Versions: PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}, {run('rustc', '--version')}, libtorch 2.11.0. Commit: {commit}.",
        f"- Command: `{os.environ['COMMAND']}`.",
        *([f"- **Not to be relied on**: other programs were at work when it started: {busy}."] if busy else []),
    ]


def write(target: Path, name: str, title: str, lines: list[str]) -> None:
    """Puts the lines between the markers of the section, which is made where it is missing; prints them too."""
    text = "\n".join(lines)
    start, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    page = target.read_text() if target.exists() else "# Benchmarks\n"
    if start not in page or end not in page:
        page += f"\n## {title}\n\n{start}\n{end}\n"
    before, rest = page.split(start, 1)
    after = rest.split(end, 1)[1]
    part = target.with_suffix(".part")
    part.write_text(f"{before}{start}\n{text}\n{end}{after}")
    part.replace(target)
    print(text)
