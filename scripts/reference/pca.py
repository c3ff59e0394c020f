"""Writes crates/statistics/tests/fixtures/pca.json: what scikit-learn's PCA finds, for tests/pca.rs.

    $(scripts/reference/setup) scripts/reference/pca.py
"""

import json
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA

FILE = Path(__file__).parents[2] / "crates/statistics/tests/fixtures/pca.json"


def cases() -> dict[str, tuple[np.ndarray, int]]:
    """Rows and the number of components."""
    random = np.random.default_rng(0)
    walk = np.cumsum(random.normal(size=(24, 30)), axis=0)
    return {
        "wide, a walk": (walk, 2),
        "tall": (random.normal(size=(60, 5)) * [5, 3, 2, 1, 0.5], 3),
        "far from the origin": (random.normal(size=(30, 8)) * np.arange(8, 0, -1) ** 2 + 1000, 1),
        "all components": (random.normal(size=(6, 9)) * np.arange(1, 10), 5),
    }


def main() -> None:
    found = []
    for name, (rows, components) in cases().items():
        rows = rows.round(3)
        pca = PCA(components, svd_solver="full")
        scores = pca.fit_transform(rows)
        found.append(
            {
                "name": name,
                "rows": rows.tolist(),
                "scores": scores.tolist(),
                "components": pca.components_.tolist(),
                "explained_variance": pca.explained_variance_.tolist(),
                "explained_variance_ratio": pca.explained_variance_ratio_.tolist(),
                "mean": pca.mean_.tolist(),
            }
        )
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text("[\n" + ",\n".join(json.dumps(case) for case in found) + "\n]\n")


if __name__ == "__main__":
    main()
