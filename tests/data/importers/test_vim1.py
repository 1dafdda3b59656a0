"""vim-1: its two MATLAB files, written in version 7.3 as published, and in the converted forms
that are passed on.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from ubrain.crowd import Crowd
from ubrain.data.importers.recording import Options
from ubrain.data.importers.vim1 import import_vim1

N_TRAIN, N_VAL, SIDE = 30, 7, 6
N_VOXELS = {"S1": 11, "S2": 9}
EXACT = Options(dtype="float32", val_fraction=0.2)


class Published:
    """Responses and stimuli as they are called in MATLAB: responses are voxels × images, stimuli
    images × side × side.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.responses: dict[str, Any] = {}
        for subject, n in N_VOXELS.items():
            self.responses[f"dataTrn{subject}"] = rng.normal(size=(n, N_TRAIN)).astype(np.float32)
            self.responses[f"dataVal{subject}"] = rng.normal(size=(n, N_VAL)).astype(np.float32)
            self.responses[f"roi{subject}"] = np.arange(n, dtype=float)[None] % 8
            self.responses[f"voxIdx{subject}"] = (1 + rng.choice(64 * 64 * 18, n, replace=False))[
                None
            ].astype(float)
        grey = rng.integers(0, 256, (N_TRAIN + N_VAL, SIDE, SIDE))
        grey[0, 0, 0], grey[-1, 0, 0] = 0, 255
        self.grey = grey.astype(np.uint8)
        light = grey / 255 - 0.45
        self.stimuli: dict[str, Any] = {
            "stimTrn": light[:N_TRAIN],
            "stimVal": light[N_TRAIN:],
            "seqTrn": np.arange(1, N_TRAIN + 1.0)[None],
        }

    def z(self, subject: str) -> np.ndarray:
        """Responses (n_images, n_voxels), training before validation."""
        return np.concatenate(
            [self.responses[f"dataTrn{subject}"], self.responses[f"dataVal{subject}"]], axis=1
        ).T


def write_v73(path: Path, content: dict[str, np.ndarray]) -> None:
    """As MATLAB does: a block of text before the HDF5, and all axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in content.items():
            file[name] = values.T
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116))


def write_python(path: Path, content: dict[str, np.ndarray]) -> None:
    """HDF5 made with Python from arrays as MATLAB has them."""
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file[name] = values


def write_copied(path: Path, content: dict[str, np.ndarray]) -> None:
    """MATLAB's arrays in a new HDF5 file, without its text at the beginning."""
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file[name] = values.T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")


def write_v5(path: Path, content: dict[str, np.ndarray]) -> None:
    scipy.io.savemat(path, content, do_compression=True)


def transposed(content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values.T for name, values in content.items()}


def images_last(content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.moveaxis(values, 0, -1) if values.ndim == 3 else values
        for name, values in content.items()
    }


def write(root: Path, data: Published) -> Path:
    root.mkdir(exist_ok=True)
    write_v73(root / "EstimatedResponses.mat", data.responses)
    write_v5(root / "Stimuli.mat", data.stimuli)
    return root


@pytest.fixture
def data() -> Published:
    return Published()


@pytest.fixture
def root(tmp_path: Path, data: Published) -> Path:
    return write(tmp_path / "vim-1", data)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


def check(out: Path, data: Published, subjects: tuple[str, ...] = ("S1", "S2")) -> None:
    """The crowd has these responses to these images."""
    with Crowd(out) as crowd:
        assert crowd.subjects == [f"vim1-{name}" for name in subjects]
        for name in subjects:
            subject = crowd[f"vim1-{name}"]
            order = [
                *(f"vim1-train{i:04d}" for i in range(N_TRAIN)),
                *(f"vim1-val{i:04d}" for i in range(N_VAL)),
            ]
            np.testing.assert_array_equal(subject.responses_to(crowd.rows(order)), data.z(name))
        for i, image_id in enumerate(order):
            np.testing.assert_array_equal(
                crowd.image(image_id), data.grey[i][..., None].repeat(3, axis=2)
            )


def test_responses_and_grey_images_arrive(root: Path, out: Path, data: Published) -> None:
    import_vim1(root, out, EXACT)
    check(out, data)


CONVERTED: dict[str, Callable[[Path, Published], None]] = {
    "responses v5, voxels × images": lambda r, d: write_v5(
        r / "EstimatedResponses.mat", d.responses
    ),
    "responses v5, images × voxels": lambda r, d: write_v5(
        r / "EstimatedResponses.mat", transposed(d.responses)
    ),
    "responses HDF5 of Python": lambda r, d: write_python(
        r / "EstimatedResponses.mat", d.responses
    ),
    "stimuli v7.3": lambda r, d: write_v73(r / "Stimuli.mat", d.stimuli),
    "stimuli HDF5 of Python": lambda r, d: write_python(r / "Stimuli.mat", d.stimuli),
    "stimuli HDF5 of Python, images last": lambda r, d: write_python(
        r / "Stimuli.mat", images_last(d.stimuli)
    ),
    "stimuli v7.3, images last": lambda r, d: write_v73(r / "Stimuli.mat", images_last(d.stimuli)),
    "stimuli v7.3, images last, copied": lambda r, d: write_copied(
        r / "Stimuli.mat", images_last(d.stimuli)
    ),
    "stimuli v5, images last": lambda r, d: write_v5(r / "Stimuli.mat", images_last(d.stimuli)),
    "other names": lambda r, d: (
        os.rename(r / "Stimuli.mat", r / "stimuli2.mat"),
        os.rename(r / "EstimatedResponses.mat", r / "EstimatedResponses2.mat"),
    ),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_converted_files_are_turned_the_right_way(
    root: Path, out: Path, data: Published, kind: str
) -> None:
    CONVERTED[kind](root, data)
    import_vim1(root, out, EXACT)
    check(out, data)


def test_a_square_matrix_is_read_as_matlab_has_it(
    tmp_path: Path, out: Path, data: Published
) -> None:
    keep = {
        n: v[..., :9] if "Trn" in n else v for n, v in data.responses.items() if n.endswith("S2")
    }  # 9 voxels × 9 images
    data.responses, data.stimuli["stimTrn"] = keep, data.stimuli["stimTrn"][:9]
    import_vim1(write(tmp_path / "square", data), out, EXACT)
    with Crowd(out) as crowd:
        rows = crowd.rows([f"vim1-train{i:04d}" for i in range(9)])
        np.testing.assert_array_equal(crowd["vim1-S2"].responses_to(rows), keep["dataTrnS2"].T)


def test_validation_images_are_the_test_images(root: Path, out: Path) -> None:
    import_vim1(root, out, EXACT)
    with Crowd(out) as crowd:
        subject = crowd["vim1-S1"]
        assert list(subject.images("test")) == [f"vim1-val{i:04d}" for i in range(N_VAL)]
        assert len(subject.images("val")) > 0
        assert len(subject.images("val")) + len(subject.images("train")) == N_TRAIN


def test_voxels_are_numbered_from_1_and_x_runs_fastest(
    tmp_path: Path, out: Path, data: Published
) -> None:
    data.responses["voxIdxS1"][0, :4] = [1, 2, 65, 64 * 64 * 18]
    import_vim1(write(tmp_path / "places", data), out, EXACT)
    with Crowd(out) as crowd:
        places = crowd["vim1-S1"].voxels[["i", "j", "k"]].to_numpy()
    assert places[:4].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [63, 63, 17]]


def test_areas(root: Path, out: Path) -> None:
    import_vim1(root, out, EXACT)
    with Crowd(out) as crowd:
        assert list(crowd["vim1-S1"].voxels["areas"]) == [
            "",
            "V1",
            "V2",
            "V3",
            "V3A",
            "V3B",
            "V4",
            "LatOcc",
            "",
            "V1",
            "V2",
        ]


def test_voxels_that_are_nan_in_either_part_are_dropped_and_counted(
    tmp_path: Path, out: Path, data: Published
) -> None:
    data.responses["dataTrnS1"][2] = np.nan
    data.responses["dataValS1"][5, 3] = np.nan
    text = import_vim1(write(tmp_path / "nan", data), out, EXACT)
    assert "2 of 11 voxels were dropped: not a number" in text
    with Crowd(out) as crowd:
        np.testing.assert_array_equal(
            crowd["vim1-S1"].responses("test"), np.delete(data.z("S1"), [2, 5], axis=1)[N_TRAIN:]
        )
        assert list(crowd["vim1-S1"].voxels["areas"][:4]) == ["", "V1", "V3", "V3A"]


def test_averages_have_no_noise_ceiling_and_are_not_scaled_again(root: Path, out: Path) -> None:
    text = import_vim1(root, out, EXACT)
    for part in (
        "Noise ceiling: unknown",
        "without z-scoring",
        "averaged over the repeats",
        "standard deviation",
    ):
        assert part in text
    with Crowd(out) as crowd:
        assert crowd["vim1-S1"].trials.normalise == "none"
        assert crowd["vim1-S1"].voxels["ncsnr"].isna().all()
        assert (crowd["vim1-S1"].dataset, crowd["vim1-S1"].scanner) == ("vim-1", "4T")


def test_eight_bit_images_stay_as_they_are(root: Path, out: Path, data: Published) -> None:
    write_v5(
        root / "Stimuli.mat",
        {"stimTrn": data.grey[:N_TRAIN] // 2, "stimVal": data.grey[N_TRAIN:] // 2},
    )
    import_vim1(root, out, EXACT)
    with Crowd(out) as crowd:
        np.testing.assert_array_equal(crowd.image("vim1-train0003")[..., 0], data.grey[3] // 2)


def test_one_subject_may_be_missing_unless_asked_for(
    tmp_path: Path, out: Path, data: Published, refused, caplog
) -> None:
    data.responses = {
        name: values for name, values in data.responses.items() if name.endswith("S2")
    }
    root = write(tmp_path / "one", data)
    with refused(out, "no subject 'S1'; found S2"):
        import_vim1(root, out, Options(subjects=["S1"]))
    import_vim1(root, out, EXACT)
    assert "no responses of S1" in caplog.text
    check(out, data, ("S2",))


def test_subjects_may_be_in_two_files(root: Path, out: Path, data: Published) -> None:
    for number, subject in (("", "S1"), ("2", "S2")):
        mine = {name: values for name, values in data.responses.items() if name.endswith(subject)}
        write_v73(root / f"EstimatedResponses{number}.mat", mine)
    import_vim1(root, out, EXACT)
    check(out, data)


def test_command_line(root: Path, out: Path, run_cli) -> None:
    done = run_cli("import", "vim1", "--root", root, "--out", out, "--subjects", "2")
    assert done.returncode == 0, done.stderr
    assert (
        f"vim1-S2 (vim-1, 4T, volume): {N_TRAIN + N_VAL} trials of {N_TRAIN + N_VAL} images"
        in done.stdout
    )


# --- refusals


def changed(
    name: str, values: object, file: str = "EstimatedResponses.mat"
) -> Callable[[Path, Published], None]:
    """Write a file again with one array changed, or left out."""

    def change(root: Path, data: Published) -> None:
        content = dict(data.responses if file.startswith("Est") else data.stimuli)
        content[name] = values(content[name]) if callable(values) else values
        if content[name] is None:
            del content[name]
        write_v73(root / file, content)

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def link_out(root: Path, data: Published) -> None:
    (root / "Stimuli.mat").rename(root.parent / "Stimuli.mat")
    (root / "Stimuli.mat").symlink_to(root.parent / "Stimuli.mat")


def huge(root: Path, data: Published) -> None:
    with h5py.File(root / "EstimatedResponses.mat", "w") as file:
        file["roiS1"] = file["voxIdxS1"] = np.ones((1, 5))
        file.create_dataset("dataTrnS1", (10**7, 10**7), "f4", chunks=(1, 10))


def external(root: Path, data: Published) -> None:
    (root / "EstimatedResponses.mat").rename(root.parent / "elsewhere.h5")
    with h5py.File(root / "EstimatedResponses.mat", "w") as file:
        for name in data.responses:
            file[name] = h5py.ExternalLink(str(root.parent / "elsewhere.h5"), name)


def nan_pixel(values: np.ndarray) -> np.ndarray:
    return np.where(np.arange(values.size).reshape(values.shape) == 3, np.nan, values)


BAD: dict[str, tuple[Callable[[Path, Published], None], str]] = {
    "no responses": (
        lambda r, d: (r / "EstimatedResponses.mat").unlink(),
        r"has no EstimatedResponses\.mat",
    ),
    "no stimuli": (lambda r, d: (r / "Stimuli.mat").unlink(), r"has no Stimuli\.mat"),
    "responses truncated": (
        lambda r, d: cut(r / "EstimatedResponses.mat"),
        r"EstimatedResponses\.mat",
    ),
    "stimuli truncated": (lambda r, d: cut(r / "Stimuli.mat"), r"Stimuli\.mat cannot be read"),
    "an error page": (
        lambda r, d: (r / "Stimuli.mat").write_text("<html>log in</html>" * 20),
        "cannot be read",
    ),
    "no validation responses": (changed("dataValS1", None), "'dataValS1' is missing"),
    "no places": (changed("voxIdxS1", None), "'voxIdxS1' is missing"),
    "an image too few": (
        changed("dataTrnS1", lambda v: v[:, 1:]),
        r"expected 11 voxels × 30 images, got \(11, 29\)",
    ),
    "an area too few": (
        changed("roiS1", lambda v: v[:, 1:]),
        "voxIdxS1 has 11 voxels, roiS1 has 10",
    ),
    "places from 0": (
        changed("voxIdxS1", lambda v: np.arange(11.0)[None]),
        "expected numbers from 1 to 73728, got 0 to 10",
    ),
    "a place twice": (changed("voxIdxS1", lambda v: np.ones((1, 11))), "is there twice"),
    "unknown areas": (changed("roiS1", lambda v: v + 5), "expected numbers from 0 to 7"),
    "areas that are no numbers": (changed("roiS1", lambda v: v * np.nan), "expected whole numbers"),
    "complex responses": (changed("dataTrnS1", lambda v: v.astype(complex)), "kind 'biuf'"),
    "three axes": (changed("dataTrnS1", lambda v: v[None]), r"expected \(n, n\)"),
    "a nan pixel": (changed("stimVal", nan_pixel, "Stimuli.mat"), "finite grey values"),
    "one grey": (
        lambda r, d: write_v5(r / "Stimuli.mat", {n: v * 0 for n, v in d.stimuli.items()}),
        "finite grey values",
    ),
    "no validation images": (changed("stimVal", None, "Stimuli.mat"), "'stimVal' is missing"),
    "other sides": (
        changed("stimVal", lambda v: v[:, 1:], "Stimuli.mat"),
        "expected images .* of one size",
    ),
    "flat images": (
        changed("stimTrn", lambda v: v.reshape(30, -1), "Stimuli.mat"),
        r"expected \(n, n, n\)",
    ),
    "a link": (link_out, "is a link to"),
    "links within HDF5": (external, "is a link; expected the data themselves"),
    "absurd size": (huge, "too large"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_refused(
    root: Path, out: Path, data: Published, refused, kind: str
) -> None:
    spoil, message = BAD[kind]
    spoil(root, data)
    with refused(out, message):
        import_vim1(root, out, EXACT)


@pytest.mark.parametrize("normalise", ["session", "run"])
def test_averaged_responses_have_no_sessions(
    root: Path, out: Path, refused, normalise: str
) -> None:
    with refused(
        out,
        f"--normalise {normalise}: responses are averages over the repeats of an image in several"
        " sessions",
    ):
        import_vim1(root, out, Options(normalise=normalise))
