"""Expression as an input: what is refused, how counts become logs, and panels that are like the model's in part."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from stgen.data._expression import ExpressionField, ExpressionTable, check_logs, shared_genes
from stgen.data._fields import CountsField, field_from

N, T = 30, 8
GENES = [f"G{g}" for g in range(T)]
ALL = torch.arange(N)
MAKE = {
    "array": np.asarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
}


def make_counts(seed=0):
    rate = np.random.default_rng(seed).gamma(2, 2, size=T)
    return np.random.default_rng(seed + 1).poisson(rate, size=(N, T)).astype(np.float32)


def make_cells(values, genes=GENES, *, layer=None):
    obs = pd.DataFrame(
        index=[f"cell{i}" for i in range(len(values) if isinstance(values, np.ndarray) else N)]
    )
    adata = ad.AnnData(values if layer is None else None, obs=obs, var=pd.DataFrame(index=genes))
    if layer is not None:
        adata.layers[layer] = values
    return adata


def logs_by_hand(counts, target):
    """A loop over cells."""
    out = np.zeros(counts.shape)
    for i, cell in enumerate(counts):
        if cell.sum() > 0:
            out[i] = np.log1p(cell / cell.sum() * target)
    return out


def read(adata, *, scale="counts", genes=GENES, layer=None, **keywords):
    return ExpressionTable.read(adata, ExpressionField(layer, scale=scale), genes, **keywords)


def expression(table):
    return table.batch(torch.arange(len(table)))["expression"].numpy()


# counts to logs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", MAKE)
@pytest.mark.parametrize("layer", [None, "counts"])
def test_counts_are_divided_by_totals_and_logged_whatever_their_layout(layout, layer):
    counts = make_counts()
    adata = make_cells(MAKE[layout](counts), layer=layer)
    table = read(adata, target_total=50.0, layer=layer)
    np.testing.assert_allclose(expression(table), logs_by_hand(counts, 50.0), rtol=1e-5)
    assert expression(table).dtype == np.float32


@pytest.mark.parametrize("layout", MAKE)
def test_logs_are_taken_as_they_are(layout):
    logs = np.log1p(make_counts() / 3)
    table = read(make_cells(MAKE[layout](logs)), scale="log", target_total=50.0)
    np.testing.assert_array_equal(expression(table), logs.astype(np.float32))


def test_depth_means_nothing():
    counts = make_counts()
    depth = np.random.default_rng(3).integers(1, 9, size=(N, 1))
    same, deeper = (expression(read(make_cells(c), target_total=40.0)) for c in (counts, counts * depth))
    np.testing.assert_allclose(same, deeper, rtol=1e-5)


def test_a_batch_holds_its_rows_alone():
    table = read(make_cells(make_counts()), target_total=40.0)
    rows = torch.tensor([7, 0, 7, 29])
    batch = table.batch(rows)
    assert torch.equal(batch["index"], rows)
    np.testing.assert_array_equal(batch["expression"], expression(table)[rows])


def test_a_cell_without_counts_is_zero():
    counts = make_counts()
    counts[4] = 0
    found = expression(read(make_cells(sparse.csr_matrix(counts)), target_total=40.0))
    assert np.isfinite(found).all() and (found[4] == 0).all() and (found[5] > 0).any()


def test_integers_become_the_same_floats():
    counts = make_counts()
    for kind in (np.int64, np.uint8, np.float64):
        found = expression(read(make_cells(counts.astype(kind)), target_total=40.0))
        np.testing.assert_array_equal(found, expression(read(make_cells(counts), target_total=40.0)))


def test_totals_are_of_the_models_genes():
    wider = np.hstack([make_counts(), np.full((N, 2), 1000.0, dtype=np.float32)])
    table = read(make_cells(wider, [*GENES, "extra", "more"]), target_total=40.0)
    np.testing.assert_allclose(table.totals(), make_counts().sum(1))
    np.testing.assert_allclose(expression(table), logs_by_hand(make_counts(), 40.0), rtol=1e-5)


def test_reading_leaves_the_data_alone():
    adata = make_cells(make_counts())
    table = read(adata, target_total=40.0)
    expression(table)
    np.testing.assert_array_equal(adata.X, make_counts())


@pytest.mark.parametrize("layout", ["array", "csr", "csc"])
def test_a_backed_file_is_read_like_memory(tmp_path, layout):
    make_cells(MAKE[layout](make_counts())).write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    found = expression(read(backed, target_total=40.0))
    np.testing.assert_array_equal(found, expression(read(make_cells(make_counts()), target_total=40.0)))


# genes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["counts", "log"])
@pytest.mark.parametrize("layout", MAKE)
def test_genes_are_found_by_name(layout, scale):
    values = make_counts()
    adata = make_cells(values)
    order = np.random.default_rng(0).permutation(T)
    permuted = make_cells(MAKE[layout](values[:, order]), [GENES[g] for g in order])
    one, other = (expression(read(a, scale=scale, target_total=40.0)) for a in (adata, permuted))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_partial_panel_is_read_with_a_warning_and_keeps_the_scale():
    """A gene that is there has the value it has on the whole panel, on average over cells."""
    counts = make_counts()
    share = counts.sum(0) / counts.sum()
    kept = [6, 1, 0, 3, 5]
    part = make_cells(counts[:, kept], [GENES[g] for g in kept])
    with pytest.warns(UserWarning, match=r"5 of the model's 8 genes are here; 3 are not, such as G2, G4, G7"):
        table = read(part, target_total=40.0, gene_share=share)
    assert table.here.tolist() == sorted(kept)
    found = expression(table)
    whole = logs_by_hand(counts, 40.0)[:, sorted(kept)]
    np.testing.assert_allclose(found.mean(0), whole.mean(0), rtol=0.05)
    np.testing.assert_allclose(np.expm1(found).sum(1), 40.0 * share[kept].sum(), rtol=1e-4)


def test_half_of_the_genes_is_enough_and_less_is_not():
    counts = make_counts()
    here, found = shared_genes(GENES, make_cells(counts[:, :4], GENES[:4]))
    assert here.tolist() == found.tolist() == [0, 1, 2, 3]
    message = (
        "At least 50% of the model's genes are needed; 3 of 8 are here. 8 genes are expected and 5 of them are not "
        "in this AnnData, such as G3, G4, G5, …"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        shared_genes(GENES, make_cells(counts[:, :3], GENES[:3]))


def test_other_spellings_are_named():
    with pytest.raises(ValueError, match=r"0 of 8 are here.*upper and lower case"):
        shared_genes(GENES, make_cells(make_counts(), [gene.lower() for gene in GENES]))
    adata = make_cells(make_counts(), [f"ENSG{g:011d}" for g in range(T)])
    with pytest.raises(ValueError, match=r"The model learned symbols, these look like Ensembl identifiers"):
        shared_genes(GENES, adata)
    adata.var["symbol"] = GENES
    with pytest.raises(ValueError, match=r"`var\['symbol'\]` has 8 of them: use it as `var_names`"):
        shared_genes(GENES, adata)


def test_genes_that_repeat_are_refused():
    with pytest.raises(ValueError, match=r"Gene names must be unique; 1 repeat: G0"):
        shared_genes(GENES, make_cells(make_counts(), ["G0", *GENES[:-1]]))


# what is refused ---------------------------------------------------------------------------------------------------


def spoilt(value, *, layout="array"):
    values = np.log1p(make_counts())
    values[3, 2] = value
    return MAKE[layout](values)


@pytest.mark.parametrize("layout", MAKE)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.nan,
            r"layers\['x'\] must hold log-normalised expression; found 1 values that are NaN or infinite",
        ),
        (np.inf, r"found 1 values that are NaN or infinite. Drop these cells or genes"),
        (
            -0.5,
            r"which is not negative; found -0.5. It looks scaled or centred: give the values before `sc.pp.scale`",
        ),
        (1888.0, r"found 1888, which no logarithm of a count reaches.* say `expression='counts'`"),
    ],
)
def test_values_that_are_no_logs_are_refused(layout, value, message):
    with pytest.raises(ValueError, match=message):
        check_logs(spoilt(value, layout=layout), "layers['x']")


def test_all_values_that_are_not_finite_are_counted_however_few_are_looked_at_at_once(monkeypatch):
    monkeypatch.setattr("stgen.data._fields.N_VALUES_AT_ONCE", 4)
    logs = np.ones((6, 3))
    logs[[1, 4, 5], 0] = np.nan
    for X in (logs, sparse.csr_matrix(logs)):
        with pytest.raises(ValueError, match="found 3 values that are NaN"):
            check_logs(X, "X")


def test_words_are_no_logs():
    with pytest.raises(ValueError, match=r"X must hold log-normalised expression; its dtype is <U1"):
        check_logs(np.array([["a", "b"]]), "X")


def test_nothing_is_something_to_read():
    check_logs(sparse.csr_matrix((5, 3)), "X")
    check_logs(np.zeros((0, 3)), "X")


REFUSED = {
    "logs as counts": (
        np.log1p(make_counts()),
        "counts",
        r"not whole numbers.*If they are log-normalised, say `expression='log'`",
    ),
    "scaled counts": (
        make_counts() - 3,
        "counts",
        r"X must hold counts; found negative values, the lowest -3",
    ),
    "NaN counts": (spoilt(np.nan), "counts", r"X must hold counts; found 1 values that are NaN or infinite"),
    "scaled logs": (make_counts() - 3, "log", r"not negative; found -3"),
    "large counts as logs": (100 * make_counts(), "log", r"no logarithm of a count reaches"),
    "an unknown scale": (make_counts(), "raw", r"`expression` must be one of 'counts', 'log'; got 'raw'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_refuses_what_is_not_on_its_scale(name):
    values, scale, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ExpressionField(scale=scale).facts(make_cells(values))
    if scale != "raw":  # also on data that comes later
        with pytest.raises(ValueError, match=message.split(".*If")[0]):
            read(make_cells(values), scale=scale)


@pytest.mark.parametrize("scale", ["counts", "log"])
def test_one_gene_is_too_few_and_copies_too_many(scale):
    field = ExpressionField(scale=scale)
    with pytest.raises(ValueError, match=r"At least 2 genes are needed; this AnnData has 1"):
        field.facts(make_cells(make_counts()[:, :1], GENES[:1]))
    with pytest.raises(ValueError, match=r"Gene names must be unique; 1 repeat: G0"):
        field.facts(make_cells(make_counts(), ["G0", *GENES[:-1]]))


@pytest.mark.parametrize("scale", ["counts", "log"])
def test_a_missing_layer_names_those_that_exist(scale):
    with pytest.raises(KeyError, match=r"layers\['raw'\] does not exist; layers has \['counts'\]"):
        ExpressionField("raw", scale=scale).facts(make_cells(make_counts(), layer="counts"))


@pytest.mark.parametrize("scale", ["counts", "log"])
def test_empty_cells_and_constant_genes_are_kept_with_a_warning(scale):
    values = make_counts() if scale == "counts" else np.log1p(make_counts() / 3)
    values[[1, 5]] = 0
    values[:, 4] = 0
    with pytest.warns(UserWarning) as caught:
        facts = ExpressionField(scale=scale).facts(make_cells(values))
    told = " ".join(str(one.message) for one in caught)
    assert "2 of 30 spots have no counts in X" in told
    assert "1 of 8 genes have the same count in every spot, such as G4" in told
    assert facts["n_genes"] == T


@pytest.mark.parametrize("layout", MAKE)
def test_small_counts_given_as_logs_are_pointed_out(layout):
    values = MAKE[layout](make_counts().clip(max=20))
    with pytest.warns(UserWarning, match=r"All values of X are whole numbers, as raw counts are"):
        ExpressionField(scale="log").facts(make_cells(values))


def test_facts_are_the_genes_and_a_field_is_rebuilt_from_what_is_saved():
    field = ExpressionField("x", scale="log")
    assert field_from(field.saved()) == field
    assert isinstance(field, CountsField) and not field.is_target
    facts = ExpressionField().facts(make_cells(make_counts()))
    assert facts == {"n_genes": T, "genes": GENES}
    ExpressionField().compare(facts, make_cells(make_counts()[:, ::-1], GENES[::-1]))
    with pytest.raises(ValueError, match="At least 50% of the model's genes"):
        ExpressionField().compare(facts, make_cells(make_counts()[:, :2], GENES[:2]))
