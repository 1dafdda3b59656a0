"""More from a trained crowd: each subject fitted anew, as if it were new to the others (`refit` of
`ubrain.transfer`).
"""

import numpy as np
from numpy.typing import NDArray

from ubrain import transfer
from ubrain.model import UniversalEncoder
from ubrain.report.lab import Lab

REFITTED = "encoder, crowd, refitted"


def refitted(lab: Lab, encoder: UniversalEncoder) -> dict[str, NDArray[np.float32]]:
    """Predicted responses of each of the notebook's subjects, refitted, to its test images.

    Returns
    -------
    subject -> (n_images, n_voxels)
    """
    found = {}
    for s in lab.subjects:
        how = {"method": "refit", "config": lab.profile.transfer, "seed": lab.seed}
        fitted = lab.kept(transfer.fit, encoder, lab.source, s, **how)
        head = transfer.Head(encoder, lab.source, lab.crowd[s].image_rows("test"))
        found[s] = fitted.respond(head).cpu().numpy()
    return found
