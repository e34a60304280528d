"""Fonts for the PDF files of a report, cut down once to the characters that its figures use.

Each PDF embeds the characters it uses, and to find them matplotlib reads and takes apart the whole font, once a file:
a third of a report's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fontTools import subset
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.text import Text


@contextmanager
def small_fonts(figures: Sequence[Figure]) -> Iterator[None]:
    """Sets the text of the figures in small copies of its fonts. Text made after this stays in the whole font."""
    texts = [text for figure in figures for text in figure.findobj(Text) if isinstance(text, Text)]
    characters = "".join(sorted({char for text in texts for char in text.get_text()}))
    properties: dict[str, list[FontProperties]] = {}
    for text in texts:
        properties.setdefault(str(findfont(text.get_fontproperties())), []).append(text.get_fontproperties())
    with TemporaryDirectory() as folder:
        for number, (path, users) in enumerate(properties.items()):
            small = Path(folder) / f"{number}.ttf"
            _write_subset(path, characters, small)
            for user in users:
                user.set_file(str(small))
        try:
            yield
        finally:
            for users in properties.values():
                for user in users:
                    user.set_file(None)


def _write_subset(path: str, characters: str, out: Path) -> None:
    options = subset.Options(
        glyph_names=True, recommended_glyphs=True, notdef_outline=True, hinting=False, legacy_kern=True
    )
    # Ligatures and hints are not needed, and kerning is in the small table too: a third of the time of each file.
    options.drop_tables += ["FFTM", "PfEd", "GSUB", "GPOS", "GDEF"]
    with subset.load_font(path, options) as font:
        subsetter = subset.Subsetter(options)
        subsetter.populate(text=characters)
        subsetter.subset(font)
        subset.save_font(font, out, options)
