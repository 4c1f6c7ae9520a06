"""How CausalGeD says no: expected, found, remedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

import stgen as stg
from stgen import _keys
from stgen.models.causalged import _model

TINY = {"width": 16, "n_layers": 1, "n_heads": 2, "n_axes": 4, "use_network": False}
SHORT = {"max_epochs": 1, "batch_size": 8, "accelerator": "cpu"}
SECTIONS = {"library_key": _keys.LIBRARY}


@pytest.fixture(scope="module")
def tissue():
    torch.set_num_threads(1)
    return stg.datasets.toy_tissue(n_sections=3, n_patients=3, spots_per_section=60, n_genes=40)


@pytest.fixture(scope="module")
def panel(tissue):
    return tissue[:, ::2].copy()


@pytest.fixture(scope="module")
def reference(tissue):
    return stg.datasets.toy_reference(tissue, n_cells=120)


def build(panel, reference, *, setup=SECTIONS, **changes):
    panel, reference = panel.copy(), reference.copy()
    stg.models.CausalGeD.setup_anndata(panel, **setup)
    stg.models.CausalGeD.setup_reference(reference)
    return stg.models.CausalGeD(panel, reference, **{**TINY, **changes})


@pytest.fixture(scope="module")
def fitted(panel, reference):
    model = build(panel, reference)
    model.train(**SHORT)
    return model


def renamed(adata, names):
    changed = adata.copy()
    changed.var_names = names
    return changed


def with_values(adata, change):
    changed = adata.copy()
    changed.X = sparse.csr_matrix(change(adata.X.toarray().astype(np.float32)))
    return changed


# genes that do not match --------------------------------------------------------------------------------------------


def test_too_few_shared_genes_are_refused_with_examples_of_both_sides(panel, reference):
    names = [*panel.var_names[:9], *(f"other_{i}" for i in range(11))]
    with pytest.raises(
        ValueError,
        match=r"At least 10 genes must be in both the spatial data and the reference; 9 are\. The spatial data has "
        r"gene_001, gene_003, gene_005, …; the reference has gene_001, gene_002, gene_003, …\.",
    ):
        build(renamed(panel, names), reference)


def test_ten_shared_genes_are_enough(panel, reference):
    names = [*panel.var_names[:10], *(f"other_{i}" for i in range(10))]
    with pytest.warns(
        UserWarning, match="10 measured genes are not in the reference and are not used: other_0"
    ):
        model = build(renamed(panel, names), reference)
    model.train(**SHORT)
    assert model.measured_genes == names[:10]
    assert np.isfinite(model.impute().X).all()


def test_a_panel_of_fewer_genes_than_that_is_refused(panel, reference):
    with pytest.raises(ValueError, match=r"At least 10 genes must be in both.*; 8 are"):
        build(panel[:, :8].copy(), reference)


def test_symbols_against_ensembl_identifiers_are_named(panel, reference):
    coded = renamed(reference, [f"ENSG{i:011d}" for i in range(reference.n_vars)])
    with pytest.raises(
        ValueError, match=r"; 0 are\..*has ENSG00000000000.*symbols.*Ensembl.*rename `var_names`"
    ):
        build(panel, coded)
    kept = coded.copy()
    kept.var["symbol"] = list(reference.var_names)
    with pytest.raises(ValueError, match=r"`var\['symbol'\]` has 20 of them: use it as `var_names`"):
        build(panel, kept)


def test_the_message_says_which_side_has_which_names(panel, reference):
    coded = renamed(panel, [f"ENSG{i:011d}" for i in range(panel.n_vars)])
    with pytest.raises(ValueError, match=r"spatial data has ENSG00000000000.*the reference has gene_001"):
        build(coded, reference)


MOUSE = ["Gad1", "Slc17a7", "Pvalb", "Sst", "Vip", "Aqp4", "Mog", "Cx3cr1", "Pdgfra", "Lamp5"] + [
    f"Gm{i}" for i in range(10)
]


@pytest.mark.parametrize("species", ["mouse", "human"])
def test_a_reference_of_another_species_is_named(species, panel, reference):
    """Mouse names against human ones, and the other way round; nobody's names are changed."""
    measured = MOUSE if species == "human" else [name.upper() for name in MOUSE]
    spelt = str.upper if species == "human" else str
    known = [spelt(MOUSE[i // 2]) if i % 2 == 0 else f"other_{i}" for i in range(reference.n_vars)]
    spatial, cells = renamed(panel, measured), renamed(reference, known)
    with pytest.raises(
        ValueError,
        match=rf"; 0 are\. The spatial data has {measured[0]}, .*; the reference has {known[0]}, .*20 match when upper and "
        rf"lower case are ignored \({measured[0]} – {known[0]}, .*same species.*Gad1 are mouse, GAD1 human",
    ):
        build(spatial, cells)
    assert list(spatial.var_names) == measured and list(cells.var_names) == known


def test_a_part_of_the_names_that_differs_in_case_is_pointed_out(panel, reference):
    names = [*panel.var_names[:15], *(name.upper() for name in panel.var_names[15:])]
    with pytest.warns(
        UserWarning,
        match=r"5 measured genes are not in the reference.*5 of them are there when upper and lower case are ignored "
        r"\(GENE_031 – gene_031, .*rename them",
    ):
        build(renamed(panel, names), reference)


def respelt(name):
    return f"GRCh38_{name}"


@pytest.mark.parametrize("wanted", [None, "all twins"])
def test_a_gene_that_was_measured_under_another_name_is_not_imputed_in_silence(
    wanted, panel, reference, fitted
):
    """Five measured genes are called otherwise: unread, and imputed as if nobody had measured them."""
    twins = list(panel.var_names[15:])
    other = renamed(panel, [*panel.var_names[:15], *map(respelt, twins)])
    with pytest.warns(UserWarning) as said:
        made = fitted.impute(other, genes=None if wanted is None else twins, n_samples=1, n_steps=2)
    assert set(twins) <= set(made.var_names)
    (message,) = (str(one.message) for one in said if "to impute" in str(one.message))
    assert message.startswith(
        f"5 of the {made.n_vars} genes to impute were measured, under another name: they match without the genome prefix "
        f"({twins[0]} – {respelt(twins[0])}, "
    )


def test_a_gene_that_both_genomes_of_a_reference_have_is_not_called_a_twin(panel, reference, recwarn):
    from stgen.models.causalged._imputation import wanted_genes

    known = [*reference.var_names, *(name.upper() for name in panel.var_names)]
    found = wanted_genes(None, known, list(panel.var_names))
    assert len(found) == reference.n_vars  # the unmeasured ones, and all of the other genome
    assert not [one for one in recwarn if "to impute" in str(one.message)]


def test_names_that_differ_in_version_are_named(panel, reference):
    with pytest.raises(ValueError, match=r"match without the version suffix"):
        build(panel, renamed(reference, [f"{name}.2" for name in reference.var_names]))


def test_repeated_names_are_refused_on_either_side(panel, reference):
    names = list(panel.var_names)
    names[3] = names[0]
    with pytest.raises(
        ValueError, match=r"Gene names must be unique; 1 repeat: gene_001.*var_names_make_unique"
    ):
        stg.models.CausalGeD.setup_anndata(renamed(panel, names), **SECTIONS)
    names = list(reference.var_names)
    names[3] = names[0]
    with pytest.raises(
        ValueError, match=r"Gene names must be unique; 1 repeat: gene_001.*var_names_make_unique"
    ):
        stg.models.CausalGeD.setup_reference(renamed(reference, names))


def test_names_that_repeat_since_are_noticed(panel, reference):
    panel, changed = panel.copy(), reference.copy()
    stg.models.CausalGeD.setup_anndata(panel, **SECTIONS)
    stg.models.CausalGeD.setup_reference(changed)
    names = list(reference.var_names)
    names[3] = names[0]
    changed.var_names = names
    with pytest.raises(ValueError, match=r"Gene names of the reference must be unique; 1 repeat: gene_001"):
        stg.models.CausalGeD(panel, changed, **TINY)


# a reference that is none -------------------------------------------------------------------------------------------


def test_a_model_without_a_reference_is_refused(panel):
    panel = panel.copy()
    stg.models.CausalGeD.setup_anndata(panel, **SECTIONS)
    with pytest.raises(
        ValueError,
        match=r"needs a single-cell reference.*setup_reference\(reference\).*CausalGeD\(adata, reference\)",
    ):
        stg.models.CausalGeD(panel, **TINY)


def test_a_reference_that_is_not_set_up_is_refused(panel, reference):
    panel = panel.copy()
    stg.models.CausalGeD.setup_anndata(panel, **SECTIONS)
    with pytest.raises(
        ValueError,
        match=r"The reference is not set up\. Run `CausalGeD.setup_reference\(reference\)`.*expression='log'",
    ):
        stg.models.CausalGeD(panel, reference.copy(), **TINY)


def test_a_model_without_data_is_refused():
    with pytest.raises(ValueError, match=r"CausalGeD needs data.*setup_anndata\(adata\)"):
        stg.models.CausalGeD()


@pytest.mark.parametrize("n_cells", [0, 1, 9])
def test_a_reference_of_hardly_any_cells_is_refused(n_cells, reference):
    with pytest.raises(ValueError, match=rf"must hold at least 10 cells; it holds {n_cells}"):
        stg.models.CausalGeD.setup_reference(reference[:n_cells].copy())


def test_a_reference_without_genes_is_refused(reference):
    with pytest.raises(ValueError, match=r"At least \d+ genes are needed; this AnnData has 0"):
        stg.models.CausalGeD.setup_reference(reference[:, :0].copy())


@pytest.mark.filterwarnings("ignore:.*(no counts|same count).*:UserWarning")
def test_a_reference_that_is_empty_of_measured_genes_is_refused(panel, reference):
    measured = reference.var_names.isin(panel.var_names)

    def silence(x):
        x[:, measured] = 0
        return x

    model = build(panel, with_values(reference, silence))
    with pytest.raises(
        ValueError,
        match=r"ells? of the reference .*a count of a gene that the spatial data measured",
    ):
        model.train(**SHORT)


@pytest.mark.filterwarnings("ignore:.*(no counts|same count).*:UserWarning")
def test_a_reference_of_which_one_cell_counts_is_refused(panel, reference):
    """With a message of ours."""

    def silence(x):
        x[1:] = 0
        return x

    model = build(panel, with_values(reference, silence))
    with pytest.raises(
        ValueError, match=r"At least 10 cells of the reference must have a count of a gene.*; 1 of 120 have"
    ):
        model.train(**SHORT)


@pytest.mark.filterwarnings("ignore:.*(no counts|same count|distinct clusters).*")
def test_a_reference_whose_cells_are_all_alike_is_refused(panel, reference):
    model = build(panel, with_values(reference, lambda x: np.broadcast_to(x[0], x.shape)))
    with pytest.raises(
        ValueError,
        match=r"At least 10 measured genes must vary over the cells of the reference.*; 0 of 20 do",
    ):
        model.train(**SHORT)


def test_a_reference_of_one_cell_type_is_enough(panel, reference):
    """Cells of a type differ; no label is read."""
    kind = reference.obs[_keys.CELL_TYPE].value_counts().index[0]
    model = build(panel, reference[reference.obs[_keys.CELL_TYPE] == kind].copy())
    model.train(**SHORT)
    assert np.isfinite(model.impute().X).all()


def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(panel, reference):
    layered = reference.copy()
    layered.layers["raw"] = layered.X.copy()
    with pytest.raises(KeyError, match=r"layers\['counts'\] does not exist; layers has \['raw'\]"):
        stg.models.CausalGeD.setup_reference(layered, layer="counts")
    with pytest.raises(KeyError, match=r"layers\['counts'\] does not exist"):
        stg.models.CausalGeD.setup_anndata(panel.copy(), layer="counts", **SECTIONS)


def test_training_a_loaded_model_that_never_saw_a_reference_is_refused(tmp_path, panel, reference):
    build(panel, reference).save(tmp_path / "model")
    loaded = stg.models.CausalGeD.load(tmp_path / "model", panel.copy(), accelerator="cpu")
    with pytest.raises(
        ValueError, match=r"Training needs the reference: build the model as `CausalGeD\(adata, reference\)`"
    ):
        loaded.train(**SHORT)


# values that are none -----------------------------------------------------------------------------------------------


def broken(value):
    def change(x):
        x[3, 4] = value
        return x

    return change


VALUES = {
    "NaN": (broken(np.nan), r"X must hold counts; found 1 values that are NaN or infinite.*raw counts"),
    "infinite": (broken(np.inf), r"X must hold counts; found 1 values that are NaN or infinite"),
    "negative": (broken(-2), r"X must hold counts; found negative values, the lowest -2.*raw counts"),
    "log": (
        np.log1p,
        r"X must hold counts; .*not whole numbers.*If they are log-normalised, say `expression='log'`",
    ),
}


@pytest.mark.parametrize("side", ["spatial", "reference"])
@pytest.mark.parametrize("name", VALUES)
def test_values_that_are_no_counts_are_refused_on_either_side(name, side, panel, reference):
    change, message = VALUES[name]
    with pytest.raises(ValueError, match=message):
        if side == "spatial":
            stg.models.CausalGeD.setup_anndata(with_values(panel, change), **SECTIONS)
        else:
            stg.models.CausalGeD.setup_reference(with_values(reference, change))


LOGS = {
    "NaN": (
        broken(np.nan),
        r"X must hold log-normalised expression; found 1 values that are NaN or infinite",
    ),
    "scaled": (
        broken(-2),
        r"X must hold log-normalised expression, which is not negative; found -2.*looks scaled",
    ),
    "counts": (broken(5000), r"found 5000, which no logarithm of a count reaches.*`expression='counts'`"),
}


@pytest.mark.parametrize("side", ["spatial", "reference"])
@pytest.mark.parametrize("name", LOGS)
def test_values_that_are_no_logs_are_refused_on_either_side(name, side, panel, reference):
    change, message = LOGS[name]
    logged = [with_values(one, lambda x: change(np.log1p(x))) for one in (panel, reference)]
    with pytest.raises(ValueError, match=message):
        if side == "spatial":
            stg.models.CausalGeD.setup_anndata(logged[0], expression="log", **SECTIONS)
        else:
            stg.models.CausalGeD.setup_reference(logged[1], expression="log")


def test_counts_that_are_said_to_be_logs_are_warned_of(reference):
    with pytest.warns(UserWarning, match=r"All values of X are whole numbers.*Say `expression='counts'`"):
        stg.models.CausalGeD.setup_reference(
            with_values(reference, lambda x: np.minimum(x, 20)), expression="log"
        )


@pytest.mark.parametrize("side", ["spatial", "reference"])
def test_counts_on_one_side_and_logs_on_the_other_are_taken_if_said_and_refused_if_not(
    side, panel, reference
):
    spatial, cells = panel.copy(), reference.copy()
    of = {"spatial": {}, "reference": {}}
    if side == "spatial":
        spatial = with_values(spatial, np.log1p)
    else:
        cells = with_values(cells, np.log1p)
    with pytest.raises(
        ValueError, match=r"not whole numbers.*If they are log-normalised, say `expression='log'`"
    ):
        build(spatial, cells)
    of[side] = {"expression": "log"}
    stg.models.CausalGeD.setup_anndata(spatial, **SECTIONS, **of["spatial"])
    stg.models.CausalGeD.setup_reference(cells, **of["reference"])
    model = stg.models.CausalGeD(spatial, cells, **TINY)
    model.train(**SHORT)
    assert np.isfinite(model.impute().X).all()


def test_spots_without_counts_are_warned_of_and_answered(panel, reference):
    def silence(x):
        x[[0, 17]] = 0
        return x

    empty = with_values(panel, silence)
    with pytest.warns(UserWarning, match=r"2 of 180 spots have no counts in X.*Drop them unless"):
        model = build(empty, reference)
    model.train(**SHORT)
    assert np.isfinite(model.impute().X).all()


@pytest.mark.filterwarnings("ignore:.*(no counts|same count).*:UserWarning")
def test_no_counts_at_all_are_refused(panel, reference):
    model = build(with_values(panel, np.zeros_like), reference)
    with pytest.raises(ValueError, match=r"No spot has any expression of a gene that the reference has"):
        model.train(**SHORT)


@pytest.mark.parametrize("side", ["spatial", "reference"])
def test_an_unknown_scale_is_refused(side, panel, reference):
    with pytest.raises(ValueError, match=r"`expression` must be one of 'counts', 'log'; got 'logs'"):
        if side == "spatial":
            stg.models.CausalGeD.setup_anndata(panel.copy(), expression="logs", **SECTIONS)
        else:
            stg.models.CausalGeD.setup_reference(reference.copy(), expression="logs")


@pytest.mark.parametrize("name", ["NaN", "negative", "log"])
def test_a_new_section_is_checked_like_the_first(name, panel, fitted):
    change, message = VALUES[name]
    with pytest.raises(ValueError, match=message.split(".*")[0]):
        fitted.impute(with_values(panel, change))


def test_one_spot_is_no_tissue(panel):
    with pytest.raises(ValueError, match=r"(?i)at least 2"):
        stg.models.CausalGeD.setup_anndata(panel[:1].copy())


def test_no_spot_is_no_question(panel, fitted):
    with pytest.raises(ValueError, match=r"(?i)at least 1"):
        fitted.impute(panel[:0].copy())


def test_places_that_are_missing_are_named(panel, fitted):
    nowhere = panel.copy()
    del nowhere.obsm[_keys.SPATIAL]
    with pytest.raises(KeyError, match=r"obsm\['spatial'\] does not exist"):
        fitted.impute(nowhere)


# questions that cannot be answered ----------------------------------------------------------------------------------


def test_before_training_it_says_what_to_do(panel, reference):
    with pytest.raises(RuntimeError, match=r"CausalGeD is not fitted.*Call `train\(\)` first"):
        build(panel, reference).impute()


GENES = {
    "measured": (
        ["gene_002", "gene_001", "gene_003"],
        r"genes that were not measured; 2 were: gene_001, gene_003\. Leave them out",
    ),
    "unknown": (
        ["gene_002", "Actb"],
        r"`genes` must be in the reference\. .*1 of them are not.*such as Actb",
    ),
    "none": ([], r"`genes` must name at least one gene; it is empty"),
    "twice": (["gene_002", "gene_002"], r"`genes` must be unique; 1 repeat: gene_002.*Name each once"),
    "case": (["GENE_002"], r"`genes` must be in the reference.*case are ignored"),
}


@pytest.mark.parametrize("name", GENES)
def test_genes_that_cannot_be_imputed_are_refused(name, fitted):
    genes, message = GENES[name]
    with pytest.raises(ValueError, match=message):
        fitted.impute(genes=genes)


def test_one_gene_may_be_named_alone(fitted):
    assert list(fitted.impute(genes="gene_002").var_names) == ["gene_002"]


def test_nothing_to_impute_is_said(tissue, panel, reference, fitted):
    with pytest.raises(
        ValueError, match=r"The reference has no gene that is not measured: there is nothing to impute"
    ):
        fitted.impute(tissue)
    model = build(panel, reference[:, ::2].copy())
    model.train(**SHORT)
    with pytest.raises(ValueError, match=r"there is nothing to impute"):
        model.impute()


NUMBERS = {"zero": 0, "negative": -3, "half": 1.5, "yes": True}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("option", ["n_samples", "n_steps", "n_sets", "batch_size"])
def test_numbers_that_count_nothing_are_refused(option, name, fitted):
    with pytest.raises(
        ValueError, match=rf"`{option}` must be a whole number, at least 1; got {NUMBERS[name]}"
    ):
        fitted.impute(**{option: NUMBERS[name]})


def test_whole_numbers_of_other_kinds_are_taken(fitted):
    assert np.isfinite(fitted.impute(n_samples=np.int64(2), n_steps=np.int64(3), n_sets=np.int64(1)).X).all()


def test_a_whole_number_may_be_written_with_a_point(fitted):
    """It passes the check, so it has to pass what follows."""
    assert np.isfinite(fitted.impute(n_samples=2.0).X).all()


def test_an_order_that_does_not_exist_is_refused(fitted):
    """Whether or not the network has anything to add."""
    with pytest.raises(
        ValueError, match=r"`order` must be 'predictable' or 'random', or names of genes.*got 'best'"
    ):
        fitted.impute(order="best")


def test_names_in_the_order_that_nobody_has_are_refused(fitted):
    with pytest.raises(
        ValueError,
        match=r"`order` must name genes of the reference; 2 of 3 are not: Sox2, Pax6\. It has gene_001",
    ):
        fitted.impute(order=["gene_002", "Sox2", "Pax6"])
    fitted.impute(order=["gene_001", "gene_002"])  # of which the first is measured


def test_an_answer_that_does_not_fit_into_memory_is_refused(fitted, monkeypatch):
    monkeypatch.setattr(_model, "MAX_BYTES", 1000)
    with pytest.raises(
        ValueError,
        match=r"The answer for 180 spots and 20 genes would take .* GB; at most .*Write it to disk with "
        r"`out=\"imputed.zarr\"`, name fewer `genes`, or say `intervals=False`",
    ):
        fitted.impute()


def test_memory_is_counted_by_what_is_asked_for(fitted, monkeypatch):
    made = fitted.impute(genes=["gene_002"])
    size = made.X.nbytes + sum(layer.nbytes for name, layer in made.layers.items() if name)
    monkeypatch.setattr(_model, "MAX_BYTES", size)
    fitted.impute(genes=["gene_002"])
    with pytest.raises(ValueError, match="would take"):
        fitted.impute(genes=["gene_002", "gene_004"])
    fitted.impute(genes=["gene_002", "gene_004"], intervals=False)


def test_an_option_that_does_not_exist_is_refused_with_those_that_do(panel, reference):
    with pytest.raises(TypeError, match=r"CausalGeD has no option 'depth'; it has width, n_layers"):
        build(panel, reference, depth=3)
    with pytest.raises(ValueError, match=r"`preset` must be one of 'small', 'paper'; got 'large'"):
        build(panel, reference, preset="large")


@pytest.mark.parametrize("value", [16.0, 0, -4, True, "16", None])
@pytest.mark.parametrize("name", ["width", "n_layers", "n_metacells"])
def test_sizes_of_the_network_are_whole_numbers(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be a whole number, at least \d; got {value!r}"):
        stg.models.CausalGeDConfig(**{name: value})


def test_an_error_changes_nothing(panel, reference):
    """What was refused is not marked."""
    from stgen.testing import changed_slots

    bad = with_values(reference, np.log1p)
    before = bad.copy()
    with pytest.raises(ValueError, match="must hold counts"):
        stg.models.CausalGeD.setup_reference(bad)
    assert changed_slots(before, bad) == []
