"""More from a trained crowd: each subject fitted anew, as if it were new to the others.

Training gives every voxel an embedding of its own, and a voxel's images are few and noisy. The same
voxel, taken for that of a newcomer (`ubrain.transfer`), starts from what similar voxels of the
other subjects have learned, keeps to that as far as its own images do not speak against it, and
gets a linear readout of what its embedding leaves. The shared weights stay as they are; nothing is
trained. They have seen responses to the subject's train images, so only its val images can say how
strong the pull and the readout should be; the embeddings are then fitted to both. This is ours,
not the paper's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ubrain import transfer
from ubrain.config import TransferConfig
from ubrain.errors import UbrainError
from ubrain.features import Source
from ubrain.model import UniversalEncoder
from ubrain.report.lab import Lab

REFITTED = "encoder, crowd, refitted"


@dataclass(frozen=True, kw_only=True)
class Member(transfer.Newcomer):
    """A subject of the crowd among the others.

    Attributes
    ----------
    held : images to choose by, as indices; the rest is fitted on.
    """

    held: NDArray[np.int64]

    def folds(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Images to fit on and to hold out, once."""
        return [(np.setdiff1d(np.arange(self.head.n_images), self.held), self.held)]


def refit(
    encoder: UniversalEncoder,
    source: Source,
    subject: str,
    config: TransferConfig | None = None,
    seed: int = 0,
) -> transfer.Fitted:
    """New embeddings and a linear readout of a subject's voxels; the encoder is not changed.

    Parameters
    ----------
    encoder : trained on this subject and on others, which are its crowd here.

    Raises
    ------
    UbrainError
        If the encoder knows no other subject.
    """
    others = encoder.frozen()
    others.drop_subject(subject)
    if not len(others.embeddings):
        raise UbrainError(f"the encoder knows {subject!r} only; a refit needs other subjects")
    rows = transfer.images_of(source.crowd, subject)
    held = np.flatnonzero(np.isin(rows, source.crowd[subject].image_rows("val")))
    new = transfer.Newcomer.of(others, source, subject, rows, config, seed)
    member = Member(new.head, new.crowd, new.responses, new.config, seed, held=held)
    return member.fit("ours")


def refitted(lab: Lab, encoder: UniversalEncoder) -> dict[str, NDArray[np.float32]]:
    """Predicted responses of each of the notebook's subjects, refitted, to its test images.

    Returns
    -------
    subject -> (n_images, n_voxels)
    """
    found = {}
    for s in lab.subjects:
        fitted = refit(encoder, lab.source, s, lab.profile.transfer, lab.seed)
        head = transfer.Head(encoder, lab.source, lab.crowd[s].image_rows("test"))
        found[s] = fitted.respond(head).cpu().numpy()
    return found
