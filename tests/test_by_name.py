"""What is a Series or a DataFrame is joined by name, in every argument that takes one; arrays are taken by position.

``ARGUMENTS`` lists these arguments. Each is given in another order, which changes nothing, and with a name that does not
fit, which is refused.
"""

from __future__ import annotations

import importlib
import inspect

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen import _keys, metrics
from stgen._by_name import in_order, join_rows, join_tables, names_of
from stgen.baselines import (
    CellTypeMean,
    InverseDistance,
    NeighbourLabels,
    NeighbourTruth,
    RidgeInReference,
    RidgeOnHistology,
    cell_pcs,
    fit_predict,
    neighbourhood_mean,
    unseen_squares,
)
from stgen.data._rows import as_mask, read_mask, row_numbers

SHORT = {"max_epochs": 1, "progress_bar": False, "accelerator": "cpu"}
GENE_METRICS = ("js", "mae", "pearson", "rmse", "spearman", "ssim", "zscore_rmse")
LABEL_METRICS = ("ami", "ari", "balanced_accuracy", "f1_per_class", "macro_f1", "nmi")


class World:
    """Two sections with everything that an argument can be about."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.adata = stg.datasets.toy_tissue(n_sections=2, n_patients=2, spots_per_section=64, n_genes=12)
        spots, genes = self.adata.obs_names, self.adata.var_names
        self.truth = pd.DataFrame(self.adata.X.toarray().astype(float), spots, genes)
        self.guess = self.truth + rng.poisson(1, self.truth.shape)
        self.upper = self.guess + rng.poisson(3, self.truth.shape)
        self.label = pd.Series(rng.choice(["a", "b", "c"], len(spots)), spots)
        self.called = pd.Series(rng.choice(["a", "b", "c"], len(spots)), spots)
        self.features = pd.DataFrame(rng.normal(size=(len(spots), 5)), spots, list("pqrst"))
        self.section = self.adata.obs["section"].astype(str)
        self.xy = pd.DataFrame(self.adata.obsm["spatial"], spots, ["x", "y"])
        self.mask = (self.xy - self.xy.median()).abs().max(axis=1) < 150
        self.train = self.section == "s1"
        self.profile = pd.Series(rng.uniform(0, 2, len(genes)), genes)
        self.groups = pd.DataFrame({"group": list("aabb" * 3)}, genes)
        self.degs = pd.Series(rng.choice(["High", "Low", "n.s."], len(genes)), genes)
        self.share = pd.DataFrame(rng.uniform(0, 0.5, self.truth.shape), spots, genes)
        self.tiles = rng.integers(0, 255, (len(spots), 4, 4, 3)).astype(np.uint8)
        self.half = [gene for i, gene in enumerate(genes) if i % 2]
        self._gest = None

    @property
    def gest(self):
        if self._gest is None:
            adata = self.adata.copy()
            stg.models.GeST.setup_anndata(adata, library_key="section")
            self._gest = stg.models.GeST(adata)
            self._gest.train(**SHORT)
        return self._gest

    def imputed(self):
        """The tissue as if six of its genes were imputed."""
        adata = self.adata[:, [gene for gene in self.adata.var_names if gene not in self.half]].copy()
        adata.obsm["causalged"] = self.guess[self.half].to_numpy()
        for mass in (50, 90):
            adata.obsm[f"causalged_lower_{mass}"] = self.guess[self.half].to_numpy() - 1
            adata.obsm[f"causalged_upper_{mass}"] = self.upper[self.half].to_numpy()
            adata.obsm[f"causalged_mass_{mass}"] = np.full((adata.n_obs, 6), mass / 100)
        table = {
            name: np.zeros(6) for name in ("predictability", "low", "high", "gain", "gain_low", "gain_high")
        }
        adata.uns["causalged"] = {
            "genes": np.array(self.half, dtype=object),
            "panel": np.array(adata.var_names, dtype=object),
            "scale": "normalized",
            "table": table | {"verdict": np.array(["use"] * 6, dtype=object)},
            "params": {},
        }
        return adata


@pytest.fixture(scope="module")
def world():
    return World()


def curve(ax):
    found = [collection.get_offsets().data for collection in np.ravel(ax)[0].collections]
    plt.close("all")
    return np.concatenate(found)


def maps(axes):
    found = [c.get_array() for ax in np.ravel(axes) for c in ax.collections if c.get_array() is not None]
    plt.close("all")
    return np.concatenate([np.ma.filled(values, -1) for values in found])


def panel(world, train):
    adata = world.adata.copy()
    stg.pp.gene_panel(adata, n_genes=5, train=train)
    return adata.var["gene_panel"]


def embedding(world, features):
    adata = world.adata.copy()
    stg.pp.embed_histology(adata, features=features)
    return adata.obsm["X_histology"]


def perturbed(world, **asked):
    asked = {"region": world.mask, "null": "sham", "n_shams": 2, "max_pairs": 20} | asked
    return world.gest.perturb(world.adata, **asked)


def hit_rate(world, degs):
    return perturbed(world, profile=world.profile, degs=degs).attrs["comparison"]["accuracy"].tolist()


def task_perturbed(world, **asked):
    adata = world.adata.copy()
    asked = {"region": world.mask, "profile": world.profile} | asked
    stg.tl.gest_perturb(adata, model=world.gest, mode="replace", null="sham", n_shams=2, **asked)
    return stg.get.perturbation(adata)["generated"]


def baseline(world, **given):
    asked = {
        "histology": world.features,
        "counts": world.truth,
        "xy": world.xy,
        "section": world.section,
        "train": world.train,
        "test": ~world.train,
    }
    return fit_predict([RidgeOnHistology(), NeighbourTruth()], **asked | given)["ridge"]


def asked_again(world, histology):
    fitted = RidgeOnHistology().fit(world.features, world.truth, world.xy, world.section)
    return fitted.predict(histology, world.xy, world.section)


def surface(world, **given):
    asked = {"xy": world.xy, "section": world.section, "values": world.truth} | given
    return InverseDistance().fit(**asked).predict(world.xy, world.section)


def carried(world, again=None, **given):
    asked = {
        "expression": world.truth,
        "labels": world.label,
        "xy": world.xy,
        "section": world.section,
    } | given
    fitted = NeighbourLabels().fit(**asked)
    return fitted.probabilities(world.truth if again is None else again, world.xy, world.section)


def filled(world, **given):
    asked = {
        "spatial_measured": world.guess,
        "reference_measured": world.truth,
        "reference_wanted": world.upper,
        "cell_type": world.label,
    }
    return np.stack([kind().fit(**asked | given).predict() for kind in (CellTypeMean, RidgeInReference)])


def tiles_of(world, codes):
    adata = world.adata.copy()
    adata.obsm[_keys.TILES] = world.tiles
    ax = stg.pl.code_tiles(codes, adata, n_codes=2, n_tiles=2)
    found = np.array([image.get_array().sum() for image in ax.images])
    plt.close("all")
    return found


BLOCKS = np.repeat(np.arange(8), 16)
WEIGHTS = np.eye(8)[[0, 0, 1, 2]] + 1
# module, function, argument; how it is called; what is given
ARGUMENTS = [
    *(
        ("metrics", name, "prediction", lambda w, v, f=name: getattr(metrics, f)(w.truth, v), "guess")
        for name in GENE_METRICS
    ),
    *(
        ("metrics", name, "labels", lambda w, v, f=name: getattr(metrics, f)(w.label, v), "called")
        for name in LABEL_METRICS
    ),
    ("metrics", "bootstrap_interval", "groups", lambda w, v: metrics.bootstrap_interval(w.truth, groups=v, n_boot=50), "label"),
    ("metrics", "interval_coverage", "lower", lambda w, v: metrics.interval_coverage(w.truth, v, w.upper), "guess"),
    ("metrics", "interval_coverage", "upper", lambda w, v: metrics.interval_coverage(w.truth, w.guess, v), "upper"),
    ("metrics", "interval_mass", "cdf_at_upper", lambda w, v: metrics.interval_mass(w.share, v), "share"),
    ("metrics", "interval_width", "upper", lambda w, v: metrics.interval_width(w.guess, v), "upper"),
    ("metrics", "randomized_pit", "cdf_at", lambda w, v: metrics.randomized_pit(w.truth, w.share * 0.5, v), "share"),
    ("metrics", "randomized_pit", "cdf_below", lambda w, v: metrics.randomized_pit(w.truth, v, w.share + 0.5), "share"),
    ("metrics", "morans_i", "xy_or_graph", lambda w, v: metrics.morans_i(w.truth, v, section=w.section), "xy"),
    ("metrics", "morans_i", "section", lambda w, v: metrics.morans_i(w.truth, w.xy, section=v), "section"),
    ("metrics", "pearson_draws", "blocks", lambda w, v: metrics.pearson_draws(w.truth, w.guess, v, WEIGHTS), "blocks"),
    ("metrics", "pearson_draws", "prediction", lambda w, v: metrics.pearson_draws(w.truth, v, BLOCKS, WEIGHTS), "guess"),
    ("pp", "gene_panel", "train", panel, "train"),
    ("pp", "embed_histology", "features", embedding, "features"),
    ("pl", "coverage", "truth", lambda w, v: curve(stg.pl.coverage(w.imputed(), truth=v, genes=w.half)), "truth"),
    ("pl", "imputed", "truth", lambda w, v: maps(stg.pl.imputed(w.imputed(), w.half[0], truth=v, section="s1")), "truth"),
    ("pl", "code_tiles", "codes", tiles_of, "label"),
    ("models", "GeST.generate", "mask", lambda w, v: w.gest.generate(w.adata, mask=v).to_df(), "mask"),
    ("models", "GeST.perturb", "region", lambda w, v: perturbed(w, region=v, profile=w.profile)["generated"], "mask"),
    ("models", "GeST.perturb", "profile", lambda w, v: perturbed(w, profile=v)["generated"], "profile"),
    ("tl", "gest_generate", "mask", lambda w, v: stg.get.generated(stg.tl.gest_generate(w.adata, mask=v, model=w.gest, copy=True)).select_dtypes(float), "mask"),
    ("tl", "gest_perturb", "region", lambda w, v: task_perturbed(w, region=v), "mask"),
    ("tl", "gest_perturb", "profile", lambda w, v: task_perturbed(w, profile=v), "profile"),
    *(
        ("baselines", "fit_predict", name, lambda w, v, k=name: baseline(w, **{k: v}), given)
        for name, given in (("counts", "truth"), ("xy", "xy"), ("section", "section"), ("train", "train"), ("test", "test"))
    ),
    ("baselines", "cell_pcs", "train", lambda w, v: cell_pcs(w.truth, train=v), "train"),
    ("baselines", "neighbourhood_mean", "xy", lambda w, v: neighbourhood_mean(w.truth, v, w.section, n_neighbors=4), "xy"),
    ("baselines", "neighbourhood_mean", "section", lambda w, v: neighbourhood_mean(w.truth, w.xy, v, n_neighbors=4), "section"),
    ("baselines", "unseen_squares", "section", lambda w, v: unseen_squares(w.xy, v), "section"),
    ("baselines", "InverseDistance.fit", "values", lambda w, v: surface(w, values=v), "truth"),
    ("baselines", "InverseDistance.fit", "section", lambda w, v: surface(w, section=v), "section"),
    ("baselines", "NeighbourLabels.fit", "labels", lambda w, v: carried(w, labels=v), "label"),
    ("baselines", "NeighbourLabels.fit", "xy", lambda w, v: carried(w, xy=v), "xy"),
    ("baselines", "CellTypeMean.fit", "cell_type", lambda w, v: filled(w, cell_type=v), "label"),
    ("baselines", "RidgeInReference.fit", "reference_wanted", lambda w, v: filled(w, reference_wanted=v), "upper"),
]  # fmt: skip
GIVEN = {
    "blocks": lambda w: pd.Series(BLOCKS, w.truth.index),
    "test": lambda w: ~w.train,
    "share": lambda w: w.share + 0.5,
}
NAMES = [f"{module}.{function}({argument})" for module, function, argument, *_ in ARGUMENTS]
ALONE = {
    "baselines.fit_predict(histology)": "it sets the order",
    "pp.embed_histology(transform)": "a function",
    "pl.calibration(pit)": "nothing beside it",
    "pl.gene_groups(groups)": "a table that is drawn as it is",
    "pl.scores(data)": "a table of results",
    "pl.imputed_umap(truth)": "read as for pl.imputed; needs umap",
    "pl.gene_distances(truth)": "read as for pl.imputed",
    "tl.gest_generate(places)": "new places have no names",
    "tl.gest_perturb(degs)": "tested below: genes may be missing",
    "tl.genst_report(indices)": "tested below: numbers of rows are fine",
}


def given(world, name):
    return GIVEN[name](world) if name in GIVEN else getattr(world, name)


def equal(one, other):
    if isinstance(one, dict):
        assert one == other
    else:
        np.testing.assert_allclose(np.asarray(one, dtype=float), np.asarray(other, dtype=float), rtol=1e-9)


@pytest.mark.parametrize(("module", "function", "argument", "call", "name"), ARGUMENTS, ids=NAMES)
def test_an_argument_in_another_order_gives_the_same_value(world, module, function, argument, call, name):
    value = given(world, name)
    turned = value.iloc[np.random.default_rng(1).permutation(len(value))]
    expected = call(world, value)
    equal(call(world, turned), expected)
    if module != "pl":  # an array in order is the same
        equal(call(world, value.to_numpy()), expected)
    # further rows do no harm
    more = pd.concat([value.iloc[:1].set_axis(["further"]), turned])
    equal(call(world, more), expected)


@pytest.mark.parametrize(("module", "function", "argument", "call", "name"), ARGUMENTS, ids=NAMES)
def test_an_argument_whose_names_do_not_fit_is_refused(world, module, function, argument, call, name):
    value = given(world, name)
    strange = value.rename(index={value.index[1]: "nowhere"})
    with pytest.raises(
        ValueError, match=rf"`{argument}` must have all .*; 1 of .*, such as {value.index[1]};.*nowhere"
    ):
        call(world, strange)
    twice = pd.concat([value, value.iloc[[2]]])
    with pytest.raises(
        ValueError, match=rf"index of `{argument}` must be unique; 1 repeat: {value.index[2]}\."
    ):
        call(world, twice)
    # a table that lost its names and was sorted since
    numbered = value.reset_index(drop=True).iloc[::-1]
    with pytest.raises(ValueError, match=rf"`{argument}` must have all .*such as {value.index[0]}"):
        call(world, numbered)


TABLES = [
    one for one in ARGUMENTS if one[0] in ("metrics", "pl") and one[4] in ("guess", "upper", "share", "truth")
]


@pytest.mark.parametrize(("module", "function", "argument", "call", "name"), TABLES)
def test_genes_are_joined_as_spots_are(world, module, function, argument, call, name):
    value = given(world, name)
    equal(call(world, value.iloc[:, ::-1]), call(world, value))
    lost = value.columns[1]
    with pytest.raises(
        (KeyError, ValueError), match=rf"`{argument}` (must have all genes|has no gene).*{lost}"
    ):
        call(world, value.drop(columns=lost))


def test_every_argument_that_takes_pandas_is_listed():
    kinds = ("ArrayLike", "Series", "DataFrame", "ndarray", "NDArray")
    found = set()
    for module in ("metrics", "pp", "pl", "tl", "baselines"):
        package = importlib.import_module(f"stgen.{module}")
        for name in package.__all__:
            function = getattr(package, name)
            if not inspect.isfunction(function):
                continue
            asked = list(inspect.signature(function).parameters.values())
            # in metrics and baselines the first argument sets the order
            asked = asked[1:] if module in ("metrics", "baselines") else asked
            found |= {
                f"{module}.{name}({p.name})"
                for p in asked
                if any(kind in str(p.annotation) for kind in kinds)
            }
    labels = {f"metrics.{name}({other})" for name in LABEL_METRICS for other in ("clusters", "prediction")}
    assert found - set(NAMES) - labels == set(ALONE)


# ------------------------------------------------------------------------------------------------ between two arguments


@pytest.mark.parametrize("name", GENE_METRICS)
def test_the_first_argument_with_names_sets_the_order(world, name):
    metric = getattr(metrics, name)
    expected = metric(world.truth.to_numpy(), world.guess.to_numpy())
    equal(metric(world.truth.iloc[::-1, ::-1], world.guess), expected[::-1])
    equal(metric(world.truth, world.guess.to_numpy()), expected)
    part = world.truth.iloc[5:40]
    equal(metric(part, world.guess), metric(part.to_numpy(), world.guess.to_numpy()[5:40]))


def test_names_go_along_with_values_on_another_scale(world):
    turned = world.guess.iloc[::-1, ::-1]
    for scale in (metrics.log_counts, metrics.normalize_panel):
        expected = metrics.pearson(scale(world.truth.to_numpy()), scale(world.guess.to_numpy()))
        equal(metrics.pearson(scale(world.truth), scale(turned)), expected)
    blocks = metrics.spatial_blocks(world.xy.iloc[::-1], n_blocks=8)
    draws = metrics.pearson_draws(world.truth, world.guess, blocks, WEIGHTS)
    in_place = np.asarray(metrics.spatial_blocks(world.xy.iloc[::-1].to_numpy(), n_blocks=8))[::-1]
    equal(draws, metrics.pearson_draws(world.truth.to_numpy(), world.guess.to_numpy(), in_place, WEIGHTS))
    pit = metrics.randomized_pit(world.truth, world.share * 0.5, world.share)
    assert pit.index.equals(world.truth.index)
    assert pit.columns.equals(world.truth.columns)


def test_columns_x_and_y_are_taken_by_name(world):
    turned = world.xy.assign(z=1.0)[["z", "y", "x"]]
    equal(metrics.morans_i(world.truth, turned), metrics.morans_i(world.truth, world.xy.to_numpy()))
    equal(metrics.spatial_blocks(turned), metrics.spatial_blocks(world.xy.to_numpy()))
    equal(unseen_squares(turned), unseen_squares(world.xy.to_numpy()))


def test_a_default_index_is_a_position_and_a_turned_one_is_a_name(world):
    truth, guess = world.truth.reset_index(drop=True), world.guess.reset_index(drop=True)
    expected = metrics.pearson(world.truth.to_numpy(), world.guess.to_numpy())
    equal(metrics.pearson(truth, guess), expected)
    equal(metrics.pearson(world.truth, guess), expected)  # it names nothing, so it is an array
    with pytest.raises(
        ValueError, match=r"`truth` has the index 0 … 127, which could be positions or the names 127, 126"
    ):
        metrics.pearson(truth, guess.iloc[::-1])
    equal(
        metrics.pearson(guess.iloc[:0:-1], truth),
        metrics.pearson(guess.to_numpy()[:0:-1], truth.to_numpy()[:0:-1]),
    )


def test_labels_are_compared_as_text():
    value = pd.Series([10, 20, 30], index=[3, 1, 2])
    assert in_order(value, pd.Index(["1", "2", "3"]), "`value`").tolist() == [20, 30, 10]
    assert names_of(value).tolist() == ["3", "1", "2"]
    tuples = pd.MultiIndex.from_tuples([("s1", 1), ("s2", 1)])
    one, other = join_rows(one=pd.Series([1, 2], tuples), other=pd.Series([2, 1], tuples[::-1]))
    assert one.tolist() == other.tolist() == [1, 2]


def test_the_same_names_in_the_same_order_need_no_join_even_if_they_repeat():
    names = ["s1", "s1", "s2"]
    values, groups = join_rows(values=pd.Series([1, 2, 3], names), groups=pd.Series(list("aab"), names))
    assert values.tolist(), groups.tolist() == ([1, 2, 3], list("aab"))
    with pytest.raises(ValueError, match="index of `groups` must be unique; 1 repeat: s1"):
        join_rows(values=pd.Series([1, 2, 3], names), groups=pd.Series(list("aba"), ["s1", "s2", "s1"]))


def test_arrays_and_lists_have_no_names():
    array = np.arange(6).reshape(3, 2)
    assert all(one is array for one in join_tables(truth=array, prediction=array))
    assert names_of(array) is names_of([1, 2]) is names_of(None) is None
    assert in_order([1, 2], pd.Index(["a", "b"]), "`value`") == [1, 2]


# ---------------------------------------------------------------------------------------------------------------- masks

NAMED = pd.Index([f"c{i}" for i in range(6)])
TRUE = np.array([True, False, False, True, True, False])


@pytest.mark.parametrize(
    "spelled",
    [
        TRUE,
        TRUE.tolist(),
        TRUE.astype(int),
        TRUE.astype(float),
        TRUE.astype(object),
        TRUE.astype(str),
        [str(one).upper() for one in TRUE],
        pd.array(TRUE, dtype="boolean"),
        pd.Categorical(TRUE),
        pd.Categorical(TRUE.astype(str)),
        pd.Series(TRUE),
        pd.Series(TRUE, NAMED).iloc[::-1],
        pd.Series(TRUE.astype(str), NAMED, dtype="category").iloc[::-1],
        pd.Series(TRUE, NAMED, dtype="boolean").iloc[::-1],
        ["c4", "c0", "c3"],
        {"c4", "c0", "c3"},
        NAMED[TRUE],
        NAMED[TRUE].to_series(),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_a_mask_is_read_however_it_is_spelled(spelled):
    np.testing.assert_array_equal(as_mask(spelled, NAMED, "`mask`"), TRUE)
    adata = ad.AnnData(np.zeros((6, 1)), obs=pd.DataFrame(index=NAMED))
    if np.asarray(spelled).dtype != int:  # whole numbers are those of rows
        np.testing.assert_array_equal(row_numbers(adata, spelled), [0, 3, 4])
    # a Series without names is not what a column is made of
    if len(spelled) == 6 and not (isinstance(spelled, pd.Series) and names_of(spelled) is None):
        adata.obs["mask"] = spelled
        np.testing.assert_array_equal(
            read_mask(adata, "mask", "`mask`"), as_mask(adata.obs["mask"], NAMED, "`mask`")
        )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.flatnonzero(TRUE),
            r"each of the 6 cells; got int64 of shape \(3,\)\. Instead of numbers .*obs_names\[numbers\]",
        ),
        (
            np.arange(6),
            r"got int64 of shape \(6,\) with 2, 3, 4, …\. Instead of numbers of cells give their names",
        ),
        (TRUE[:4], r"got bool of shape \(4,\)"),
        (TRUE[:, None], r"got ndarray of shape \(6, 1\)"),
        (pd.DataFrame({"a": TRUE}), r"got DataFrame of shape \(6, 1\)"),
        (None, "got NoneType of shape"),
        (pd.array([True, None, False, None, True, True], dtype="boolean"), "2 of 6 are missing.*fillna"),
        ([True, None, False, True, True, True], "1 of 6 are missing"),
        (["True", np.nan, "False", "True", "True", "True"], "1 of 6 are missing"),
        (
            ["c1", "c9"],
            "or name some of them; 1 of 2 values are neither, such as c9. Names are such as c0, c1, c2",
        ),
        (list("tumour"), "6 of 6 values are neither, such as t, u, m"),
        (["True", "no", "False", "True", "True", "True"], "got (object|str) of shape .* with 'no'"),
        (
            pd.Series(TRUE, NAMED).iloc[:5],
            "`mask` must have all cells; 1 of 6 are not in the index, such as c5; it has 5",
        ),
        (TRUE * 0.5, "got float64 of shape .* with 0.5"),
    ],
)
def test_what_is_no_mask_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        as_mask(mask, NAMED, "`mask`")


def test_a_column_must_be_there_and_be_a_mask():
    adata = ad.AnnData(
        np.zeros((6, 1)), obs=pd.DataFrame({"region": list("aabbab"), "own": NAMED}, index=NAMED)
    )
    with pytest.raises(KeyError, match=r"obs\['no'\] does not exist; obs has \['region', 'own'\]"):
        read_mask(adata, "no", "`mask`")
    for column, first in (("region", "'a', 'b'"), ("own", "'c0', 'c1', 'c2', …")):
        with pytest.raises(
            ValueError, match=rf"`mask` must say True or False .* with {first} in obs\['{column}'\]"
        ):
            read_mask(adata, column, "`mask`")


def test_a_mask_of_an_array_is_taken_by_position_even_where_names_are_numbers():
    names = pd.Index(["3", "5", "0", "1", "2", "4"])
    np.testing.assert_array_equal(as_mask(TRUE, names, "`mask`"), TRUE)
    with pytest.raises(ValueError, match="could be positions or the names 3, 5, 0"):
        as_mask(pd.Series(TRUE), names, "`mask`")


def test_rows_by_number_keep_their_order_and_are_not_mistaken_for_a_mask():
    adata = ad.AnnData(np.zeros((6, 1)), obs=pd.DataFrame(index=NAMED))
    assert row_numbers(adata, [5, 0, 5]).tolist() == [5, 0, 5]
    assert row_numbers(adata, []).tolist() == []
    with pytest.raises(ValueError, match="`indices` has only 0 and 1, one for each of the 6 spots"):
        row_numbers(adata, TRUE.astype(int))


# ------------------------------------------------------------------------------------------------------ genes, and tiles


def test_a_profile_is_read_by_gene_from_all_that_names_genes(world):
    expected = perturbed(world, profile=world.profile.to_numpy())["generated"]
    turned = world.profile.iloc[::-1]
    for profile in (turned.to_dict(), turned.to_frame().T, turned.to_frame()):
        equal(perturbed(world, profile=profile)["generated"], expected)
    lost = world.profile.index[3]
    with pytest.raises(
        ValueError, match=rf"`profile` must have all genes of the model's panel; 1 of 12 .* {lost};"
    ):
        perturbed(world, profile=world.profile.drop(lost).to_dict())


def test_known_changes_and_groups_of_genes_are_read_by_gene(world):
    from stgen.models.genar._model import _groups_of

    assert hit_rate(world, world.degs.iloc[::-1]) == hit_rate(world, world.degs.to_dict())
    with pytest.raises(ValueError, match="index of `degs` must be unique"):
        hit_rate(world, pd.concat([world.degs, world.degs.iloc[:1]]))
    genes = list(world.adata.var_names)
    assert _groups_of(world.groups.iloc[::-1], genes) == _groups_of(world.groups, genes)
    with pytest.raises(ValueError, match="index of `gene_groups` must be unique"):
        _groups_of(pd.concat([world.groups, world.groups.iloc[:1]]), genes)


def test_a_fitted_baseline_knows_its_columns(world):
    expected = asked_again(world, world.features)
    equal(asked_again(world, world.features.iloc[:, ::-1]), expected)
    with pytest.raises(
        ValueError, match="`histology` must have all columns; 1 of 5 are not in the columns, such as q"
    ):
        asked_again(world, world.features.rename(columns={"q": "u"}))
    equal(carried(world, again=world.truth.iloc[:, ::-1]), carried(world))
    equal(filled(world, reference_measured=world.truth.iloc[:, ::-1]), filled(world))


def test_codes_with_names_beside_tiles_without_are_said_to_be_taken_in_order(world):
    with pytest.warns(UserWarning, match="`codes` has names and `tiles` has none"):
        stg.pl.code_tiles(world.label, world.tiles, n_codes=2, n_tiles=2)
    with pytest.raises(KeyError, match=r"obsm\['tiles'\] does not exist; obsm has"):
        stg.pl.code_tiles(world.label, world.adata)
    plt.close("all")


def test_truth_without_names_must_be_as_long_as_the_spots(world):
    short = world.truth.reset_index(drop=True).iloc[:127]
    with pytest.raises(ValueError, match="it has no names, and 127 rows for 128 spots"):
        stg.pl.imputed(world.imputed(), world.half[0], truth=short, section="s1")


def test_a_curve_with_epochs_of_its_own_keeps_them():
    history = {"loss_train": pd.Series([3.0, 2.0, 1.0]), "loss_validation": pd.Series([2.5], index=[2])}
    (ax,) = np.ravel(stg.pl.history(history))
    drawn = {tuple(line.get_xdata()) for line in ax.lines if np.isfinite(line.get_ydata()).all()}
    plt.close("all")
    assert {(2,)} <= {places for places in drawn if len(places) == 1}
