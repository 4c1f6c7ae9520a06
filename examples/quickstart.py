"""From H&E to counts: train on measured sections, predict one from its image alone, ask whether to believe it.

    python examples/quickstart.py                        a simulated tissue; nothing is downloaded
    python examples/quickstart.py --data DIR             your sections, one .h5ad each, with their images beside them
    python examples/quickstart.py --data DIR --test C3   choose the section that is held out

A section of yours is `NAME.h5ad`: counts in X, spot coordinates in obsm["spatial"] as pixels of the image. Its histology
is `NAME_patches.h5` (tiles cut before, see `stg.pp.read_tiles`) or `NAME.jpg`, `.png` or `.tif`. The pixel size comes
from uns["um_per_unit"], or from `--spot-pitch-um` (100 for Visium). obs["section"] and obs["patient"] are used if there.
"""

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np

import stgen as stg

MIN_COUNTS = 500
IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def main() -> None:
    options = arguments()
    warnings.filterwarnings("ignore", message="Patient .*")  # step 2 says it, and so does the table of scores
    options.out.mkdir(parents=True, exist_ok=True)

    say("1. Sections with counts and H&E")
    adata = toy_sections() if options.data is None else real_sections(options.data, options.spot_pitch_um)
    say(
        f"   {adata.n_obs} spots × {adata.n_vars} genes, {adata.obsm['X_histology'].shape[1]} histology features"
    )
    say(f"   sections: {', '.join(adata.obs['section'].unique())}")

    say("2. Who trains, and who is left alone")
    shared = hold_out(adata, options.test)
    say("   " + ", ".join(f"{n} spots {name}" for name, n in adata.obs["split"].value_counts().items()))
    if shared:
        say(f"   ! patient {shared} is on both sides: scores are of a known patient, and the table says so")

    say("3. The genes, chosen from training spots")
    n_genes = options.genes or (60 if options.data is None else 200)
    stg.pp.gene_panel(adata, n_genes=n_genes, split_key="split")
    panel = adata[:, adata.var["gene_panel"]].copy()
    say(f"   {panel.n_vars} genes, such as {', '.join(adata.uns['gene_panel']['genes'][:5])}")

    say("4. Train GenAR")
    stg.models.GenAR.setup_anndata(panel, library_key="section", patient_key="patient", split_key="split")
    model = stg.models.GenAR(panel)
    model.train()
    model.save(options.out / "model", overwrite=True)
    say(f"   {model}")

    say("5. Predict, from H&E and places alone")
    stg.tl.genar_predict(adata, model=model)
    held_out = adata[adata.obs["split"] == "test"].copy()
    image_alone = ad.AnnData(
        obs=held_out.obs[["section"]],
        obsm={key: held_out.obsm[key] for key in ("X_histology", "spatial")},
    )
    same = np.allclose(model.predict(image_alone), stg.get.prediction(held_out), rtol=1e-3, atol=1e-3)
    say(f"   {held_out.n_obs} held-out spots; the same without their counts: {'yes' if same else 'NO'}")

    say("6. Evaluate beside nulls and baselines that had the same features")
    predictions = ["genar_normalized", "genar"]  # log-normalised expression, and counts
    table = stg.tl.evaluate(adata, predictions, allow_shared_patients=bool(shared))
    say(headline(table))
    verdicts = adata.var.loc[model.genes, "evaluation_genar_normalized_verdict"].astype(str).value_counts()
    say("   gene by gene: " + ", ".join(f'{n} "{name}"' for name, n in verdicts.items()))
    below, at_most = model.predict_cdf(held_out)
    pit = stg.metrics.randomized_pit(held_out[:, model.genes].X.toarray(), below, at_most)
    say(f"   calibration: the PIT is {stg.metrics.pit_deviation(pit):.3f} away from uniform")

    say("7. Pictures")
    best = adata.var["evaluation_genar_normalized_score"].nlargest(4).index
    section = str(held_out.obs["section"].iloc[0])
    maps = stg.pl.gene_maps(adata, list(best), prediction="genar_normalized", section=section)
    draw(options.out / "gene_maps.png", maps)
    draw(options.out / "scores.png", stg.pl.scores(adata))
    draw(options.out / "calibration.png", stg.pl.calibration(pit))
    draw(options.out / "training.png", stg.pl.history(model))
    draw(options.out / "gene_groups.png", stg.pl.gene_groups(stg.get.gene_groups(model)))
    table.to_csv(options.out / "scores.csv", index=False)
    held_out.write_h5ad(options.out / "predicted.h5ad")
    say(f"   {options.out}: pictures, scores.csv, predicted.h5ad, and the model in {options.out / 'model'}")


def toy_sections() -> ad.AnnData:
    """A tissue of five patients with an H&E-like image each."""
    adata = stg.datasets.toy_tissue(
        n_sections=5, n_patients=5, spots_per_section=250, n_genes=100, histology="images"
    )
    stg.pp.embed_histology(adata, "hires", library_key="section")
    return adata


def real_sections(folder: Path, spot_pitch_um: float | None) -> ad.AnnData:
    """All sections of a folder in one AnnData, with histology features and coordinates in µm."""
    files = sorted(folder.glob("*.h5ad"))
    if len(files) < 2:
        raise SystemExit(f"{folder} must hold at least two sections (*.h5ad); found {len(files)}.")
    sections = []
    for file in files:
        adata = ad.read_h5ad(file)
        adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() >= MIN_COUNTS].copy()  # near-empty spots
        tiles = file.with_name(f"{file.stem}_patches.h5")
        images = [file.with_suffix(ending) for ending in IMAGES if file.with_suffix(ending).exists()]
        if tiles.exists():
            stg.pp.embed_histology(adata, tiles=tiles)
        elif images:
            stg.pp.embed_histology(adata, images[0], spot_pitch_um=spot_pitch_um)
        else:
            raise SystemExit(f"{file.name} has no histology: expected {tiles.name} or an image beside it.")
        stg.pp.coordinates_in_um(adata, spot_pitch_um=spot_pitch_um)
        if "section" not in adata.obs:
            adata.obs["section"] = file.stem
        if "patient" not in adata.obs:
            adata.obs["patient"] = file.stem  # nobody said that two sections are of one patient
        sections.append(adata)
    together = ad.concat(sections, join="inner", merge="same", uns_merge="same")
    together.uns.pop(
        "spatial_um", None
    )  # what single records have in common describes nothing; places came along
    return together


def hold_out(adata: ad.AnnData, test: str | None) -> str:
    """Hold a section out, and squares of the training sections for when to stop. Returns patients on both sides."""
    test = test or str(adata.obs["section"].iloc[-1])
    stg.pp.split(adata, by="section", test=[test], validation=0)
    stg.pp.split(adata, by="block", validation=0.15, test=0, block_um=800, within="train")
    is_test = adata.obs["split"] == "test"
    return ", ".join(sorted(set(adata.obs["patient"][is_test]) & set(adata.obs["patient"][~is_test])))


def headline(table) -> str:
    """Mean Pearson correlation over genes on depth-normalised expression, best first."""
    rows = table[
        (table["metric"] == "pearson") & (table["scale"] == "normalized") & (table["section"] == "mean")
    ]
    rows = rows.dropna(subset="value").sort_values("value", ascending=False)
    return "\n".join(f"   {row.value:6.3f}  {row.method} ({row.kind})" for row in rows.itertuples())


def draw(path: Path, axes) -> None:
    figure = np.ravel(axes)[0].figure
    figure.savefig(path, dpi=150, bbox_inches="tight")


def say(text: str) -> None:
    print(text, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of sections; default: a toy tissue")
    parser.add_argument("--test", help="section to hold out; default: the last")
    parser.add_argument(
        "--genes", type=int, help="size of the gene panel; default: 60 of the toy tissue, 200 of yours"
    )
    parser.add_argument(
        "--spot-pitch-um", type=float, help="distance between neighbouring spots, if files do not tell"
    )
    parser.add_argument("--out", type=Path, default=Path("quickstart_results"), help="folder for results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
