"""BOLD5000: files written as published, at tiny size; what is read from them, and what is
refused.
"""

import gzip
import os
import shutil
from itertools import pairwise
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io
from published.bold5000 import AREAS, GRID, LENGTHS, N_REPEATED, VERSION, Published, like

from ubrain.crowd import Crowd
from ubrain.data.importers.bold5000 import _Subject, import_bold5000
from ubrain.data.importers.read import Folder
from ubrain.data.importers.recording import Options
from ubrain.errors import UbrainError

EXACT = Options(dtype="float32", subjects=["CSI4"])


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("bold5000"))


@pytest.fixture
def bold(stimuli: Published, tmp_path: Path) -> Published:
    """Stimuli, without responses."""
    shutil.copytree(stimuli.root, tmp_path / "bold5000", copy_function=os.link)
    return stimuli.at(tmp_path / "bold5000")


@pytest.fixture
def csi4(bold: Published) -> Published:
    """Stimuli, and release 2 of CSI4."""
    bold.write_release2("CSI4")
    return bold


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


def stored(path: Path, subject: str = "CSI4") -> np.ndarray:
    """Responses in the crowd file, before z-scoring: (n_trials, n_voxels)."""
    with h5py.File(path) as file:
        return file[f"subjects/bold5000-{subject}/responses"][:]


def account(path: Path, subject: str = "CSI4") -> str:
    with Crowd(path) as crowd:
        return crowd[f"bold5000-{subject}"].account


def trials(path: Path, subject: str = "CSI4") -> pd.DataFrame:
    """Image name, session and run of each trial."""
    with Crowd(path) as crowd, h5py.File(path) as file:
        group = file[f"subjects/bold5000-{subject}/trials"]
        table = pd.DataFrame({name: group[name][:] for name in group})
        return table.assign(image=crowd.image_ids[table["image"]])


def stems(names: list[str]) -> list[str]:
    return [Path(name).stem for name in names]


# ------------------------------------------------------------------------------------------------
# release 2


def test_sessions_are_as_long_as_their_files(csi4: Published, out: Path) -> None:
    import_bold5000(csi4.root, out, EXACT)
    table = trials(out)
    assert table.groupby("session").size().tolist() == LENGTHS["CSI4"]
    assert table.groupby("run").size().tolist() == [37] * 10
    assert "9 session(s) of 37 or 74 trials" in account(out)
    assert "Not there: betas" not in account(out)  # nobody has scanned CSI4 in sessions 10 to 15


NAMES = [
    "{}_GLMbetas-{}_ses{:02d}.nii.gz",
    "{}_GLMbetas-{}_ses-{}.nii.gz",
    "sub/{}_GLMbetas-{}_SES-{:02d}.nii",
    "betas/more/{}_glmbetas-{}_sess-{:03d}.NII.GZ".replace("GZ", "gz"),
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_sessions_vary(bold: Published, out: Path, name: str) -> None:
    bold.write_names("CSI4")
    bold.write_masks("CSI4")
    for session in range(1, 10):
        bold.write_session("CSI4", session, name)
    import_bold5000(bold.root, out, EXACT)
    assert trials(out).groupby("session").size().tolist() == LENGTHS["CSI4"]


def test_other_versions_of_the_betas_also_the_misspelt_one(
    bold: Published, out: Path, refused
) -> None:
    bold.write_names("CSI4")
    bold.write_masks("CSI4")
    for session in range(1, 10):
        bold.write_session("CSI4", session, "{0}_GLMbetas-TYBEB-FITHRF_ses-{2:02d}.nii.gz")
    with refused(
        out, r"files such as CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_ses-01\.nii\.gz\): no subject"
    ):
        import_bold5000(bold.root, out, EXACT)
    import_bold5000(bold.root, out, EXACT, betas="TYPEB-FITHRF")
    assert "CSI4_GLMbetas-TYBEB-FITHRF: percent signal change, not scaled" in account(out)


def test_a_file_that_is_there_compressed_and_not_is_read_once(csi4: Published, out: Path) -> None:
    csi4.write_session("CSI4", 3, "{}_GLMbetas-{}_ses-{:02d}.nii")
    import_bold5000(csi4.root, out, EXACT)
    assert len(stored(out)) == 370


def test_two_subjects(bold: Published, out: Path) -> None:
    for subject in ("CSI1", "CSI4"):
        bold.write_release2(subject)
    import_bold5000(bold.root, out, Options(dtype="float32"))
    with Crowd(out) as crowd:
        assert crowd.subjects == ["bold5000-CSI1", "bold5000-CSI4"]
    for subject in crowd.subjects:
        name = subject.removeprefix("bold5000-")
        assert list(trials(out, name)["image"]) == stems(bold.shown[name])
        assert trials(out, name).groupby("session").size().tolist() == LENGTHS[name]


# ------------------------------------------------------------------------------------------------
# partial downloads


@pytest.mark.parametrize("lacks", ["list of images", "masks"])
def test_files_that_a_subject_lacks_do_not_matter_to_others(
    csi4: Published, out: Path, refused, caplog, lacks: str
) -> None:
    csi4.write_session("CSI1", 1)
    if lacks == "masks":
        csi4.write_names("CSI1")
    with refused(
        out,
        (
            "has no CSI1_imgnames"
            if lacks == "list of images"
            else "has no masks such as sub-CSI1_mask-LHEarlyVis"
        ),
    ):
        import_bold5000(csi4.root, out, Options(subjects=["CSI1", "CSI4"]))
    import_bold5000(csi4.root, out, Options(subjects=["CSI4"], dry_run=True))
    assert "left out" not in caplog.text
    import_bold5000(csi4.root, out, Options(dtype="float32"))
    assert "CSI1 is left out" in caplog.text
    assert list(trials(out)["image"]) == stems(csi4.shown["CSI4"])


def test_a_damaged_list_of_somebody_else_is_no_obstacle(csi4: Published, out: Path, caplog) -> None:
    csi4.text("CSI2_imgnames.txt", ["x"]).write_bytes(b"\xff" * 99)
    import_bold5000(csi4.root, out, EXACT)
    assert "what CSI2 was shown is not known" in caplog.text
    assert len(stored(out)) == 370


def begins(session: int) -> int:
    return sum(LENGTHS["CSI4"][: session - 1])


@pytest.mark.parametrize(
    "there", [[1, 2, 3], [8, 9], [1, 2, 4, 5, 6, 7, 8, 9], [1, 9], [1, 2, 3, 7, 9]]
)
def test_sessions_keep_their_trials_whatever_else_is_missing(
    bold: Published, out: Path, there: list[int]
) -> None:
    """From the lengths of the files alone: counted from the first trial, or from the last."""
    bold.write_release2("CSI4", there)
    import_bold5000(bold.root, out, EXACT)
    table = trials(out)
    known = [
        s for s in there if s != 7 or 8 in there
    ]  # 7 is known from neither end if 6 and 8 are missing
    assert sorted(set(table["session"])) == list(range(len(known)))
    for number, session in enumerate(known):
        shown = bold.shown["CSI4"][begins(session) : begins(session) + LENGTHS["CSI4"][session - 1]]
        assert list(table.loc[table["session"] == number, "image"]) == stems(shown)
    for session in set(range(1, 10)) - set(there):
        assert f"Not there: betas of session {session}." in account(out)
    assert ("the place of session 7 among the trials, so it is left out" in account(out)) == (
        known != there
    )


def test_without_first_and_last_session_nothing_is_known(
    bold: Published, out: Path, refused
) -> None:
    bold.write_release2("CSI4", [4, 5, 7])
    with refused(out, "CSI4: which trials are those of session 4 is not known without the session"):
        import_bold5000(bold.root, out, EXACT)


@pytest.mark.parametrize("value", [np.inf, 0.4])
def test_masks_that_are_no_whole_numbers_are_refused(
    csi4: Published, out: Path, refused, value: float
) -> None:
    (path, *_) = sorted(csi4.root.rglob("sub-CSI4_mask-LHEarlyVis.nii.gz"))
    image = nib.load(path)
    data = np.where(image.get_fdata() > 0, value, 0).astype(np.float32)
    nib.save(nib.Nifti1Image(data, image.affine), path)
    with refused(out, r"mask-LHEarlyVis\.nii\.gz: expected whole numbers, as of areas, got"):
        import_bold5000(csi4.root, out, EXACT)


def test_presentation_lists_say_how_long_missing_sessions_are(bold: Published, out: Path) -> None:
    bold.write_release2("CSI4", [4, 7])
    bold.write_lists("CSI4")
    import_bold5000(bold.root, out, EXACT)
    shown = [name for s in (4, 7) for name in bold.shown["CSI4"][begins(s) : begins(s) + 37]]
    assert list(trials(out)["image"]) == stems(shown)


def test_presentation_lists_that_disagree_are_not_used(
    bold: Published, out: Path, refused, caplog
) -> None:
    bold.write_release2("CSI4", [4, 7])
    bold.write_lists("CSI4")
    run = bold.file(
        "BOLD5000_Stimuli/Stimuli_Presentation_Lists/CSI4/CSI4_sess05/CSI_sess05_run01.txt"
    )
    run.write_text("\n".join(run.read_text().split()[::-1]))
    with refused(out, "CSI4: which trials are those of session 4 is not known"):
        import_bold5000(bold.root, out, EXACT, sessions="4")
    assert (
        "CSI4: Stimuli_Presentation_Lists do not agree with the list of images, and are not used"
        in caplog.text
    )


def test_some_sessions(csi4: Published, out: Path) -> None:
    import_bold5000(csi4.root, out, EXACT, sessions="2")
    assert list(trials(out)["image"]) == stems(csi4.shown["CSI4"][37:111])


def test_real_lengths_of_sessions(tmp_path: Path) -> None:
    """333 or 370 trials, in no regular order: 9 sessions of CSI4 have 3108, 15 of the others
    5254.
    """
    for name, lengths in (
        ("CSI4", [370, 333, 333, 370, 333, 333, 333, 370, 333]),
        ("CSI1", [370, 333, 370, 333, 333, 370, 333, 333, 370, 333, 370, 333, 370, 370, 333]),
    ):
        subject = _Subject(
            Folder(tmp_path), name, [f"scene{i}.jpg" for i in range(sum(lengths))], None
        )
        starts = subject.starts(dict(enumerate(lengths, start=1)))
        assert [b - a for a, b in pairwise([*starts.values(), len(subject.shown)])] == lengths
    with pytest.raises(
        UbrainError, match="have 5217 trials, but the list of images has 5254 lines"
    ):
        subject.starts(dict(enumerate([333, *lengths[1:]], start=1)))


# ------------------------------------------------------------------------------------------------
# images and splits


def test_repeated_images_are_the_test_images_also_where_they_were_shown_once(
    csi4: Published, out: Path
) -> None:
    import_bold5000(csi4.root, out, EXACT)
    with Crowd(out) as crowd:
        subject = crowd["bold5000-CSI4"]
        assert set(subject.images("test")) == set(stems(csi4.repeated))
        assert 1 < len(subject.images("val")) < 30
    assert f"the {N_REPEATED} repeated images that repeated_stimuli_113_list.txt lists" in account(
        out
    )
    assert f"{N_REPEATED} test (1 to 28 trials each)" in account(out)


def test_without_the_list_repeats_of_all_subjects_count(csi4: Published, out: Path) -> None:
    csi4.file("BOLD5000_Stimuli/Scene_Stimuli/repeated_stimuli_113_list.txt").unlink()
    csi4.write_names("CSI1")  # whose responses are not there
    import_bold5000(csi4.root, out, EXACT)
    with Crowd(out) as crowd:
        assert set(crowd["bold5000-CSI4"].images("test")) == set(stems(csi4.repeated))
    csi4.file("CSI1_imgnames.txt").unlink()
    out.unlink()
    import_bold5000(csi4.root, out, EXACT)
    with Crowd(out) as crowd:
        assert set(crowd["bold5000-CSI4"].images("test")) == set(stems(csi4.repeated[:8]))
    assert "the 8 images that were shown several times to one of CSI4" in account(out)


def test_images_may_be_elsewhere_and_spelt_otherwise(
    csi4: Published, out: Path, refused, tmp_path: Path
) -> None:
    shutil.move(csi4.root / "BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli", tmp_path / "images")
    with refused(out, r"has no BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli; name the folder"):
        import_bold5000(csi4.root, out, EXACT)
    for path in (tmp_path / "images/ImageNet").iterdir():
        path.rename(path.with_name(path.stem.upper() + ".jpeg"))
    import_bold5000(csi4.root, out, EXACT, images=tmp_path / "images")
    assert len(stored(out)) == 370


# ------------------------------------------------------------------------------------------------
# voxels and areas


def test_voxels_are_those_of_the_masks_of_areas(csi4: Published, out: Path) -> None:
    import_bold5000(csi4.root, out, EXACT)
    with Crowd(out) as crowd:
        voxels = crowd["bold5000-CSI4"].voxels.set_index(["i", "j", "k"])
    expected = np.zeros(GRID, dtype=bool)
    for place in AREAS.values():
        expected[place] = True
    assert set(voxels.index) == set(
        zip(*(axis.tolist() for axis in np.nonzero(expected)), strict=True)
    )
    assert voxels.loc[(1, 1, 0), "areas"] == "EarlyVis"
    assert voxels.loc[(2, 1, 1), "areas"] == "LOC,PPA"
    assert voxels.loc[(3, 1, 2), "areas"] == "PPA"
    assert (
        voxels["hemisphere"] == np.where(voxels.index.get_level_values("i") < 2, "L", "R")
    ).all()
    assert "Not there: the mask of LH OPA." in account(out)


@pytest.mark.parametrize(
    ("axes", "turned"), [((1, 1, 1), False), ((-1, 1, 1), True), ((1, 1, -1), True), (None, False)]
)
def test_axes_that_run_elsewhere_by_the_affine_are_said(
    bold: Published, out: Path, caplog, axes: tuple[int, int, int] | None, turned: bool
) -> None:
    bold.write_names("CSI4")
    bold.write_masks("CSI4")
    for path in [
        bold.root / "CSI4_brainmask.nii.gz",
        *(bold.root / "derivatives").rglob("*.nii.gz"),
    ]:
        mask = np.asarray(nib.load(path).dataobj)
        data = path.relative_to(bold.root)
        bold.write_nifti(str(data), mask, np.diag([*(2 * np.array(axes or (1, 1, 1))), 1]))
        if axes is None:
            header = bytearray(gzip.decompress(path.read_bytes()))
            header[252:256] = bytes(4)  # qform_code and sform_code
            path.write_bytes(gzip.compress(bytes(header)))
    for session in range(1, 10):
        bold.write_session("CSI4", session)
    import_bold5000(bold.root, out, EXACT)
    assert "taken to have the same voxels in the same order; affines are not used" in account(out)
    said = (
        "the axes of the betas run to RAS, and those of 6 mask(s) elsewhere"
        f" ({'LAS' if axes and axes[0] < 0 else 'RAI'} in"
    )
    assert (said in account(out)) == (said in caplog.text) == turned
    assert ("the axes of" in caplog.text) == turned


def test_misspelt_masks_are_recognised(csi4: Published, out: Path) -> None:
    import_bold5000(csi4.root, out, EXACT)
    for right, wrong in (("LHLOC", "LHLO"), ("RHLOC", "RHLO")):
        csi4.file(csi4.mask("CSI4", right)).rename(csi4.file(csi4.mask("CSI4", wrong)))
    csi4.write_nifti(
        csi4.mask("CSI4", "RHRRSC"), np.eye(5, 4, dtype=np.uint8)[..., None].repeat(3, 2)
    )
    with Crowd(out) as crowd:
        before = crowd["bold5000-CSI4"].voxels.set_index(["i", "j", "k"])["areas"]
    out.unlink()
    import_bold5000(csi4.root, out, EXACT)
    with Crowd(out) as crowd:
        after = crowd["bold5000-CSI4"].voxels.set_index(["i", "j", "k"])["areas"]
    assert (before.str.contains("LOC") == after.reindex(before.index).str.contains("LOC")).all()
    assert after.str.contains("RSC").sum() == 9


def test_some_areas(csi4: Published, out: Path) -> None:
    import_bold5000(csi4.root, out, EXACT, areas="ppa, OPA")
    with Crowd(out) as crowd:
        assert set(crowd["bold5000-CSI4"].voxels["areas"]) == {"PPA", "LOC,PPA"}


def test_whole_brain_is_the_brain_mask_and_nothing_else(csi4: Published, out: Path) -> None:
    brain = np.zeros(GRID, np.float32)
    brain[1:, 1:] = 1
    brain[4, 3, 2] = 0  # there are responses, but it is not in the brain
    csi4.write_nifti("CSI4_brainmask.nii.gz", brain)
    import_bold5000(csi4.root, out, EXACT, areas="none")
    assert stored(out).shape == (370, 4 * 3 * 3 - 1)
    with Crowd(out) as crowd:
        assert set(crowd["bold5000-CSI4"].voxels["areas"]) == {
            "",
            "EarlyVis",
            "LOC",
            "LOC,PPA",
            "PPA",
        }


def test_voxels_without_numbers_are_dropped_and_named(csi4: Published, out: Path) -> None:
    brain = np.ones(GRID, np.float32)
    brain[3, 0, 0] = brain[0, 1, 1] = 0  # a mask that is too large: there are NaN and 0 in it
    csi4.write_nifti("CSI4_brainmask.nii.gz", brain)
    import_bold5000(csi4.root, out, EXACT, areas="none")
    assert stored(out).shape == (370, 36)
    assert "8 of 58 voxels were dropped: not a number" in account(out)
    assert "14 of 58 voxels were dropped: the same number" in account(out)


def test_without_brain_mask_areas_are_enough(csi4: Published, out: Path, refused) -> None:
    csi4.file("CSI4_brainmask.nii.gz").unlink()
    with refused(out, r"has no CSI4_brainmask\.nii\.gz"):
        import_bold5000(csi4.root, out, EXACT, areas="none")
    import_bold5000(csi4.root, out, EXACT)
    assert "CSI4_brainmask.nii.gz, so voxels were not restricted to the brain" in account(out)


def test_masks_that_lie_outside_the_brain_are_refused(csi4: Published, out: Path, refused) -> None:
    brain = np.zeros(GRID, np.float32)
    brain[3:, 2:] = 1
    csi4.write_nifti("CSI4_brainmask.nii.gz", brain)
    with refused(
        out,
        r"CSI4: of \d+ voxels in areas, 0 are in the brain mask; are the masks of another subject",
    ):
        import_bold5000(csi4.root, out, EXACT)


# ------------------------------------------------------------------------------------------
# responses of areas


@pytest.mark.parametrize("kind", ["both", "transposed"])
def test_release_1(bold: Published, out: Path, kind: str) -> None:
    path = bold.write_release1("CSI4")
    if kind == "both":
        scipy.io.savemat(
            bold.file("ROIs/CSI4/mat/CSI4_ROIs_TR34.mat"), {"LHPPA": np.zeros((370, 2))}
        )
    if kind == "transposed":
        with h5py.File(path, "w") as file:
            for name, values in bold.areas("CSI4").items():
                file[name] = values.T
    bold.write_release1("CSI1", tr="3")  # another time
    bold.write_lists("CSI4")
    import_bold5000(bold.root, out, EXACT, responses="release1")
    arrays = bold.areas("CSI4")
    with Crowd(out) as crowd:
        voxels = crowd["bold5000-CSI4"].voxels
    order = [
        side + area for side in ("LH", "RH") for area in ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
    ]
    expected = np.concatenate(
        [np.delete(arrays[n], 0, axis=1) if n == "LHPPA" else arrays[n] for n in order], axis=1
    )
    np.testing.assert_array_equal(
        stored(out), (expected * (1 if kind == "transposed" else 3)).astype(np.float32)
    )
    assert list(trials(out)["image"]) == stems(bold.shown["CSI4"])  # rep_ is not part of a name
    assert trials(out).groupby("session").size().tolist() == LENGTHS["CSI4"]
    assert (voxels["areas"] == "LOC,PPA").sum() == 1
    assert (voxels["hemisphere"] == "L").sum() == 2 + 5 + 1 + 2 + 2
    assert "1 voxels are in the files of several areas; each was taken once" in account(out)
    with Crowd(out) as crowd:
        assert set(crowd["bold5000-CSI4"].images("test")) == set(stems(bold.repeated))


def test_release_1_at_another_time_and_without_some_areas(
    bold: Published, out: Path, refused
) -> None:
    path = bold.write_release1("CSI4", tr="5")
    with h5py.File(path, "a") as file:
        del file["RHRSC"]
    with refused(out, "no subject found"):
        import_bold5000(bold.root, out, Options(), responses="release1")
    import_bold5000(bold.root, out, EXACT, responses="release1", tr="5", areas="RSC")
    np.testing.assert_array_equal(stored(out), (bold.areas("CSI4")["LHRSC"] * 5).astype(np.float32))
    assert "Not there: area RH RSC." in account(out)


def test_without_presentation_lists_all_is_one_session_and_that_is_said(
    bold: Published, out: Path, refused
) -> None:
    bold.write_release1("CSI4")
    with refused(out, "sessions are only known with Stimuli_Presentation_Lists"):
        import_bold5000(bold.root, out, EXACT, responses="release1", sessions="1")
    import_bold5000(bold.root, out, EXACT, responses="release1")
    assert (
        "Not there: Stimuli_Presentation_Lists, so all trials are taken as one session."
        in account(out)
    )
    assert set(trials(out)["session"]) == {0}


def test_areas_of_release_2(bold: Published, out: Path) -> None:
    bold.write_names("CSI4")
    bold.write_lists("CSI4")
    arrays = bold.areas("CSI4")
    for name, values in arrays.items():
        np.save(
            bold.file(f"BOLD5000_GLMsingle_ROI_betas/py/CSI4_GLMbetas-{VERSION}_allses_{name}.npy"),
            values,
        )
    import_bold5000(bold.root, out, EXACT, responses="areas", areas="OPA", sessions="2,3")
    rows = slice(37, 37 + 74 + 37)
    expected = np.concatenate([arrays["LHOPA"][rows], arrays["RHOPA"][rows]], axis=1)
    np.testing.assert_array_equal(stored(out), expected.astype(np.float32))
    assert list(trials(out)["image"]) == stems(bold.shown["CSI4"][rows])


@pytest.mark.parametrize("responses", ["release1", "areas"])
def test_two_copies_of_a_file_are_refused(
    bold: Published, out: Path, refused, responses: str
) -> None:
    bold.write_names("CSI4")
    path = bold.write_release1("CSI4")
    if responses == "areas":
        path = bold.file(f"py/CSI4_GLMbetas-{VERSION}_allses_LHPPA.npy")
        np.save(path, bold.areas("CSI4")["LHPPA"])
    shutil.copyfile(path, bold.file(f"copy/{path.name}"))
    with refused(out, f"CSI4: there are .*{path.name} and .*{path.name}; keep one there"):
        import_bold5000(bold.root, out, EXACT, responses=responses)


# ------------------------------------------------------------------------------------------------
# what is refused


def test_a_session_that_the_presentation_lists_know_otherwise_is_refused(
    bold: Published, out: Path, refused
) -> None:
    bold.write_release2("CSI4", [1, 2])
    bold.write_lists("CSI4")
    like(bold, np.ones((*GRID, 37), np.float32))
    with refused(out, "session 2: betas of 37 trials, but Stimuli_Presentation_Lists has 74"):
        import_bold5000(bold.root, out, EXACT)
