"""The report: a captured share is a share, reliability is what a second measurement would agree on, chance is taken out."""

from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mutual_info_score

import stgen as stg
from stgen import _keys
from stgen.metrics import normalize_panel, pearson

N, G = 150, 16
SEEN, HIDDEN, FLAT = [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]


def sections(names, *, roles, n=N, random_state=0):
    """Genes that follow the image, genes that follow something else, genes that are Poisson noise, and a background."""
    rng = np.random.default_rng(random_state)
    total = n * len(names)
    image, other = rng.standard_normal((total, 6)), rng.standard_normal((total, 4))
    log_rate = np.full((total, G), np.log(20.0))
    log_rate[:, SEEN] += 0.6 * image[:, :4]
    log_rate[:, HIDDEN] += 0.6 * other
    log_rate[:, FLAT] = np.log(5.0)
    section = np.repeat(names, n)
    side = int(np.ceil(np.sqrt(n)))
    grid = 100.0 * np.stack(np.divmod(np.arange(n), side), axis=1)
    obs = pd.DataFrame(
        {_keys.LIBRARY: section, _keys.SPLIT: np.repeat(roles, n)}, index=[f"{s}_{i}" for i, s in enumerate(section)]
    )  # fmt: skip
    adata = ad.AnnData(
        rng.poisson(np.exp(log_rate)).astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=[f"g{i}" for i in range(G)]),
        obsm={_keys.SPATIAL: np.tile(grid, (len(names), 1)), _keys.HISTOLOGY: image.astype(np.float32)},
    )
    adata.uns["rates"] = np.exp(log_rate)
    return adata


def fitted(adata, *, max_epochs=12, **changes):
    import torch

    torch.set_num_threads(1)
    stg.models.GenST.setup_anndata(adata, library_key=_keys.LIBRARY, split_key=_keys.SPLIT)
    options = {
        "n_tokens": 6,
        "n_codes": 24,
        "n_image_tokens": 4,
        "n_image_codes": 12,
        "hidden": 16,
        "n_neighbors": 0,
    }
    model = stg.models.GenST(
        adata, random_state=0, **(options | {"nonlinear": False, "use_place": False} | changes)
    )
    model.train(max_epochs=max_epochs, accelerator="cpu", progress_bar=False, random_state=0)
    return model


@pytest.fixture(scope="module")
def parts():
    from stgen.models.genst import _capture, _code_use, _sections

    return SimpleNamespace(**{**vars(_sections), **vars(_code_use), **vars(_capture)})


@pytest.fixture(scope="module")
def adata():
    return sections(["s1", "s2", "s3", "s4", "s5"], roles=["train"] * 3 + ["test"] * 2)


@pytest.fixture(scope="module")
def model(adata):
    return fitted(adata)


@pytest.fixture(scope="module")
def report(model):
    return model.report(n_boot=200, random_state=0)


# genes ----------------------------------------------------------------------------------------------------------------


def test_what_the_image_shows_is_captured_and_what_it_does_not_is_not(report):
    captured = report.genes["captured"].to_numpy()
    assert (captured[SEEN] > 0.75).all()
    assert (captured[SEEN] < 1.1).all()
    assert (captured[HIDDEN] < 0.05).all()


def test_genes_that_are_noise_have_no_captured_share(report):
    noise = report.genes.iloc[FLAT]
    assert (noise["reliability"].abs() < 0.1).all()
    assert noise[["captured", "captured_low", "captured_high"]].isna().all(axis=None)
    assert noise["r_cross"].notna().all()


def test_a_share_is_the_squared_correlation_over_reliability_and_lies_in_its_interval(report):
    known = report.genes.dropna()
    expected = known["r_cross"].clip(lower=0) ** 2 / known["reliability"]
    np.testing.assert_allclose(known["captured"], expected)
    assert (known["captured_low"] <= known["captured"] + 1e-9).all()
    assert (known["captured"] <= known["captured_high"] + 1e-9).all()


def test_sections_that_agree_still_leave_room_for_chance(parts):
    """Two copies of one section: drawing sections changes nothing, drawing blocks of spots within them does."""
    rng = np.random.default_rng(0)
    measured = rng.standard_normal((100, 3))
    said = measured + rng.standard_normal((100, 3))
    xy = 100.0 * np.stack(np.divmod(np.arange(100), 10), axis=1)
    counts = rng.poisson(20, (100, 3))
    section = parts.Section(counts, measured, measured, said, {}, xy)
    capture = parts.Capture(2, 60.0, n_boot=200, n_halvings=2, rng=rng)
    capture.add(section)
    capture.add(section)
    r = capture.r_drawn.value
    assert r.shape == (200, 3)
    assert (r.std(axis=0) > 0.01).all()
    np.testing.assert_allclose(r.mean(axis=0), pearson(measured, said), atol=0.05)


def test_correlations_are_per_section_and_then_averaged(adata, model, report):
    target = float(model.module.target_total)
    said = model.predict()
    by_section = []
    for name in ("s4", "s5"):
        here = (adata.obs[_keys.LIBRARY] == name).to_numpy()
        by_section.append(pearson(normalize_panel(adata.X[here], target=target), said[here].to_numpy()))
    np.testing.assert_allclose(report.genes["r_cross"], np.mean(by_section, axis=0), atol=1e-5)


def test_the_test_rows_are_reported_on(report):
    assert report.n_spots == 2 * N
    assert (report.genes["n_spots"] == 2 * N).all()
    assert report.drawn == "sections and blocks"


def test_reliability_is_the_correlation_with_a_second_measurement(adata, model, report):
    target, rates = float(model.module.target_total), adata.uns["rates"]
    rng, agreed = np.random.default_rng(1), []
    for name in ("s4", "s5"):
        here = (adata.obs[_keys.LIBRARY] == name).to_numpy()
        first, second = (normalize_panel(rng.poisson(rates[here]), target=target) for _ in range(2))
        agreed.append(pearson(first, second))
    np.testing.assert_allclose(report.genes["reliability"], np.mean(agreed, axis=0), atol=0.12)


def test_halves_are_the_molecules_of_the_whole_and_step_up_as_spearman_and_brown_say(parts):
    counts = np.random.default_rng(0).poisson(np.linspace(1, 30, 60)[:, None] * np.ones(3)).astype(np.float32)
    first, second = parts.halved(counts, 50.0, np.random.default_rng(3))
    rng = np.random.default_rng(3)  # the slow way
    half = rng.binomial(counts.astype(int), 0.5)
    for one, made in ((half, first), (counts - half, second)):
        for spot in range(60):
            expected = np.log1p(one[spot] / max(one[spot].sum(), 1) * 50.0)
            np.testing.assert_allclose(made[spot], expected, rtol=1e-6)
    r = np.corrcoef(first[:, 0], second[:, 0])[0, 1]
    assert parts.stepped_up(np.array([r]))[0] == pytest.approx(2 * r / (1 + r))
    assert parts.stepped_up(np.array([-0.9]))[0] == pytest.approx(-1)


def test_captured_share_where_it_is_0_and_where_it_is_not_told(parts):
    share = parts.captured_share(np.array([0.5, -0.5, 0.5, np.nan]), np.array([0.5, 0.5, 0.05, 0.5]))
    np.testing.assert_allclose(share, [0.5, 0, np.nan, np.nan])


def test_one_section_draws_blocks(adata, model):
    rows = np.flatnonzero(adata.obs[_keys.LIBRARY] == "s4")
    one = model.report(indices=rows, n_boot=100)
    assert (one.drawn, one.n_spots) == ("blocks", N)
    known = one.genes.dropna()
    assert (known["captured_low"] <= known["captured_high"]).all()
    assert (known["captured_high"] - known["captured_low"]).iloc[:4].between(0.001, 0.6).all()


def test_equal_seeds_give_equal_reports(model, report):
    again = model.report(n_boot=200, random_state=0)
    for one, other in zip(report, again, strict=True):
        if isinstance(one, pd.DataFrame):
            pd.testing.assert_frame_equal(one, other)
    assert not model.report(n_boot=200, random_state=1).genes.equals(report.genes)


def test_the_batch_does_not_matter(model, report):
    small = model.report(n_boot=200, random_state=0, batch_size=37)
    pd.testing.assert_frame_equal(small.genes, report.genes, atol=1e-5)


# codes ----------------------------------------------------------------------------------------------------------------


def test_usage_is_that_of_the_codes(adata, model, report):
    test = adata[adata.obs[_keys.SPLIT] == "test"]
    for column, modality in (("usage", "expression"), ("usage_translated", "translated")):
        codes = model.codes(modality=modality).loc[test.obs_names]
        for token in (1, 6):
            expected = np.bincount(codes[f"token_{token}"], minlength=24) / len(codes)
            found = report.codes[report.codes["token"] == token].sort_values("code")[column]
            np.testing.assert_allclose(found, expected)
    assert report.codes.groupby("token")["usage"].sum().to_numpy() == pytest.approx(1)


def test_markers_are_the_genes_that_differ_most_the_slow_way(adata, model, report):
    codes = model.codes()
    z, held_out = [], []
    for name in ("s4", "s5"):
        here = (adata.obs[_keys.LIBRARY] == name).to_numpy()
        x = normalize_panel(adata.X[here], target=float(model.module.target_total))
        z.append((x - x.mean(axis=0)) / x.std(axis=0))
        held_out.append(codes[here])
    z, codes = np.concatenate(z), pd.concat(held_out)
    top = report.markers[report.markers["rank"] <= 2]
    for token, code, gene, difference in (
        top[["token", "code", "gene", "difference"]].to_numpy().tolist()[:20]
    ):
        inside = (codes[f"token_{token}"] == code).to_numpy()
        expected = z[inside].mean(axis=0) - z[~inside].mean(axis=0)
        assert difference == pytest.approx(expected[adata.var_names.get_loc(gene)], abs=1e-4)
    assert report.markers.groupby(["token", "code"]).size().eq(10).all()
    assert report.markers.groupby(["token", "code"])["difference"].is_monotonic_decreasing.all()


def test_perplexity_counts_codes_that_are_equally_used(parts):
    used = np.array([[5.0, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]])
    np.testing.assert_allclose(parts.perplexity_of(used), [4, 1, 2])


# information ----------------------------------------------------------------------------------------------------------


def test_information_equals_that_of_scikit_learn(adata, model, report):
    held_out = (adata.obs[_keys.SPLIT] == "test").to_numpy()
    image, own = (model.codes(modality=side)[held_out] for side in ("histology", "expression"))
    for row in report.information.iloc[[0, 5, 23]].itertuples():
        expected = mutual_info_score(image[f"token_{row.image_token}"], own[f"token_{row.expression_token}"])
        assert row.bits == pytest.approx(expected / np.log(2), abs=1e-6)


def test_codes_that_know_nothing_of_each_other_share_no_information(parts):
    rng = np.random.default_rng(0)
    image, own = rng.integers(0, 8, (400, 2)), rng.integers(0, 8, (400, 1))
    own = np.hstack([own, image[:, :1]])  # the second is the first image code again
    table = information(parts, [(image, own)], 8)
    raw, corrected = table["bits"].to_numpy(), table["bits_corrected"].to_numpy()
    assert raw[0] > 0.05  # by chance alone
    assert abs(corrected[0]) < 0.03
    assert raw[1] == pytest.approx(3, abs=0.05)  # the entropy of eight codes
    assert corrected[1] > 2.8


def test_what_sections_share_is_not_information_about_spots(parts):
    rng = np.random.default_rng(0)
    met = [(rng.integers(low, low + 4, (300, 1)), rng.integers(low, low + 4, (300, 1))) for low in (0, 4)]
    table = information(parts, met, 8)
    assert table["bits"][0] > 0.9
    assert abs(table["bits_corrected"][0]) < 0.03


def information(parts, met, n_codes):
    """The table for (image codes, expression codes) of each section."""
    books = {
        side: parts.Books(codes.shape[1], n_codes)
        for side, codes in zip(("histology", "expression"), met[0], strict=True)
    }
    use = parts.CodeUse(books, 1, 20, np.random.default_rng(1))
    for image, own in met:
        unused = np.zeros((len(own), 1))
        use.add(
            parts.Section(unused, unused, unused, unused, {"expression": own, "histology": image}, unused)
        )
    return use.information()


# messages -------------------------------------------------------------------------------------------------------------


def test_spots_that_were_learned_from_are_named(adata, model):
    with pytest.warns(UserWarning, match=r"trained on 150 of these 150 spots and section s1: .* says little"):
        model.report(indices=np.flatnonzero(adata.obs[_keys.LIBRARY] == "s1"), n_boot=5)


def test_another_anndata_is_reported_on_whole_and_by_validation_rows_if_it_has_no_test_rows(model):
    new = sections(["s8", "s9"], roles=["train", "train"], n=40, random_state=5)
    assert model.report(new, n_boot=5).n_spots == 80
    new.obs[_keys.SPLIT] = np.repeat(["train", "validation"], 40)
    assert model.report(new, n_boot=5).n_spots == 40
    assert model.report(new, n_boot=5, indices=range(60)).n_spots == 60


def test_too_few_spots_are_refused_and_small_sections_left_out(adata, model):
    with pytest.raises(
        ValueError, match=r"section with at least 10 spots .* the largest of 1 has 4\. Hold out"
    ):
        model.report(indices=np.flatnonzero(adata.obs[_keys.LIBRARY] == "s4")[:4])
    rows = np.r_[
        np.flatnonzero(adata.obs[_keys.LIBRARY] == "s4"), np.flatnonzero(adata.obs[_keys.LIBRARY] == "s5")[:3]
    ]
    with pytest.warns(UserWarning, match="3 spots lie in sections with fewer than 10"):
        assert model.report(indices=rows, n_boot=5).n_spots == N
    with pytest.raises(ValueError, match="`indices` names no spot"):
        model.report(indices=[])
    with pytest.raises(ValueError, match="`n_halvings` must be a whole number, at least 1; got 0"):
        model.report(n_halvings=0)


def test_an_unfitted_model_cannot_report(adata):
    stg.models.GenST.setup_anndata(adata, library_key=_keys.LIBRARY, split_key=_keys.SPLIT)
    with pytest.raises(RuntimeError, match="not fitted, so it cannot report"):
        stg.models.GenST(adata).report()


def test_a_collapsed_codebook_is_said_with_its_perplexity_and_what_to_change(parts):
    used = np.full((3, 32), 10.0)
    parts.warn_of_collapse("expression", used, "these spots")  # all alive: silent
    used[1] = 0
    used[1, :2] = 100, 1
    with pytest.warns(
        UserWarning,
        match=r"1 of 3 codebooks of expression have collapsed: on these spots, token 2 uses 2 of 32 codes "
        r"\(perplexity 1\.1\).*lower `n_tokens`.*`n_codes`, lower `commitment`, or train",
    ):
        parts.warn_of_collapse("expression", used, "these spots")
    with pytest.warns(UserWarning, match="`n_image_tokens`.*`n_image_codes`"):
        parts.warn_of_collapse("histology", used, "these spots")


def test_few_codes_that_are_all_used_have_not_collapsed(parts):
    parts.warn_of_collapse("expression", np.array([[50.0, 50.0], [80, 20]]), "these spots")


def test_training_says_that_a_codebook_collapsed():
    few = sections(["s1", "s2"], roles=["train", "test"], n=60)[:, :4].copy()
    silent = np.array(few.X)
    silent[:, 2:] = 0  # two genes that never vary leave two of four tokens nothing to say
    few.X = silent
    with pytest.warns(UserWarning, match="codebooks of expression have collapsed: on the training spots"):
        fitted(few, max_epochs=1, n_tokens=12)


def test_a_report_says_that_a_codebook_collapsed(adata, model):
    before = model.module.expression.books.codes.clone()
    model.module.expression.books.codes[2] = 0
    try:
        with pytest.warns(
            UserWarning, match="1 of 6 codebooks of expression .* these 300 spots, token 3 uses 1"
        ):
            found = model.report(n_boot=5)
    finally:
        model.module.expression.books.codes.copy_(before)
    tokens = found.tokens.set_index(["side", "token"])
    assert tokens.loc[("expression", 3), "perplexity"] == pytest.approx(1)


# the toy tissue -------------------------------------------------------------------------------------------------------


def test_captured_shares_follow_the_planted_ones():
    toy = stg.datasets.toy_tissue(
        n_patients=4, n_sections=8, spots_per_section=150, n_genes=40, random_state=1
    )
    stg.pp.split(toy, by="patient", validation=0, test=["p3", "p4"])
    found = fitted(toy, max_epochs=20, n_tokens=8, n_codes=16, use_place=True).report(n_boot=5).genes
    rho = spearmanr(found["captured"], toy.var["morphology_share"], nan_policy="omit")[0]
    assert rho > 0.6
