"""From trials to responses, and only here: z-scoring per session or run, averaging of repeats."""

import os
from collections.abc import Callable, Iterator
from functools import cached_property

import h5py
import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Voxels = slice | NDArray[np.int64]
BLOCK_BYTES = 64 << 20  # trials are read in blocks of about this size
NORMALISE = {  # over which trials a voxel is z-scored, and how that is said
    "session": (
        "when they are read, each voxel is z-scored over the trials of each session (mean and"
        " standard deviation with ddof 0, trials of test images included)"
    ),
    "run": (
        "when they are read, each voxel is z-scored over the trials of each run (mean and standard"
        " deviation with ddof 0)"
    ),
    "none": "they are used as they are, without z-scoring",
}


def session_moments(
    blocks: Iterator[NDArray], sessions: Rows, save: Callable[[int, NDArray[np.float64]], None]
) -> Iterator[NDArray]:
    """Pass blocks of trials (n, n_voxels) through, and save the moments of each complete session.

    The moments are (2, n_voxels): mean and standard deviation (ddof 0) over the trials of the
    session, computed without a second reading (Chan et al. 1979, pairwise update). Only sessions
    that have begun and not ended are in memory.
    """
    total, start = np.bincount(sessions), 0
    running: dict[int, tuple[int, NDArray, NDArray]] = {}
    for block in blocks:
        within = sessions[start : start + len(block)]
        for session in np.unique(within):
            part = block[within == session].astype(np.float64)
            n, part_mean = len(part), part.mean(0)
            part -= part_mean
            count, mean, spread = running.pop(
                session, (0, np.zeros(len(part_mean)), np.zeros(len(part_mean)))
            )
            shift = part_mean - mean
            spread += np.einsum("tv,tv->v", part, part) + shift**2 * (count * n / (count + n))
            mean += shift * (n / (count + n))
            running[session] = count + n, mean, spread
            if count + n == total[session]:
                del running[session]
                save(int(session), np.stack([mean, np.sqrt(spread / total[session])]))
        start += len(block)
        yield block


class Trials:
    """The trials of one subject in a crowd file.

    Parameters
    ----------
    group : HDF5 group of the subject, laid out as `ubrain.crowd` says.

    Attributes
    ----------
    image, session : (n_trials,), row of the image in the crowd file, and session from 0.
    unit : (n_trials,), the session or run over which a trial is z-scored.
    """

    def __init__(self, group: h5py.Group) -> None:
        self._responses, self._moments = group["responses"], group["session_moments"]
        self.image: Rows = group["trials/image"][:].astype(np.int64)
        self.session: Rows = group["trials/session"][:].astype(np.int64)
        self.normalise: str = group.attrs.get("normalise", "session")
        by_run = self.normalise == "run"
        self.unit: Rows = group["trials/run"][:].astype(np.int64) if by_run else self.session
        self._order = np.argsort(self.image, kind="stable")
        self._sorted = self.image[self._order]
        self.n_voxels = int(self._responses.shape[1])

    def raw(self, trials: Rows, voxels: Voxels = slice(None)) -> NDArray:
        """Responses as measured, (n_trials, n_voxels), in the type of the file."""
        data, places = self._responses, self._places
        if places is None:
            return read_rows(data, trials, voxels)
        handle, n_bytes = data.file.id.get_vfd_handle(), self.n_voxels * data.dtype.itemsize
        rows = (np.frombuffer(os.pread(handle, n_bytes, at), data.dtype) for at in places[trials])
        found = [row[voxels] for row in rows]
        return np.stack(found) if found else np.empty((0, self.n_voxels), data.dtype)[:, voxels]

    @cached_property
    def _places(self) -> Rows | None:
        """Where in the file each trial begins, in bytes, for reading by several threads at once,
        which HDF5 does not do; None if a trial is not there in one piece, as it is.
        """
        data, rows = self._responses, (self._responses.chunks or (0,))[0]
        plain = data.dtype.isnative and not data.id.get_create_plist().get_nfilters()
        plain = plain and data.file.driver == "sec2" and not data.file.userblock_size
        if not plain or (data.chunks or (0, 0))[1] != self.n_voxels or not hasattr(os, "pread"):
            return None
        within = np.arange(rows) * self.n_voxels * data.dtype.itemsize
        places = np.full(-(-len(data) // rows) * rows, -1, np.int64)

        def add(chunk: h5py.h5d.StoreInfo) -> None:
            first = chunk.chunk_offset[0]
            places[first : first + rows] = chunk.byte_offset + within

        data.id.chunk_iter(add)
        places = places[: len(data)]
        return places if (places >= 0).all() else None  # what was never written is not there

    def moments(self) -> NDArray[np.float32]:
        """Mean and standard deviation of each session (or run): (2, n_units, n_voxels)."""
        return self._moments[:]

    @cached_property
    def _mean_and_scale(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n_units, n_voxels) each; the scale is 0 where a voxel is constant within the unit."""
        mean, std = self.moments()
        constant = std <= 1e-6 * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)
        scale = np.where(constant, 0, 1 / np.where(constant, 1, std))
        return mean.astype(np.float32), scale.astype(np.float32)

    def repeats(self, images: Rows) -> Rows:
        """Number of trials of each image: (n_images,)."""
        return np.searchsorted(self._sorted, images, "right") - np.searchsorted(
            self._sorted, images, "left"
        )

    def zscored(self, trials: Rows, voxels: Voxels = slice(None)) -> NDArray[np.float32]:
        """Responses in units of the session's standard deviation, (n_trials, n_voxels).

        Each voxel has mean 0 and standard deviation 1 over all trials of a session, those of test
        images included, as is the custom with NSD. A voxel that is constant within a session
        carries nothing there and is 0. Where the subject says so, the unit is the run instead of
        the session, or nothing is done because the file's numbers are z-scored.
        """
        values = self.raw(trials, voxels).astype(np.float32, copy=False)
        if self.normalise == "none":
            return values
        mean, scale = (moment[:, voxels] for moment in self._mean_and_scale)
        unit = self.unit[trials]
        values = values - mean[unit]
        values *= scale[unit]
        return values

    def averaged(self, images: Rows, voxels: Voxels = slice(None)) -> NDArray[np.float32]:
        """Z-scored responses to each image, averaged over its repeats: (n_images, n_voxels)."""
        parts = [mean for _, mean, _ in self._by_image(images, voxels)]
        width = len(range(self.n_voxels)[voxels]) if isinstance(voxels, slice) else len(voxels)
        return np.concatenate(parts) if parts else np.empty((0, width), np.float32)

    def repeat_deviation(self) -> tuple[NDArray[np.float64], int]:
        """Squared deviation of repeats from their mean, (n_voxels,), and degrees of freedom."""
        images, counts = np.unique(self.image, return_counts=True)
        images, counts = images[counts > 1], counts[counts > 1]
        total = np.zeros(self.n_voxels)
        for values, mean, owner in self._by_image(images, slice(None)):
            total += ((values - mean[owner]).astype(np.float64) ** 2).sum(0)
        return total, int((counts - 1).sum())

    def _by_image(self, images: Rows, voxels: Voxels) -> Iterator[tuple[NDArray, NDArray, Rows]]:
        """Blocks of images: z-scored trials, their mean by image, and the image of each trial."""
        first = np.searchsorted(self._sorted, images, "left")
        counts = self.repeats(images)
        step = max(1, BLOCK_BYTES // (4 * self.n_voxels * max(int(counts.max(initial=1)), 1)))
        for start in range(0, len(images), step):
            block = slice(start, start + step)
            owner = np.repeat(np.arange(len(counts[block])), counts[block])
            within = np.arange(len(owner)) - np.repeat(
                np.cumsum(counts[block]) - counts[block], counts[block]
            )
            values = self.zscored(self._order[first[block][owner] + within], voxels)
            starts = np.cumsum(counts[block]) - counts[block]
            total = np.add.reduceat(values, starts, axis=0)
            yield values, total / counts[block][:, None].astype(np.float32), owner


def read_rows(dataset: h5py.Dataset, rows: Rows, columns: Voxels = slice(None)) -> NDArray:
    """Rows of a table in any order, read in runs: far faster than h5py's own point selection."""
    if not len(rows):
        return dataset[:0][:, columns]
    unique, inverse = np.unique(rows, return_inverse=True)
    starts = np.flatnonzero(np.diff(unique, prepend=-2) != 1)
    by_file = isinstance(columns, slice) and columns.step in (None, 1)
    runs = []
    for start, stop in zip(starts, [*starts[1:], len(unique)], strict=True):
        run = slice(int(unique[start]), int(unique[stop - 1]) + 1)
        runs.append(dataset[run, columns] if by_file else dataset[run][:, columns])
    values = np.concatenate(runs)
    return values if np.array_equal(inverse, np.arange(len(values))) else values[inverse]
