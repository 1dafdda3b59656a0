"""NSD: files written exactly as published, at tiny size; what is read from them, and what is
refused.
"""

import gzip
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io

from ubrain.crowd import Crowd
from ubrain.data.importers.nsd import import_nsd
from ubrain.data.importers.recording import Options
from ubrain.errors import UbrainError

GRID = (5, 4, 3)  # X, Y, Z
BETAS = "betas_fithrf_GLMdenoise_RR"
N_VERTICES = {"fsaverage": {"lh": 20, "rh": 20}, "nativesurface": {"lh": 17, "rh": 23}}
FLOAT32 = Options(dtype="float32")


class Published:
    """A folder as NSD publishes it, with subjects 1 and 2, and the numbers that were written into
    it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.betas: dict[tuple[str, int, str], np.ndarray] = {}
        rng = np.random.default_rng(0)
        self.order = rng.permuted(np.repeat(np.arange(1, 10001), 3))  # 1-based, as in the file
        shared = np.sort(rng.choice(73000, 1000, replace=False)) + 1
        others = np.setdiff1d(np.arange(1, 73001), shared)
        self.images = np.stack(
            [np.concatenate([shared, rng.permutation(others)[:9000]]) for _ in range(8)]
        )
        self.shared = shared - 1  # 0-based
        self.write_design()
        self.pixels = rng.integers(0, 256, (73000, 3, 2, 3), np.uint8)
        with h5py.File(self.file("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"), "w") as file:
            file["imgBrick"] = self.pixels

    def file(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_design(
        self, order: np.ndarray | None = None, images: np.ndarray | None = None
    ) -> None:
        content = {
            "masterordering": (self.order if order is None else order)[None].astype(np.uint16),
            "subjectim": (self.images if images is None else images).astype(np.int32),
            "sharedix": self.images[:1, :1000].astype(np.float64),
        }
        scipy.io.savemat(self.file("nsddata/experiments/nsd/nsd_expdesign.mat"), content)

    def shown(self, subject: int, session: int) -> np.ndarray:
        """0-based numbers of the images of a session."""
        return self.images[subject - 1][self.order[(session - 1) * 750 : session * 750] - 1] - 1

    def write_stim_info(self) -> None:
        table = pd.DataFrame(
            {
                "cocoId": np.arange(73000) + 500000,
                "nsdId": np.arange(73000),
                "shared1000": np.isin(np.arange(73000), self.shared),
            }
        )
        table.to_csv(self.file("nsddata/experiments/nsd/nsd_stim_info_merged.csv"))

    def write_behaviour(self, subject: int, sessions: list[int], base: int = 1) -> None:
        parts = [
            pd.DataFrame(
                {
                    "SUBJECT": subject,
                    "SESSION": s,
                    "RUN": 1,
                    "TRIAL": 1,
                    "73KID": self.shown(subject, s) + base,
                    "RT": np.nan,
                }
            )
            for s in sessions
        ]
        pd.concat(parts).to_csv(
            self.file(f"nsddata/ppdata/subj{subject:02d}/behav/responses.tsv"),
            sep="\t",
            index=False,
        )

    def betas_folder(self, subject: int, space: str) -> str:
        return f"nsddata_betas/ppdata/subj{subject:02d}/{space}/{BETAS}"

    def write_volume(
        self, subject: int, session: int, kind: str = "hdf5", space: str = "func1pt8mm"
    ) -> np.ndarray:
        """Betas (X, Y, Z, 750) int16: ten of 60 voxels are outside the brain."""
        rng = np.random.default_rng([subject, session])
        betas = rng.normal(100, 400, (*GRID, 750)).astype(np.int16)
        betas[0, 0] = betas[4, 3] = 0
        betas[0, 1:, 0] = 0
        self.write_volume_file(
            f"{self.betas_folder(subject, space)}/betas_session{session:02d}", betas, kind
        )
        return betas

    def write_volume_file(self, name: str, betas: np.ndarray, kind: str) -> None:
        if kind in ("hdf5", "mat"):
            with h5py.File(self.file(f"{name}.{kind}"), "w") as file:
                file.create_dataset("betas", data=betas.T, chunks=(750, 1, 1, 1))
        else:
            self.write_nifti(f"{name}.{kind}", betas)

    def write_nifti(self, name: str, values: np.ndarray) -> None:
        """As NIfTI_20140122 does: scl_slope 0, sform 1, the origin in the middle of the volume."""
        affine = np.diag([1.8, 1.8, 1.8, 1.0])
        affine[:3, 3] = -(np.array(values.shape[:3]) - 1) / 2 * 1.8
        path = self.file(name.removesuffix(".gz"))
        nib.save(nib.Nifti1Image(values, affine), path)
        data = bytearray(path.read_bytes())
        data[112:120] = struct.pack("<ff", 0, 0)
        if name.endswith(".gz"):
            path.unlink()
            self.file(name).write_bytes(gzip.compress(bytes(data), 1))
        else:
            path.write_bytes(data)

    def write_volume_labels(self, subject: int = 1, space: str = "func1pt8mm") -> np.ndarray:
        """nsdgeneral and others; -1 outside the cortex, 0 cortex without a label. Returns
        nsdgeneral.
        """
        place = f"nsddata/ppdata/subj{subject:02d}/{space}"
        brain = np.ones(GRID, np.int16)
        brain[0, 0] = brain[4, 3] = 0
        brain[0, 1:, 0] = 0
        self.write_nifti(f"{place}/brainmask.nii.gz", brain)
        general = np.full(GRID, -1.0)
        general[1:4] = 0
        general[1:4, 1:3] = 1
        self.write_nifti(f"{place}/roi/nsdgeneral.nii.gz", general)
        visual = np.where(general >= 0, 0, -1.0)
        visual[1, 1], visual[2, 1], visual[3, 2] = 1, 7, 2
        self.write_nifti(f"{place}/roi/prf-visualrois.nii.gz", visual)
        kastner = np.where(general >= 0, 0, -1.0)
        kastner[1, 1, 0], kastner[1, 0, 0] = 1, 25
        self.write_nifti(f"{place}/roi/Kastner2015.nii.gz", kastner)
        for side, half in (("lh", slice(0, 2)), ("rh", slice(2, 5))):
            mine = np.full(GRID, -1.0)
            mine[half] = visual[half]
            self.write_nifti(f"{place}/roi/{side}.prf-visualrois.nii.gz", mine)
        self.write_nifti(
            f"{place}/roi/floc-faces.nii.gz", np.where(general >= 0, 0, -1.0)
        )  # nobody has every area
        return general

    def write_table(self, name: str, text: str) -> None:
        self.file(f"nsddata/freesurfer/subj01/label/{name}.mgz.ctab").write_text(text)

    def write_mgh(self, name: str, values: np.ndarray) -> None:
        full = values.astype(np.float32).reshape(len(values), 1, 1, *values.shape[1:])
        nib.save(nib.MGHImage(full, np.eye(4)), self.file(name))

    def write_surface(self, subject: int, session: int, space: str) -> dict[str, np.ndarray]:
        """Betas (vertices, 750) of both hemispheres: float32 with NaN on fsaverage, int16 with 0
        on the native surface.
        """
        rng, written = np.random.default_rng([subject, session]), {}
        for side, n in N_VERTICES[space].items():
            name = f"{self.betas_folder(subject, space)}/{side}.betas_session{session:02d}"
            if space == "fsaverage":
                written[side] = rng.normal(0.4, 1.5, (n, 750)).astype(np.float32)
                written[side][3] = np.nan
                self.write_mgh(f"{name}.mgh", written[side])
            else:
                written[side] = rng.normal(100, 400, (n, 750)).astype(np.int16)
                written[side][3] = 0
                with h5py.File(self.file(f"{name}.hdf5"), "w") as file:
                    file.create_dataset("betas", data=written[side].T, chunks=(750, 1))
        return written

    def write_surface_labels(self, space: str) -> None:
        folder = f"nsddata/freesurfer/{'fsaverage' if space == 'fsaverage' else 'subj01'}/label"
        for side, n in N_VERTICES[space].items():
            self.write_mgh(
                f"{folder}/{side}.nsdgeneral.mgz", np.arange(n) % 2
            )  # odd vertices; 3 has no data
            self.write_mgh(f"{folder}/{side}.streams.mgz", np.arange(n) % 8)
            self.write_mgh(
                f"{folder}/{side}.prfangle.mgz", np.linspace(0, 360, n)
            )  # a map, not labels

    def link(self, root: Path) -> "Published":
        """The same design and images in another folder."""
        other = object.__new__(Published)
        other.__dict__.update(self.__dict__, root=root)
        for name in (
            "nsddata/experiments/nsd/nsd_expdesign.mat",
            "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
        ):
            other.file(name).hardlink_to(self.root / name)
        return other


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("nsd"))


@pytest.fixture
def nsd(design: Published, tmp_path: Path) -> Published:
    """Design and images, without betas."""
    return design.link(tmp_path / "nsd")


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


@pytest.mark.parametrize("kind", ["hdf5", "nii.gz", "nii", "mat"])
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


def test_fsaverage_betas_are_not_divided_by_300(nsd: Published, out: Path) -> None:
    nsd.write_surface_labels("fsaverage")
    betas = nsd.write_surface(1, 1, "fsaverage")
    import_nsd(nsd.root, out, FLOAT32, space="fsaverage")
    expected = np.concatenate(
        [betas[side][[v for v in range(1, 20, 2) if v != 3]] for side in ("lh", "rh")]
    ).T
    np.testing.assert_array_equal(stored(out), expected)


def test_native_surface_betas_are_divided_by_300(nsd: Published, out: Path) -> None:
    nsd.write_surface_labels("nativesurface")
    betas = nsd.write_surface(1, 1, "nativesurface")
    import_nsd(nsd.root, out, FLOAT32, space="nativesurface")
    chosen = {
        "lh": [v for v in range(1, 17, 2) if v != 3],
        "rh": [v for v in range(1, 23, 2) if v != 3],
    }
    expected = np.concatenate([betas[side][chosen[side]] for side in ("lh", "rh")]).T
    np.testing.assert_allclose(stored(out), expected / 300, rtol=1e-6)
    with Crowd(out) as crowd:
        assert list(crowd["nsd-subj01"].voxels["vertex"]) == chosen["lh"] + chosen["rh"]


def test_runs_of_a_session_have_63_and_62_trials_in_turn(one_session: Published, out: Path) -> None:
    import_nsd(one_session.root, out, Options(dtype="float32", normalise="run"))
    with Crowd(out) as crowd:
        z = crowd["nsd-subj01"].trials.zscored(np.arange(750))
    for start in range(0, 750, 125):
        for run in (z[start : start + 63], z[start + 63 : start + 125]):
            np.testing.assert_allclose(
                [run.mean(0), run.std(0)], np.stack([np.zeros(18), np.ones(18)]), atol=1e-4
            )


def test_responses_are_zscored_per_session_and_averaged(nsd: Published, out: Path) -> None:
    """The definition, computed here from the files: z-score over 750 trials of a session, mean
    over repeats.
    """
    nsd.write_volume_labels()
    betas = {s: nsd.write_volume(1, s).astype(np.float64) for s in (1, 2)}
    import_nsd(nsd.root, out, FLOAT32)
    z = {
        s: (b - b.mean(-1, keepdims=True)) / (b.std(-1, keepdims=True) + 1e-12)
        for s, b in betas.items()
    }
    trials = np.concatenate([z[1], z[2]], axis=-1)
    shown = np.concatenate([nsd.shown(1, 1), nsd.shown(1, 2)])
    with Crowd(out) as crowd:
        subject = crowd["nsd-subj01"]
        at = subject.voxels
        for split in ("train", "test"):
            images = [int(name.removeprefix("nsd-")) for name in subject.images(split)]
            expected = np.stack(
                [
                    trials[..., shown == image].mean(-1)[at["i"], at["j"], at["k"]]
                    for image in images
                ]
            )
            np.testing.assert_allclose(subject.responses(split), expected, rtol=1e-4, atol=1e-4)


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


def test_every_trial_has_the_image_that_was_shown(nsd: Published, out: Path) -> None:
    """masterordering and subjectim count from 1, imgBrick from 0."""
    nsd.write_volume_labels(2)
    nsd.write_volume(2, 1)
    nsd.write_behaviour(2, [1])
    import_nsd(nsd.root, out, FLOAT32)
    with Crowd(out) as crowd:
        shown = crowd.image_ids[crowd["nsd-subj02"].trials.image]
        assert list(shown) == [f"nsd-{i:05d}" for i in nsd.shown(2, 1)]
        for i in nsd.shown(2, 1)[:20]:
            np.testing.assert_array_equal(crowd.image(f"nsd-{i:05d}"), nsd.pixels[i])


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


def test_sessions_that_are_asked_for_must_be_there(nsd: Published, out: Path, refused) -> None:
    nsd.write_volume_labels()
    for session in (1, 2):
        nsd.write_volume(1, session)
    with refused(out, "subj01: no responses of session 3, 5-7; there are sessions 1-2"):
        import_nsd(nsd.root, out, FLOAT32, sessions="1,3,5-7")
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


def test_subjects_that_are_asked_for_must_be_there(
    one_session: Published, out: Path, refused
) -> None:
    with refused(out, "no subject '2'; found subj01"):
        import_nsd(one_session.root, out, Options(subjects=["1", "2"]))


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


def test_shared_images_are_the_test_images(one_session: Published, out: Path) -> None:
    import_nsd(one_session.root, out, FLOAT32)
    with Crowd(out) as crowd:
        test = {int(name.removeprefix("nsd-")) for name in crowd["nsd-subj01"].images("test")}
        assert len(crowd["nsd-subj01"].images("val")) > 5
    assert test == set(nsd_seen := one_session.shown(1, 1)) & set(one_session.shared)
    assert len(nsd_seen)


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


def test_command_line(one_session: Published, out: Path, run_cli) -> None:
    done = run_cli(
        "import", "nsd", "--root", one_session.root, "--out", out, "--subjects", "1", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    assert "nsd-subj01 (NSD, 7T, func1pt8mm): 750 trials" in done.stdout
    assert "betas of session 2-40" in done.stdout
    assert list(out.parent.iterdir()) == [one_session.root]
    done = run_cli(
        "import",
        "nsd",
        "--root",
        one_session.root,
        "--out",
        out,
        "--image-size",
        "2",
        "--normalise",
        "run",
        "--bad-voxels",
        "refuse",
    )
    assert done.returncode == 0, done.stderr
    assert "z-scored over the trials of each run" in done.stdout
    assert "No voxel was dropped" in done.stdout
    assert "int16 divided by 300: percent signal change" in done.stdout
    assert sorted(out.parent.iterdir()) == [out, one_session.root]


# ------------------------------------------------------------------------------------------------
# what is refused


def replaced(path: Path, **arrays: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def huge(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "betas", (750, 1 << 20, 1 << 20, 1 << 20), np.int16, chunks=(750, 1, 1, 1)
        )


def linked(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    with h5py.File(path, "w") as file:
        file["betas"] = h5py.ExternalLink(path.with_suffix(".elsewhere").name, "/betas")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (cut, "cannot be read|is not an HDF5 file"),
    "empty": (lambda path: path.write_bytes(b""), "is not an HDF5 file"),
    "web page": (lambda path: path.write_text("<html>Access denied</html>"), "is not an HDF5 file"),
    "no betas": (
        lambda path: replaced(path, beta=np.zeros((750, 3, 4, 5), np.int16)),
        "'betas' is missing; found beta",
    ),
    "not transposed": (
        lambda path: replaced(path, betas=np.zeros((5, 4, 3, 750), np.int16)),
        r"expected \(750, 3, 4, 5\)",
    ),
    "float": (
        lambda path: replaced(path, betas=np.zeros((750, 3, 4, 5))),
        "'int16', got .* float64",
    ),
    "two trials": (
        lambda path: replaced(path, betas=np.zeros((2, 3, 4, 5), np.int16)),
        r"got \(2, 3, 4, 5\)",
    ),
    "absurd size": (huge, r"expected \(750, 3, 4, 5\)"),
    "link": (linked, "'betas' is a link"),
    "a group": (lambda path: replaced(path, **{"betas/x": np.zeros(3)}), "'betas' is not an array"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_hdf5_betas(one_session: Published, out: Path, refused, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(one_session.file(f"{one_session.betas_folder(1, 'func1pt8mm')}/betas_session01.hdf5"))
    with refused(out, message):
        import_nsd(one_session.root, out, FLOAT32)


@pytest.mark.parametrize("left", [0, 100, 352, 0.5, -9])
def test_truncated_nifti_betas(nsd: Published, out: Path, refused, left: float) -> None:
    nsd.write_volume_labels()
    nsd.write_volume(1, 1, "nii.gz")
    path = nsd.file(f"{nsd.betas_folder(1, 'func1pt8mm')}/betas_session01.nii.gz")
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data))] if 0 < left < 1 else data[: int(left)])
    with refused(out, r"betas_session01\.nii\.gz cannot be read"):
        import_nsd(nsd.root, out, FLOAT32)


def scaled_header(nsd: Published, path: Path) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[112:120] = struct.pack("<ff", 1 / 300, 0)
    path.write_bytes(gzip.compress(bytes(data)))


def data_in_the_header(nsd: Published, path: Path) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[108:112] = struct.pack("<f", 0)
    path.write_bytes(gzip.compress(bytes(data) + bytes(352)))


def float_nifti(nsd: Published, path: Path) -> None:
    nsd.write_nifti(str(path.relative_to(nsd.root)), np.zeros((*GRID, 750), np.float32))


def other_grid(nsd: Published, path: Path) -> None:
    nsd.write_nifti(str(path.relative_to(nsd.root)), np.zeros((3, 4, 5, 750), np.int16))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (scaled_header, "its header scales the numbers by 0.00333"),
        (data_in_the_header, "cannot be read: its header says that the data begin at byte 0"),
        (float_nifti, "'int16', got .* float32"),
        (other_grid, r"expected \(5, 4, 3, 750\) of kind \'int16\', got \(3, 4, 5, 750\)"),
    ],
)
def test_nifti_betas_of_another_kind(
    nsd: Published, out: Path, refused, damage, message: str
) -> None:
    nsd.write_volume_labels()
    nsd.write_volume(1, 1, "nii.gz")
    damage(nsd, nsd.file(f"{nsd.betas_folder(1, 'func1pt8mm')}/betas_session01.nii.gz"))
    with refused(out, message):
        import_nsd(nsd.root, out, FLOAT32)


def test_truncated_mgh_and_one_hemisphere_alone(nsd: Published, out: Path, refused, caplog) -> None:
    nsd.write_surface_labels("fsaverage")
    nsd.write_surface(1, 1, "fsaverage")
    nsd.write_surface(1, 2, "fsaverage")
    folder = nsd.betas_folder(1, "fsaverage")
    nsd.file(f"{folder}/rh.betas_session02.mgh").unlink()
    import_nsd(nsd.root, out, Options(dry_run=True), space="fsaverage")
    assert "session 2: only lh.betas_session02.mgh is there" in caplog.text
    cut(nsd.file(f"{folder}/rh.betas_session01.mgh"))
    with refused(out, r"rh\.betas_session01\.mgh cannot be read"):
        import_nsd(nsd.root, out, FLOAT32, space="fsaverage")


def test_numbers_that_count_from_zero_are_refused(
    one_session: Published, out: Path, refused
) -> None:
    path = one_session.file("nsddata/experiments/nsd/nsd_expdesign.mat")
    path.unlink()
    one_session.write_design(order=one_session.order - 1)
    with refused(out, "masterordering: expected numbers from 1 to 10000"):
        import_nsd(one_session.root, out, FLOAT32)
    one_session.write_design(order=one_session.order[:0])
    with refused(out, r"'masterordering': expected whole numbers, got \(1, 0\)"):
        import_nsd(one_session.root, out, FLOAT32)
    one_session.write_design(images=one_session.images - one_session.images.min())
    with refused(out, "subjectim: expected|should be those of sharedix"):
        import_nsd(one_session.root, out, FLOAT32)


def test_behaviour_that_names_other_images_is_refused(
    one_session: Published, out: Path, refused
) -> None:
    one_session.write_behaviour(1, [1], base=0)
    with refused(out, r"session 1: nsd_expdesign\.mat and .*responses\.tsv name different images"):
        import_nsd(one_session.root, out, FLOAT32)


def test_stimulus_table_that_counts_from_one_is_refused(
    one_session: Published, out: Path, refused
) -> None:
    one_session.write_stim_info()
    path = one_session.file("nsddata/experiments/nsd/nsd_stim_info_merged.csv")
    table = pd.read_csv(path, index_col=0)
    table["nsdId"] += 1
    table.to_csv(path)
    with refused(out, "does nsdId count from 0"):
        import_nsd(one_session.root, out, FLOAT32)


@pytest.mark.parametrize(
    "name",
    [
        "nsddata/experiments/nsd/nsd_expdesign.mat",
        "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
        "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz",
        "nsddata/ppdata/subj01/func1pt8mm/roi/Kastner2015.nii.gz",
    ],
)
@pytest.mark.parametrize(
    "spoil", [cut, lambda p: p.write_bytes(b"junk" * 99)], ids=["truncated", "junk"]
)
def test_other_damaged_files_are_named(
    one_session: Published, out: Path, refused, name: str, spoil
) -> None:
    path = one_session.file(name)
    data = path.read_bytes()
    path.unlink()  # it may be a hard link into the shared design
    path.write_bytes(data)
    spoil(path)
    with refused(out, path.name.replace(".", r"\.")):
        import_nsd(one_session.root, out, FLOAT32)


@pytest.mark.parametrize(
    "name",
    [
        "nsddata/experiments/nsd/nsd_expdesign.mat",
        "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
        "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz",
        "nsddata_betas/ppdata",
    ],
)
def test_missing_files_are_named(one_session: Published, out: Path, refused, name: str) -> None:
    path = one_session.root / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with refused(out, path.name.replace(".", r"\.")):
        import_nsd(one_session.root, out, FLOAT32)


def test_links_out_of_the_folder_need_consent(
    one_session: Published, out: Path, refused, tmp_path: Path
) -> None:
    path = one_session.root / "nsddata_stimuli"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with refused(out, r"nsd_stimuli\.hdf5 is a link to .*allow it with --follow-links"):
        import_nsd(one_session.root, out, FLOAT32)
    import_nsd(one_session.root, out, Options(dtype="float32", follow_links=True))
    assert stored(out).shape == (750, 18)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"space": "MNI"}, "--space MNI: expected one of func1pt8mm"),
        ({"test": "all"}, "--test all: expected one of"),
        ({"mask": "."}, "--mask is for --space fsaverage"),
        ({"sessions": "1-"}, "expected numbers such as 1-10,12"),
        ({"areas": "no-such"}, r"has no .*no-such\.nii\.gz"),
        ({"betas": "betas_x"}, "no subject found"),
    ],
)
def test_options_that_make_no_sense(
    one_session: Published, out: Path, refused, option: dict, message: str
) -> None:
    with refused(out, message):
        import_nsd(one_session.root, out, FLOAT32, **option)


def test_flipped_bytes_never_end_in_a_traceback(one_session: Published, out: Path) -> None:
    """Either the file is refused with an UbrainError, or the damage was in numbers, where nobody
    can see it.
    """
    rng = np.random.default_rng(0)
    path = one_session.file(f"{one_session.betas_folder(1, 'func1pt8mm')}/betas_session01.hdf5")
    whole = path.read_bytes()
    refusals = 0
    for at in rng.integers(0, 4096, 60):
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :]
        )
        try:
            import_nsd(one_session.root, out, Options(dry_run=True))
        except UbrainError:
            refusals += 1
    assert refusals


@pytest.fixture(autouse=True)
def nothing_half_written(out: Path) -> Iterator[None]:
    """Whatever a test does, a crowd file that is there can be read."""
    yield
    if out.exists():
        Crowd(out).close()
