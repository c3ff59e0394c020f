"""Whether PyTorch loads a LeNet that Rust wrote, and computes the same from it.

    $(scripts/reference/setup) scripts/reference/check_load.py WEIGHTS EXPECTED

WEIGHTS is a file of `snapshot::to_safetensors`; EXPECTED holds `inputs` and the `outputs` that Rust found.
"""

import sys

import torch
from networks import LeNet
from safetensors.torch import load_file


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    weights, expected = load_file(sys.argv[1]), load_file(sys.argv[2])
    lenet = LeNet().to(expected["inputs"].dtype)
    lenet.load_state_dict(weights, strict=True)
    with torch.no_grad():
        outputs = lenet(expected["inputs"])
    error = float((outputs - expected["outputs"]).norm() / outputs.norm())
    tolerance = 1e-10 if outputs.dtype == torch.float64 else 1e-5
    print(f"relative error {error:.1e}, allowed {tolerance:.0e}")
    sys.exit(error >= tolerance)


if __name__ == "__main__":
    main()
