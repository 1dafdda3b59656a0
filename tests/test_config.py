"""Profiles and the refusal of what they do not know."""

import json
from dataclasses import asdict, fields

import pytest
import yaml

from ubrain import config
from ubrain.errors import UbrainError


def build(**values):
    return config.from_mapping(config.Profile, values, "here")


def test_profiles_come_in_order():
    assert config.profile_names() == ["smoke", "fast", "paper"]


@pytest.mark.parametrize("name", config.profile_names())
def test_profile_loads_what_its_file_says(name):
    from importlib import resources

    profile = config.load_profile(name)
    assert profile.name == name
    written = yaml.safe_load(
        resources.files("ubrain").joinpath("profiles", f"{name}.yaml").read_text()
    )
    loaded = asdict(profile)
    for section, value in written.items():
        if isinstance(value, dict):
            for option, expected in value.items():
                assert (
                    json.loads(json.dumps(loaded[section][option])) == expected
                )  # tuples are lists in the file
        elif isinstance(value, list):
            for part, expected in zip(loaded[section], value, strict=True):
                assert expected.items() <= part.items()
        else:
            assert loaded[section] == value


def test_defaults_are_the_papers_sizes():
    paper = config.load_profile("paper")
    assert (paper.encoder.embedding_size, paper.encoder.channels) == (256, 128)
    assert paper.backbone.levels == config.BackboneConfig().levels == (0, 5, 11, 17, 23)
    assert paper.training.batch_images == config.TrainingConfig().batch_images == 32


def test_profiles_only_grow():
    smoke, fast, paper = (config.load_profile(n).simulation for n in ("smoke", "fast", "paper"))
    assert (
        [part.scanner for part in smoke]
        == [part.scanner for part in fast]
        == [part.scanner for part in paper]
    )
    for small, middle, large in zip(smoke, fast, paper, strict=True):
        for option in ("subjects", "images", "test_images", "voxels"):
            assert getattr(small, option) <= getattr(middle, option) <= getattr(large, option)


def test_unknown_profile_names_the_known_ones():
    with pytest.raises(
        UbrainError, match=r"unknown profile 'papre': expected one of smoke, fast, paper"
    ):
        config.load_profile("papre")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 3}, "here: unknown option 'epochs'; known are name, recipe, simulation"),
        ({"training": {"epoch": 3}}, "here: training: unknown option 'epoch'; known are epochs"),
        ({"training": {"epochs": "3"}}, "here: training: epochs: expected int, got '3'"),
        ({"training": {"epochs": 3.5}}, "here: training: epochs: expected int, got 3.5"),
        ({"training": {"epochs": True}}, "here: training: epochs: expected int, got True"),
        (
            {"training": {"learning_rate": True}},
            "here: training: learning_rate: expected float, got True",
        ),
        ({"training": {"learning_rate": "1e-3"}}, "learning_rate: expected float, got '1e-3'"),
        ({"training": {"schedule": 1}}, "schedule: expected str, got 1"),
        ({"training": {"epochs": None}}, "epochs: expected int, got None"),
        ({"training": 3}, "here: training: expected a mapping of options, got 3"),
        ({"training": None}, "here: training: expected a mapping of options, got None"),
        ({"backbone": {"keep_cls": 1}}, "keep_cls: expected bool, got 1"),
        ({"backbone": {"levels": 3}}, "backbone: levels: expected .*tuple.*, got 3"),
        ({"backbone": {"levels": [1, "2"]}}, r"backbone: levels\[1\]: expected int, got '2'"),
        ({"backbone": {"levels": [True]}}, r"backbone: levels\[0\]: expected int, got True"),
        ({"backbone": {"grid": "8"}}, "backbone: grid: expected int, got '8'"),
        ({"backbone": {"grid": False}}, "backbone: grid: expected int, got False"),
    ],
)
def test_wrong_options_are_refused(values, message):
    with pytest.raises(UbrainError, match=message):
        build(**values)


def test_what_is_accepted():
    built = build(
        training={"learning_rate": 1, "epochs": 2},
        backbone={"grid": None, "image_size": 96, "levels": [1], "keep_cls": False},
        baselines={"factorised_penalties": [1, 0.5]},
    )
    assert (built.training.learning_rate, type(built.training.learning_rate)) == (1.0, float)
    assert built.backbone.grid is None
    assert built.backbone.image_size == 96
    assert built.backbone.levels == (1,)
    assert built.backbone.keep_cls is False
    assert built.baselines.factorised_penalties == (1.0, 0.5)
    assert {type(x) for x in built.baselines.factorised_penalties} == {float}


def test_profiles_with_equal_options_are_equal_and_do_not_share_state():
    assert build() == build(training={})
    assert len({f.name for f in fields(config.Profile)}) == len(asdict(build()))
    with pytest.raises(AttributeError):
        build().bootstrap = 3
