"""Verdicts: good, uncertain or anomalous, decided when images are scored, or again later from what is stored."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

import mvad
from helpers.synthetic import finish, write_category
from mvad import calibration, results, storage
from mvad.calibration import DecisionRule
from mvad.data.image_size import ImageSize
from mvad.detectors import PatchCore
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.model_store import FittedModel, save_model
from mvad.options import DecisionOptions, EvaluateOptions, ScoreOptions, build
from mvad.results import verdicts
from mvad.results.store import open_folder
from mvad.results.verdicts import Outcome, decide, decide_together, decision_rule, outcomes
from mvad.storage import to_uri

RANDOM = np.random.default_rng(0)
CALIBRATION = RANDOM.normal(size=300).astype(np.float32)
DECIDED = ("score", "p_value", "threshold", "is_anomaly", "verdict")


def rule_for(scores=CALIBRATION, category="cap", method="patchcore", **options):
    return decision_rule("0" * 64, method, category, scores, build(DecisionOptions, options))


def images(name, count=200, shift=1.0, labelled=True):
    """Rows of scored images, every fourth of them defective, and one that could not be read."""
    random = np.random.default_rng(len(name))
    rows = []
    for number in range(count):
        label = int(number % 4 == 0)
        row = {"image_id": f"{name}/{number:03}.png", "uri": "file:///x", "score": random.normal(label * shift)}
        rows.append(row | ({"label": label, "defect": "dent" if label else "good"} if labelled else {}))
    return [*rows, {"image_id": f"{name}/broken.png", "uri": "file:///y", "error": "no image"}]


def write_run(out, names=("cap", "lid"), *, labelled=True, models=None, scores=CALIBRATION, **options):
    """Results of a run over some categories, as decided with these options, with models if a folder is given."""
    facts, options = {}, build(ScoreOptions, options)
    for name in names:
        rule = decision_rule("0" * 64, "patchcore", name, scores, options)
        facts[name] = write_category(out, name, images(name, labelled=labelled), rule=rule)
        facts[name]["model"] = str(models / "patchcore" / name) if models else "/nowhere"
        if options.fdr is not None and rule.rule != "fixed":
            decide_together(to_uri(out), name, options.fdr, rule.uncertain_threshold)
    identity = {name: getattr(options, name) for name in ("maps", "max_pixels", *mvad.options.DECISION)}
    identity["models"] = dict.fromkeys(names, "0" * 64)
    finish(out, facts, command="score", options=mvad.options.as_json(options), identity=identity, n_rows=len(names))
    (out / "_SUCCESS").touch()
    return identity


def table(out):
    return results.read_scores(to_uri(out))


def stored(out):
    """All that a run says of its decisions."""
    run = json.loads((out / "run.json").read_text())
    kept = ("options", "identity", "categories", "status", "exit_code")
    return table(out).select(DECIDED).to_pydict(), results.read_summary(to_uri(out)), {name: run[name] for name in kept}


@pytest.fixture
def with_models(monkeypatch):
    """As if the models of all results were found, with these calibration scores."""
    monkeypatch.setattr(verdicts, "stored_calibration", lambda *_: (CALIBRATION, None))


def test_an_image_between_two_rates_is_uncertain():
    rule = DecisionRule("m", np.arange(19, dtype=np.float32), "conformal", 18.0, uncertain_threshold=16.0)
    columns = decide(pa.array([20, 18, 17, 16, -1, None], pa.float32()), rule)
    assert columns["verdict"].to_pylist() == ["anomalous", "uncertain", "uncertain", "good", "good", None]
    assert columns["is_anomaly"].to_pylist() == [True, False, False, False, False, None]
    without = decide(pa.array([20, None], pa.float32()), DecisionRule("m"))
    assert without["verdict"].to_pylist() == [None, None]
    assert without["verdict"].type == results.SCORES.field("verdict").type


@pytest.mark.parametrize("rule", calibration.RULES)
def test_the_band_of_uncertain_images_lies_below_the_threshold(rule):
    decided = rule_for(threshold_rule=rule, uncertain_rate=0.1)
    band_rule = "conformal" if rule == "sigma" else rule  # the sigma rule knows no rates
    assert decided.uncertain_threshold == calibration.threshold(CALIBRATION, band_rule, 0.1) < decided.threshold
    assert decided.threshold == calibration.threshold(CALIBRATION, rule, 0.01)
    assert rule_for(threshold_rule=rule).uncertain_threshold is None


def test_a_threshold_can_be_given_for_all_or_for_some_categories():
    fixed = rule_for(threshold="2.5,lid=3")
    assert (fixed.threshold, fixed.rule, fixed.guarantee, fixed.too_few) == (2.5, "fixed", None, False)
    assert rule_for(threshold="2.5,lid=3", category="lid").threshold == 3
    assert rule_for(threshold="lid=3").rule == "conformal"
    assert rule_for(None, threshold="2.5").threshold == 2.5  # without calibration, too
    assert rule_for(None).threshold is None
    assert rule_for(CALIBRATION[:1]).threshold is None
    assert fixed.calibration is CALIBRATION  # images keep their p-values


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"threshold": "high"}, "--threshold 'high' is wrong: 'high' is not a number; give 0.7, or weave=0.7"),
        ({"threshold": "cap=nan"}, "--threshold nan is wrong: input should be a finite number"),
        ({"uncertain_rate": 0.01}, "--uncertain-rate 0.01 must be above --false-alarm-rate 0.01."),
        ({"fdr": 0.1, "threshold": "2"}, "--fdr and a --threshold for all categories exclude each other"),
    ],
)
def test_decisions_that_make_no_sense_are_one_sentence(values, sentence):
    with pytest.raises(UsageError) as caught:
        build(ScoreOptions, values)
    assert str(caught.value).startswith(sentence)


EARLIER = {"threshold_rule": None, "false_alarm_rate": 0.01, "fdr": 0.2, "uncertain_rate": 0.05, "threshold": None}


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {}),
        ({"uncertain_rate": 0.1}, {"uncertain_rate": 0.1}),
        ({"false_alarm_rate": 0.02}, {"false_alarm_rate": 0.02, "fdr": None}),
        ({"false_alarm_rate": 0.1}, {"false_alarm_rate": 0.1, "fdr": None, "uncertain_rate": None}),
        ({"threshold_rule": "sigma"}, {"threshold_rule": "sigma", "fdr": None}),
        ({"fdr": 0.3}, {"fdr": 0.3}),
        ({"threshold": "7"}, {"threshold": {"*": 7.0}, "fdr": None}),
        ({"threshold": "cap=7"}, {"threshold": {"cap": 7.0}}),
        ({"threshold": "cap=7", "fdr": 0.3}, {"threshold": {"cap": 7.0}, "fdr": 0.3}),
    ],
)
def test_what_is_not_named_stays_as_it_was_decided(given, changed):
    assert build(EvaluateOptions, given).decision(EARLIER) == EARLIER | changed


def test_thresholds_of_some_categories_are_added():
    earlier = EARLIER | {"threshold": {"cap": 1.0, "lid": 2.0}}
    assert build(EvaluateOptions, {"threshold": "lid=3"}).decision(earlier)["threshold"] == {"cap": 1.0, "lid": 3.0}
    assert build(EvaluateOptions, {"threshold": "5"}).decision(earlier)["threshold"] == {"*": 5.0}
    assert build(EvaluateOptions, {"false_alarm_rate": 0.02}).decision(earlier)["threshold"] is None
    assert build(EvaluateOptions, {"fdr": 0.1}).decision({})["false_alarm_rate"] == 0.01  # of an earlier version


DECISIONS = [
    {"false_alarm_rate": 0.05},
    {"false_alarm_rate": 0.001},  # too few images
    {"threshold_rule": "sigma"},
    {"threshold_rule": "tolerance", "uncertain_rate": 0.2},
    {"fdr": 0.1},
    {"fdr": 0.1, "uncertain_rate": 0.2, "threshold": "lid=2"},
    {"threshold": "1.5"},
    {"threshold": "cap=1.5", "uncertain_rate": 0.1},
    {"false_alarm_rate": 0.1, "uncertain_rate": 0.3},
]


@pytest.mark.parametrize("decision", DECISIONS)
def test_deciding_again_gives_the_rows_of_a_run_with_these_options(tmp_path, with_models, decision):
    write_run(tmp_path / "first")
    write_run(tmp_path / "expected", **decision)
    mvad.evaluate(str(tmp_path / "first"), **decision, quiet=True)
    again, expected = (stored(tmp_path / name) for name in ("first", "expected"))
    assert again == expected
    assert (tmp_path / "first/_SUCCESS").exists()
    mvad.evaluate(str(tmp_path / "first"), quiet=True)  # which decides nothing
    assert stored(tmp_path / "first") == expected


@pytest.mark.parametrize(
    "decision", [one for one in DECISIONS if one.get("threshold_rule") in (None, "conformal") and "fdr" not in one]
)
def test_without_the_models_p_values_decide(tmp_path, decision):
    write_run(tmp_path / "first")
    write_run(tmp_path / "expected", **decision)
    mvad.evaluate(str(tmp_path / "first"), **decision, quiet=True)
    again, expected = (table(tmp_path / name) for name in ("first", "expected"))
    for name in ("p_value", "is_anomaly", "verdict"):
        assert again[name].to_pylist() == expected[name].to_pylist()


def test_when_all_images_are_flagged_by_p_values_the_threshold_is_below_all(tmp_path):
    write_run(tmp_path)
    mvad.evaluate(str(tmp_path), false_alarm_rate=0.9999, quiet=True)
    rows = table(tmp_path).to_pylist()
    assert all(row["is_anomaly"] for row in rows if row["status"] == "ok")


@pytest.mark.parametrize("rule", ["sigma", "tolerance"])
def test_other_rules_need_the_models(tmp_path, rule):
    write_run(tmp_path)
    before = stored(tmp_path)
    with pytest.raises(UsageError, match=rf"the rule {rule} needs the calibration scores of 'cap', and the model was"):
        mvad.evaluate(str(tmp_path), threshold_rule=rule, quiet=True)
    assert stored(tmp_path) == before
    with pytest.raises(UsageError, match="unknown category 'cpa'"):
        mvad.evaluate(str(tmp_path), threshold="cpa=1", quiet=True)
    assert stored(tmp_path) == before


def test_without_calibration_only_a_given_threshold_decides(tmp_path):
    write_run(tmp_path, scores=None)
    with pytest.raises(UsageError, match="is calibrated, so there is no threshold for a rate; give one with"):
        mvad.evaluate(str(tmp_path), false_alarm_rate=0.05, quiet=True)
    row, *_ = mvad.evaluate(str(tmp_path), threshold="0.5", quiet=True).summary
    assert row["n_found"] + row["n_false_alarms"] == row["n_flagged"] > 0


@pytest.mark.parametrize("n_writes", range(7))
def test_an_evaluation_that_is_killed_is_repeated_without_harm(tmp_path, monkeypatch, n_writes):
    """Killed at any of its writes: run.json, two files of rows, the summary in two forms, run.json, and _SUCCESS."""
    identity = write_run(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "expected")
    decision = {"false_alarm_rate": 0.1, "uncertain_rate": 0.3}
    mvad.evaluate(str(tmp_path / "expected"), **decision, quiet=True)
    write, count = storage.write, iter(range(100))

    def killed(*arguments):
        if next(count) == n_writes:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            mvad.evaluate(str(tmp_path / "first"), **decision, quiet=True)
    if 0 < n_writes < 6:
        for use in (lambda out: mvad.report(out), lambda out: resume(out, identity)):
            with pytest.raises(UsageError, match=r"mvad evaluate was interrupted in .*; finish it with: mvad evaluate"):
                use(str(tmp_path / "first"))
    mvad.evaluate(str(tmp_path / "first"), **(decision if n_writes == 0 else {}), quiet=True)
    assert stored(tmp_path / "first") == stored(tmp_path / "expected")
    assert (tmp_path / "first/_SUCCESS").exists()


def resume(out, identity):
    return open_folder(to_uri(out), "score", identity, new_run=False)[1]


def test_a_run_is_resumed_with_the_options_it_was_decided_by_last(tmp_path):
    identity = write_run(tmp_path)
    decision = {"false_alarm_rate": 0.05, "uncertain_rate": 0.1, "threshold": "lid=2"}
    mvad.evaluate(str(tmp_path), **decision, quiet=True)
    with pytest.raises(UsageError, match=r"was begun with --false-alarm-rate 0.05, not 0.01; choose another --out"):
        resume(tmp_path, identity)
    options = build(ScoreOptions, decision)
    again = {name: getattr(options, name) for name in decision}
    assert resume(tmp_path, identity | again)["options"]["uncertain_rate"] == 0.1


def test_results_of_an_earlier_version_get_verdicts(tmp_path):
    write_run(tmp_path)
    for _, uri in results.list_parts(to_uri(tmp_path)):
        results.store.rewrite(uri, lambda rows: rows.drop_columns(["verdict", "file_size", "file_mtime"]))
    mvad.evaluate(str(tmp_path), quiet=True)
    assert table(tmp_path)["verdict"].null_count == len(table(tmp_path))
    mvad.evaluate(str(tmp_path), uncertain_rate=0.3, quiet=True)
    rows = table(tmp_path).to_pylist()
    assert {row["verdict"] for row in rows} == {"good", "uncertain", "anomalous", None}
    assert all((row["verdict"] == "anomalous") == bool(row["is_anomaly"]) for row in rows)


def test_what_other_rates_would_flag_is_what_they_flag(tmp_path):
    write_run(tmp_path)
    rows = table(tmp_path).filter(pa.compute.equal(table(tmp_path)["category"], "cap"))
    counted = outcomes(rows, [0.001, 0.05], 300)
    for one in counted:
        row = mvad.evaluate(str(tmp_path), false_alarm_rate=one.rate, quiet=True).summary[0]
        assert one[1:4] == (row["n_flagged"], row["n_found"], row["n_false_alarms"])
    assert [one.n_needed for one in counted] == [699, 0]
    assert outcomes(rows, [0.1], 0) == outcomes(rows.slice(0, 0), [0.1], 300) == []
    unlabelled = rows.set_column(4, "label", pa.nulls(len(rows), pa.int8()))
    assert outcomes(unlabelled, [0.05], 300) == [Outcome(0.05, counted[1].n_flagged, 0, 0, 0)]


def test_the_summary_counts_what_a_person_acts_on(tmp_path):
    write_run(tmp_path, uncertain_rate=0.2)
    *rows, total = mvad.evaluate(str(tmp_path), quiet=True).summary
    for row in rows:
        scored = [one for one in table(tmp_path).to_pylist() if one["category"] == row["category"] and one["verdict"]]
        flagged = [one["label"] for one in scored if one["verdict"] == "anomalous"]
        assert (row["n_found"], row["n_false_alarms"]) == (sum(flagged), len(flagged) - sum(flagged))
        assert row["n_uncertain"] == sum(one["verdict"] == "uncertain" for one in scored) > 0
        assert row["recall_at_threshold"] == row["n_found"] / row["n_defect"]
        assert row["n_error"] == 1
    assert total["n_found"] == rows[0]["n_found"] + rows[1]["n_found"]
    write_run(tmp_path / "plain", labelled=False, scores=None)
    row = results.read_summary(to_uri(tmp_path / "plain"))[0]
    assert row["n_found"] is row["n_false_alarms"] is row["n_uncertain"] is None


def test_a_comparison_is_not_evaluated_but_named(tmp_path):
    (tmp_path / "runs/knn").mkdir(parents=True)
    results.write_json(f"{to_uri(tmp_path)}/run.json", {"command": "compare", "status": "done"})
    with pytest.raises(UsageError, match="holds a comparison; name one of its runs"):
        mvad.evaluate(str(tmp_path))


@pytest.mark.parametrize("named", ["run.json", "--models", "OUT"])
def test_calibration_scores_are_those_of_the_model_that_scored_even_if_it_was_replaced(tmp_path, named):
    folder = tmp_path / ("out/models" if named == "OUT" else "models")
    size, spec = ImageSize.square(64), describe("efficientnet_lite0")

    def save(seed):
        random = np.random.default_rng(seed)
        features = torch.from_numpy(random.standard_normal((3, 4, 4, 6)).astype(np.float32))
        record = {"n_train": 3, "errors": [], "fit_seconds": 1.0}
        parts = ("cap", PatchCore, PatchCore().fit(features).state, spec, "abc", size, record, CALIBRATION[seed:])
        return save_model(to_uri(folder), FittedModel(*parts), keep_earlier=True)

    first = save(0)
    facts = {"method": "patchcore", "n_calibration": 300, "model_id": first.model_id}
    facts["model"] = storage.readable(first.uri) if named == "run.json" else "/nowhere"
    models = to_uri(folder) if named == "--models" else None
    for _ in range(2):
        scores, reason = verdicts.stored_calibration(to_uri(tmp_path / "out"), "cap", facts, models)
        assert reason is None
        np.testing.assert_array_equal(scores, CALIBRATION)
        save(1)
    scores, reason = verdicts.stored_calibration(
        to_uri(tmp_path / "out"), "cap", facts | {"model_id": "1" * 64}, models
    )
    assert scores is None
    assert reason == "the model was not found; give the folder of its models with --models"
