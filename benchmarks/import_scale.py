"""Time and memory of imports at realistic size: `python benchmarks/import_scale.py NAME --share 0.1
--folder FOLDER`.

Writes a synthetic dataset in its published layout, of full shapes and with this share of its
sessions, trials or images, imports it, reads the same files with plain h5py, numpy, gzip and
Pillow, prints one line for each, and deletes it all. Whatever is made, imported or read is in a
process of its own, with nothing in the system's cache beforehand. `check` is the doctor on a crowd
of eight subjects, `check-schemes` of the same with eight named splits; there, input is the crowd
file. The tests' own generators (`published`) write most of it, with random numbers that repeat;
only what depends on what they are (compression) is therefore not measured.
"""

import argparse
import gzip
import io
import logging
import os
import re
import shutil
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import scipy.io
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/data/importers"))

import published.algonauts
import published.bids
import published.bold5000
import published.god
import published.laion
import published.mosaic
import published.nod
import published.nsd
import published.ube
import published.vim1
from damage import npy_header

from ubrain.data import doctor
from ubrain.data.crowdfile import write_crowd
from ubrain.data.importers.algonauts import import_algonauts
from ubrain.data.importers.arrays import import_arrays
from ubrain.data.importers.bids import import_bids
from ubrain.data.importers.bold5000 import import_bold5000
from ubrain.data.importers.god import import_god
from ubrain.data.importers.laion import import_laion
from ubrain.data.importers.mosaic import import_mosaic
from ubrain.data.importers.nod import import_nod
from ubrain.data.importers.nsd import import_nsd
from ubrain.data.importers.recording import Options
from ubrain.data.importers.things import import_things
from ubrain.data.importers.ube import import_ube
from ubrain.data.importers.vim1 import import_vim1

STEP = 64 << 20  # bytes at a time
HEMISPHERES = {"lh": 19004, "rh": 20544}  # vertices of NSD's subject 1, in Algonauts 2023
WIDTHS = np.array([39548, 39548, 39548, 39548, 39548, 39198, 39548, 39511])


# --- material


@cache
def grain(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 6, (height, width, 1)).astype(np.int16)


def photograph(number: int, height: int = 425, width: int = 425) -> np.ndarray:
    """Picture (height, width, 3) that looks like no other and is compressed about as much as a
    photograph.
    """
    colours = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(colours).resize((width, height)))
    return np.clip(smooth + grain(height, width), 0, 255).astype(np.uint8)


def number_of(name: str) -> int:
    """The digits of a file's name."""
    return int("".join(filter(str.isdigit, Path(name).stem))) % (1 << 20)


def write_picture(path: Path, number: int, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph(number, height, width)).save(path, "JPEG", quality=90)


def noise(n: int, width: int, dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 1, (n, width)).astype(dtype)


def packed(volumes: np.ndarray, affine: np.ndarray, n: int) -> list[bytes]:
    """Pieces of a .nii.gz that has these volumes (x, y, z, trials) over and over, n in all."""
    header = nib.Nifti1Image(np.zeros((1, 1, 1, 1), np.float32), affine).header
    header.set_data_shape((*volumes.shape[:3], n))
    header.set_data_offset(352)
    start = gzip.compress(header.binaryblock + bytes(4))
    return [start, *[gzip.compress(volumes.tobytes(order="F"), 1)] * (n // volumes.shape[3])]


# --- datasets


def nsd(root: Path, share: float) -> None:
    """Subject 1 at 1.8 mm in HDF5, a share of 40 sessions."""
    published.nsd.GRID = x, y, z = 81, 104, 83
    made = published.nsd.Published(root)
    made.order = np.random.default_rng(2).permuted(np.repeat(np.arange(1, 10001), 3))
    made.write_design()
    brain, general = np.zeros((x, y, z), np.int16), np.full((x, y, z), -1.0)
    brain[12:69, 12:92, 8:75], general[12:69, 12:92, 8:75] = 1, 0
    general[20:60, 12:32, 20:40] = 1
    general.reshape(-1)[np.flatnonzero(general == 1)[15724:]] = 0
    made.write_nifti("nsddata/ppdata/subj01/func1pt8mm/brainmask.nii.gz", brain)
    made.write_nifti("nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz", general)
    slab = np.random.default_rng(1).normal(100, 400, (750, y, x)).astype(np.int16)
    for session in range(1, 1 + round(40 * share)):
        with h5py.File(
            made.file(f"{made.betas_folder(1, 'func1pt8mm')}/betas_session{session:02d}.hdf5"), "w"
        ) as file:
            betas = file.create_dataset("betas", (750, z, y, x), np.int16, chunks=(750, 1, 1, 1))
            for k in range(z):
                betas[:, k] = np.roll(slab, k, axis=0) * brain[:, :, k].T
    shown = np.unique(np.concatenate([made.shown(1, s) for s in range(1, 1 + round(40 * share))]))
    with h5py.File(made.file("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"), "w") as file:
        pictures = file.create_dataset("imgBrick", (73000, 425, 425, 3), np.uint8)
        for i in shown.tolist():  # the others are holes in the file
            pictures[i] = photograph(i)


def algonauts(root: Path, share: float) -> None:
    """Subject 1, a share of its 9841 training images."""
    published.algonauts.VERTICES = {side: np.arange(n) * 7 for side, n in HEMISPHERES.items()}
    published.algonauts.Packaged.pixels = staticmethod(photograph)
    made = published.algonauts.Packaged(root)
    made.write(1, np.arange(round(9841 * share)).tolist())


def ube(root: Path, share: float) -> None:
    """All subjects and shared images, a share of the 9000 images that each has for itself."""
    published.ube.N_SHARED, published.ube.N_OWN = 1000, round(9000 * share)
    made = published.ube.Authors(root)  # with few voxels
    made.write_design()
    small, valid = made.arrays, made.arrays["valid_multi_sub_fmri"]
    narrow = WIDTHS[small["single_sub"] - made.base]
    block = noise(64, int(WIDTHS.sum()), "<f2")

    def single() -> Iterator[np.ndarray]:
        for row, width in enumerate(narrow):
            yield np.where(
                np.arange(WIDTHS[0]) < width, block[row % 64, : WIDTHS[0]], np.float16(0)
            )

    def shared() -> Iterator[np.ndarray]:
        for row, seen in enumerate(valid):
            yield np.where(np.repeat(seen, WIDTHS), block[row % 64], np.float16(np.nan))

    with zipfile.ZipFile(made.npz, "w", allowZip64=True) as archive:
        for name, values in {**small, "num_voxels_subjects": WIDTHS}.items():
            if name not in ("single_sub_fmri", "multi_sub_fmri", "type_desc"):
                with archive.open(f"{name}.npy", "w") as stream:
                    np.save(stream, values)
        for name, shape, rows in (
            ("single_sub_fmri", (len(narrow), int(WIDTHS[0])), single),
            ("multi_sub_fmri", (1000, int(WIDTHS.sum())), shared),
        ):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                stream.write(npy_header(shape, "<f2"))
                stream.writelines(row.tobytes() for row in rows())
    with (root / "nsd_images_224.npy").open("wb") as file:
        header, size = npy_header((73000, 224, 224, 3), "|u1"), 224 * 224 * 3
        file.write(header)
        for i in np.flatnonzero(small["type_sample"]).tolist():  # the others are holes in the file
            file.seek(len(header) + i * size)
            file.write(photograph(i, 224, 224).tobytes())
        file.truncate(len(header) + 73000 * size)


def bold5000(root: Path, share: float) -> None:
    """CSI4, release 2, a share of its nine sessions; four tenths of the volume are brain."""
    lengths, published.bold5000.GRID = [370] * 3 + [333] * 6, (70, 89, 70)
    made = object.__new__(published.bold5000.Published)
    times = np.repeat([1, 2, 3, 4, 5], [2862, 39, 37, 13, 1])
    names = published.bold5000.image_names(len(times))
    files = [name.split("/")[1] for name in names]
    made.root, made.repeated = root, files[2862:]
    made.shown = {"CSI4": np.random.default_rng(0).permutation(np.repeat(files, times)).tolist()}
    for i, name in enumerate(names):
        write_picture(
            root / f"BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli/{name}", i, 375, 375
        )
    made.write_repeated()
    made.write_names("CSI4")
    brain = np.zeros(published.bold5000.GRID, np.float32)
    brain[9:61, 11:78, 10:60] = 1
    made.write_nifti("CSI4_brainmask.nii.gz", brain)
    volumes = np.random.default_rng(1).normal(0.5, 2, (*brain.shape, 37)).astype(np.float32)
    volumes[brain == 0] = np.nan
    first = made.write_nifti("run.nii", volumes).read_bytes()
    body = gzip.compress(first[352:], 1)
    made.file("run.nii").unlink()
    for session, n in enumerate(lengths[: max(1, round(9 * share))], start=1):
        header = gzip.compress(first[:48] + struct.pack("<h", n) + first[50:352], 1)
        name = f"CSI4_GLMbetas-{published.bold5000.VERSION}_ses-{session:02d}.nii.gz"
        made.file(name).write_bytes(header + body * (n // 37))


def god(root: Path, share: float) -> None:
    """A share of five subjects, first release: 4500 voxels, 1200 and 35 × 50 trials, images of 500
    × 375.
    """
    synsets = [f"n{1443537 + 1000 * i:08d}" for i in range(200)]
    published.god.N_VOXELS, published.god.TRAINING = (
        4500,
        [f"{s}_{k}" for s in synsets[:150] for k in range(8)],
    )
    published.god.TEST = [f"{s}_9" for s in synsets[150:]]
    for i, name in enumerate(published.god.TRAINING + published.god.TEST):
        write_picture(root / f"images/{name}.JPEG", i, 375, 500)
    for subject in range(1, 1 + round(5 * share)):
        published.god.Original(subject).write_h5(root / f"Subject{subject}.h5")


def vim1(root: Path, share: float) -> None:
    """Both subjects, a share of the voxels."""
    published.vim1.N_TRAIN, published.vim1.N_VAL, published.vim1.SIDE = 1750, 120, 128
    published.vim1.N_VOXELS = {"S1": round(25915 * share), "S2": round(26329 * share)}
    published.vim1.write(root, published.vim1.Published())


def mosaic(root: Path, share: float) -> None:
    """Subject 1 of NSD, a share of its 30,000 trials: 10,000 images, each three times."""
    names = [f"{i:012d}.jpg" for i in range(1, 1 + round(10000 * share))]
    subject = published.mosaic.Subject()
    n_test = len(names) // 10
    subject.trials = [
        (name, "test" if i < n_test else "train", k)
        for i, name in enumerate(names)
        for k in range(3)
    ]
    subject.missing = {}
    for name in names:
        write_picture(root / "stimuli" / name, number_of(name), 425, 425)
    published.mosaic.write(root, subject)


def things(root: Path, share: float) -> None:
    """One subject, 9840 trials (100 images 12 times, 8640 once), a share of 40,000 voxels, float32,
    as pandas writes it in its format fixed; images of 100 × 100.
    """
    n, block = round(40000 * share), noise(300, 9840, "<f4")
    names = [f"c{i % 720}_{i // 720:02d}s.jpg" for i in range(8740)]
    shown = np.random.default_rng(0).permutation([*names[:8640], *names[8640:] * 12])
    trial, voxel = np.arange(len(shown)), np.arange(n)
    for i, name in enumerate(names):
        write_picture(root / "object_images" / name, i, 100, 100)
    with h5py.File(root / "sub-01_ResponseData.h5", "w") as file:
        betas = file.create_dataset("ResponseData/block0_values", (n, len(shown)), "f4")
        for start in range(0, n, 300):
            betas[start : start + 300] = np.roll(block, start // 300, 1)[: n - start]
        file["ResponseData/block1_values"] = voxel[:, None]
    kinds = np.where(np.isin(shown, names[8640:]), "test", "train")
    trials = {"trial_type": kinds, "session": trial // 820 + 1, "run": trial // 82 % 10 + 1}
    pd.DataFrame({**trials, "trial_id": trial, "stimulus": shown}).to_csv(
        root / "sub-01_StimulusMetadata.csv", index=False
    )
    places = {"voxel_x": voxel % 70, "voxel_y": voxel // 70 % 90, "voxel_z": voxel // 6300}
    voxels = {"voxel_id": voxel, **places, "nc_testset": voxel % 70}
    areas = {f"glasser-{i}": (voxel % 180 == i).astype(int) for i in range(180)}
    pd.DataFrame({**voxels, "V1": voxel % 5 == 0, **areas}).to_csv(
        root / "sub-01_VoxelMetadata.csv", index=False
    )


def laion(root: Path, share: float) -> None:
    """sub-01, a share of 30 sessions of 1066 trials and of its 6204 images; a quarter of the volume
    is brain, and 19,800 voxels of it are wanted.
    """
    made = object.__new__(published.laion.Published)
    published.laion.GRID, published.laion.N_TRIALS = grid, n = (143, 143, 143), 1066
    names = [f"unique_LAION_new_cluster_{i}_i0_p01.jpg" for i in range(round(6204 * share))]
    made.root, made.data = root, {}
    for i, name in enumerate(names):
        stream = io.BytesIO()
        Image.fromarray(photograph(i, 1000, 1000)).save(stream, "JPEG", quality=75)
        made.data[name] = stream.getvalue()
    made.write_packed(names)
    volumes = np.zeros((*grid, 41), np.float32, order="F")
    volumes[25:117, 25:117, 25:115] = noise(92 * 92, 90 * 41, "<f4").reshape(92, 92, 90, 41)
    pieces = packed(volumes, published.laion.AFFINE, n)
    for session in range(1, 1 + round(30 * share)):
        place = f"{made.start('sub-01', session)}_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
        with made.file(place).open("wb") as file:
            file.writelines(pieces)
        label = np.random.default_rng(session).permutation(np.resize(names, n))
        made.write_trials("sub-01", session, run=np.arange(n) // 89, label=label)
    wanted = np.zeros(grid, np.float32)
    wanted[40:70, 40:70, 40:62] = 20
    made.write_map(f"{made.start('sub-01')}_stat-rsquare_desc-R2mean_statmap", wanted)
    for area in ("V1v", "hV4"):
        name = published.laion.mask_file("sub-01", f"retinotopy/{area}")
        made.write_map(name, (wanted > 0).astype(np.uint8))


def nod(root: Path, share: float) -> None:
    """Subject 1, the cortex in float32, images of 500 × 375: a share of forty runs of 100 images of
    ImageNet, in four sessions, and of ten runs of the same 120 images of COCO.
    """
    made = object.__new__(published.nod.Published)
    made.root, sides = root, (29696, 29716)
    axis = published.nod.brain(*map(range, sides), 0, 32492)
    names = [f"n{1443537 + 1000 * (i % 1000):08d}_{i}.JPEG" for i in range(round(40 * share) * 100)]
    coco = [f"{i:012d}.jpg" for i in range(120)]
    for i, name in enumerate([*names, *coco]):
        place = f"imagenet/{name.partition('_')[0]}" if i < len(names) else "coco"
        write_picture(root / f"stimuli/{place}/{name}", i, 375, 500)
    block = noise(120, sum(sides), "<f4")
    shown = {
        (f"imagenet{1 + i // 1000:02d}", 1 + i // 100 % 10): names[i : i + 100]
        for i in range(0, len(names), 100)
    } | {("coco", 1 + run): coco for run in range(max(1, round(10 * share)))}
    for number, ((session, run), images) in enumerate(shown.items()):
        values = np.roll(block, number, 1)[: len(images)]
        published.nod.write_cifti(made.path("sub-01", session, run), values, images, axis)


def bids(root: Path, share: float) -> None:
    """One subject, a share of four runs with a table each, in which 200 images of 425 × 425 are
    shown once; float32, and a third of the volume is brain.
    """
    made, grid, affine = published.bids.Dataset(), (80, 100, 80), published.bids.OBLIQUE
    made.root, names = root, [f"im{i}.jpg" for i in range(200)]
    for i, name in enumerate(names):
        write_picture(root / f"images/{name}", i, 425, 425)
    brain = np.zeros(grid, np.uint8)
    brain[10:70, 17:83, 15:65] = 1
    published.bids.volume(made.file("mask.nii.gz"), brain, affine=affine)
    values = noise(brain.sum(), 40, "<f4")
    volumes = np.zeros((*grid, 40), np.float32, order="F")
    volumes[brain == 1] = values
    pieces = packed(volumes, affine, len(names))
    for run in range(1, 1 + max(1, round(4 * share))):
        place = f"sub-01/func/sub-01_task-look_run-{run}"
        with made.file(f"{place}_stat-effect_desc-trials_statmap.nii.gz").open("wb") as file:
            file.writelines(pieces)
        shown = np.random.default_rng(run).permutation(names)
        table = pd.DataFrame({"onset": 4 * np.arange(len(names)), "stim_file": shown})
        table.to_csv(made.file(f"{place}_events.tsv"), sep="\t", index=False)


def arrays(root: Path, share: float) -> None:
    """A share of 30,000 trials, 10,000 images of 224 × 224, 20,000 voxels."""
    n_images, n_voxels, block = round(10000 * share), 20000, noise(300, 20000, "<f4")
    n_trials = 3 * n_images
    root.mkdir()
    with (root / "images.npy").open("wb") as file:
        file.write(npy_header((n_images, 224, 224, 3), "|u1"))
        file.writelines(photograph(i, 224, 224).tobytes() for i in range(n_images))
    with (root / "responses.npy").open("wb") as file:
        file.write(npy_header((n_trials, n_voxels), "<f4"))
        file.writelines(np.roll(block[i % 300], i // 300).tobytes() for i in range(n_trials))
    trial = np.arange(n_trials)
    pd.DataFrame({"image": trial % n_images, "session": trial // 750}).to_csv(
        root / "trials.csv", index=False
    )
    pd.DataFrame({"hemisphere": "L", "vertex": np.arange(n_voxels), "areas": "V1"}).to_csv(
        root / "voxels.csv", index=False
    )


def run_arrays(root: Path, out: Path) -> None:
    import_arrays(
        root / "images.npy",
        root / "responses.npy",
        "A",
        out,
        trials=root / "trials.csv",
        voxels=root / "voxels.csv",
    )


def crowd(root: Path, share: float, n_schemes: int = 0) -> None:
    """Eight subjects, a share of 9000 images each, of which a tenth are shared, 224 × 224; in each
    scheme, another tenth of all images are test images.
    """
    n = round(9000 * share)
    root.mkdir()
    with write_crowd(root / "crowd.h5") as writer:
        n_test = n // 10
        splits = ["test"] * n_test + ["val", *["train"] * 19] * n
        tenths = ["test", "val", *["train"] * 8]
        rows = [
            writer.add_image(
                f"image{i}",
                photograph(i, 224, 224),
                splits[i],
                schemes={f"s{k}": tenths[(i + k) % 10] for k in range(n_schemes)},
            )
            for i in range(n_test + 8 * (n - n_test))
        ]
        for s in range(8):
            image = np.r_[rows[:n_test], rows[n_test + s * (n - n_test) :][: n - n_test]]
            trials = pd.DataFrame({"image": image, "session": np.arange(n) * 4 // n})
            voxels = pd.DataFrame({"hemisphere": "L", "vertex": np.arange(39548), "areas": "V1"})
            block = noise(300, 39548, "<f2", seed=s)
            values = (np.roll(block[i % 300], i // 300)[None] for i in range(n))
            writer.add_subject(f"S{s}", trials, voxels, values, "synthetic", "7T", dtype="float16")


def run_check(root: Path, out: Path) -> None:
    for finding in doctor.check(root / "crowd.h5"):
        print(f"  {finding.level}: {finding.code}: {finding.where[:60]}")


Dataset = tuple[
    Callable[[Path, float], object], Callable[[Path, Path], object]
]  # how it is made, what is measured
DATASETS: dict[str, Dataset] = {
    "nsd": (nsd, import_nsd),
    "algonauts": (algonauts, import_algonauts),
    "ube": (ube, import_ube),
    "bold5000": (bold5000, lambda r, o: import_bold5000(r, o, areas="none")),
    "god": (god, lambda r, o: import_god(r, o, areas="none")),
    "vim1": (vim1, import_vim1),
    "mosaic": (mosaic, import_mosaic),
    # another count of voxels than the published one
    "things": (things, lambda r, o: import_things(r, o, Options(unusual=True))),
    "laion": (laion, lambda r, o: import_laion(r, o, Options(image_size=224))),
    "nod": (nod, lambda r, o: import_nod(r, o, images=r / "stimuli")),
    "bids": (bids, lambda r, o: import_bids(r, o, images=r / "images", mask=r / "mask.nii.gz")),
    "arrays": (arrays, run_arrays),
    "check": (crowd, run_check),
    "check-schemes": (partial(crowd, n_schemes=8), run_check),
}


# --- measurement


def make(name: str, root: Path, share: float) -> None:
    DATASETS[name][0](root, share)


def run(name: str, root: Path, out: Path) -> None:
    DATASETS[name][1](root, out)


def read_plainly(root: Path) -> None:
    """Read all there is in the files of a folder, and do nothing with it."""
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.suffix in (".hdf5", ".h5") or (path.suffix == ".mat" and h5py.is_hdf5(path)):
            with h5py.File(path, rdcc_nbytes=STEP) as file:
                file.visititems(
                    lambda _, item: read_dataset(item) if isinstance(item, h5py.Dataset) else None
                )
        elif path.suffix == ".mat":
            scipy.io.loadmat(path)
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    with archive.open(member) as stream:
                        read_stream(stream)
        elif path.suffix == ".gz":
            with gzip.open(path) as stream:
                read_stream(stream)
        elif path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            with Image.open(path) as image:
                np.asarray(image.convert("RGB"))
        else:
            for begin, end in written(path):
                for start in range(begin, end, STEP):
                    np.fromfile(path, np.uint8, min(STEP, end - start), offset=start)


def read_stream(stream) -> None:
    while len(np.frombuffer(stream.read(STEP), np.uint8)):
        pass


def read_dataset(data: h5py.Dataset) -> None:
    """All of it, in slabs along the first axis; of images that are mostly holes, those that are
    there.
    """
    if data.name == "/imgBrick":
        size, begin = data[0].nbytes, data.id.get_offset()
        extents = [
            ((a - begin) // size, -(-(b - begin) // size))
            for a, b in written(Path(data.file.filename))
            if b > begin
        ]
        rows = sorted({i for a, b in extents for i in range(max(0, a), min(b, len(data)))})
        for i in rows:
            data[i]
    elif data.name == "/betas" and data.ndim == 4:  # of NSD, where a chunk is all trials of a voxel
        for k in range(data.shape[1]):
            data[:, k]
    elif not data.shape:
        data[()]
    else:
        step = (
            max(1, STEP * len(data) // max(1, data.size * data.dtype.itemsize)) if data.size else 1
        )
        for start in range(0, len(data), step):
            data[start : start + step]


def written(path: Path) -> list[tuple[int, int]]:
    """Where a file has something other than holes: first byte, and the one behind the last."""
    size, found, end = path.stat().st_size, [], 0
    with path.open("rb") as file:
        while end < size:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                break
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            found.append((begin, end))
    return found


def used(folder: Path) -> float:
    """MB that the files of a folder have, without holes."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(min(s.st_size, s.st_blocks * 512) for s in stats) / 1e6


def forget(folder: Path) -> None:
    """Out of the system's cache with all files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(function: Callable, *arguments: object) -> tuple[float, float, float]:
    """Seconds, seconds of the processor, and peak memory in MB."""
    logging.disable()
    before, start = time.process_time(), time.perf_counter()
    function(*arguments)
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    peak = re.search(
        r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()
    )  # ru_maxrss would begin with the parent's
    return seconds, cpu, int(peak[1]) * 1024 / 1e6


def alone(function: Callable, *arguments: object) -> tuple[float, float, float]:
    """The same, in a new process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(timed, (function, *arguments))


def measure(name: str, share: float, folder: Path) -> None:
    root, out = folder / "data", folder / "out/crowd.h5"
    out.parent.mkdir()
    seconds, _, _ = alone(make, name, root, share)
    size = used(root)
    print(f"{name}, share {share:g}: {size:.0f} MB, made in {seconds:.0f} s", flush=True)
    for what, arguments in {
        "ubrain": (run, name, root, out),
        "plain reading": (read_plainly, root),
    }.items():
        forget(root)
        load = os.getloadavg()[0]
        seconds, cpu, peak = alone(*arguments)
        print(
            f"  {what:<14} {seconds:6.1f} s, {cpu:6.1f} s of CPU, {size / seconds:6.1f} MB/s, peak"
            f" {peak:5.0f} MB; load {load:.1f} before, {os.getloadavg()[0]:.1f} after",
            flush=True,
        )
    print(f"  written        {used(out.parent):.0f} MB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=DATASETS)
    parser.add_argument(
        "--share", type=float, default=0.1, help="of what a dataset has, see its function; 1 is all"
    )
    parser.add_argument(
        "--folder", help="where there is room; default: the system's folder for temporary files"
    )
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="scale-", dir=given.folder))
    try:
        measure(given.name, given.share, place)
    finally:
        shutil.rmtree(place)
