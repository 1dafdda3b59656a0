"""NSD: files written exactly as published, at tiny size; what is read from them, and what is
refused.
"""

import shutil
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from published.nsd import DESIGN, GRID, N_VERTICES, STIMULI, Published

from ubrain.crowd import Crowd
from ubrain.data.importers.nsd import import_nsd
from ubrain.data.importers.recording import Options

FLOAT32 = Options(dtype="float32")


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("nsd"))


@pytest.fixture
def nsd(design: Published, tmp_path: Path) -> Published:
    """Design and images, without betas."""
    made = design.at(tmp_path / "nsd")
    for name in (DESIGN, STIMULI):
        shutil.copyfile(design.root / name, made.file(name))
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


@pytest.fixture
def one_session(nsd: Published) -> Published:
    """Subject 1, session 1, func1pt8mm as HDF5."""
    nsd.write_volume_labels()
    nsd.write_volume(1, 1)
    return nsd


def stored(path: Path, subject: str = "nsd-subj01") -> np.ndarray:
    """Responses in the crowd file, before z-scoring: (n_trials, n_voxels)."""
    with h5py.File(path) as file:
        return file[f"subjects/{subject}/responses"][:]


def account(path: Path, subject: str = "nsd-subj01") -> str:
    with Crowd(path) as crowd:
        return crowd[subject].account


# --- what the
# numbers are


@pytest.mark.parametrize("kind", ["nii", "mat"])
def test_volume_betas_are_divided_by_300_and_belong_to_their_voxels(
    nsd: Published, out: Path, kind: str
) -> None:
    nsd.write_volume_labels()
    betas = nsd.write_volume(1, 1, kind)
    import_nsd(nsd.root, out, FLOAT32)
    with Crowd(out) as crowd:
        at = crowd["nsd-subj01"].voxels
    expected = np.stack(
        [betas[i, j, k] for i, j, k in zip(at["i"], at["j"], at["k"], strict=True)], axis=1
    )
    np.testing.assert_allclose(stored(out), expected / 300, rtol=1e-6)
    assert len(at) == 18


def test_hdf5_is_preferred_and_a_trialwise_layout_is_read_as_well(
    one_session: Published, out: Path
) -> None:
    folder = one_session.betas_folder(1, "func1pt8mm")
    with h5py.File(one_session.file(f"{folder}/betas_session01.hdf5")) as file:
        betas = file["betas"][:].T
    one_session.write_nifti(
        f"{folder}/betas_session01.nii.gz", betas[::-1].copy()
    )  # would give other numbers
    import_nsd(one_session.root, out, FLOAT32)
    first = stored(out)
    with h5py.File(one_session.file(f"{folder}/betas_session01.hdf5"), "w") as file:
        file.create_dataset("betas", data=betas.T, chunks=(1, 3, 4, 5), compression="gzip")
    out.unlink()
    import_nsd(one_session.root, out, FLOAT32)
    np.testing.assert_array_equal(stored(out), first)


# --- voxels
# and areas


def test_minus_one_and_zero_are_no_labels(one_session: Published, out: Path) -> None:
    general = one_session.write_volume_labels()
    import_nsd(one_session.root, out, FLOAT32)
    with Crowd(out) as crowd:
        voxels = crowd["nsd-subj01"].voxels
    places = set(zip(voxels["i"], voxels["j"], voxels["k"], strict=True))
    assert places == set(zip(*(axis.tolist() for axis in np.nonzero(general == 1)), strict=True))
    by_place = voxels.set_index(["i", "j", "k"])["areas"]
    assert by_place[1, 1, 0] == "V1v,nsdgeneral,Kastner2015:V1v"
    assert by_place[1, 1, 1] == "V1v,nsdgeneral"
    assert by_place[2, 1, 0] == "hV4,nsdgeneral"
    assert by_place[1, 2, 0] == "nsdgeneral"


def test_a_label_with_a_large_number_takes_no_more_memory(
    one_session: Published, out: Path
) -> None:
    labels = np.zeros(GRID)
    labels[1, 1, 0], labels[2, 1, 0] = 10**6, 3
    one_session.write_nifti("nsddata/ppdata/subj01/func1pt8mm/roi/HCP_MMP1.nii.gz", labels)
    tracemalloc.start()
    import_nsd(one_session.root, out, FLOAT32)
    assert tracemalloc.get_traced_memory()[1] < 80 << 20
    tracemalloc.stop()
    with Crowd(out) as crowd:
        assert {"HCP_MMP1:1000000", "HCP_MMP1:3"} <= set(
            ",".join(crowd["nsd-subj01"].voxels["areas"]).split(",")
        )


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1.5, 1e12])
@pytest.mark.parametrize("name", ["HCP_MMP1", "nsdgeneral"])
def test_labels_that_are_no_whole_numbers_are_refused(
    one_session: Published, out: Path, refused, value: float, name: str
) -> None:
    labels = one_session.write_volume_labels().astype(np.float64)
    labels[labels == 1] = value
    one_session.write_nifti(f"nsddata/ppdata/subj01/func1pt8mm/roi/{name}.nii.gz", labels)
    with refused(out, rf"{name}\.nii\.gz: expected whole numbers, as of areas, got"):
        import_nsd(one_session.root, out, FLOAT32)


def test_a_damaged_session_is_replaced_and_the_import_continues(
    nsd: Published, out: Path, refused, caplog
) -> None:
    nsd.write_volume_labels()
    nsd.write_volume(1, 1, "nii.gz")
    nsd.write_volume(1, 2, "nii.gz")
    (file,) = nsd.root.rglob("betas_session02.nii.gz")
    good = file.read_bytes()
    file.write_bytes(good[:-400])
    with refused(out, r"betas_session02\.nii\.gz cannot be read: .*\. What has been read is kept"):
        import_nsd(nsd.root, out, FLOAT32)
    file.write_bytes(good)
    nsd.write_volume(1, 3, "nii.gz")
    caplog.set_level("INFO")
    import_nsd(nsd.root, out, FLOAT32)
    assert "nsd-subj01: continuing, 1 of 3 block(s) are there" in caplog.text
    import_nsd(nsd.root, out.with_name("fresh.h5"), FLOAT32)
    np.testing.assert_array_equal(stored(out), stored(out.with_name("fresh.h5")))


def test_hemisphere_is_where_the_cortex_is_not_only_where_labels_are(
    one_session: Published, out: Path
) -> None:
    import_nsd(one_session.root, out, FLOAT32)
    with Crowd(out) as crowd:
        voxels = crowd["nsd-subj01"].voxels
    assert (voxels["hemisphere"] == np.where(voxels["i"] < 2, "L", "R")).all()


def test_names_come_from_the_table_of_labels(one_session: Published, out: Path) -> None:
    one_session.write_table("prf-visualrois", "0 Unknown\t\n1 first area\t 4\n7 seventh\t\n")
    import_nsd(one_session.root, out, FLOAT32)
    with Crowd(out) as crowd:
        areas = set(",".join(crowd["nsd-subj01"].voxels["areas"]).split(","))
    assert areas == {"first", "seventh", "V1d", "nsdgeneral", "Kastner2015:V1v"}


def test_whole_brain_and_other_areas(one_session: Published, out: Path) -> None:
    import_nsd(one_session.root, out, FLOAT32, areas="none")
    assert stored(out).shape == (750, 60 - 9)
    with Crowd(out) as crowd:
        voxels = crowd["nsd-subj01"].voxels
    assert (voxels["areas"][voxels["i"].isin([0, 4])] == "").all()  # -1: not cortex, so in no area
    out.unlink()
    import_nsd(one_session.root, out, FLOAT32, areas="prf-visualrois")
    assert stored(out).shape == (750, 9)


@pytest.mark.parametrize(
    ("areas", "n"),
    [
        ("prf-visualrois,Kastner2015", 10),
        ("V1v", 3),
        ("hv4, V1d", 6),
        ("V1v,nsdgeneral", 18),
        ("Kastner2015:FEF", 1),
    ],
)
def test_voxels_of_several_label_files_and_areas(
    one_session: Published, out: Path, areas: str, n: int
) -> None:
    import_nsd(one_session.root, out, FLOAT32, areas=areas)
    assert stored(out).shape == (750, n)


def test_several_areas_of_a_surface(nsd: Published, out: Path) -> None:
    nsd.write_surface_labels("fsaverage")
    nsd.write_surface(1, 1, "fsaverage")
    import_nsd(nsd.root, out, FLOAT32, space="fsaverage", areas="early,ventral")
    with Crowd(out) as crowd:
        found = {a for text in crowd["nsd-subj01"].voxels["areas"] for a in text.split(",")}
    assert found == {"early", "ventral", "nsdgeneral"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"areas": "V1v,V9"}, r"has no .*roi/V9\.nii\.gz, and no label 'V9' in Kastner2015, "),
        ({"betas": "betas_x"}, "no subject found; there are func1pt8mm/betas_fithrf_GLMdenoise_RR"),
        ({"betas": "betas_*"}, "no subject found; there are"),
    ],
)
def test_what_is_there_is_said(
    one_session: Published, out: Path, refused, more: dict, message: str
) -> None:
    with refused(out, message):
        import_nsd(one_session.root, out, FLOAT32, **more)


def test_voxels_without_data_in_one_session_are_dropped_and_named(
    nsd: Published, out: Path
) -> None:
    nsd.write_volume_labels()
    nsd.write_volume(1, 1)
    betas = nsd.write_volume(1, 2)
    betas[2, 1, 2] = 0
    nsd.write_volume_file(f"{nsd.betas_folder(1, 'func1pt8mm')}/betas_session02", betas, "hdf5")
    import_nsd(nsd.root, out, FLOAT32)
    assert stored(out).shape == (1500, 17)
    assert (
        "1 of 18 voxels were dropped: the same number in all trials of a session (at R 2 1 2)"
        in account(out)
    )


def test_vertices_that_are_nan_are_dropped_and_named(nsd: Published, out: Path) -> None:
    nsd.write_surface_labels("fsaverage")
    nsd.write_surface(1, 1, "fsaverage")
    import_nsd(nsd.root, out, FLOAT32, space="fsaverage")
    assert (
        "2 of 20 voxels were dropped: not a number, or infinite, in some trial (at L 3; R 3)"
        in account(out)
    )
    with Crowd(out) as crowd:
        voxels = crowd["nsd-subj01"].voxels
    assert list(voxels["hemisphere"]) == ["L"] * 9 + ["R"] * 9
    assert list(voxels["areas"][:3]) == [
        "early,nsdgeneral",
        "ventral,nsdgeneral",
        "parietal,nsdgeneral",
    ]


@pytest.mark.parametrize("place", ["subj01/roi_masks", "roi_masks/sub1"])
def test_masks_of_algonauts_may_hold_twos(
    nsd: Published, out: Path, tmp_path: Path, place: str
) -> None:
    nsd.write_surface_labels("fsaverage")
    nsd.write_surface(1, 1, "fsaverage")
    folder = tmp_path / "masks" / place
    folder.mkdir(parents=True)
    for side in ("lh", "rh"):
        np.save(
            folder / f"{side}.all-vertices_fsaverage_space.npy",
            np.array([0, 1, 2, 0, 2] + [0] * 15),
        )
    import_nsd(nsd.root, out, FLOAT32, space="fsaverage", mask=tmp_path / "masks")
    with Crowd(out) as crowd:
        assert list(crowd["nsd-subj01"].voxels["vertex"]) == [1, 2, 4, 1, 2, 4]


@pytest.mark.parametrize("space", ["fsaverage", "nativesurface"])
def test_ncsnr_of_a_surface_is_that_of_its_side(nsd: Published, out: Path, space: str) -> None:
    nsd.write_surface_labels(space)
    nsd.write_surface(1, 1, space)
    ncsnr = {
        side: np.random.default_rng(n + (side == "rh")).random(n)
        for side, n in N_VERTICES[space].items()
    }
    for side, values in ncsnr.items():
        nsd.write_mgh(f"{nsd.betas_folder(1, space)}/{side}.ncsnr.mgh", values)
    import_nsd(nsd.root, out, FLOAT32, space=space)
    with Crowd(out) as crowd:
        voxels = crowd["nsd-subj01"].voxels
    for side, letter in (("lh", "L"), ("rh", "R")):
        mine = voxels[voxels["hemisphere"] == letter]
        assert len(mine) > 5
        np.testing.assert_allclose(mine["ncsnr"], ncsnr[side][mine["vertex"]], rtol=1e-6)
    assert "ncsnr as published" in account(out)


@pytest.mark.parametrize("space", ["fsaverage", "nativesurface"])
@pytest.mark.parametrize("ncsnr", [True, False])
def test_all_vertices_of_a_surface(nsd: Published, out: Path, space: str, ncsnr: bool) -> None:
    nsd.write_surface_labels(space)
    betas = nsd.write_surface(1, 1, space)
    for side, n in N_VERTICES[space].items():
        if ncsnr:
            nsd.write_mgh(f"{nsd.betas_folder(1, space)}/{side}.ncsnr.mgh", np.full(n, 0.5))
    import_nsd(nsd.root, out, FLOAT32, space=space, areas="none")
    expected = np.concatenate([np.delete(values, 3, axis=0) for values in betas.values()]).T
    np.testing.assert_allclose(
        stored(out), expected / (1 if space == "fsaverage" else 300), rtol=1e-6
    )
    with Crowd(out) as crowd:
        voxels = crowd["nsd-subj01"].voxels
    assert list(voxels["vertex"]) == [
        v for n in N_VERTICES[space].values() for v in range(n) if v != 3
    ]
    assert list(voxels["areas"][:3]) == ["", "early,nsdgeneral", "midventral"]
    assert "Voxels: all vertices" in account(out)


def test_volumes_of_1_mm(nsd: Published, out: Path) -> None:
    """Another folder of betas and of labels; the others must not be read."""
    general = nsd.write_volume_labels(space="func1mm")
    betas = nsd.write_volume(1, 1, space="func1mm")
    nsd.write_volume(1, 2)
    import_nsd(nsd.root, out, FLOAT32, space="func1mm")
    with Crowd(out) as crowd:
        assert crowd["nsd-subj01"].space == "func1mm"
    np.testing.assert_allclose(
        stored(out), betas.transpose(3, 2, 1, 0)[:, (general == 1).T] / 300, rtol=1e-6
    )


def test_ncsnr_is_read(one_session: Published, out: Path) -> None:
    ncsnr = np.random.default_rng(5).random(GRID).astype(np.float32)
    one_session.write_nifti(f"{one_session.betas_folder(1, 'func1pt8mm')}/ncsnr.nii.gz", ncsnr)
    import_nsd(one_session.root, out, FLOAT32)
    with Crowd(out) as crowd:
        voxels = crowd["nsd-subj01"].voxels
    np.testing.assert_array_equal(voxels["ncsnr"], ncsnr[voxels["i"], voxels["j"], voxels["k"]])
    assert "ncsnr as published" in account(out)


# --- trials
# and images


def test_sessions_are_discovered_and_missing_ones_said(nsd: Published, out: Path) -> None:
    nsd.write_volume_labels()
    for session in (2, 4):
        nsd.write_volume(1, session)
    import_nsd(nsd.root, out, FLOAT32)
    assert "Sessions 2, 4 of 750 trials." in account(out)
    assert "Not there: betas of session 1, 3, 5-40." in account(out)
    with Crowd(out) as crowd, h5py.File(out) as file:
        shown = np.concatenate([nsd.shown(1, 2), nsd.shown(1, 4)])
        assert list(crowd.image_ids[crowd["nsd-subj01"].trials.image]) == [
            f"nsd-{i:05d}" for i in shown
        ]
        everything = pd.Series(nsd.order).groupby(nsd.order).cumcount().to_numpy()
        repeats = np.concatenate([everything[750:1500], everything[2250:3000]])
        np.testing.assert_array_equal(file["subjects/nsd-subj01/trials/repeat"][:], repeats)
        assert list(np.bincount(file["subjects/nsd-subj01/trials/run"][:])) == [63, 62] * 12


def test_some_sessions(nsd: Published, out: Path) -> None:
    nsd.write_volume_labels()
    for session in (1, 2):
        nsd.write_volume(1, session)
    import_nsd(nsd.root, out, FLOAT32, sessions="2")
    assert stored(out).shape == (750, 18)


@pytest.mark.parametrize("space", ["func1pt8mm", "fsaverage"])
def test_a_session_that_is_there_twice_is_refused(
    nsd: Published, out: Path, refused, space: str
) -> None:
    """On a surface, two files of one side must not pass for both sides."""
    if space == "fsaverage":
        nsd.write_surface_labels(space)
        nsd.write_surface(1, 1, space)
    else:
        nsd.write_volume_labels()
        nsd.write_volume(1, 1)
    side, kind = ("lh.", "mgh") if space == "fsaverage" else ("", "hdf5")
    folder = nsd.root / nsd.betas_folder(1, space)
    shutil.copyfile(
        folder / f"{side}betas_session01.{kind}", folder / f"{side}betas_session1.{kind}"
    )
    (folder / f"rh.betas_session01.{kind}").unlink(missing_ok=True)
    with refused(
        out,
        rf"{side}betas_session0?1\.{kind} and {side}betas_session0?1\.{kind} are the same session;"
        r" keep one",
    ):
        import_nsd(nsd.root, out, FLOAT32, space=space)


def test_the_sides_of_a_session_may_have_different_formats(nsd: Published, out: Path) -> None:
    nsd.write_surface_labels("fsaverage")
    betas = nsd.write_surface(1, 1, "fsaverage")
    folder = nsd.betas_folder(1, "fsaverage")
    nsd.write_mgh(f"{folder}/rh.betas_session01.mgz", betas["rh"])
    nsd.file(f"{folder}/rh.betas_session01.mgh").unlink()
    import_nsd(nsd.root, out, FLOAT32, space="fsaverage")
    assert stored(out).shape == (750, 18)


def test_files_that_a_subject_lacks_do_not_matter_to_others(
    one_session: Published, out: Path, refused, caplog
) -> None:
    one_session.write_volume(2, 1)  # whose labels are not there
    with refused(out, r"has no nsddata/ppdata/subj02/func1pt8mm/roi/nsdgeneral\.nii\.gz"):
        import_nsd(one_session.root, out, Options(subjects=["1", "2"]))
    import_nsd(one_session.root, out, Options(dry_run=True, subjects=["1"]))
    assert "left out" not in caplog.text
    import_nsd(one_session.root, out, FLOAT32)
    assert "subj02 is left out" in caplog.text
    with Crowd(out) as crowd:
        assert crowd.subjects == ["nsd-subj01"]
    path = one_session.file(f"{one_session.betas_folder(2, 'func1pt8mm')}/betas_session01.hdf5")
    shutil.copyfile(path, path.with_name("betas_session1.hdf5"))
    assert "nsd-subj01" in import_nsd(
        one_session.root, out.with_name("again.h5"), Options(dry_run=True, subjects=["1"])
    )


def test_special_images_are_those_that_all_subjects_have_seen_three_times(
    one_session: Published, out: Path
) -> None:
    import_nsd(one_session.root, out, FLOAT32, test="special515")
    counts = np.bincount(one_session.order[: 30 * 750], minlength=10001)[1:1001]
    special = one_session.shared[counts == 3]
    seen = set(one_session.shown(1, 1).tolist())
    with Crowd(out) as crowd:
        named = {
            s: {int(n.removeprefix("nsd-")) for n in crowd["nsd-subj01"].images(s)}
            for s in ("train", "val", "test")
        }
    assert named["test"] == seen & set(special.tolist())
    assert named["val"] == seen & (set(one_session.shared.tolist()) - set(special.tolist()))


def test_images_are_named_by_their_coco_number(one_session: Published, out: Path) -> None:
    one_session.write_stim_info()
    import_nsd(one_session.root, out, FLOAT32)
    with h5py.File(out) as file:
        names, keys = file["images/id"].asstr()[:], file["images/key"].asstr()[:]
    number = int(names[0].removeprefix("nsd-"))
    assert keys[0] == f"coco:{500000 + number} nsd:{number}"


# ------------------------------------------------------------------------------------------------
# what is refused


def test_one_hemisphere_alone_is_left_out(nsd: Published, out: Path, caplog) -> None:
    nsd.write_surface_labels("fsaverage")
    nsd.write_surface(1, 1, "fsaverage")
    nsd.write_surface(1, 2, "fsaverage")
    folder = nsd.betas_folder(1, "fsaverage")
    nsd.file(f"{folder}/rh.betas_session02.mgh").unlink()
    import_nsd(nsd.root, out, Options(dry_run=True), space="fsaverage")
    assert "session 2: only lh.betas_session02.mgh is there" in caplog.text
