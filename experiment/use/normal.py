"""What predict says of the normal images that a model knows: of their classes, and of a score among theirs."""

from detection.decision import Thresholds
from detection.description import Description


def among_normal(p_value: float) -> tuple[str, str]:
    """The cells percentile, the share of normal images in percent that score less, and p_value."""
    return f"{100 * (1 - p_value):.6g}", f"{p_value:.4g}"


def normal_said(thresholds: Thresholds, beyond: int) -> str:
    """What users are told of both.

    Args:
        thresholds: of the model.
        beyond: how many scores lie above those of all its normal images.
    """
    if thresholds.normal is None:
        return (
            "percentile and p_value stay empty: the model, older than they are, does not keep the scores of normal "
            "images; train it again, or let calibrate make a copy of it that does"
        )
    return thresholds.normal.said(thresholds.source, beyond)


def class_said(description: Description) -> str:
    """What users are told of a model of several classes; nothing of others."""
    if not description.classes:
        return ""
    return (
        f"One model of {', '.join(description.classes)}: images are taken to be of {description.class_name}, whose "
        "threshold it has here; each class has a folder of its own in the run"
    )
