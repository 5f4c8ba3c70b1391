"""Guarantees and warnings as sentences for people."""

from collections.abc import Mapping, Sequence

from mvad.calibration.conformal import SIGMA_DEVIATIONS, TOLERANCE_CONFIDENCE, min_images, rank
from mvad.calibration.drift import Drift
from mvad.text import shown_name

MAX_NAMED = 5  # categories that a warning lists; of more it names two and counts the others


def guarantee(rule: str, rate: float, n: int) -> str:
    """Say in one sentence what a threshold from n calibration images guarantees.

    For the conformal rule it gives the average over calibration sets, and the 5 % to 95 % quantiles for a given set,
    of Beta(n + 1 - k, k); see `threshold`. ValueError if the rule is unknown or the rate is outside (0, 1).
    """
    from scipy.stats import norm

    enough = min_images(rule, rate)
    images = f"{n:,} calibration image{'' if n == 1 else 's'}"
    guarantees = f"{images} {'guarantees' if n == 1 else 'guarantee'}"
    if n < (2 if rule == "tolerance" else 1):
        return f"{guarantees} nothing"
    if rule == "sigma":
        return (
            f"the sigma rule ignores the rate of {_percent(rate)} and guarantees none: mean + 3 standard deviations, "
            f"estimated from {images}, flags {_percent(float(norm.sf(SIGMA_DEVIATIONS)))} of good images if scores are "
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
    from scipy.stats import beta

    k = rank(n, rate)
    low, high = (float(quantile) for quantile in beta.ppf([0.05, 0.95], n + 1 - k, k))
    return _percent((n + 1 - k) / (n + 1)), f"{_percent(low).removesuffix(' %')} to {_percent(high)}"


def _percent(share: float) -> str:
    """Write a share in percent: with at most one decimal, or one significant digit below 0.1 %."""
    percent = 100 * share
    return f"{percent:.1f}".removesuffix(".0") + " %" if percent == 0 or percent >= 0.1 else f"{percent:.1g} %"
