"""Results that are computed once: known by what they were made from, read back as they were."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ubrain import paths
from ubrain.analysis import baselines
from ubrain.errors import UbrainError
from ubrain.features import Features, Source
from ubrain.readout import LinearReadout
from ubrain.report.kept import kept
from ubrain.transfer import Fitted


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UBRAIN_CACHE", str(tmp_path))
    return tmp_path


class Counted:
    """Something to make, and how often it was made."""

    def __init__(self, value):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return self.value


def test_a_result_is_made_once_and_read_back_as_it_was():
    tensors = [torch.arange(6.0).view(2, 3), torch.ones(3), torch.ones(3, 2), *torch.ones(2, 2)]
    made = Counted(
        {
            "baseline": baselines.Fitted(np.eye(3, dtype=np.float32)[:, :2].T, "ridge", 0.5),
            "transfer": Fitted(torch.eye(2), "step 3", 0.25, LinearReadout(*tensors)),
            "plain": {"numbers": [1, 2.5, None, True], "seconds": 1.5},
        }
    )
    for _ in range(2):
        found = kept("test", [1], made)
        assert made.times == 1
        assert np.array_equal(found["baseline"].predicted, made.value["baseline"].predicted)
        assert (found["baseline"].chosen, found["transfer"].validation) == ("ridge", 0.25)
        assert torch.equal(found["transfer"].embeddings, torch.eye(2))
        for name, buffer in made.value["transfer"].readout.named_buffers():
            assert torch.equal(getattr(found["transfer"].readout, name), buffer)
        assert found["plain"] == made.value["plain"]


def test_whatever_decides_the_result_makes_another(crowd, lab):
    subject, encoder = crowd[crowd.subjects[0]], lab.encoder(lab.subjects[:1])
    changed = lab.encoder(lab.subjects[:1])
    with torch.no_grad():
        next(iter(changed.shared_parameters()))[0] += 1e-6
    config, tokens = lab.profile.transfer, Source(crowd, lab.features)
    some = Features.select(lab.features, [0])
    different = [
        *(1, 1.0, "1", True, None, [1], {"a": 1}, np.arange(3), np.arange(3.0)),
        *(crowd, subject, crowd[crowd.subjects[1]], subject.select(voxels=[1])),
        subject.select({"test": subject.image_rows("test")[:-1]}),
        *(encoder, changed, config, replace(config, epochs=config.epochs + 1)),
        *(lab.features, some, tokens, replace(tokens, features=some)),
    ]
    made = Counted(np.zeros(1))
    for value in different:
        kept("test", [value], made)
    assert made.times == len(different)
    for value in different:
        kept("test", [value], made)
    assert made.times == len(different)


def test_what_cannot_be_told_apart_is_no_argument():
    with pytest.raises(TypeError, match="cannot be known by a set"):
        kept("test", [{1}], Counted(np.zeros(1)))


def test_a_damaged_result_is_one_clear_error():
    kept("test", [1], Counted(np.zeros(1)))
    (file,) = (paths.cache_root() / "kept").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UbrainError, match=r"test-\w+\.safetensors cannot be read"):
        kept("test", [1], Counted(np.zeros(1)))


def test_a_failure_leaves_nothing():
    def fails():
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        kept("test", [1], fails)
    assert not list((paths.cache_root()).rglob("*.safetensors"))
