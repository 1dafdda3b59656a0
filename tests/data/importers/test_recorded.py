"""Real recordings, where they are there: spikes in macaque V4 (Cowley et al. 2023), fMRI of human
V1 (Miyawaki et al. 2008).

They are looked for in `$UBRAIN_RECORDINGS`, or in `shared/data` beside the project.
"""

import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io

from ubrain.crowd import Crowd
from ubrain.data.doctor import check
from ubrain.data.importers.arrays import import_arrays
from ubrain.data.importers.rdm import import_rdm

FOLDER = Path(os.environ.get("UBRAIN_RECORDINGS") or Path(__file__).parents[4] / "shared/data")


def recorded(name: str) -> Path:
    if not (FOLDER / name).exists():
        pytest.skip(f"{name} is not there")
    return FOLDER / name


def errors(path: Path) -> list[str]:
    return [str(finding) for finding in check(path) if finding.level == "error"]


def test_a_session_of_macaque_v4(tmp_path: Path) -> None:
    """Of its 1200 images, 900 are different."""
    with zipfile.ZipFile(recorded("macaque_v4/images_190925.zip")) as archive:
        archive.extractall(
            tmp_path / "images", [name for name in archive.namelist() if name.startswith("image")]
        )
    path, responses = tmp_path / "v4.h5", recorded("macaque_v4/responses_190925.npy")
    import_arrays(
        tmp_path / "images", responses, "WE-190925", path, scanner="electrodes", transpose=True
    )
    values = np.load(responses)
    z = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    with Crowd(path) as crowd:
        subject = crowd["WE-190925"]
        rows = np.concatenate([subject.image_rows(split) for split in ("train", "val", "test")])
        assert len(rows) == len(set(rows.tolist())) == 900
        assert min(len(subject.images(split)) for split in ("train", "val", "test")) > 50
        repeats = subject.trials.repeats(rows)
        assert repeats.sum() == 1200
        once = rows[repeats == 1][:50]
        numbers = [int(crowd.image_ids[row].removeprefix("image")) - 1 for row in once]
        np.testing.assert_allclose(
            subject.responses_to(once), z[:, numbers].T, rtol=1e-4, atol=1e-5
        )
    assert errors(path) == []


def test_figures_in_human_v1(tmp_path: Path) -> None:
    """10 figures of 10 × 10 pixels, shown 8 times each."""
    content = scipy.io.loadmat(recorded("human_v1_figures/V1_mean_figure.mat"))
    figures, shown = np.unique(content["I2"], axis=1, return_inverse=True)
    np.save(tmp_path / "figures.npy", 255 * figures.T.reshape(10, 10, 10).astype(np.uint8))
    np.save(tmp_path / "responses.npy", content["R2"])
    pd.DataFrame({"image": shown.ravel()}).to_csv(tmp_path / "trials.csv", index=False)
    (tmp_path / "test.txt").write_text("2\n7\n")
    path = tmp_path / "v1.h5"
    import_arrays(
        tmp_path / "figures.npy",
        tmp_path / "responses.npy",
        "V1",
        path,
        transpose=True,
        scanner="3T",
        trials=tmp_path / "trials.csv",
        test_images=tmp_path / "test.txt",
    )
    values = content["R2"]
    z = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    noise = np.mean([z[:, shown.ravel() == i].var(1, ddof=1) for i in range(10)], axis=0)
    with Crowd(path) as crowd:
        subject = crowd["V1"]
        assert subject.trials.repeats(subject.image_rows("test")).tolist() == [8, 8]
        expected = np.stack([z[:, shown.ravel() == i].mean(1) for i in (2, 7)])
        np.testing.assert_allclose(subject.responses("test"), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            subject.voxels["ncsnr"], np.sqrt(np.maximum(1 - noise, 0) / noise), rtol=1e-3, atol=1e-3
        )
        assert 0.2 < subject.voxels["ncsnr"].median() < 2
    assert errors(path) == []


def test_dissimilarities_of_figures_in_human_v1(tmp_path: Path) -> None:
    """Patterns of one row for each of the ten figures have the RDM of the measured means."""
    content = scipy.io.loadmat(recorded("human_v1_figures/V1_mean_figure.mat"))
    figures, which = np.unique(content["I2"].T, axis=0, return_inverse=True)
    means = np.stack([content["R2"].T[which.ravel() == i].mean(0) for i in range(len(figures))])
    np.save(tmp_path / "figures.npy", figures.reshape(-1, 10, 10).astype(np.uint8) * 255)
    rdm = np.maximum(1 - np.corrcoef(means), 0)
    np.savez(tmp_path / "V1_RDM.npz", Net_RDM=rdm)
    images = tmp_path / "figures.npy"
    import_rdm(tmp_path, tmp_path / "c.h5", dataset="figures", images=images, test_fraction=0.3)
    with Crowd(tmp_path / "c.h5") as crowd:
        patterns = crowd["figures-subj01"].responses_to(np.arange(len(figures)))
    found = 1 - np.corrcoef(patterns.astype(np.float64))
    np.testing.assert_allclose(found, rdm, atol=1e-6)
