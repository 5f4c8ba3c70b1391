"""Exit codes follow from what happened alone, so that the process and its ``run.json`` agree."""

import pytest

from mvad.options import ScoreOptions
from mvad.results.result import EXIT_DONE, EXIT_DRIFTED, EXIT_TOO_MANY_ERRORS, exit_code


@pytest.mark.parametrize(
    ("max_errors", "n_errors", "facts", "code"),
    [
        ("5", 5, {}, EXIT_DONE),
        ("5", 6, {}, EXIT_TOO_MANY_ERRORS),
        ("10%", 20, {}, EXIT_DONE),
        ("10%", 21, {}, EXIT_TOO_MANY_ERRORS),
        ("10%", 2, {"failed_categories": {"cam3"}}, EXIT_TOO_MANY_ERRORS),
        ("100%", 200, {"failed_categories": {"cam3"}}, EXIT_DONE),
        ("200", 200, {"failed_categories": {"cam3"}}, EXIT_DONE),
        ("10%", 0, {"drifted": ["cam1"]}, EXIT_DRIFTED),
        ("10%", 0, {"missing": ["cam2"]}, EXIT_DRIFTED),
        ("10%", 21, {"drifted": ["cam1"], "missing": ["cam2"]}, EXIT_TOO_MANY_ERRORS),
        ("100%", 2, {"failed_categories": {"cam3"}, "drifted": ["cam1"]}, EXIT_DRIFTED),
    ],
)
def test_the_exit_code_says_what_happened(max_errors, n_errors, facts, code):
    assert exit_code(ScoreOptions(max_errors=max_errors), n_errors, 200, **facts) == code
