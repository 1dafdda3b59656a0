"""The study of clusters on a small crowd, with embeddings made from the truth in place of trained ones."""

import numpy as np
import pandas as pd
import pytest
import torch

from ubrain import clusters
from ubrain.data import truth
from ubrain.lab import Lab
from ubrain.model import UniversalEncoder
from ubrain.studies import clustering


@pytest.fixture(scope="module")
def lab(tmp_path_factory, small_crowd):
    patch = pytest.MonkeyPatch()
    patch.setenv("UBRAIN_OUT", str(tmp_path_factory.mktemp("out") / "small-smoke"))
    monkey_least(patch)
    yield Lab("98_test", str(small_crowd), profile="smoke")
    patch.undo()


def monkey_least(patch):
    patch.setattr("ubrain.lab.LEAST_IMAGES", {"train": 5, "val": 2, "test": 5})


@pytest.fixture(scope="module")
def encoder(lab):
    """An encoder whose embeddings say the true type: early voxels, and one direction for each category."""
    config = lab.features.encoder_config(lab.profile.encoder) if hasattr(lab.features, "encoder_config") else None
    return config
