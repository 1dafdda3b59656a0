"""Patterns from RDMs: their geometry is that of the RDM, in the crowd file, too."""

from pathlib import Path

import numpy as np
import pytest
from published.rdm import AREAS, N, images, make, write_npz
from scipy.spatial.distance import pdist, squareform

from ubrain.crowd import Crowd
from ubrain.data.doctor import check
from ubrain.data.importers.rdm import import_rdm, patterns_of
from ubrain.data.importers.recording import Options
from ubrain.errors import UbrainError


def dissimilarities(patterns: np.ndarray) -> np.ndarray:
    return squareform(pdist(patterns, "correlation"))


def test_geometry_survives_the_import(tmp_path: Path) -> None:
    """1 − Pearson of what is stored as float32 is the RDM to 1e-6, in every area and subject."""
    made = make(write_npz)(tmp_path / "rdm")
    told = import_rdm(made.root, tmp_path / "c.h5", Options(dtype="float16"), **images(made.root))
    assert "IT: 12 components in place of voxels" in told  # 11 dimensions, as 12 voxels centred
    assert "EVC: 31 components in place of voxels" in told
    assert "stored as float32" in told
    with Crowd(tmp_path / "c.h5") as crowd:
        for number, name in enumerate(crowd.subjects):
            subject = crowd[name]
            order = [int(i.removeprefix("image_")) - 1 for i in crowd.image_ids]
            rows, areas = np.arange(N), subject.voxels["areas"].to_numpy()
            for area in AREAS:
                found = dissimilarities(subject.responses_to(rows, areas == area))
                expected = made.rdms[area][number][np.ix_(order, order)]
                np.testing.assert_allclose(found, expected, atol=1e-6)
            assert np.isnan(subject.voxels["ncsnr"]).all()
    assert [str(f) for f in check(tmp_path / "c.h5") if f.level == "error"] == []


def test_patterns_are_centred_over_components_and_of_one_length() -> None:
    rng = np.random.default_rng(1)
    rdm = 1 - np.corrcoef(rng.normal(size=(20, 200)))
    patterns, negative = patterns_of(rdm)
    assert patterns.shape == (20, 21)
    assert negative < 1e-12
    np.testing.assert_allclose(patterns.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose((patterns**2).mean(1), 1)
    np.testing.assert_allclose(dissimilarities(patterns), rdm, atol=1e-12)


def test_an_image_that_is_there_twice() -> None:
    """Dissimilarity 0 between two images: a geometry of fewer dimensions."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 40))
    x[5] = x[2]
    rdm = 1 - np.corrcoef(x)
    patterns, _ = patterns_of(rdm)
    assert patterns.shape == (8, 8)
    np.testing.assert_allclose(patterns[5], patterns[2], atol=1e-7)


def test_small_negative_eigenvalues_are_said_and_large_ones_refused(tmp_path: Path) -> None:
    """As of an RDM that was rounded, or of which single dissimilarities were smoothed."""
    made = make(write_npz)(tmp_path / "rdm")
    noise = np.random.default_rng(2).normal(0, 0.01, (N, N))
    noise = np.triu(noise, 1) + np.triu(noise, 1).T
    made.rdms["IT"] = np.clip(made.rdms["IT"] + noise, 0, 2)
    write_npz(made)
    values = np.linalg.eigvalsh(1 - made.rdms["IT"][0])
    share = -values[values < 0].sum() / np.abs(values).sum()
    assert share > 0.01
    with pytest.raises(UbrainError, match=f"IT of .*subj01: negative .* share of {share:.3g}"):
        import_rdm(made.root, tmp_path / "c.h5", **images(made.root))
    _, found = patterns_of(made.rdms["IT"][0], most_negative=0.1)
    assert found == pytest.approx(share)
    more = {**images(made.root), "most_negative": 0.1}
    told = import_rdm(made.root, tmp_path / "c.h5", **more)
    assert f"share of {share:.2g}, and no dissimilarity changed by more than" in told
