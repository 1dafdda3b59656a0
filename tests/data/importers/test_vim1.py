"""vim-1: its two MATLAB files, written in version 7.3 as published, and in the converted forms
that are passed on.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from published import EXACT
from published.vim1 import (
    N_TRAIN,
    N_VAL,
    Published,
    images_last,
    transposed,
    write,
    write_copied,
    write_python,
    write_v5,
    write_v73,
)

from ubrain.crowd import Crowd
from ubrain.data.importers.recording import Options
from ubrain.data.importers.vim1 import import_vim1


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


# --- refusals
