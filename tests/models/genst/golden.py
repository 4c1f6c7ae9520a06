"""What a checkpoint of GenST holds and what a tiny network answers, frozen. Rewrite with

    python tests/models/genst/golden.py

when the maths changes on purpose, and say in the changelog what it means for saved models.
"""

import json
from pathlib import Path

import torch

from stgen.models.genst._config import GenSTConfig
from stgen.models.genst._network import GenSTNetwork

FILE = Path(__file__).with_name("golden.json")
F, G, B, PX = 3, 6, 4, 32
SMALL = {"n_tokens": 2, "token_width": 2, "n_codes": 3, "n_image_tokens": 2, "image_token_width": 2,
         "n_image_codes": 3, "hidden": 4}  # fmt: skip
NETWORKS = {
    "default": ({}, {"n_features": F}),
    "closed form": (
        {"translator": False, "nonlinear": False, "use_place": False, "n_neighbors": 0},
        {"n_features": F},
    ),
    "pixels": ({"back_end": "pixels"}, {"tile_px": PX}),
}


def network(changes, widths):
    """Weights without a random number: a sine wave through every tensor."""
    net = GenSTNetwork(GenSTConfig(**{**SMALL, **changes}), n_genes=G, **widths)
    with torch.no_grad():
        for name, value in sorted(net.state_dict().items()):
            if value.is_floating_point():
                wave = 0.2 * torch.sin(torch.arange(value.numel()) + len(name)).reshape(value.shape)
                positive = name.endswith(("sd", "mean", "period", "share", "variance", "target_total"))
                value.copy_(wave + 0.7 if positive else wave)
        net.largest.fill_(9)
    return net.eval()


def batch():
    return {
        "key": torch.arange(B),
        "histology": torch.sin(torch.arange(B * F)).reshape(B, F),
        "neighbours": torch.cos(torch.arange(B * 2 * F)).reshape(B, 2, F),
        "tiles": (torch.arange(B * PX * PX * 3) * 7919 % 251).to(torch.uint8).reshape(B, PX, PX, 3),
        "xy": 100 * torch.sin(torch.arange(B * 2.0)).reshape(B, 2),
    }


def facts():
    """Names and shapes of the checkpoint, expression of one spot, and the probability of each count for two genes of it."""
    result = {}
    for name, (changes, widths) in NETWORKS.items():
        net = network(changes, widths)
        path = next(iter(net.generate(batch(), n_paths=2, seed=1)))
        with torch.no_grad():
            expression = net.decode(net.expected_code(net.translate(batch())))
        result[name] = {
            "keys": {key: list(value.shape) for key, value in net.state_dict().items()},
            "expression": expression[1].tolist(),
            "probability": path.probability[0][1, :2].tolist(),
        }
    return result


if __name__ == "__main__":
    FILE.write_text(json.dumps(facts(), indent=1) + "\n")
