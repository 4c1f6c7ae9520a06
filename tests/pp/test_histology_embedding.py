import io
import os
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stgen as stg
from stgen.pp._encoders import _why_not_created


@pytest.fixture
def image(tissue):
    return tissue(800, 1000)


@pytest.fixture
def geometry():
    """112 tiles of 56 pixels."""
    return {"um_per_px": 1.0, "coordinates": "um", "tile_px": 56}


def test_streaming_from_an_image_equals_embedding_stored_tiles(slide, image, geometry):
    stg.pp.histology_tiles(slide, image, **geometry)
    stg.pp.embed_histology(slide)
    from_tiles = slide.obsm["X_histology"]
    assert slide.uns["histology"]["params"]["source"] == "tiles"
    for batch_size in (1, 7, 1000):
        stg.pp.embed_histology(slide, image, batch_size=batch_size, **geometry)
        np.testing.assert_array_equal(slide.obsm["X_histology"], from_tiles)
    stg.pp.embed_histology(slide, tiles=slide.obsm["tiles"], tile_um=112)
    np.testing.assert_array_equal(slide.obsm["X_histology"], from_tiles)


def test_streaming_never_holds_more_than_a_batch(slide, image, geometry):
    sizes = []

    def encoder(tiles):
        sizes.append(len(tiles))
        assert "tiles" not in slide.obsm
        return tiles.mean(axis=(1, 2))

    stg.pp.embed_histology(slide, image, encoder=encoder, batch_size=10, **geometry)
    assert sizes == [10, 10, 10, 10, 8]
    assert "tiles" not in slide.obsm


def test_what_was_done_is_recorded_and_survives_files(slide, image, geometry, tmp_path):
    stg.pp.embed_histology(slide, image, **geometry)
    record = slide.uns["histology"]
    assert record["encoder"] == "descriptors"
    assert record["tile_um"] == 112
    assert record["n_features"] == len(record["feature_names"]) == slide.obsm["X_histology"].shape[1] == 108
    assert slide.obsm["X_histology"].dtype == np.float32
    slide.write_h5ad(tmp_path / "a.h5ad")
    assert ad.read_h5ad(tmp_path / "a.h5ad").uns["histology"]["encoder"] == "descriptors"
    slide.write_zarr(tmp_path / "a.zarr")
    assert ad.read_zarr(tmp_path / "a.zarr").uns["histology"]["key_added"] == "X_histology"


def test_features_permute_with_spots(slide, image, geometry):
    order = np.random.default_rng(0).permutation(slide.n_obs)
    shuffled = stg.pp.embed_histology(slide[order].copy(), image, copy=True, **geometry)
    straight = stg.pp.embed_histology(slide, image, copy=True, **geometry)
    np.testing.assert_array_equal(shuffled.obsm["X_histology"], straight.obsm["X_histology"][order])
    assert "X_histology" not in slide.obsm


def test_a_slide_without_genes_can_be_embedded(slide, image, geometry):
    bare = ad.AnnData(obs=slide.obs, obsm={"spatial": slide.obsm["spatial"]})
    stg.pp.embed_histology(bare, image, **geometry)
    assert np.isfinite(bare.obsm["X_histology"]).all()


def test_the_toy_tissue_can_be_embedded_from_its_images():
    adata = stg.datasets.toy_tissue(histology="images", n_sections=2, n_patients=2, spots_per_section=30)
    stg.pp.embed_histology(adata, "hires", library_key="section")
    assert adata.obsm["X_histology"].shape == (60, 108)


# networks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_a_module_gets_normalised_tensors_and_is_left_in_its_mode(slide, image, geometry, torch):
    class Means(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)
            self.frozen = torch.nn.Dropout(0.9).eval()
            self.modes = []

        def forward(self, x):
            self.modes.append(self.training)
            assert x.dtype == torch.float32
            assert x.shape[1:] == (3, 56, 56)
            assert not torch.is_grad_enabled()
            return x.mean(dim=(2, 3))

    module = Means()
    stg.pp.embed_histology(slide, image, encoder=module, **geometry)
    stg.pp.histology_tiles(slide, image, **geometry)
    colour = slide.obsm["tiles"].mean(axis=(1, 2)) / 255
    expected = (colour - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(slide.obsm["X_histology"], expected, atol=1e-4)
    assert slide.uns["histology"]["encoder"] == "Means"
    assert module.training
    assert not module.frozen.training
    assert set(module.modes) == {False}


def test_a_function_gets_uint8_tiles_or_what_transform_makes_of_them(slide, image, geometry):
    def brightness(tiles):
        assert tiles.dtype == np.uint8
        return tiles.reshape(len(tiles), -1).mean(axis=1, keepdims=True)

    stg.pp.embed_histology(slide, image, encoder=brightness, **geometry)
    plain = slide.obsm["X_histology"].copy()
    stg.pp.embed_histology(slide, image, encoder=brightness, transform=lambda t: 255 - t, **geometry)
    np.testing.assert_allclose(slide.obsm["X_histology"], 255 - plain, rtol=1e-4)
    assert slide.uns["histology"]["encoder"] == "brightness"


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda t: np.full((len(t), 2), np.nan), "must be finite; 48 of 48 spots have NaN"),
        (lambda t: t, "must return tiles × features, here 32 × F; it returns shape"),
        (lambda t: (t, t), "must return one array, tiles × features; it returns a tuple"),
        (lambda t: np.zeros((len(t), len(t))), "the same features for every tile; it returned 32, then 16"),
    ],
)
def test_encoders_that_break_their_promise_are_named(slide, image, geometry, refused, encoder, message):
    with refused(slide, ValueError, message):
        stg.pp.embed_histology(slide, image, encoder=encoder, **geometry)


def timm_or_skip():
    try:
        import timm
    except ImportError as error:
        pytest.skip(f"timm cannot be imported here: {error}")
    return timm


def test_a_timm_model_is_fed_its_own_size_and_colours(slide, image, geometry, torch):
    timm = timm_or_skip()
    before = torch.get_rng_state()
    settings = {"encoder": "timm:test_vit", "encoder_kwargs": {"pretrained": False}, "accelerator": "cpu"}
    torch.manual_seed(0)
    stg.pp.embed_histology(slide, image, **settings, **geometry)
    stg.pp.histology_tiles(slide, image, **geometry)
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(model)
    x = torch.from_numpy(slide.obsm["tiles"]).permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(x, config["input_size"][1:], mode="bicubic", antialias=True).clamp(
        0, 1
    )
    x = (x - torch.tensor(config["mean"])[:, None, None]) / torch.tensor(config["std"])[:, None, None]
    with torch.inference_mode():
        expected = model(x).numpy()
    np.testing.assert_allclose(slide.obsm["X_histology"], expected, atol=1e-4)
    assert slide.uns["histology"]["encoder"] == "test_vit"
    torch.set_rng_state(before)


def test_a_timm_model_leaves_the_random_state_alone(slide, image, geometry, torch):
    timm_or_skip()
    before = torch.get_rng_state()
    stg.pp.embed_histology(slide, image, encoder="test_vit", encoder_kwargs={"pretrained": False}, **geometry)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_model_suggests_known_ones(slide, image, geometry, refused):
    timm_or_skip()
    with refused(slide, ValueError, "timm has no model 'resnet5o'; did you mean .*resnet50"):
        stg.pp.embed_histology(slide, image, encoder="resnet5o", **geometry)


def test_without_timm_the_message_names_the_extra(slide, image, geometry, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with refused(slide, ImportError, r'pip install "stgen\[histology\]"'):
        stg.pp.embed_histology(slide, image, encoder="resnet50", **geometry)


def test_gated_and_unreachable_weights_are_one_clear_message():
    class GatedRepoError(Exception): ...

    class LocalEntryNotFoundError(Exception): ...

    inner = GatedRepoError("403 Client Error. Cannot access gated repo")
    outer = RuntimeError("could not load")
    outer.__cause__ = inner
    gated = _why_not_created(None, "hf-hub:MahmoodLab/UNI", outer)
    assert (
        "accept their terms at https://huggingface.co/MahmoodLab/UNI, then log in with `hf auth login`"
        in gated
    )
    offline = _why_not_created(None, "resnet50", LocalEntryNotFoundError("no file"))
    assert "could not be downloaded" in offline
    assert "HF_HOME" in offline
    assert _why_not_created(None, "resnet50", KeyError("other")) is None


def test_an_encoder_of_no_known_kind_is_named(slide, image, geometry, refused):
    with refused(slide, TypeError, "`encoder` must be 'descriptors', the name of a timm model"):
        stg.pp.embed_histology(slide, image, encoder=3, **geometry)


# features from elsewhere ------------------------------------------------------------------------------------


def test_features_are_joined_by_name(slide):
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(
        rng.normal(size=(50, 3)), index=[*slide.obs_names, "x", "y"], columns=["a", "b", "c/d"]
    )
    stg.pp.embed_histology(slide, features=truth.iloc[rng.permutation(50)], encoder="org/uni", tile_um=112)
    np.testing.assert_allclose(slide.obsm["X_histology"], truth.iloc[:48], rtol=1e-6)
    record = slide.uns["histology"]
    assert record["encoder"] == "org/uni"
    assert list(record["feature_names"]) == ["a", "b", "c/d"]


def test_an_encoder_id_with_a_slash_survives_a_file(slide, tmp_path):
    stg.pp.embed_histology(slide, features=np.ones((48, 2)), encoder="org/uni")
    slide.write_h5ad(tmp_path / "a.h5ad")
    record = ad.read_h5ad(tmp_path / "a.h5ad").uns["histology"]
    assert record["encoder"] == "org/uni"
    assert "tile_um" not in record


def test_a_key_of_obsm_can_be_taken_over(slide):
    slide.obsm["uni"] = np.arange(96).reshape(48, 2)
    stg.pp.embed_histology(slide, features="uni", key_added="X_uni")
    np.testing.assert_array_equal(slide.obsm["X_uni"], slide.obsm["uni"])
    assert slide.obsm["X_uni"].dtype == np.float32
    assert slide.uns["histology"]["encoder"] == "precomputed"
    assert slide.uns["histology"]["key_added"] == "X_uni"


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ("uni", KeyError, r"obsm\['uni'\] does not exist; obsm has \['spatial'\]"),
        (np.ones((47, 2)), ValueError, r"must be spots × features, here 48 × F; their shape is \(47, 2\)"),
        (np.ones(48), ValueError, r"their shape is \(48,\)"),
        (np.full((48, 2), "a"), ValueError, "must be numbers"),
        (
            np.where(np.arange(48)[:, None] < 3, np.nan, 1.0),
            ValueError,
            "3 of 48 spots have NaN .* such as s1_0, s1_1, s1_2",
        ),
        (
            pd.DataFrame({"a": [1.0]}, index=["s1_0"]),
            ValueError,
            "47 of 48 are not in the index, such as s1_1",
        ),
        (
            pd.DataFrame({"a": [1.0, 2.0]}, index=["s1_0", "s1_0"]),
            ValueError,
            "must be unique; 1 repeat: s1_0",
        ),
    ],
)
def test_features_that_do_not_fit_are_named(slide, refused, features, error, message):
    with refused(slide, error, message):
        stg.pp.embed_histology(slide, features=features)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, r"nothing to embed: give `image=`, `tiles=` or `features=`; obsm has \['spatial'\]"),
        ({"image": "a.png", "features": "uni"}, ValueError, "Give one of .*; got `image` and `features`"),
        ({"tiles": "patches"}, KeyError, r"obsm\['patches'\] does not exist"),
        ({"tiles": np.zeros((48, 8, 8, 3), np.uint8)}, ValueError, "Give `tile_um=`"),
        ({"tiles": np.zeros((4, 8, 8, 3), np.uint8), "tile_um": 8}, ValueError, "48 spots, 4 tiles"),
        ({"tiles": np.zeros((48, 8, 8, 3)), "tile_um": 8}, ValueError, "must be uint8"),
        (
            {"tiles": np.zeros((48, 8, 8, 3), np.uint8), "tile_um": 8},
            ValueError,
            "Descriptors need tiles of at least 16",
        ),
        ({"tiles": "absent.h5"}, FileNotFoundError, "absent.h5' does not exist"),
        ({"features": np.ones((48, 2)), "batch_size": 0}, ValueError, "at least 1; got 0"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(slide, refused, settings, error, message):
    with refused(slide, error, message):
        stg.pp.embed_histology(slide, **settings)


# real sections ----------------------------------------------------------------------------------------------

SECTIONS = ("C2", "C3", "C4", "C5")
MEASURED = {"alone": (0.265, 0.322, 0.332, 0.306), "with neighbours": (0.285, 0.348, 0.357, 0.299)}


@pytest.fixture(scope="module")
def her2st():
    if "STGEN_DATA" not in os.environ:
        pytest.skip("STGEN_DATA names no folder of real sections")
    return Path(os.environ["STGEN_DATA"]) / "her2st_he"


@pytest.fixture(scope="module")
def real_sections(her2st):
    sections = {}
    for name in SECTIONS:
        adata = ad.read_h5ad(her2st / f"{name}.h5ad")
        stg.pp.embed_histology(adata, tiles=her2st / f"{name}_patches.h5")
        sections[name] = adata[np.asarray(adata.X.sum(axis=1)).ravel() >= 500].copy()
    return sections


@pytest.mark.real_data
@pytest.mark.parametrize("kind", list(MEASURED))
def test_descriptors_explain_real_tissue_at_least_as_well_as_measured_before(real_sections, kind):
    """Ridge on the descriptors, leave one section out, mean Pearson over the panel of 200 genes."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from stgen.data._windows import neighbour_index, neighbour_mean

    def inputs(adata):
        own = adata.obsm["X_histology"].astype(float)
        if kind == "alone":
            return own
        return np.hstack([own, neighbour_mean(own, neighbour_index(adata.obsm["spatial"]))])

    for test, before in zip(SECTIONS, MEASURED[kind]):
        joint = ad.concat(real_sections)
        with pytest.warns(UserWarning, match="Patient C has sections in training and in test"):
            stg.pp.split(joint, by="section", test=[test], validation=0)
        stg.pp.gene_panel(joint, n_genes=200)
        genes = list(joint.uns["gene_panel"]["genes"])
        train = [real_sections[name] for name in SECTIONS if name != test]
        counts = np.concatenate([one[:, genes].X.toarray() for one in train])
        target = stg.metrics.panel_target(counts)
        model = make_pipeline(StandardScaler(), RidgeCV(10.0 ** np.arange(6)))
        model.fit(
            np.concatenate(list(map(inputs, train))), stg.metrics.normalize_panel(counts, target=target)
        )
        truth = stg.metrics.normalize_panel(real_sections[test][:, genes].X.toarray(), target=target)
        score = stg.metrics.pearson(truth, model.predict(inputs(real_sections[test]))).mean()
        assert score > before - 0.01, test


@pytest.mark.real_data
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_the_image_of_a_real_section_gives_the_stored_tiles(her2st):
    from PIL import Image

    h5py = pytest.importorskip("h5py")
    adata = ad.read_h5ad(her2st / "C4.h5ad")[::20].copy()
    stg.pp.histology_tiles(adata, her2st / "C4.jpg")
    with h5py.File(her2st / "C4_patches.h5") as file:
        stored = dict(zip(file["obs_names"][:].astype(str), file["jpeg"][:]))
    for name, tile in zip(adata.obs_names, adata.obsm["tiles"]):
        other = np.asarray(Image.open(io.BytesIO(bytes(stored[name]))))
        # JPEG is lossy; half a pixel of displacement would already differ by 6
        assert np.abs(tile.astype(float) - other).mean() < 3


@pytest.mark.real_data
def test_the_pitch_of_a_real_section_gives_its_pixel_size(her2st):
    adata = ad.read_h5ad(her2st / "C3.h5ad")
    known = adata.uns.pop("um_per_unit")
    stg.pp.coordinates_in_um(adata, spot_pitch_um=200)
    assert adata.uns["spatial_um"]["um_per_unit"] == pytest.approx(known, rel=0.01)
