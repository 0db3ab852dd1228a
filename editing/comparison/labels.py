"""Names beside the points of a figure."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def name_points(figure: Figure, axes: Axes, places: dict[str, tuple[float, float]], colours: dict[str, tuple]) -> None:
    """Names beside their points, each as near as none stands on another name or point.

    One that is not at its point's height has a thin line to it.
    """
    figure.draw_without_rendering()
    points = {editor: axes.transData.transform(place) for editor, place in places.items()}
    inch, (bottom, top) = figure.dpi / 72, axes.bbox.intervaly
    taken: list[tuple[float, float, float]] = []  # begin, end and height of a name
    gap, step, letter = 7 * inch, 9.5 * inch, 4.9 * inch

    def spot(editor: str, side: int, at: float) -> tuple[float, float, float]:
        """The place of a name right (1) or left (-1) of its point."""
        near = points[editor][0] + side * gap
        begin, end = sorted((near, near + side * letter * len(editor)))
        return begin, end, at

    def is_free(editor: str, place: tuple[float, float, float]) -> bool:
        """Whether a name there stands on nothing."""
        begin, end, at = place
        names = any(abs(at - high) < step and begin < right and left < end for left, right, high in taken)
        others = [point for name, point in points.items() if name != editor]
        on_points = any(abs(at - high) < 0.7 * step and begin - gap < along < end + gap / 2 for along, high in others)
        return bottom < at < top and not names and not on_points

    for editor, (_, y) in sorted(points.items(), key=lambda item: -item[1][1]):
        lifts = (sign * count * step / 4 for count in range(200) for sign in (-1, 1))
        free = ((side, lift) for lift in lifts for side in (1, -1) if is_free(editor, spot(editor, side, y + lift)))
        side, lift = next(free, (1, 0.0))
        taken.append(spot(editor, side, y + lift))
        arrow = {"arrowstyle": "-", "linewidth": 0.4, "color": "#999999", "shrinkB": 2}
        axes.annotate(editor, places[editor], (side * 7, lift / inch), textcoords="offset points", va="center",
                      ha="left" if side > 0 else "right", fontsize=7.5, color=colours[editor],
                      arrowprops=arrow if abs(lift) > 4 * inch else None)  # fmt: skip
