"""What a figure is to the page, and how all figures look.

Line colours are Okabe and Ito's, which colour-blind readers can tell apart, and differ in style as well; heat maps
are cividis; masks keep the VOC palette, which is what readers of these papers know.
"""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLES = ("-", "--", "-.", ":")
PAPER = "#D55E00"
OURS = "#0072B2"
ON_LIGHT = "#010101"  # text over a light colour: a figure's own black turns light on a dark page


@dataclass(frozen=True)
class Drawing:
    """A figure on disk: its files without their suffix, what it shows, and that in words for who cannot see it.

    Figures of one ``group`` show the same of several runs, each of its ``member``. ``size``: width and height of its
    PNG in pixels, once it is drawn.
    """

    name: str
    title: str
    alt: str
    group: str = ""
    member: str = ""
    size: tuple[int, int] = (0, 0)
