"""Reading ahead: the same items in the same order, errors in their place, threads that end."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ubrain.batches import Batch, prepared, read_ahead


@pytest.mark.parametrize("readers", [1, 3, 8])
def test_items_come_in_order_whoever_reads_first(readers):
    last = threading.Event()

    def read(item):
        if item == 0 and readers > 1:
            assert last.wait(10)  # the first is the last to be read
        if item == readers - 1:
            last.set()
        return item * item

    assert list(read_ahead(read, range(12), readers)) == [i * i for i in range(12)]


def test_no_more_is_read_ahead_than_there_are_readers():
    asked = []
    items = read_ahead(asked.append, range(100), 3)
    next(items)
    assert len(asked) <= 4
    items.close()
    assert len(asked) <= 4
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_an_error_comes_at_its_item():
    def read(item):
        return 1 / item

    found = read_ahead(read, [1, 2, 0, 4], 2)
    assert [next(found), next(found)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_a_prepared_batch_is_what_the_crowd_and_the_source_hold():
    responses = np.arange(60, dtype=np.float32).reshape(6, 10)
    subject = SimpleNamespace(responses_to=lambda rows, voxels: responses[np.ix_(rows, voxels)])
    source = SimpleNamespace(crowd={"S1": subject}, read=lambda rows: torch.from_numpy(rows) * 2)
    batches = [Batch("S1", np.array([i, 5]), np.array([1, i, 9]), i) for i in range(5)]
    for batch, ready in zip(batches, prepared(source, batches, torch.device("cpu")), strict=True):
        assert ready.batch is batch
        np.testing.assert_array_equal(ready.voxels, batch.voxels)
        np.testing.assert_array_equal(ready.read, 2 * batch.rows)
        np.testing.assert_array_equal(ready.target, responses[np.ix_(batch.rows, batch.voxels)])
