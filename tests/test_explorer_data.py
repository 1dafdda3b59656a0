"""What the explorer knows of voxels, what its page may show, and what it refuses."""

import json
import re
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from ubrain import scores
from ubrain.analysis import clusters
from ubrain.errors import UbrainError
from ubrain.exchange.transfers import open_encoder
from ubrain.predict import predict
from ubrain.report import explorer
from ubrain.report.lab import Lab


@pytest.fixture(scope="module")
def opened(explorable):
    folder, crowd = explorable
    lab = Lab("98_test", str(crowd), "smoke")
    encoder, lab.source = open_encoder(folder, lab.crowd)
    return lab, encoder


@pytest.fixture(scope="module")
def found(opened):
    return explorer.gather(*opened)


@pytest.fixture(scope="module")
def html(found):
    return explorer.page(found)


def data_of(html: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_the_nearest_embeddings_are_those_of_the_other_subjects(opened, found):
    lab, encoder = opened
    owner = found.voxels["subject"].to_numpy()
    unit = {s: clusters.unit(encoder.subject(s).detach().numpy()) for s in lab.subjects}
    everyone = np.concatenate(list(unit.values()))
    for v in (0, 57, len(owner) - 1):
        for column, s in enumerate(lab.subjects):
            near = found.nearest[v, column]
            if owner[v] == s:
                assert (near == -1).all()
                continue
            assert set(owner[near]) == {s}
            cosine = everyone @ everyone[v]
            best = np.sort(cosine[owner == s])[::-1][: len(near)]
            np.testing.assert_allclose(cosine[near], best, rtol=1e-5)
            assert found.likeness[v, column] == pytest.approx(best[0], rel=1e-5)


def test_scores_and_top_images_are_those_of_the_test_images(opened, found):
    lab, encoder = opened
    s = lab.subjects[1]
    mine, measured = (found.voxels["subject"] == s).to_numpy(), lab.measured(s)
    predicted = predict(encoder, lab.source, s, lab.crowd[s].image_rows("test"))
    np.testing.assert_allclose(found.voxels["r"][mine], scores.correlation(predicted, measured))
    np.testing.assert_allclose(found.voxels["ceiling"][mine], lab.ceiling_r(s))
    v = np.flatnonzero(mine)[3]
    ids = lab.crowd[s].images("test")
    for start, responses in ((0, measured[:, 3]), (explorer.BEST, predicted[:, 3])):
        best = np.argsort(-responses)[: explorer.BEST]
        at = slice(start, start + explorer.BEST)
        assert [found.images[i] for i in found.best[v, at]] == list(ids[best])
        np.testing.assert_allclose(found.responses[v, at, 0], measured[best, 3], rtol=1e-5)
        np.testing.assert_allclose(found.responses[v, at, 1], predicted[best, 3], rtol=1e-4)


def test_attention_is_that_on_the_voxels_own_top_images(opened, found):
    lab, encoder = opened
    v, look = 45, 2  # a voxel of the second subject, its second top image
    s, number = found.voxels["subject"][v], int(found.voxels["voxel"][v])
    rows = lab.crowd.rows(found.images[found.best[v, look - 1]])
    with torch.inference_mode():
        e = encoder.subject(s)[[number]]
        attention = encoder.attention(lab.source.tokens(rows, e.device), e)[:, 0, 0].numpy()
    expected = (found.levels[v] @ attention).reshape(found.attention.shape[-2:])
    np.testing.assert_allclose(found.attention[v, look], expected / expected.max(), rtol=1e-4)


def test_a_pixel_shows_a_voxel_that_is_near(found):
    for picture in found.pictures.values():
        rows, columns = np.nonzero(picture.pixels >= len(explorer.GROUND))
        voxel = picture.pixels[rows, columns] - len(explorer.GROUND)
        assert len(np.unique(voxel)) > 0.8 * len(picture.places)
        at = (np.stack([columns, rows], 1) + 0.5) * explorer.PIXEL
        away = np.linalg.norm(at - picture.places[voxel], axis=1)
        assert np.nanmax(away) <= explorer.REACH + explorer.PIXEL
    assert np.isfinite(found.pictures["S1"].places[found.first]).all()


def test_of_many_voxels_few_are_drawn_and_the_page_says_so(opened):
    few = explorer.gather(*opened, most=15)
    assert few.voxels["subject"].value_counts().to_list() == [15] * 3
    lab, encoder = opened
    assert any("S1 15 of" in note and "seed 0" in note for note in few.notes)
    number = few.voxels["voxel"][20]
    own = lab.crowd["S2"].voxels.iloc[number]
    assert (few.voxels["areas"][20], few.voxels["subject"][20]) == (own["areas"], "S2")
    rows = lab.crowd["S2"].image_rows("test")
    r = scores.correlation(predict(encoder, lab.source, "S2", rows), lab.measured("S2"))
    assert few.voxels["r"][20] == pytest.approx(r[number], rel=1e-4)


def test_the_page_needs_nothing_from_elsewhere(html):
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", html)
    assert "Simulated crowd" in html
    assert len(html) < 8e6
    assert data_of(html)["sprite"]["data"].startswith("data:image/jpeg;base64,")


def test_names_of_files_are_no_html(found):
    bad = "</script><script>alert(1)</script>"
    picture = replace(found.pictures["S1"], names=[(bad, 50, 50)])
    named = replace(
        found,
        title=bad,
        notes=[bad],
        voxels=found.voxels.assign(areas=bad),
        images=[bad] * len(found.images),
        clusters=found.clusters.named([bad] * found.clusters.n_clusters),
        pictures={**found.pictures, "S1": picture},
    )
    html = explorer.page(named)
    assert "<script>alert" not in html
    assert data_of(html)["areas"] == [bad]


def test_recordings_are_shown_as_tiles_and_without_a_cortex(recorded, tmp_path, save_encoder):
    save_encoder(recorded, tmp_path / "encoder")
    path = explorer.explore(tmp_path / "encoder", recorded, tmp_path / "page.html", "smoke")
    html = path.read_text(encoding="utf-8")
    data = data_of(html)
    assert data["sprite"] is None
    assert "data:image/jpeg" not in html
    assert "a museum" in html
    assert [s["cortex"] for s in data["subjects"]] == [False] * 3


def test_an_encoder_of_another_crowd_is_refused(explorable, recorded, tmp_path, refused):
    """Also of one whose subjects have the same names and as many voxels."""
    folder, crowd = explorable
    shutil.copy(crowd, other := tmp_path / "other.h5")
    with h5py.File(other, "r+") as file:
        snr = file["subjects/S2/voxels/ncsnr"]
        snr[:] = snr[:][::-1]
    with refused(tmp_path / "x.html", "do not belong together: the voxels of 'S2' differ"):
        explorer.explore(folder, other, tmp_path / "x.html", "smoke")
    with refused(tmp_path / "x.html", "no subject 'S1' in recorded.h5; it has A, B, C"):
        explorer.explore(folder, recorded, tmp_path / "x.html", "smoke")


def test_a_page_that_cannot_be_written_is_refused_before_the_work(explorable, tmp_path):
    (tmp_path / "file").touch()
    for out, words in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.html", "cannot be")):
        with pytest.raises(UbrainError, match=words):
            explorer.explore(*explorable, out, "smoke")
    with pytest.raises(UbrainError, match="expected at most 10,000"):
        explorer.explore(*explorable, tmp_path / "x.html", "smoke", voxels=10_001)


def test_in_a_notebook_it_opens_and_in_a_run_it_is_a_line(
    opened, found, html, tmp_path, monkeypatch, capsys
):
    lab, encoder = opened
    monkeypatch.setattr(explorer, "gather", lambda *_: found)
    monkeypatch.setattr(lab, "out", tmp_path / "out")
    monkeypatch.setenv("UBRAIN_OUT", "anything")
    assert explorer.show(lab, encoder) is None
    assert capsys.readouterr().out.count("\n") == 1
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("UBRAIN_OUT")
    frame = explorer.show(lab, encoder).data
    assert (tmp_path / "out" / explorer.FILE).is_file()
    assert frame.count('"') == 4  # of srcdoc and style: none inside ends them
    explorer.show(lab, encoder, named=False)
    told = data_of((tmp_path / "out" / explorer.FILE).read_text(encoding="utf-8"))["clusters"]
    assert [c["title"] for c in told] == [str(i + 1) for i in range(len(told))]
    assert [c["title"] for c in data_of(html)["clusters"]] != [c["title"] for c in told]
