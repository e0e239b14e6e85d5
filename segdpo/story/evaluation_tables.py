"""What was measured as CSV: one line an image, and one line a class, metric and network."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from rich.progress import track

from segdpo.metrics.statistics import Interval, mean_interval, paired_difference
from segdpo.story.evaluation_measure import Measured
from segdpo.story.evaluation_pairs import of_class

# Numbers drawn for an interval: of thousands of images and many classes, fewer resamples, or this would take minutes.
AT_MOST, FEWEST, MOST = 4_000_000, 1_000, 10_000


def images_csv(networks: Mapping[str, Measured]) -> str:
    """Return a line an image, by id: policy_METRIC …, reference_METRIC …; nan where an image does not count."""
    first = next(iter(networks.values()))
    columns = [(name, metric) for name, measured in networks.items() for metric in measured.values]
    order = sorted(range(len(first.ids)), key=lambda at: (first.ids[at], at))
    rows = (
        [first.ids[at], *(repr(float(networks[name].values[metric][at])) for name, metric in columns)] for at in order
    )
    return _written(["id", *(f"{name}_{metric}" for name, metric in columns)], rows)


def classes_csv(networks: Mapping[str, Measured], classes: Sequence[str]) -> str:
    """Return a line a class, metric and network: mean, 95 % interval, and how many images have the class.

    With both networks, `difference` is a third: policy − reference, image by image. A class that never counts (class
    0, unless it is one like any other) is left out.
    """
    header = ["class", "metric", "network", "mean", "low", "high", "n"]
    metrics = list(next(iter(networks.values())).of_classes)
    rows: list[list[object]] = []
    for (number, name), metric in track(list(product(enumerate(classes), metrics)), "classes", transient=True):
        values = {network: measured.of_classes[metric][:, number] for network, measured in networks.items()}
        resamples = max(FEWEST, min(MOST, AT_MOST // max(1, len(values["policy"]))))
        lines: dict[str, Interval] = {
            network: mean_interval(column, resamples=resamples) for network, column in values.items()
        }
        if len(values) == 2:
            both = of_class(metric, number, networks["policy"], networks["reference"])
            lines["difference"] = paired_difference(*both, resamples=resamples)
        if any(line.n for line in lines.values()):
            rows += [
                [name, metric, network, *(repr(float(part)) for part in (line.mean, line.low, line.high)), line.n]
                for network, line in lines.items()
            ]
    return _written(header, rows)


def _written(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
