"""Encoders on disk and on the hub: what comes back is what was saved, and nothing else is
believed.
"""

import json
from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from ubrain import checkpoint
from ubrain.cli import app
from ubrain.config import BackboneConfig, EncoderConfig
from ubrain.errors import UbrainError
from ubrain.exchange import hub
from ubrain.model import UniversalEncoder

CONFIG = EncoderConfig(
    widths=(12, 20), n_tokens=17, embedding_size=16, channels=8, embedding_scale=4.0
)
BONES = BackboneConfig("vit_tiny_patch16_224", "random", (0, 5), 64, registers="last")


def make(subjects=None):
    torch.manual_seed(1)
    encoder = UniversalEncoder(CONFIG, subjects or {"A": 30, "B": 9})
    return encoder.eval(), [torch.randn(5, CONFIG.n_tokens, w) for w in CONFIG.widths]


def adapters(rank=2):
    torch.manual_seed(2)
    return nn.ModuleList(
        nn.Sequential(nn.Linear(12, rank, bias=False), nn.Linear(rank, 12, bias=False))
        for _ in range(3)
    )


def table(n):
    columns = {
        "hemisphere": ["L", "", "R"] * n,
        "areas": ["FFA,EBA", "", "V1"] * n,
        "vertex": np.arange(3 * n),
    }
    ncsnr = np.append(np.linspace(0.1, 0.7, 3 * n - 1), np.nan).astype(np.float32)
    return pd.DataFrame({**columns, "ncsnr": ncsnr}).rename_axis("voxel")


def raising(error):
    def call(*_, **__):
        raise error

    return call


@pytest.fixture
def saved(tmp_path):
    """An encoder of A and B, with adapters, a table of A and all facts."""
    about = {"A": {"dataset": "NSD", "scanner": "7T", "space": "fsaverage"}}
    settings = {"backbone": asdict(BONES), "crowd": "c0ffee", "seed": 5, "training": {"epochs": 3}}
    checkpoint.save(
        make()[0],
        tmp_path / "crowd",
        adapters(),
        voxels={"A": table(10)},
        recordings=about,
        settings=settings,
        val_r75=0.4321,
    )
    hub.write_card(tmp_path / "crowd")
    return tmp_path / "crowd"


def same_responses(a, b, subject):
    tokens = make()[1]
    torch.testing.assert_close(a(tokens, subject), b(tokens, subject), rtol=0, atol=0)


def test_a_saved_encoder_predicts_the_same(tmp_path):
    encoder, _ = make()
    checkpoint.save(encoder, tmp_path / "run", note="test")
    same_responses(checkpoint.load(tmp_path / "run"), encoder, "B")


def test_whoever_may_read_the_config_may_read_the_weights(saved):
    assert len({path.stat().st_mode for path in saved.rglob("*") if path.is_file()}) == 1


@pytest.mark.parametrize("file", [checkpoint.WEIGHTS, checkpoint.CONFIG])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_damaged_encoder_is_refused(tmp_path, file, damage):
    checkpoint.save(make()[0], tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    (
        path.unlink()
        if damage == "missing"
        else path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    )
    with pytest.raises(UbrainError, match=r"does not hold an encoder|No such file|header"):
        checkpoint.load(tmp_path)


def test_only_the_embeddings_of_the_chosen_subjects_are_read(saved, monkeypatch):
    names, real = [], checkpoint.safe_open

    class Watched:
        def __init__(self, *args, **kwargs):
            self.file = real(*args, **kwargs)

        def __enter__(self):
            opened = self.file.__enter__()
            return SimpleNamespace(
                keys=opened.keys,
                get_slice=opened.get_slice,
                get_tensor=lambda name: names.append(name) or opened.get_tensor(name),
            )

        def __exit__(self, *error):
            return self.file.__exit__(*error)

    monkeypatch.setattr(checkpoint, "safe_open", Watched)
    encoder = checkpoint.load(saved, subjects=["B"], without_adapters=True)
    assert list(encoder.embeddings) == ["B"]
    assert "embeddings.B" in names
    assert not {"embeddings.A", "adapters.0.0.weight"} & set(names)
    same_responses(encoder, make()[0], "B")


def test_the_shared_weights_can_be_loaded_alone(saved):
    encoder = checkpoint.load(saved, subjects=[], without_adapters=True)
    assert not encoder.embeddings
    torch.testing.assert_close(
        encoder.state_dict(),
        {k: v for k, v in make()[0].state_dict().items() if "embeddings" not in k},
    )


def test_loading_leaves_the_seed_alone(tmp_path):
    checkpoint.save(make()[0], tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    checkpoint.load(tmp_path)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


def test_an_unknown_subject_is_named_with_those_that_exist(saved):
    for read in (
        lambda: checkpoint.load(saved, subjects=["C"]),
        lambda: checkpoint.voxel_table(saved, "C"),
        lambda: hub.drop(saved, ["C"], saved),
    ):
        with pytest.raises(UbrainError, match="no subject 'C'; it has A, B"):
            read()


def test_adapters_come_back_into_those_of_a_backbone(saved):
    theirs = adapters(rank=2)
    for p in theirs.parameters():
        nn.init.zeros_(p)
    checkpoint.load(saved, theirs)
    torch.testing.assert_close(theirs.state_dict(), adapters().state_dict(), rtol=0, atol=0)
    with pytest.raises(UbrainError, match="trained with adapters"):
        checkpoint.load(saved)
    with pytest.raises(UbrainError, match="another backbone or rank"):
        checkpoint.load(saved, adapters(rank=3))


def test_a_voxel_table_comes_back_as_it_was(saved):
    pd.testing.assert_frame_equal(
        checkpoint.voxel_table(saved, "A"), table(10), check_index_type=False
    )
    with pytest.raises(UbrainError, match="no voxel table of 'B'"):
        checkpoint.voxel_table(saved, "B")


def test_a_crowd_tells_what_it_knows_of_its_subjects(tmp_path, crowd):
    name = crowd.subjects[0]
    checkpoint.save(
        make({name: crowd[name].n_voxels})[0], tmp_path, **checkpoint.recorded(crowd, [name])
    )
    pd.testing.assert_frame_equal(
        checkpoint.voxel_table(tmp_path, name),
        crowd[name].voxels,
        check_index_type=False,
        check_dtype=False,
    )
    assert checkpoint.describe(tmp_path).recordings[name]["scanner"] == "7T"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"voxels": {"A": table(9)}},
            "voxel table of 'A': expected 30 rows, one per voxel, got 27",
        ),
        ({"voxels": {"C": table(3)}}, "of 'C': the encoder has A, B"),
        ({"recordings": {"C": {"dataset": "NSD"}}}, "of 'C': the encoder has A, B"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, given, message):
    with pytest.raises(UbrainError, match=message):
        checkpoint.save(make()[0], tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


def test_the_backbone_of_an_encoder_is_known(saved, tmp_path):
    assert checkpoint.backbone_config(saved) == BONES
    checkpoint.save(make()[0], tmp_path / "without")
    with pytest.raises(UbrainError, match="does not say which backbone"):
        checkpoint.backbone_config(tmp_path / "without")


def test_subjects_are_added_and_dropped_by_loading_changing_and_saving(saved, tmp_path):
    encoder = checkpoint.load(saved, subjects=["A", "B"], without_adapters=True)
    encoder.drop_subject("B")
    encoder.add_subject("new", 7)
    checkpoint.save(encoder, tmp_path / "mine", like=saved, scores={"median test r": 0.3})
    again = checkpoint.load(tmp_path / "mine", ours := adapters())
    assert {n: len(e) for n, e in again.embeddings.items()} == {"A": 30, "new": 7}
    same_responses(again, make()[0], "A")
    torch.testing.assert_close(ours.state_dict(), adapters().state_dict())
    assert len(checkpoint.voxel_table(tmp_path / "mine", "A")) == 30
    assert checkpoint.backbone_config(tmp_path / "mine") == BONES
    assert checkpoint.describe(tmp_path / "mine").facts["val_r75"] == 0.4321


def test_a_dropped_subject_leaves_nothing_behind(saved, tmp_path):
    done = CliRunner().invoke(
        app, ["checkpoint", "drop", str(saved), "--subjects", "A", "--out", str(tmp_path / "small")]
    )
    assert done.exit_code == 0, done.output
    before, after = (
        set(load_file(folder / checkpoint.WEIGHTS)) for folder in (saved, tmp_path / "small")
    )
    assert before - after == {"embeddings.A"}
    assert after < before
    assert not list((tmp_path / "small").rglob("*.csv"))
    assert "fsaverage" not in (tmp_path / "small" / checkpoint.CONFIG).read_text()


def test_saving_over_a_checkpoint_removes_tables_of_subjects_that_are_gone(saved):
    checkpoint.save(
        checkpoint.load(saved, subjects=["B"], without_adapters=True), saved, like=saved
    )
    assert not list(saved.rglob("*.csv"))
    assert list(checkpoint.describe(saved).subjects) == ["B"]


def test_a_save_that_fails_leaves_the_old_checkpoint_as_it_was(saved, monkeypatch):
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    monkeypatch.setattr(checkpoint, "save_file", raising(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(make({"A": 4})[0], saved)
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before


def test_a_save_that_is_killed_among_its_files_leaves_no_complete_checkpoint(saved, monkeypatch):
    def killed(path, target):
        if target.name == checkpoint.WEIGHTS:
            raise KeyboardInterrupt
        return real(path, target)

    real = type(saved).replace
    monkeypatch.setattr(type(saved), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(make({"A": 4})[0], saved)
    with pytest.raises(UbrainError, match=r"config\.json, which is written last, is missing"):
        checkpoint.load(saved)


def edited(folder, change):
    told = json.loads((folder / checkpoint.CONFIG).read_text())
    change(told)
    (folder / checkpoint.CONFIG).write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda told: told["config"].update(channels=9),
            "'functional': config.json expects .16, 18., .* has .16, 16",
        ),
        (
            lambda told: told["config"].update(n_tokens=10**15),
            "'position': config.json expects .1000000000000000, 16., .*.17, 16",
        ),
        (lambda told: told["config"].update(widths=[12] * 10**5), "expected 1 to 64 levels"),
        (lambda told: told["config"].update(surprise=1), "unknown option 'surprise'"),
        (
            lambda told: told["subjects"].update(B=10),
            "'embeddings.B': config.json expects .10, 16., .* has .9, 16",
        ),
        (lambda told: told["subjects"].update(C=3), "'embeddings.C': .* has nothing"),
        (lambda told: told["subjects"].pop("B"), "'embeddings.B': config.json expects nothing"),
        (lambda told: told["subjects"].update({"../up": 3}), "name '../up': expected"),
        (lambda told: told.pop("config"), "does not hold an encoder"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(saved, change, message):
    edited(saved, change)
    with pytest.raises(UbrainError, match=message):
        checkpoint.load(saved, adapters())


def test_an_unexpected_weight_is_refused(saved):
    weights = load_file(saved / checkpoint.WEIGHTS)
    save_file({**weights, "extra": torch.zeros(2)}, saved / checkpoint.WEIGHTS)
    with pytest.raises(
        UbrainError,
        match=r"weight 'extra': config\.json expects nothing, encoder\.safetensors has \(2",
    ):
        checkpoint.load(saved, adapters())


def test_the_card_states_data_training_scores_limits_licence_and_citation(saved, tmp_path):
    encoder = checkpoint.load(saved, without_adapters=True)
    hub.save_pretrained(
        encoder,
        tmp_path / "gift",
        like=saved,
        scores={"median test r": {"A": 0.42, "B": 0.3987654}},
        notes="Only seen on simulated images.",
    )
    card = (tmp_path / "gift" / hub.CARD).read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "other"
    for words in (
        "| A | 30 | NSD | 7T | fsaverage | yes |",
        "| B | 9 | ? | ? | ? | no |",
        "c0ffee",
        "epochs 3",
        "seed: 5",
        "val correlation: 0.4321",
        "median test r: A 0.42, B 0.3988",
        "## Limits",
        "Only seen on simulated images.",
        "data access agreement",
        "2406.12179",
    ):
        assert words in text, words


class Hub:
    """Stands in for `HfApi`: remembers what it was asked."""

    public, calls = False, []

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))

    def repo_info(self, repo_id):
        return SimpleNamespace(private=not self.public)

    def create_commit(self, repo_id, operations, commit_message):
        self.calls.append(("upload", {o.path_in_repo: o.path_or_fileobj for o in operations}))
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_a_checkpoint_is_uploaded_privately_and_without_what_else_lies_there(saved, fake):
    (saved / "training.pt").write_text("secret")
    assert hub.push_to_hub(saved, "me/encoder", token="t") == "https://hub/commit/1"
    (_, token), create, (_, sent) = fake.calls
    assert token == "t"
    assert create == ("create", "me/encoder", True, True)
    assert set(sent) == {"config.json", "encoder.safetensors", "README.md", "voxels/A.csv"}
    assert sent["config.json"] == (saved / "config.json").read_bytes()


def test_the_hub_does_not_learn_where_files_lie_on_this_machine(saved, fake):
    place = "/home/somebody/private/dino.safetensors"
    encoder = checkpoint.load(saved, without_adapters=True)
    settings = {"backbone": {"name": "x", "weights": place}}
    checkpoint.save(encoder, saved, like=saved, settings=settings)
    hub.write_card(saved)
    assert place in (saved / "README.md").read_text()
    hub.push_to_hub(saved, "me/encoder")
    sent = fake.calls[-1][1]
    assert b"somebody" not in sent["config.json"] + sent["README.md"]
    assert b"dino.safetensors" in sent["README.md"]
    assert json.loads(sent["config.json"])["facts"]["settings"]["backbone"] == {
        "name": "x",
        "weights": "dino.safetensors",
    }


@pytest.mark.parametrize(
    ("option", "value"), [("image_size", 10**6), ("grid", 10**4), ("adapter_rank", 10**6)]
)
def test_a_backbone_of_absurd_size_is_refused(saved, option, value):
    encoder = checkpoint.load(saved, without_adapters=True)
    checkpoint.save(encoder, saved, settings={"backbone": {"name": "x", option: value}})
    with pytest.raises(UbrainError, match=f"backbone: {option} is {value}: expected "):
        checkpoint.backbone_config(saved)


def test_nothing_is_uploaded_privately_to_a_public_place(saved, fake, monkeypatch):
    monkeypatch.setattr(fake, "public", True)
    with pytest.raises(UbrainError, match="is public"):
        hub.push_to_hub(saved, "me/encoder")
    assert not [call for call in fake.calls if call[0] == "upload"]


def test_an_incomplete_checkpoint_is_not_uploaded(saved, fake):
    (saved / checkpoint.CONFIG).unlink()
    with pytest.raises(UbrainError, match="does not hold an encoder"):
        hub.push_to_hub(saved, "me/encoder")
    assert not fake.calls


def test_what_the_hub_says_reaches_the_user(saved, fake, monkeypatch):
    monkeypatch.setattr(fake, "create_repo", raising(PermissionError("not yours")))
    with pytest.raises(
        UbrainError,
        match=r"me/encoder: the hub did not take the upload \(PermissionError: not yours",
    ):
        hub.push_to_hub(saved, "me/encoder")


def test_an_encoder_comes_from_the_hub_with_the_files_that_are_needed(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **rest: asked.append((name, rest)) or str(saved),
    )
    encoder = hub.from_pretrained("me/encoder", ["B"], "v1", without_adapters=True)
    assert list(encoder.embeddings) == ["B"]
    assert asked == [
        (
            "me/encoder",
            {
                "revision": "v1",
                "allow_patterns": [
                    "config.json",
                    "encoder.safetensors",
                    "readout.safetensors",
                    "README.md",
                    "voxels/B.csv",
                ],
            },
        )
    ]


def test_a_folder_needs_no_hub(saved, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub")
    )
    same_responses(hub.from_pretrained(saved, adapters=adapters()), make()[0], "A")


@pytest.mark.parametrize(
    ("silent", "reason"),
    [("", "LocalEntryNotFoundError"), ("it does not answer", "it does not answer")],
)
def test_without_a_connection_the_user_is_told_what_to_do(monkeypatch, silent, reason):
    monkeypatch.setattr(hub, "hub_if_reached", lambda: nullcontext(silent))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(LocalEntryNotFoundError("x")))
    with pytest.raises(
        UbrainError, match=rf"could not be fetched.*\({reason}\).*copy the folder here"
    ):
        hub.from_pretrained("me/encoder")


def test_a_wrong_path_is_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub")
    )
    with pytest.raises(UbrainError, match="no folder 'runs/crowd/best'"):
        hub.from_pretrained("runs/crowd/best")


def test_show_tells_what_a_folder_holds(saved):
    shown = CliRunner().invoke(app, ["checkpoint", "show", str(saved)]).output
    for words in (
        "A: 30 voxels",
        "fsaverage",
        "embeddings.B",
        "(9, 16)",
        "F32",
        "0.6 kB",
        "c0ffee",
        "adapters.2.1.weight",
    ):
        assert words in shown, words
