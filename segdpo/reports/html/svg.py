"""Plots as inline SVG: scales, axes, lines, dots and bars, in colours of style.css."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

from segdpo.reports.plots import Range, finite

MOST_POINTS = 300
WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 8, 34


@dataclass
class Plot:
    """Axes over two ranges to which marks are added; `svg` returns the picture.

    Args:
        x: the range of the horizontal axis.
        y: the range of the vertical axis.
        label: describes the plot to screen readers.
        x_name: the name of the horizontal axis.
        height: of the whole picture; `left` and `bottom` are the margins of the axes.
        y_ticks: whether the vertical axis has numbers; with `counts`, whole ones only.
    """

    x: Range
    y: Range
    label: str
    x_name: str = ""
    height: int = HEIGHT
    left: int = LEFT
    bottom: int = BOTTOM
    y_ticks: bool = True
    counts: bool = False
    _marks: list[Markup] = field(default_factory=list)
    _over: list[Markup] = field(default_factory=list)

    @property
    def _size(self) -> tuple[int, int]:
        return WIDTH - self.left - RIGHT, self.height - TOP - self.bottom

    def at_x(self, value: float) -> float:
        """Return the distance of a value from the left of the axes."""
        return self._size[0] * (value - self.x[0]) / (self.x[1] - self.x[0])

    def at_y(self, value: float) -> float:
        """Return the distance of a value from the top of the axes."""
        return self._size[1] * (self.y[1] - value) / (self.y[1] - self.y[0])

    def line(
        self, xs: Sequence[float], ys: Sequence[float], colour: str, *, width: float = 1.8, faint: bool = False,
        dashes: str = "", title: str = "",
    ) -> None:  # fmt: skip
        """Draw a line with gaps where a value is not finite; long ones are thinned."""
        commands, pen_down = [], False
        for x, y in zip(*thinned(xs, ys), strict=True):
            if math.isfinite(x) and math.isfinite(y):
                commands.append(f"{'L' if pen_down else 'M'}{self.at_x(x):.1f} {self._clamped(self.at_y(y)):.1f}")
            pen_down = math.isfinite(x) and math.isfinite(y)
        if commands:
            self._marks.append(
                Markup(
                    '<path class="{}" d="{}" fill="none" stroke="currentColor" stroke-width="{}" stroke-opacity="{}" '
                    'stroke-dasharray="{}" stroke-linejoin="round" stroke-linecap="round">{}</path>'
                ).format(colour, " ".join(commands), width, 0.4 if faint else 1, dashes or "none", _title(title))
            )

    def dots(
        self, xs: Sequence[float], ys: Sequence[float], colour: str, *, radius: float = 3, hollow: bool = False,
        opacity: float = 1, titles: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Draw a circle at each finite point."""
        fill = "var(--paper)" if hollow else "currentColor"
        for k, (x, y) in enumerate(zip(xs, ys, strict=True)):
            if math.isfinite(x) and math.isfinite(y):
                self._marks.append(
                    Markup(
                        '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}" fill="{}" stroke="currentColor" '
                        'opacity="{}">{}</circle>'
                    ).format(
                        colour, self._clamped(self.at_x(x)), self._clamped(self.at_y(y)), radius, fill, opacity,
                        _title(titles[k] if titles else ""),
                    )
                )  # fmt: skip

    def bar(self, x: Range, y: Range, colour: str, *, opacity: float = 0.55, title: str = "") -> None:
        """Fill a rectangle."""
        left, right = sorted((self.at_x(x[0]), self.at_x(x[1])))
        top, low = sorted((self._clamped(self.at_y(y[0])), self._clamped(self.at_y(y[1]))))
        self._marks.append(
            Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="currentColor" '
                'fill-opacity="{}">{}</rect>'
            ).format(colour, left, top, max(0.0, right - left), max(0.0, low - top), opacity, _title(title))
        )

    def horizontal(self, y: float, colour: str = "muted", dashes: str = "", title: str = "") -> None:
        """Draw a line from left to right at `y`."""
        self.line(self.x, (y, y), colour, width=1.2, dashes=dashes, title=title)

    def vertical(self, x: float, colour: str = "muted", dashes: str = "", title: str = "") -> None:
        """Draw a line from bottom to top at `x`."""
        self.line((x, x), self.y, colour, width=1.2, dashes=dashes, title=title)

    def text(self, x: float, y: float, text: str, colour: str = "muted", anchor: str = "start") -> None:
        """Write at fractions `x` of the width from the left and `y` of the height from the top."""
        width, height = self._size
        self._over.append(
            Markup('<text class="{}" x="{:.1f}" y="{:.1f}" fill="currentColor" text-anchor="{}">{}</text>').format(
                colour, self.left + x * width, TOP + y * height, anchor, text
            )
        )

    def svg(self) -> Markup:
        """Return the picture."""
        width, height = self._size
        return Markup(
            '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}'
            '<svg x="{}" y="{}" width="{}" height="{}" overflow="hidden">{}</svg>{}</svg>'
        ).format(
            WIDTH, self.height, self.label, self._axes(), self.left, TOP, width, height,
            Markup("").join(self._marks), Markup("").join(self._over),
        )  # fmt: skip

    def _axes(self) -> Markup:
        width, height = self._size
        parts = []
        found = ticks(*self.y) if self.y_ticks else []
        found = [value for value in found if not self.counts or value == round(value)]
        for value, text in zip(found, tick_texts(found), strict=True):
            y = TOP + self.at_y(value)
            parts.append(
                Markup(
                    '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                    '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
                ).format(self.left, self.left + width, y, y, self.left - 6, y + 3.5, text)
            )
        found = ticks(*self.x)
        for value, text in zip(found, tick_texts(found), strict=True):
            x = self.left + self.at_x(value)
            parts.append(
                Markup(
                    '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>'
                    '<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
                ).format(x, x, TOP + height, TOP + height + 4, x, TOP + height + 16, text)
            )
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                self.left + width / 2, self.height - 4, self.x_name
            )
        )
        return Markup("").join(parts)

    @staticmethod
    def _clamped(place: float) -> float:
        # Outside is outside; values of 1e30 need not make the file long.
        return min(max(place, -5000.0), 5000.0)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers within a range, about `most` at most.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return []
    rough = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * times for times in (1, 2, 5) if power * times >= rough * 0.999), power * 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Return the labels of ticks, all with the same number of decimals.

    >>> tick_texts([-0.5, 0.0, 0.5]), tick_texts([0.0, 2e10])
    (['−0.5', '0.0', '0.5'], ['0', '2e10'])
    """
    if any(abs(value) >= 1e5 for value in values):
        texts = [f"{value:.4g}".replace("e+", "e") for value in values]
    else:
        digits = max((len(f"{value:.10g}".partition(".")[2]) for value in values), default=0)
        texts = [f"{value:.{digits}f}" if digits < 7 else f"{value:.3g}" for value in values]
    return [text.replace("-", "−", 1) for text in texts]


def thinned(xs: Sequence[float], ys: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """Return at most `most` points, each the mean of its neighbours; NaN only where all of them are."""
    if len(xs) <= most:
        return list(xs), list(ys)
    found_x, found_y = [], []
    for part in np.array_split(np.arange(len(xs)), most):
        known = finite(ys[k] for k in part)
        found_x.append(float(np.mean([xs[k] for k in part])))
        found_y.append(float(np.mean(known)) if known else math.nan)
    return found_x, found_y


def _title(text: str) -> Markup:
    return Markup("<title>{}</title>").format(escape(text)) if text else Markup()
