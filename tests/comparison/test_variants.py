"""Variants of options in a TOML file: what is read, and what is wrong."""

import pytest

from mvad.comparison.variants import Line, method_runs, read_variants
from mvad.errors import UsageError
from mvad.options import CompareOptions


def options_for(tmp_path, text, **others):
    file = tmp_path / "variants.toml"
    file.write_text(text)
    return CompareOptions(variants=str(file), **others)


def test_a_variant_replaces_options_of_the_command(tmp_path):
    options = options_for(
        tmp_path,
        '[default]\n[larger]\nimage-size = 320\n[few]\nmethod = "knn"\nneighbours = 3\n',
        image_size=64,
        coreset_ratio=0.5,
        actors=2,
    )
    variants = read_variants(options)
    assert variants == {"default": {}, "larger": {"image_size": 320}, "few": {"method": "knn", "neighbours": 3}}
    default, larger, few = (run.options for run in method_runs(options, variants))
    assert (default.method, default.image_size, default.coreset_ratio) == ("patchcore", 64, 0.5)
    assert (larger.method, larger.image_size, larger.coreset_ratio) == ("patchcore", 320, 0.5)
    assert (few.method, few.image_size, few.neighbours) == ("knn", 64, 3)
    assert all((run.actors, run.folds, run.maps) == (2, 0, "all") for run in (default, larger, few))


def test_methods_are_compared_too_if_they_are_named(tmp_path):
    text = "[larger]\nimage_size = 320\n"
    alone, both = (options_for(tmp_path, text, methods=methods) for methods in (None, "knn,vae"))
    assert [run.line for run in method_runs(alone, read_variants(alone))] == [Line("patchcore", None, "larger")]
    lines = [run.line for run in method_runs(both, read_variants(both))]
    assert lines == [Line("patchcore", None, "larger"), Line("knn"), Line("vae")]
    assert read_variants(CompareOptions()) == {}


def test_variants_are_fitted_to_few_images_too(tmp_path):
    options = options_for(tmp_path, "[a]\n[b]\nshots = 5\nshot_seed = 7\n", shots="2", shot_repeats=2)
    runs = {run.name: run for run in method_runs(options, read_variants(options))}
    assert [*runs] == ["a", "a-2shot-0", "a-2shot-1", "b-5shot-7", "b-5shot-8"]
    assert runs["b-5shot-8"].line == Line("patchcore", 5, "b")
    assert (runs["b-5shot-8"].options.shots, runs["b-5shot-8"].options.shot_seed) == (5, 8)


def test_names_that_differ_in_capitals_have_folders_of_their_own(tmp_path):
    options = options_for(tmp_path, '[A]\n[a]\n["größer / 2"]\n')
    names = [run.name for run in method_runs(options, read_variants(options))]
    assert len({name.lower() for name in names}) == 3
    assert all(name.isascii() and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[larger]\nimage_sise = 320", "variant 'larger' gives 'image_sise', which is no option of mvad fit"),
        (
            "[larger]\nactors = 2",
            "variant 'larger' gives 'actors', which is not the model's; all variants share --actor",
        ),
        ("[larger]\naddress = 'auto'", "variant 'larger' gives 'address', which is not the model's"),
        ("[larger]\nbatch-size = 2", "variant 'larger' gives 'batch-size', .* share --batch-size"),
        ("[larger]\nnew_run = true", "variant 'larger' gives 'new_run', which is not the model's"),
        ("[larger]\nfolds = 3", "variant 'larger' gives 'folds', which calibrates"),
        ("[larger]\nimage_size = 'big'", "variant 'larger': --image-size 'big' is not a whole number"),
        ("[larger]\nimage_size = 8", "variant 'larger': --image-size 8 is too small; the minimum is 32"),
        ("[larger]\nimage_size = [320]", "variant 'larger': --image-size .* is wrong"),
        ("[larger.below]\nx = 1", "variant 'larger' gives 'below', which is no option"),
        ("[larger]\nmethod = 'magic'", "variant 'larger': --method 'magic' is unknown; choose one of"),
        ("[larger]\nshots = 0", "variant 'larger': --shots 0 is too small"),
        ("[larger]\ncrop = 900", "variant 'larger': --crop 900 is larger than the image size 256"),
        ("[larger]\nimage-size = 320\nimage_size = 256", "variant 'larger' gives 'image_size' twice"),
        ("image_size = 320", "'image_size' is outside of a variant"),
        ("[larger\nimage_size = 320", "cannot be used: "),
        ("", "names no variant"),
        ("[' ']", "a variant has no name"),
    ],
)
def test_mistakes_name_the_variant_and_the_key(tmp_path, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_variants(options_for(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "variants.toml" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none.toml cannot be used: the file does not exist"):
        read_variants(CompareOptions(variants=str(tmp_path / "none.toml")))
    (tmp_path / "latin.toml").write_bytes(b"[gr\xf6\xdfer]\n")
    with pytest.raises(UsageError, match=r"latin.toml cannot be used"):
        read_variants(CompareOptions(variants=str(tmp_path / "latin.toml")))


def test_two_fits_of_one_name_are_refused(tmp_path):
    options = options_for(tmp_path, "[knn]\nimage_size = 320\n", methods="knn")
    with pytest.raises(UsageError, match="'knn' has the name of another fit"):
        method_runs(options, read_variants(options))
