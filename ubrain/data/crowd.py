"""Crowd and Subject: what was shown, what was measured, where the voxel sits. Every other room
reads through these.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ubrain import scores
from ubrain.data.preparation import Trials
from ubrain.data.store import SPLITS, open_crowd, reading
from ubrain.errors import UbrainError


class Crowd:
    """A crowd file, opened for reading. Responses and images are read when asked for, never as a
    whole.

    Parameters
    ----------
    path : crowd file, from `ubrain simulate` or `ubrain import`.

    Examples
    --------
    >>> with Crowd("crowd.h5") as crowd:  # doctest: +SKIP
    ...     subject = crowd["S1"]
    ...     print("(n_images, n_voxels) =", subject.responses("test").shape)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_crowd(path)
        images = self._file["images"]
        self.image_ids = np.array(images["id"].asstr()[:], dtype=object)
        self.content = np.array(images["content"].asstr()[:], dtype=object)
        self._split = images["split"][:]
        self._row = {image_id: row for row, image_id in enumerate(self.image_ids)}
        self._subjects = {
            name: Subject(self, name, group) for name, group in self._file["subjects"].items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<Crowd {self.path.name}: {len(self._subjects)} subjects, {len(self.image_ids)}"
            " images>"
        )

    def close(self) -> None:
        """Close the file; nothing can be read from it afterwards."""
        self._file.close()

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects, in the order in which they were added."""
        return list(self._subjects)

    @property
    def simulated(self) -> bool:
        """Whether the recordings were simulated (then the file has a ground truth)."""
        return "truth" in self._file

    def __getitem__(self, name: str) -> "Subject":
        if name not in self._subjects:
            raise UbrainError(
                f"no subject {name!r} in {self.path.name}; it has {', '.join(self.subjects)}"
            )
        return self._subjects[name]

    def rows(self, image_ids: ArrayLike) -> NDArray[np.int64]:
        """Rows of images in the file."""
        try:
            return np.array(
                [self._row[i] for i in np.atleast_1d(np.asarray(image_ids, dtype=object))],
                dtype=np.int64,
            )
        except KeyError as error:
            raise UbrainError(f"no image {error.args[0]!r} in {self.path.name}") from None

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """Pixels of an image, (height, width, 3) RGB."""
        row = int(self.rows(image_id)[0])
        with reading(self.path):
            height, width = self._file["images/shape"][row]
            return self._file[f"images/pixels/{height}x{width}"][self._file["images/row"][row]]

    def split_rows(self, split: str) -> NDArray[np.int64]:
        """Rows of all images of a split."""
        if split not in SPLITS:
            raise UbrainError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        return np.flatnonzero(self._split == SPLITS.index(split))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the images, the splits, the trials and the responses: the same data give the
        same string.
        """
        digest = hashlib.blake2b(
            "".join(self.content).encode() + self._split.tobytes(), digest_size=16
        )
        for name, group in self._file["subjects"].items():
            digest.update(name.encode())
            digest.update(str(group.attrs["digest"]).encode())
            for part in ("trials/image", "trials/session"):
                digest.update(group[part][:].tobytes())
            if group.attrs.get("normalise", "session") != "session":
                digest.update(group.attrs["normalise"].encode())
                digest.update(group["trials/run"][:].tobytes() if "run" in group["trials"] else b"")
        return digest.hexdigest()


class Subject:
    """One subject of a crowd; made by `Crowd`."""

    def __init__(self, crowd: Crowd, name: str, group: h5py.Group) -> None:
        self.crowd, self.name, self._group = crowd, name, group
        self.dataset: str = group.attrs["dataset"]
        self.scanner: str = group.attrs["scanner"]
        self.space: str = group.attrs["space"]
        self.account: str = group.attrs.get("account", "")
        self.n_trials, self.n_voxels = (int(n) for n in group["responses"].shape)

    def __repr__(self) -> str:
        return (
            f"<Subject {self.name}: {self.n_voxels} voxels, {self.n_trials} trials, {self.dataset}"
            f" at {self.scanner}>"
        )

    @cached_property
    def trials(self) -> Trials:
        """The trials behind the responses."""
        with reading(self.crowd.path):
            return Trials(self._group)

    @cached_property
    def voxels(self) -> pd.DataFrame:
        """One row per voxel: hemisphere, areas, ncsnr, and vertex or i, j, k where known."""
        columns = self._group["voxels"]
        with reading(self.crowd.path):
            table = {c: d.asstr()[:] if d.dtype.kind == "O" else d[:] for c, d in columns.items()}
        return pd.DataFrame(table).rename_axis("voxel")

    def image_rows(self, split: str = "train") -> NDArray[np.int64]:
        """Rows, in the crowd file, of the images of a split that this subject has seen;
        ascending.
        """
        return np.intersect1d(self.crowd.split_rows(split), self.trials.image)

    def images(self, split: str = "train") -> NDArray[np.object_]:
        """Ids of the images of a split that this subject has seen, in the row order of
        `responses`.
        """
        return self.crowd.image_ids[self.image_rows(split)]

    def responses(
        self, split: str = "train", voxels: slice | ArrayLike = slice(None)
    ) -> NDArray[np.float32]:
        """Responses z-scored per session and averaged over repeats.

        Parameters
        ----------
        split : "train", "val" or "test".
        voxels : slice, boolean mask or indices.

        Returns
        -------
        (n_images, n_voxels) float32, rows as in `images(split)`.
        """
        return self.responses_to(self.image_rows(split), voxels)

    def responses_to(
        self, rows: NDArray[np.int64], voxels: slice | ArrayLike = slice(None)
    ) -> NDArray[np.float32]:
        """As `responses`, for given rows of the crowd file's images: (n_images, n_voxels)
        float32.
        """
        missing = rows[self.trials.repeats(rows) == 0]
        if len(missing):
            raise UbrainError(
                f"subject {self.name!r} has not seen image {self.crowd.image_ids[missing[0]]!r}"
            )
        chosen = (
            voxels if isinstance(voxels, slice) else np.arange(self.n_voxels)[np.asarray(voxels)]
        )
        with reading(self.crowd.path):
            return self.trials.averaged(rows, chosen)

    def noise_ceiling(self, split: str = "test") -> NDArray[np.float64]:
        """Highest r² that a model can reach for each voxel, given noise and repeats: (n_voxels,),
        NaN where unknown.

        See `ubrain.scores.noise_ceiling`.
        """
        repeats = self.trials.repeats(self.image_rows(split))
        if not len(repeats):
            raise UbrainError(
                f"subject {self.name!r} has no {split} images, so there is no {split} noise ceiling"
            )
        return scores.noise_ceiling(self.voxels["ncsnr"].to_numpy(), repeats)
