"""What a checkpoint of GenAR holds and what a tiny network answers, frozen. Rewrite with

    python tests/models/genar/golden.py

when the maths changes on purpose, and say in the changelog what it means for saved models.
"""

import json
from pathlib import Path

import torch

from stgen.models.genar._config import GenARConfig
from stgen.models.genar._network import GenARNetwork

FILE = Path(__file__).with_name("golden.json")
F, G, B = 3, 6, 4


def network(**changes):
    """Weights without a random number: a sine wave through every tensor."""
    config = GenARConfig(width=8, n_layers=1, n_heads=2, scales=(1, 3, 6), n_tokens=12, **changes)
    net = GenARNetwork(config, n_features=F, n_genes=G)
    with torch.no_grad():
        for name, value in sorted(net.state_dict().items()):
            if value.is_floating_point():
                wave = 0.2 * torch.sin(torch.arange(value.numel()) + len(name)).reshape(value.shape)
                value.copy_(wave.abs() + 0.5 if name.endswith(("sd", "resolution", "period")) else wave)
    return net.eval()


def batch():
    return {
        "key": torch.arange(B),
        "histology": torch.sin(torch.arange(B * F)).reshape(B, F),
        "neighbours": torch.cos(torch.arange(B * 2 * F)).reshape(B, 2, F),
        "xy": 100 * torch.sin(torch.arange(B * 2.0)).reshape(B, 2),
    }


def facts():
    """Names and shapes of the checkpoint, and the probability of each count for two genes of one spot."""
    result = {}
    for name, changes in {
        "default": {},
        "steered": {"steer": True},
        "categorical": {"head": "categorical"},
    }.items():
        net = network(**changes)
        path = next(iter(net.generate(batch(), n_paths=2, seed=1)))
        result[name] = {
            "keys": {key: list(value.shape) for key, value in net.state_dict().items()},
            "probability": path.probability[0][1, :2].tolist(),
        }
    return result


if __name__ == "__main__":
    FILE.write_text(json.dumps(facts(), indent=1) + "\n")
