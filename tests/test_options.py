"""Options: their groups, their checks, and how functions take them."""

import dataclasses
import inspect

import pytest

from mvad.errors import UsageError
from mvad.options import (
    PANEL_ORDER,
    CompareOptions,
    DataOptions,
    FalseAlarmOptions,
    FitOptions,
    NightlyOptions,
    OutputOptions,
    RunOptions,
    ScoreOptions,
    as_json,
    build,
    keywords_of,
    panels,
    split_commas,
    takes,
)


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (RunOptions, {"actors": 0}, "--actors 0 is too small; the minimum is 1."),
        (RunOptions, {"coreset_ratio": 0.0}, "--coreset-ratio 0.0 must be above 0."),
        (RunOptions, {"coreset_ratio": 2}, "--coreset-ratio 2 is too large; the maximum is 1."),
        (RunOptions, {"false_alarm_rate": 1.5}, "--false-alarm-rate 1.5 must be below 1."),
        (RunOptions, {"false_alarm_rate": float("nan")}, "--false-alarm-rate nan must be below 1."),
        (FalseAlarmOptions, {"rates": "0.5,2"}, "--rates '2' must be below 1."),
        (CompareOptions, {"shots": "1,0"}, "--shots '0' is too small; the minimum is 1."),
        (
            RunOptions,
            {"layout": "coco"},
            "--layout 'coco' is unknown; choose one of: 'auto', 'mvtec', 'mvtec_ad_2', 'mvtec_loco', 'visa', "
            "'real_iad', 'kolektor' or 'plain'.",
        ),
        (RunOptions, {"categories": ","}, "--categories ',' is wrong: the list is empty; separate names by commas."),
        (RunOptions, {"max_errors": "many"}, "--max-errors 'many' is wrong: give a count (20) or a share (5%)."),
        (RunOptions, {"weights": 3}, "--weights 3 is wrong: input should be a valid string."),
        (RunOptions, {"colour": 1}, "--colour is no option of this command."),
        (ScoreOptions, {"coreset_ratio": 0.1}, "--coreset-ratio is no option of this command."),
        (RunOptions, {"image_size": 256, "crop": 300}, "--crop 300 is larger than the image size 256."),
        (RunOptions, {"crop": 300}, "--crop 300 is larger than the image size 256."),
        (
            RunOptions,
            {"folds": 1},
            "--folds 1 leaves nothing to learn from; give 2 or more, or 0 for no calibration.",
        ),
        (
            RunOptions,
            {"folds": 0, "drop_suspects": True},
            "--drop-suspects needs scores that calibrate; leave out --calibration none and --folds 0.",
        ),
        (RunOptions, {"memory_limit": "much"}, "'much' is not a size in memory such as 2GiB or 1500MiB."),
        (
            RunOptions,
            {"memory_limit": "1MB"},
            "--memory-limit is less than 1024 MiB, which a process needs to start with.",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(kind, values, sentence):
    with pytest.raises(UsageError) as caught:
        build(kind, values)
    assert str(caught.value) == sentence


def test_an_unknown_method_is_named_with_those_that_exist():
    with pytest.raises(UsageError, match=r"^--method 'best' is unknown; choose one of: 'patchcore', 'subspace', .*\.$"):
        build(RunOptions, {"method": "best"})


def test_every_group_checks_its_part():
    """The check of one group does not hide that of another."""
    for values in ({"crop": 512}, {"folds": 1}, {"memory_limit": 1}):
        with pytest.raises(UsageError):
            build(FitOptions, values)


def test_options_are_converted_and_cannot_be_changed():
    options = build(RunOptions, {"categories": "a, b", "memory_limit": "3GiB", "actors": "2", "quiet": True})
    assert options.categories == ["a", "b"]
    assert options.memory_limit == 3 << 30
    assert options.memory_budget.limit == 3 << 30
    assert options.actors == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.actors = 3


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("a,b", ["a", "b"]),
        (["a,b", " c "], ["a", "b", "c"]),
        ("a,,b", ["a", "b"]),
        (5, ["5"]),
        (None, None),
        ([], None),
    ],
)
def test_lists_are_split_at_commas(value, parts):
    assert split_commas(value) == parts


@pytest.mark.parametrize(("limit", "allowed"), [("20", 20), ("0", 0), ("5%", 10), ("100%", 200), ("0.4%", 0)])
def test_errors_are_allowed_by_count_or_share(limit, allowed):
    assert DataOptions(max_errors=limit).allowed_errors(200) == allowed


@pytest.mark.parametrize(
    ("options", "resize", "crop"),
    [
        ({}, (128, 512), (128, 512)),
        ({"image_size": 64}, (32, 128), (32, 128)),
        ({"crop": 160}, (256, 256), (160, 160)),
        ({"image_size": 64, "crop": 48}, (64, 64), (48, 48)),
        ({"preset": "patchcore-paper"}, (256, 256), (224, 224)),
    ],
)
def test_input_size_for_images_four_times_as_wide_as_high(options, resize, crop):
    size = RunOptions(**options).size_for(100, 400, 32)
    assert (size.resize, size.crop) == (resize, crop)


def test_a_preset_sets_its_options_and_refuses_others():
    options = build(RunOptions, {"preset": "patchcore-paper"})
    assert (options.image_size, options.crop, options.coreset_ratio) == (256, 224, 0.1)
    assert build(RunOptions, as_json(options)) == options
    for values in ({"image_size": 320}, {"crop": 200}, {"coreset_ratio": 0.02}):
        with pytest.raises(UsageError, match=r"^--preset patchcore-paper sets --.*; leave one of the two out"):
            build(RunOptions, {"preset": "patchcore-paper", **values})


@pytest.mark.parametrize(
    ("options", "rows"), [({}, 1), ({"shots": 2}, 9), ({"shots": 2, "augment": False}, 1), ({"augment": False}, 1)]
)
def test_variants_come_with_few_shots(options, rows):
    assert FitOptions(**options).rows_per_image == rows


def test_a_comparison_makes_the_options_of_its_fits():
    options = CompareOptions(methods="knn,knn,vae", seed=3, shot_seed=10, coreset_ratio=0.2, flips="both", actors=2)
    assert options.method_names == ["knn", "vae"]
    fit = options.fit_options("knn", 5, repeat=2)
    assert (fit.method, fit.shots, fit.shot_seed, fit.folds, fit.maps) == ("knn", 5, 12, 0, "all")
    assert (fit.seed, fit.coreset_ratio, fit.flips, fit.actors) == (3, 0.2, "both", 2)
    assert options.fit_options("vae").shots is None
    assert CompareOptions(methods="all").method_names == CompareOptions().method_names


def test_each_option_has_one_panel():
    for kind in (RunOptions, ScoreOptions, FitOptions, CompareOptions, FalseAlarmOptions):
        names = [name for panel in panels(kind).values() for name in panel]
        assert sorted(names) == sorted(field.name for field in dataclasses.fields(kind))
        assert [parameter.name for parameter in keywords_of(kind)] == names


def test_panels_of_a_command_come_first_and_shared_ones_in_one_order():
    titles = list(panels(RunOptions))
    assert titles[0] == "Method"
    assert titles[-2:] == ["Cluster", "Output"]
    order = [PANEL_ORDER.get(title, 0) for title in titles]
    assert order == sorted(order)
    assert panels(RunOptions)["Method"] == ["method", "seed"]
    later = ["banks", "aggregate", "distance", "whitening", "position_weight"]
    assert panels(RunOptions)["PatchCore"] == ["coreset_ratio", "max_vectors", "projection", "reweight", *later]
    assert panels(RunOptions)["Output"] == ["quiet", "new_run"]
    assert next(iter(panels(ScoreOptions))) == "Models"
    assert "PatchCore" not in panels(ScoreOptions)


@takes(ScoreOptions)
def command(data: str, out: str, options: ScoreOptions) -> tuple[str, str, ScoreOptions]:
    """A command that returns what it gets."""
    return data, out, options


def test_a_command_takes_keywords_an_object_or_both():
    assert command("images", "out") == ("images", "out", ScoreOptions())
    assert command("images", "out", maps="all", actors="2")[2] == ScoreOptions(maps="all", actors=2)
    options = ScoreOptions(maps="all", actors=3)
    assert command("images", "out", options=options)[2] == options
    assert command("images", "out", options=options, actors=1)[2] == ScoreOptions(maps="all", actors=1)
    assert options.actors == 3
    assert command(out="out", data="images", fdr=0.1) == ("images", "out", ScoreOptions(fdr=0.1))


def test_a_command_refuses_unknown_options_however_they_come():
    with pytest.raises(UsageError, match=r"^--coreset-ratio is no option of this command\.$"):
        command("images", "out", coreset_ratio=0.1)
    with pytest.raises(UsageError, match="is no option of this command"):
        command("images", "out", options=RunOptions())
    with pytest.raises(UsageError, match=r"^--actors 0 is too small; the minimum is 1\.$"):
        command("images", "out", options=ScoreOptions(), actors=0)
    with pytest.raises(TypeError, match="out"):
        command("images")


def test_the_signature_of_a_command_shows_all_of_its_options():
    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["data", "out", "options", *(parameter.name for parameter in keywords_of(ScoreOptions))]
    assert parameters["options"].default is None
    assert parameters["maps"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["maps"].default == "none"
    assert command.options is ScoreOptions
    assert command.__doc__ == "A command that returns what it gets."


def test_options_become_plain_values():
    assert as_json(OutputOptions(quiet=True)) == {"quiet": True}
    values = as_json(RunOptions(categories="a,b"))
    assert values["categories"] == ["a", "b"]
    assert build(RunOptions, values) == RunOptions(categories="a,b")


def test_urls_become_plain_values_without_their_secrets():
    options = NightlyOptions(notify="https://me:pass@example.org:8443/hook?key=abc#x")
    assert options.notify == ["https://me:pass@example.org:8443/hook?key=abc#x"]
    assert as_json(options)["notify"] == ["https://example.org:8443/hook"]
    assert as_json(NightlyOptions(notify=[]))["notify"] is None
    assert panels(NightlyOptions)["Alarms"] == ["notify", "notify_insecure", "email", "prometheus"]
