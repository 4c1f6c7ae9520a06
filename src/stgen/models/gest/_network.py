"""The GeST network: what is around a place says what lies there.

A window is a square of cells around one of them. Its cells, put in order, are *context* tokens (meta cell and
place); a *query* is a place alone. In training one pass asks for every cell but the first from the cells before it.
The answer is a predicted profile ŷ, compared with every meta cell's profile: a distribution over the vocabulary.

B windows, N tokens of a window, Q queries, D width, T genes, K meta cells, p principal components.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn._grouped import PADDING, GroupedDecoder
from ...nn._network import Batch, Loss, Network
from ._config import LABEL_COMPONENTS, GeSTConfig
from ._parts import SpatialBlock, place_sinusoid, quantized_place
from ._vocabulary import Vocabulary

CORNERS = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
"""Corners of a window from which the order of its cells is measured."""
TURNS = 8
"""Ways to turn and mirror a square."""


class GeSTNetwork(Network):
    """See the module's text.

    Parameters
    ----------
    config
        Architecture.
    n_genes
        T.
    n_meta_cells, n_components
        Sizes of the vocabulary that :meth:`prepare` found. Without them there is none yet.
    classes
        Labels of niches that :meth:`keep_head` was given.
    """

    window_um: Tensor
    target_total: Tensor
    """Total to which counts of a cell are normalised."""
    head_weight: Tensor
    head_offset: Tensor
    head_within_sections: Tensor
    gene_share: Tensor
    """(T,) share of each gene in the counts of training cells."""

    def __init__(
        self,
        config: GeSTConfig,
        *,
        n_genes: int,
        n_meta_cells: int = 0,
        n_components: int = 0,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.n_genes = n_genes
        self.register_buffer("window_um", torch.tensor(float(config.window_um or math.nan)))
        self.register_buffer("target_total", torch.tensor(1.0))
        self.register_buffer("gene_share", torch.full((n_genes,), 1 / n_genes))
        self.words = Vocabulary(n_genes, n_meta_cells, n_components, len(config.levels))
        self.expression = nn.Linear(n_genes, width)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        blocks = [
            SpatialBlock(
                width,
                config.n_heads,
                ffn_ratio=config.ffn_ratio,
                dropout=config.dropout,
                distance_bias=config.distance_bias and config.use_place,
            )
            for _ in range(config.n_layers)
        ]
        self.decoder = GroupedDecoder(blocks)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.profile = nn.Linear(width, n_genes)
        self._empty_head(classes, n_components)
        self.log_temperature = nn.Parameter(torch.zeros(())) if config.logits == "euclid" else None

    # ----------------------------------------------------------------------------------------------- before training

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Find the vocabulary in training cells, (B, T) log-normalised ``expression``."""
        self.words.fit(
            lambda: (batch["expression"] for batch in batches),
            n_meta_cells=self.config.n_meta_cells,
            n_components=min(self.config.n_components, self.n_genes),
            levels=self.config.levels,
            seed=int(torch.randint(2**31, ())),
        )
        self._empty_head((), self.words.sizes()["n_components"])
        # tokens of about unit size, whatever the panel: their directions are learned, their scale is not
        spread = (self.words.profiles - self.words.mean).square().sum(1).mean().sqrt()
        scale = 1 / max(float(spread), 1e-3)
        nn.init.normal_(self.expression.weight, std=scale)
        nn.init.normal_(self.profile.weight, std=0.1 * scale)
        nn.init.zeros_(self.profile.bias)

    def sizes(self) -> dict[str, Any]:
        """Sizes of the vocabulary."""
        sizes = self.words.sizes()
        kept = {name: sizes[name] for name in ("n_meta_cells", "n_components")}
        return kept | {"classes": list(self.classes)}

    def _empty_head(self, classes: Sequence[str], n_components: int) -> None:
        n_features = 2 * min(n_components, LABEL_COMPONENTS) + 2 * self.config.width
        self.keep_head(classes, torch.zeros(len(classes), n_features), torch.zeros(len(classes)))

    def keep_head(
        self, classes: Sequence[str], weight: Tensor, offset: Tensor, *, within_sections: bool = False
    ) -> None:
        """Keep a linear head (C, F) that names niches, with the weights, and on which features it was learned."""
        self.classes = list(classes)
        self.register_buffer("head_within_sections", torch.tensor(within_sections))
        self.register_buffer("head_weight", weight.float())
        self.register_buffer("head_offset", offset.float())

    # ---------------------------------------------------------------------------------------------------- the tokens

    def table(self) -> Tensor:
        """(K, D): what each meta cell looks like to the network; made once a step, looked up for every token."""
        return self.look(self.words.profiles)

    def look(self, profile: Tensor) -> Tensor:
        """Log-normalised profiles (…, T) as tokens without place (…, D): cells need not be of the vocabulary."""
        return self.expression(profile - self.words.mean)

    def places(self, offset: Tensor) -> Tensor:
        """Offsets in µm from the centre of the window as shares of its side."""
        return offset / self.window_um if self.config.use_place else torch.zeros_like(offset)

    def where(self, place: Tensor) -> Tensor:
        """Tokens of places (…, 2) → (…, D)."""
        if not self.config.use_place:
            return torch.zeros(*place.shape[:-1], self.config.width, device=place.device)
        return place_sinusoid(quantized_place(place), self.config.width)

    def order(self, place: Tensor, size: Tensor, *, corner: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, N) order of a window's cells: drawn without replacement by weights |place − corner|^a, or sorted by them.

        ``noise`` (B, N) are standard Gumbel numbers; cells beyond ``size`` come last.
        """
        far = (place - corner[:, None]).square().sum(-1).clamp(min=1e-12).log() * (0.5 * self.config.order)
        key = far if noise is None else far + noise
        n = torch.arange(place.shape[1], device=place.device)
        return key.masked_fill(n >= size[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)

    # -------------------------------------------------------------------------------------------------- the answers

    def answer(self, h: Tensor) -> Tensor:
        """Predicted profiles ŷ (…, T) of hidden states (…, D)."""
        return self.profile(self.hidden(self.norm(h))) + self.words.mean

    def logits(self, h: Tensor) -> Tensor:
        """(…, K) from hidden states (…, D), without going through T for every token.

        ŷ = W h' + b, so ŷ·c = h'·(W c) + b·c: both matrices are folded with the vocabulary once a call. Profiles are
        measured from the mean profile, lest it outweigh what tells meta cells apart.
        """
        c = self.words.profiles - self.words.mean
        z = F.linear(self.hidden(self.norm(h)), c @ self.profile.weight, c @ self.profile.bias)
        if self.log_temperature is None:
            return z
        # −½|ŷ − c|² without |ŷ|², which all classes share
        return (z - 0.5 * c.square().sum(1)) * self.log_temperature.exp()

    def probabilities(self, h: Tensor) -> Tensor:
        """Distribution over meta cells (…, K)."""
        return self.logits(h).softmax(-1)

    # --------------------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch, *, generator: torch.Generator | None = None) -> Loss:
        """Mean over all queries of the batch; every cell of a window but the first is asked for once."""
        cell, size, place, label = batch["cell"], batch["size"], self.places(batch["offset"]), batch["label"]
        device, (b, n) = cell.device, cell.shape
        if n < 2:
            return self._no_loss()
        if self.config.augment and self.training:
            place = turned(place, torch.randint(TURNS, (b,), device=device, generator=generator))
        corner = CORNERS.to(device)[torch.randint(4, (b,), device=device, generator=generator)]
        gumbel = -torch.empty(b, n, device=device).exponential_(generator=generator).log()
        order = self.order(place, size, corner=corner, noise=gumbel)
        cell, label = cell.gather(1, order), label.gather(1, order)
        place = place.gather(1, order[..., None].expand(-1, -1, 2))

        context = self.table()[cell[:, :-1].clamp(min=0)] + self.where(place[:, :-1])
        # cells are in order and padding comes last, so that the order alone hides it from every real query
        step = torch.arange(n - 1, device=device)
        h = self.decoder(
            context,
            step,
            self.start + self.where(place[:, 1:]),
            step + 1,
            torch.cat([place[:, :-1], place[:, 1:]], dim=1),
        )
        asked = (step + 1 < size[:, None]) & (label[:, 1:] >= 0)
        if not asked.any():
            return self._no_loss()
        return self._loss_of(h[asked], label[:, 1:][asked])

    def _no_loss(self) -> Loss:
        """Of a batch of isolated cells: nothing can be asked, nothing is learned."""
        zero = torch.stack([p.sum() for p in self.parameters()]).sum() * 0.0
        return Loss(zero, {"nll": zero.detach()} if self.config.quantized else {})

    def _loss_of(self, h: Tensor, label: Tensor) -> Loss:
        words = self.words
        if not self.config.quantized:
            error = (self.answer(h) - words.profiles[label]).square().mean()
            return Loss(error, {})
        log_p = self.logits(h).log_softmax(-1)
        nll = [-log_p.gather(-1, label[:, None]).mean()]
        p = log_p.exp()
        for coarse, n in zip(words.coarse, words.level_sizes, strict=True):
            # a product with zeros and ones: adding columns one by one took a tenth of a training step
            with torch.autocast(p.device.type, enabled=False):
                mass = p @ F.one_hot(coarse, n).to(p.dtype)
            nll.append(-mass.gather(-1, coarse[label][:, None]).clamp(min=1e-9).log().mean())
        parts = {"nll": nll[0].detach()}
        return Loss(torch.stack(nll).mean(), parts)

    # --------------------------------------------------------------------------------------------------- asking

    def ask(
        self,
        tokens: Tensor,
        place: Tensor,
        size: Tensor,
        query: Tensor,
        *,
        corner: int = 0,
    ) -> Tensor:
        """Hidden states (B, Q, D) of places that are asked for, each for itself, given a window's cells.

        Parameters
        ----------
        tokens
            (B, N, D) cells without place, from :meth:`table` or :meth:`look`.
        place
            (B, N, 2) their places.
        size
            (B,) how many of them are cells; the others are padding.
        query
            (B, Q, 2) places.
        corner
            Which corner the order of the cells is measured from.
        """
        (b, n, _), q = tokens.shape, query.shape[1]
        step = torch.arange(n, device=tokens.device)
        order = self.order(place, size, corner=CORNERS[corner].to(place).expand(b, 2))
        tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
        place = place.gather(1, order[..., None].expand(-1, -1, 2))
        group = step.expand(b, n).masked_fill(step >= size[:, None], PADDING)
        alone = n + torch.arange(q, device=tokens.device).expand(b, q)
        return self.decoder(
            tokens + self.where(place),
            group,
            self.start + self.where(query),
            alone,
            torch.cat([place, query], dim=1),
        )

    @torch.no_grad()
    def filled(self, expression: Tensor, here: Tensor) -> Tensor:
        """Expression of some genes (B, T') as one of all (B, T): missing ones follow the components that fit best.

        A component moves a cell away from the mean as far as meta cells differ along it: without that, the many small
        ones together guess worse than the mean.
        """
        words = self.words
        seen = words.components[:, here]
        share = words.size / words.size.sum()
        spread = share @ (words.centres - share @ words.centres).square()
        # measured: errors within 7 % of those of a regression fitted to just these genes
        penalty = 1e-3 + 0.3 * spread.mean() / spread.clamp(min=1e-6 * float(spread.max()) + 1e-12)
        z = torch.linalg.solve(seen @ seen.T + penalty.diag(), seen @ (expression - words.mean[here]).T)
        out = words.mean + z.T @ words.components
        out[:, here] = expression
        return out


def turned(place: Tensor, how: int | Tensor) -> Tensor:
    """Windows (B, N, 2) turned and mirrored in one of eight ways, or each in its own (B,)."""
    how = torch.as_tensor(how, device=place.device).expand(len(place))
    swap, x, y = how % 2, 1 - 2 * (how // 2 % 2), 1 - 2 * (how // 4)
    place = torch.where(swap[:, None, None] == 1, place.flip(-1), place)
    return place * torch.stack([x, y], dim=-1)[:, None]
