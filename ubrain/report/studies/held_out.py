"""A crowd judged where it was not trained: images of a category, or with a background, that no
training shows.
"""

from dataclasses import replace
from functools import reduce

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ubrain.analysis import stats
from ubrain.report import suite
from ubrain.report.lab import ALONE, CROWD, LEAST_IMAGES, Lab
from ubrain.report.studies import scoring

N_ALONE = 3  # subjects that are also trained alone: the first so many


def trained(lab: Lab) -> scoring.Predictions:
    """Responses to the test images, predicted by encoders whose train and val images are those of
    the random split: the crowd, and the first subjects alone. Where nothing is held out, as of
    recordings, these are the encoders that there are.
    """
    splits, found = suite.split_rows(lab.crowd), dict[str, dict[str, NDArray]]()
    rows = splits[suite.RANDOM]
    shown = {
        s: {k: np.intersect1d(lab.crowd[s].image_rows(k), rows) for k in ("train", "val")}
        for s in lab.subjects
    }
    alone = lab.subjects[:N_ALONE]
    for condition, group in [*((ALONE, [s]) for s in alone), (CROWD, lab.subjects)]:
        source = lab.source
        if len(splits) > 1:
            views = [lab.crowd[s].select(shown[s]) for s in group]
            source = replace(source, crowd=lab.crowd.select(*views))
        encoder = lab.encoder(group, source=source)
        predicted = {s: lab.predict(encoder, s) for s in alone if s in group}
        found.setdefault(condition, {}).update(predicted)
    return found


def judge(lab: Lab, predictions: scoring.Predictions) -> pd.DataFrame:
    """Median r on the test images of each split, and the crowd's gain over one subject alone, both
    over the voxels of all subjects with 95 % intervals; recorded.

    Returns
    -------
    One row per split and condition ("a − b" is the gain, paired): split, condition, median_r, low,
    high, n_images; splits with too few shared test images are left out.
    """
    subjects = list(predictions[ALONE])
    test = reduce(np.intersect1d, (lab.crowd[s].image_rows("test") for s in subjects))
    measured, alone, crowd = scoring.on_common_images(
        lab, subjects, predictions[ALONE], predictions[CROWD]
    )
    complete = np.isfinite(measured).all(0)
    measured, alone, crowd = (x[:, complete] for x in (measured, alone, crowd))
    rows = []
    for split, judged in suite.split_rows(lab.crowd).items():
        mine = np.isin(test, judged)
        if mine.sum() < LEAST_IMAGES["test"]:
            continue
        for condition, predicted, against in (
            (ALONE, alone, None),
            (CROWD, crowd, None),
            (f"{CROWD} − {ALONE}", crowd, alone),
        ):
            other = None if against is None else against[mine]
            found = stats.median_r(predicted[mine], measured[mine], other)
            name = f"{'median_r' if against is None else 'gain_median_r'} of {split}"
            lab.record(name, found.value, condition, interval=found, unit="r")
            rows.append((split, condition, found.value, found.low, found.high, mine.sum()))
    columns = ["split", "condition", "median_r", "low", "high", "n_images"]
    return pd.DataFrame(rows, columns=columns)
