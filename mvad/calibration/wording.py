"""Guarantees and warnings as sentences for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvad.calibration.conformal import (
    MIN_CALIBRATION_SCORES,
    SIGMA_DEVIATIONS,
    TOLERANCE_CONFIDENCE,
    min_images,
    rank,
)
from mvad.calibration.drift import Drift
from mvad.storage.text import shown_name

MAX_NAMED = 5  # categories that a warning lists; of more it names two and counts the others


def guarantee(rule: str, rate: float, n: int, unit: str = "image") -> str:
    """Say in one sentence what a threshold from n calibration images guarantees.

    ``unit`` is what each calibration score is of: an image, or a scene of which there are several frames. For the
    conformal rule it gives the average over calibration sets, and the 5 % to 95 % quantiles for a given set, of
    Beta(n + 1 - k, k); see `threshold`. ValueError if the rule is unknown or the rate is outside (0, 1).
    """
    from scipy.special import ndtr  # a tenth of the time that scipy.stats takes to import

    enough = min_images(rule, rate)
    images = f"{n:,} calibration {unit}{'' if n == 1 else 's'}"
    guarantees = f"{images} {'guarantees' if n == 1 else 'guarantee'}"
    if n < (2 if rule == "tolerance" else 1):
        return f"{guarantees} nothing"
    if rule == "sigma":
        return (
            f"the sigma rule ignores the rate of {_percent(rate)} and guarantees none: mean + 3 standard deviations, "
            f"estimated from {images}, flags {_percent(float(ndtr(-SIGMA_DEVIATIONS)))} of good images if scores are "
            f"normally distributed, and up to {_percent(1 / (1 + SIGMA_DEVIATIONS**2))} if not"
        )
    if rule == "tolerance":
        return (
            f"{guarantees} a false-alarm rate of at most {_percent(rate)} with {_percent(TOLERANCE_CONFIDENCE)} "
            "confidence if scores are normally distributed, and nothing if not"
        )
    average, low_to_high = _conformal_rates(rate, n)
    sentence = f"{guarantees} a false-alarm rate of {average} on average (this set: {low_to_high})"
    return sentence if n >= enough else f"{sentence}; {_percent(rate)} needs {enough:,}"


def too_few_warning(categories: Sequence[str], n: int, rate: float) -> str:
    """Warn that these categories have n >= 1 calibration images each, too few for a conformal threshold at ``rate``."""
    shown = [shown_name(name) for name in categories]
    names = ", ".join(shown)
    if len(shown) > MAX_NAMED:
        names = f"{shown[0]}, {shown[1]} and {len(shown) - 2:,} other categories"
    average, low_to_high = _conformal_rates(rate, n)
    images = f"{n:,} good image{' is' if n == 1 else 's are'}"
    return (
        f"{names}: {images} too few for {_percent(rate)} false alarms; expect about {average} "
        f"({low_to_high}). {min_images('conformal', rate):,} or more would give {_percent(rate)}."
    )


def found_line(
    category: str, n_defect: int, found: Mapping[float, tuple[int, int]], n_decided: int | None = None
) -> str:
    """Say how many defects of a labelled category are found at several false-alarm rates.

    ``found`` has, by rate, the defects found and the good images that calibration lacks to keep the rate. ``n_decided``
    are found as the run has decided, if that is not at one of the rates.
    """
    texts = [] if n_decided is None else [f"as decided {n_decided:,}"]
    for rate, (n_found, n_needed) in sorted(found.items()):
        unit = " false alarms" if rate == min(found) else ""
        lacking = f" (needs {n_needed:,} more good image{'' if n_needed == 1 else 's'})" if n_needed else ""
        texts.append(f"at {_percent(rate)}{unit}{lacking} {n_found:,}")
    first, *others = texts
    return "; ".join([f"{shown_name(category)}: {first} of {n_defect:,} defects are found", *others])


def calibration_unit(record: Mapping[str, Any]) -> str:
    """What each calibration score of a model with this record is of, as `guarantee` calls it."""
    n_images = record.get("n_train", 0)
    return "scene" if record.get("n_groups", n_images) < n_images else "image"


def calibration_caveat(
    scores: NDArray[np.float32] | None, record: Mapping[str, Any], rule: str, rate: float
) -> str | None:
    """Say what a person should know of a model's threshold before believing it; None if nothing is the matter.

    ``scores`` are the calibration scores, (n,). Of the model's record, ``n_train`` counts the good images, ``n_groups``
    frames of one scene once, and ``options`` are those of the fit. Too few images, each of its own, are
    `too_few_warning`'s to say, if there is a threshold.
    """
    n, n_images = 0 if scores is None else len(scores), record["n_train"]
    n_groups = record.get("n_groups", n_images)
    scenes = f"{n_groups:,} scene{'' if n_groups == 1 else 's'}"
    frames = f"its {n_images:,} good images are frames of {scenes}"
    if scores is None or n < MIN_CALIBRATION_SCORES:
        options = record.get("options", {})
        if not options.get("folds") or options.get("calibration") == "none":
            return None  # as was asked for
        images = f"{n_images:,} good image{' is' if n_images == 1 else 's are'} too few to calibrate"
        few = images if n_groups == n_images else f"{frames} (frames of one scene count once), too few to calibrate"
        return f"no threshold, and so no verdicts: {few}"
    if n_groups < n_images and (n < min_images(rule, rate) or rule != "conformal"):
        if rule != "conformal":
            return f"{frames} (frames of one scene count once): the threshold rests on {n:,} scores"
        average, low_to_high = _conformal_rates(rate, n)
        return (
            f"{frames} (frames of one scene count once); {_percent(rate)} false alarms cannot be promised from {n:,} "
            f"({min_images(rule, rate):,} needed): expect about {average} ({low_to_high})"
        )
    if np.ptp(scores) == 0:
        return f"all {n:,} calibration scores are the same: the threshold says nothing of how good images vary"
    return None


def drift_warning(category: str, drift: Drift) -> str:
    """Warn that a batch has drifted, and say by how much."""
    shift = drift.median_shift or 0.0
    side = "above" if shift >= 0 else "below"
    return (
        f"{shown_name(category)}: DRIFT: the whole batch scores differently; check camera and light first. The median "
        f"of {drift.n:,} images is {abs(shift):.1f} robust deviations {side} calibration, and "
        f"{100 * drift.share_below:.0f} % have p < 0.05 (expected: 5 %); if camera and light are fine, run mvad update."
    )


def _conformal_rates(rate: float, n: int) -> tuple[str, str]:
    """Return the false-alarm rate of a conformal threshold: the average, and the quantiles for a given set."""
    from scipy.special import betaincinv

    k = rank(n, rate)
    low, high = (float(quantile) for quantile in betaincinv(n + 1 - k, k, [0.05, 0.95]))
    return _percent((n + 1 - k) / (n + 1)), f"{_percent(low).removesuffix(' %')} to {_percent(high)}"


def _percent(share: float) -> str:
    """Write a share in percent: with at most one decimal, or one significant digit below 0.1 %."""
    percent = 100 * share
    return f"{percent:.1f}".removesuffix(".0") + " %" if percent == 0 or percent >= 0.1 else f"{percent:.1g} %"
