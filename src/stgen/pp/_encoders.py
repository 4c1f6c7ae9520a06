"""What turns tiles into features: descriptors, a timm model by name, or a network or function of the user's.

An encoder is a function from tiles (B × p × p × 3, uint8) to features (B × F), with a name that is recorded
beside the features. A model fitted on one encoder refuses the features of another.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor, nn

logger = logging.getLogger("stgen")

DESCRIPTORS = "descriptors"
Tiles = NDArray[np.uint8]
# Colour statistics of ImageNet, which most published encoders were trained with.
_MEAN, _SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Encoder:
    """A function from tiles to features, and what to record about it."""

    name: str
    encode: Callable[[Tiles], Any]
    feature_names: list[str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Recorded in ``uns`` beside the name."""

    def __call__(self, tiles: Tiles) -> NDArray[np.float32]:
        try:
            features = self.encode(tiles)
        except Exception as error:
            error.add_note(
                f"The encoder {self.name!r} was given {len(tiles)} tiles of {tiles.shape[1]} × {tiles.shape[2]} pixels, "
                "RGB. If it wants another size, cut tiles with that `tile_px=`, or resize them in `transform=`."
            )
            raise
        if hasattr(features, "detach"):
            features = features.detach().float().cpu().numpy()
        if isinstance(features, (tuple, list, dict)):
            raise ValueError(
                f"The encoder {self.name!r} must return one array, tiles × features; it returns a "
                f"{type(features).__name__}. Wrap it in a function that picks the features."
            )
        features = np.asarray(features)
        if features.ndim != 2 or len(features) != len(tiles):
            raise ValueError(
                f"The encoder {self.name!r} must return tiles × features, here {len(tiles)} × F; it returns "
                f"shape {features.shape}. Pool tokens or maps to one vector per tile."
            )
        return features.astype(np.float32)


def make_encoder(
    encoder: Any,
    *,
    um_per_px: float,
    transform: Callable[[Tiles], Any] | None = None,
    encoder_kwargs: Mapping[str, Any] | None = None,
    accelerator: str = "auto",
) -> Encoder:
    """The encoder that a user asked for."""
    if encoder == DESCRIPTORS if isinstance(encoder, str) else False:
        return _descriptors(um_per_px)
    if isinstance(encoder, str):
        return _timm_encoder(
            encoder.removeprefix("timm:"), transform, dict(encoder_kwargs or {}), accelerator
        )
    if "torch" in sys.modules and isinstance(encoder, sys.modules["torch"].nn.Module):
        return _module_encoder(encoder, transform)
    if callable(encoder):
        name = getattr(encoder, "__name__", type(encoder).__name__)
        return Encoder(name, encoder if transform is None else lambda tiles: encoder(transform(tiles)))
    raise TypeError(
        "`encoder` must be 'descriptors', the name of a timm model, a torch module, or a function of tiles; "
        f"got {type(encoder).__name__}. Features that exist already go into `features=`."
    )


def _descriptors(um_per_px: float) -> Encoder:
    from ._descriptors import describe_tiles, descriptor_names

    def encode(tiles: Tiles) -> NDArray[np.float32]:
        # a few tiles at a time stay in the processor's cache, which is twice as fast
        parts = [describe_tiles(tiles[i : i + 8], um_per_px=um_per_px) for i in range(0, len(tiles), 8)]
        return np.concatenate(parts)

    return Encoder(DESCRIPTORS, encode, descriptor_names())


def _module_encoder(module: nn.Module, transform: Callable[[Tiles], Any] | None) -> Encoder:
    """A network of the user's, on the device where it is, with colours normalised as for ImageNet."""
    import torch

    place = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(0)).device
    prepare = transform or (lambda tiles: normalised(tiles, _MEAN, _SD))
    return Encoder(type(module).__name__, lambda tiles: _run(module, prepare(tiles), place))


def _timm_encoder(
    name: str, transform: Callable[[Tiles], Any] | None, kwargs: dict[str, Any], accelerator: str
) -> Encoder:
    """A timm model without its classifier, fed as it was trained: its size, its colour statistics."""
    timm = _import_timm()
    import torch

    from stgen.nn._devices import kind_of

    device = kind_of(accelerator)
    module = _create(timm, name, {"pretrained": True, "num_classes": 0} | kwargs)
    module = module.to(device)
    config = timm.data.resolve_model_data_config(module)
    size, mean, sd = tuple(config["input_size"][1:]), config["mean"], config["std"]
    prepare = transform or (lambda tiles: normalised(tiles, mean, sd, size=size))
    facts: dict[str, Any] = {}
    licence = dict(getattr(module, "pretrained_cfg", None) or {}).get("license")
    if licence:
        facts["licence"] = str(licence)
        logger.info("Weights of %s: licence %s.", name, licence)
    return Encoder(name, lambda tiles: _run(module, prepare(tiles), torch.device(device)), facts=facts)


def _run(module: nn.Module, tensor: Tensor, device: torch.device) -> Any:
    """One batch, in evaluation mode; the module is left in the mode it was in."""
    import torch

    with _evaluating(module), torch.inference_mode():
        return module(tensor.to(device) if hasattr(tensor, "to") else tensor)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def normalised(
    tiles: Tiles, mean: tuple[float, ...], sd: tuple[float, ...], *, size: tuple[int, int] | None = None
) -> Tensor:
    """Tiles as a float tensor B × 3 × p × p, resized if asked, with the colour statistics taken out."""
    import torch
    from torch.nn import functional as F

    # a copy: tiles may be read-only, which torch warns about
    tensor = torch.from_numpy(np.array(tiles)).permute(0, 3, 1, 2).float() / 255
    if size is not None and tuple(tensor.shape[2:]) != tuple(size):
        tensor = F.interpolate(tensor, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    return (tensor - torch.tensor(mean)[:, None, None]) / torch.tensor(sd)[:, None, None]


def _import_timm() -> Any:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise ImportError(
            f'timm encoders need timm and torchvision ({error}): pip install "stgen[histology]". '
            "`encoder='descriptors'` needs neither."
        ) from error
    return timm


def _create(timm: Any, name: str, kwargs: dict[str, Any]) -> nn.Module:
    import torch

    try:
        # layers are initialised before weights are loaded; that must not move the user's random state
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(name, **kwargs)
    except Exception as error:
        message = _why_not_created(timm, name, error)
        if message is None:
            raise
        raise ValueError(message) from error


def _why_not_created(timm: Any, name: str, error: BaseException) -> str | None:
    """One sentence on what to do, for the failures that users meet."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    text = " ".join(map(str, chain))
    repository = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if "GatedRepoError" in kinds or "gated" in text.lower() or "401 Client" in text or "403 Client" in text:
        return (
            f"The weights of {name!r} are gated: accept their terms at https://huggingface.co/{repository}, "
            "then log in with `hf auth login`. `encoder='descriptors'` needs no weights."
        )
    if "Unknown model" in text:
        import difflib

        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        return (
            f"timm has no model {name!r}"
            + (f"; did you mean {', '.join(close)}?" if close else ".")
            + " Models on the hub are named "
            "'hf-hub:organisation/model'. Features that exist already go into `features=`."
        )
    offline = {
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
        "ConnectionError",
        "URLError",
        "ConnectError",
        "HfHubHTTPError",
    }
    if kinds & offline:
        return (
            f"The weights of {name!r} could not be downloaded ({type(error).__name__}). Connect to the "
            "internet once, or copy the weights into the cache of Hugging Face (`HF_HOME`). "
            "`encoder='descriptors'` needs no weights."
        )
    return None
