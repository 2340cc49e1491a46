"""Plots: live charts are XML whatever comes in, series differ by more than colour, no figure without alt text."""

import base64
import io
import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from nbtools import plots

NAN, INF = math.nan, math.inf
SVG = "{http://www.w3.org/2000/svg}"


def chart(series=(), **more):
    """The parsed chart; numbers in it that are not finite fail at once."""
    text = plots.svg_chart(series, xlabel="step", ylabel="loss", **more)
    assert not re.search(r"\b(nan|inf)\b", text)
    return ElementTree.fromstring(text)


def line(label="loss", x=(0, 1, 2), y=(3.0, 2.0, 1.0)):
    return {"label": label, "x": x, "y": y}


def words(svg):
    return [t.text for t in svg.iter(f"{SVG}text")]


def spots(svg, i=0):
    return [tuple(map(float, p.split(","))) for p in [*svg.iter(f"{SVG}polyline")][i].get("points").split()]


# --- the live chart


def test_a_chart_has_a_role_a_title_axes_and_a_legend():
    svg = chart([line("train"), line("test", y=(3, 2.5, 2.4))])
    assert svg.get("role") == "img" and svg.find(f"{SVG}title").text == "loss by step"
    assert {"step", "loss", "train", "test"} <= set(words(svg))
    assert chart([line()], title="Loss of one run").find(f"{SVG}title").text == "Loss of one run"


def test_points_lie_where_the_numbers_say():
    (x0, y0), (x1, y1), (x2, y2) = spots(chart([line()]))
    assert x0 < x1 < x2 and x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 < y1 < y2 and y1 - y0 == pytest.approx(y2 - y1, abs=0.11), "SVG's y grows downwards, the loss falls"
    assert all(0 <= x <= 560 and 0 <= y <= 260 for x, y in spots(chart([line()])))


@pytest.mark.parametrize("y", [(3.0, NAN, 1.0), (3.0, INF, 1.0), (3.0, -INF, 1.0)])
def test_values_that_are_not_finite_are_left_out_and_do_not_stretch_the_axis(y):
    with_gap, without = chart([line(y=y)]), chart([line(x=(0, 2), y=(3.0, 1.0))])
    assert spots(with_gap) == spots(without)
    assert chart([line(x=(0, NAN, 2))]) is not None


def test_points_and_bands_that_are_not_finite_are_left_out():
    """The half-width of a single seed's interval is nan, and it comes here as a band."""
    band = {"x": [0, 1, 2], "low": [1, NAN, 1], "high": [2, NAN, 2]}
    svg = chart([line()], bands=[band], points=[{"label": "you", "x": 1, "y": NAN}])
    assert len([*svg.iter(f"{SVG}polygon")][0].get("points").split()) == 4
    assert "you" not in words(svg)
    assert [*chart(bands=[{"x": [0], "low": [NAN], "high": [NAN]}]).iter(f"{SVG}polygon")][0].get("points") == ""


@pytest.mark.parametrize(
    "series",
    [
        [],
        [line(x=(), y=())],
        [line(y=(NAN, NAN, NAN))],
        [line(x=(), y=()), line()],
        [line(y=(2.0, 2.0, 2.0))],
        [line(y=(0, 0, 0))],
        [line(x=(5,), y=(7,))],
        [line(y=(1e-12, 2e-12, 3e-12))],
        [line(y=(1e15, -1e15, 0))],
    ],
)
def test_empty_constant_single_tiny_and_huge_series_are_drawn(series):
    svg = chart(series)
    assert len([*svg.iter(f"{SVG}polyline")]) == len(series)
    assert all(len(spots(svg, i)) == sum(map(math.isfinite, s["y"])) for i, s in enumerate(series))


def test_x_and_y_of_unequal_length_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        chart([line(x=(0, 1), y=(1, 2, 3))])


@pytest.mark.parametrize("label", ["a < b & c > d", '"quoted"', "</text><script>alert(1)</script>", "Größe ≤ 1", 30])
def test_labels_are_escaped(label):
    text = plots.svg_chart([line(label)], xlabel=str(label), ylabel=str(label), title=str(label))
    svg = ElementTree.fromstring(text)
    assert words(svg).count(str(label)) == 3 and svg.find(f"{SVG}title").text == str(label)
    assert "<script" not in text


def test_bands_lie_behind_lines_and_points_before_them():
    band, point = {"x": [0, 2], "low": [0, 0], "high": [4, 4]}, {"label": "you", "x": 1, "y": 5}
    svg = chart([line()], bands=[band], points=[point])
    order = [e.tag.removeprefix(SVG) for e in svg]
    assert order.index("polygon") < order.index("polyline") < len(order) - 1 - order[::-1].index("rect")
    assert "you" in words(svg)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 100), (-3, 7), (0.001, 0.0023), (999, 1001), (0, 7e5), (-1e-9, 1e-9)]
)
def test_ticks_are_few_round_and_inside(low, high):
    marks = plots.ticks(low, high)
    assert 2 <= len(marks) <= 6 and low - 1e-12 <= marks[0] and marks[-1] <= high + (high - low) * 1e-9
    steps = [b - a for a, b in itertools.pairwise(marks)]
    assert all(s == pytest.approx(steps[0]) for s in steps)
    assert float(f"{steps[0]:.1e}".split("e")[0]) in (1, 2, 2.5, 5)


def test_ticks_of_nothing_are_one():
    assert plots.ticks(2, 2) == [2] and plots.ticks(0, INF) == [0]


# --- not by colour alone


def mark_shape(i):
    return re.sub(r'[-\d.]+|fill="[^"]*"', "", plots._mark(i, 10, 10))


def test_series_are_told_apart_without_colour():
    """Dash and last mark of any two of the eight looks differ, in live charts and in figures."""
    svg = [(plots.DASHES[i], mark_shape(i)) for i in range(plots.LOOKS)]
    figure = [(str(plots.LINES[i]), plots.MARKERS[i]) for i in range(plots.LOOKS)]
    assert len(set(svg)) == len(set(figure)) == plots.LOOKS == 8
    assert len(set(plots.DASHES)) == len(set(map(str, plots.LINES))) == len(set(plots.MARKERS)) == plots.LOOKS
    assert len({mark_shape(i) for i in range(4)}) == 4


def test_the_chart_uses_those_dashes_for_its_lines_and_its_legend():
    svg = chart([line(str(i)) for i in range(4)])
    assert [p.get("stroke-dasharray") for p in svg.iter(f"{SVG}polyline")] == list(plots.DASHES[:4])
    legend = [p.get("stroke-dasharray") for p in svg.iter(f"{SVG}path") if p.get("stroke-dasharray") is not None]
    assert legend == list(plots.DASHES[:4])


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_can_be_seen_on_white():
    """WCAG's contrast of 2 is what the palest of Okabe and Ito's has here; their yellow (1.3) is not used."""
    assert min(1.05 / (luminance(c) + 0.05) for c in plots.COLOURS) > 2


# --- figures


@pytest.fixture
def shown(monkeypatch):
    import IPython.display
    import matplotlib

    matplotlib.use("Agg")
    seen = []
    monkeypatch.setattr(IPython.display, "display", seen.append)
    with matplotlib.rc_context():
        plots.style()
        yield seen


def test_show_puts_an_image_with_its_alt_text_into_the_page_and_closes_the_figure(shown):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    ax.plot([1, 2], [3, 4])
    plots.show(fig, alt='Accuracy rises from 0.1 to 0.8; "frozen" < "full"')
    (page,) = shown
    image = r'<img width="(\d+)" alt="([^"]*)" src="data:image/png;base64,([^"]+)">'
    found = re.fullmatch(rf'<figure style="[^"]*">{image}</figure>', page.data)
    assert found[2] == "Accuracy rises from 0.1 to 0.8; &quot;frozen&quot; &lt; &quot;full&quot;"
    assert base64.b64decode(found[3]).startswith(b"\x89PNG")
    assert int(found[1]) == 550 and not plt.fignum_exists(fig.number)


@pytest.mark.parametrize("alt", ["", "  ", None])
def test_show_needs_an_alt_text(shown, alt):
    import matplotlib.pyplot as plt

    fig = plt.figure()
    with pytest.raises(ValueError, match="alt"):
        plots.show(fig, alt=alt)
    assert not shown
    plt.close(fig)
    with pytest.raises(TypeError):
        plots.show(fig)


def test_the_style_is_five_by_three_and_cycles_line_and_marker_with_the_colour(shown):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    lines = [ax.plot([0, 1], [i, i])[0] for i in range(plots.LOOKS)]
    assert tuple(fig.get_size_inches()) == (5, 3)
    assert len({(str(drawn._unscaled_dash_pattern), drawn.get_marker()) for drawn in lines}) == plots.LOOKS
    plt.close(fig)


def test_a_band_is_a_line_with_its_interval_and_survives_a_single_seed(shown):
    from matplotlib.figure import Figure

    fig = Figure()
    ax = fig.subplots()
    for i in range(plots.LOOKS):
        plots.band(ax, [10, 30, 100], [(50, 2), (60, 1), (70, 3)], f"arm {i}", i)
    drawn = [(str(artist._unscaled_dash_pattern), artist.get_marker()) for artist in ax.lines]
    assert len(set(drawn)) == plots.LOOKS and len(ax.collections) == plots.LOOKS
    edge = ax.collections[0].get_paths()[0].vertices
    assert edge[:, 1].min() == 48 and edge[:, 1].max() == 73
    plots.band(ax, [10], [(50, NAN)], "one seed", 0)
    fig.savefig(io.BytesIO())
