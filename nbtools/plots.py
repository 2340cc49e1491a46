"""One figure style for the course, and a small SVG chart for live views.

Design choices
- Colours are Okabe and Ito's (grey for their yellow), and every series has its own dash pattern and marker too: nothing
  is told by colour alone.
- `show(fig, alt=...)` puts the picture into the page as `<figure><img alt=...>`: JupyterLab and nbconvert ignore alt
  text anywhere else.
- Live charts are SVG text made here: matplotlib is not safe off the main thread, and a refresh costs 0.4 ms instead of
  12 to 42.
"""

import base64
import html
import io
import math

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#767676")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 4", "12 4", "3 1")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 3)), (0, (8, 2, 2, 2)), (0, (3, 1)))
LOOKS = len(COLOURS)  # as many series can be told apart


def style():
    """Set matplotlib's defaults for the course: 5 x 3 inches, quiet axes, colour together with line style."""
    import matplotlib as mpl

    cycle = mpl.cycler(color=COLOURS) + mpl.cycler(linestyle=LINES) + mpl.cycler(marker=MARKERS)
    mpl.rcParams.update(
        {
            "figure.figsize": (5, 3),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": cycle,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "font.size": 10,
            "axes.titlesize": 10,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "lines.markersize": 4.5,
            "image.cmap": "gray",
        }
    )


def show(fig, alt):
    """Display a matplotlib figure with its alt text and close it. `alt` says what one who can't see it must know."""
    import matplotlib.pyplot as plt
    from IPython.display import HTML, display

    if not alt or not alt.strip():
        raise ValueError("show(fig, alt=...) needs a sentence that tells what the figure shows, got an empty one")
    picture = io.BytesIO()
    fig.savefig(picture, format="png", dpi=fig.dpi * 2, facecolor="white")
    width = int(fig.get_figwidth() * fig.dpi)
    plt.close(fig)
    data = base64.b64encode(picture.getvalue()).decode()
    display(
        HTML(
            f'<figure style="margin:0"><img width="{width}" alt="{html.escape(alt, quote=True)}" '
            f'src="data:image/png;base64,{data}"></figure>'
        )
    )


def band(ax, x, rows, label, index):
    """A mean line with its 95 % band: `rows` lists (mean, half-width), one for each x; `index` picks the look."""
    i, mean = index % LOOKS, [m for m, _ in rows]
    ax.fill_between(x, [m - h for m, h in rows], [m + h for m, h in rows], color=COLOURS[i], alpha=0.15, linewidth=0)
    ax.plot(x, mean, label=label, color=COLOURS[i], linestyle=LINES[i], marker=MARKERS[i])


def ticks(low, high, n=4):
    """About n round numbers between low and high."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / n
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, int(math.floor(high / step + 1e-9)) + 1)]


def svg_chart(series, *, xlabel, ylabel, width=560, height=260, bands=(), points=(), title=""):
    """A line chart as an SVG string, for live views; no matplotlib, safe in any thread.

    series: dicts of label, x, y (lists of numbers); points: dicts of label, x, y (single marks); bands: dicts of x,
    low, high (shaded, behind). Values that are not finite are left out. Later series are drawn on top.
    """
    series = [{**s, "xy": _finite(s["x"], s["y"])} for s in series]
    points = [p for p in points if math.isfinite(p["x"]) and math.isfinite(p["y"])]
    bands = [_finite(b["x"], b["low"], b["high"]) for b in bands]
    edges = [[(x, y) for x, _, y in b] + [(x, y) for x, y, _ in reversed(b)] for b in bands]
    dots = [xy for s in series for xy in s["xy"]] + [(p["x"], p["y"]) for p in points] + [xy for b in edges for xy in b]
    xs, ys = [x for x, _ in dots], [y for _, y in dots]
    x0, x1, y0, y1 = *_span(xs), *_span(ys)
    left, right, top, bottom = 54, width - 12, 14, height - 38
    px = lambda x: left + (x - x0) / (x1 - x0) * (right - left)  # noqa: E731
    py = lambda y: bottom - (y - y0) / (y1 - y0) * (bottom - top)  # noqa: E731
    body = [_axes(x0, x1, y0, y1, px, py, (left, right, top, bottom), xlabel, ylabel)]
    for i, edge in enumerate(edges):
        body.append(f'<polygon points="{_path(edge, px, py)}" fill="{COLOURS[i % LOOKS]}" opacity="0.15"/>')
    for i, s in enumerate(series):
        body.append(
            f'<polyline points="{_path(s["xy"], px, py)}" fill="none" stroke="{COLOURS[i % LOOKS]}" '
            f'stroke-width="1.8" stroke-dasharray="{DASHES[i % LOOKS]}"/>'
        )
        if s["xy"]:
            body.append(_mark(i, px(s["xy"][-1][0]), py(s["xy"][-1][1])))
    body += [_mark(len(series) + i, px(p["x"]), py(p["y"])) for i, p in enumerate(points)]
    named = [(i, s["label"]) for i, s in enumerate([*series, *points]) if s.get("label")]
    ends = [py(y) for x, y in dots if math.isfinite(y) and px(x) > (left + 2 * right) / 3]
    high = bool(ends) and sum(ends) / len(ends) < (top + bottom) / 2  # curves that end high leave the lower corner free
    key_top = max(top, bottom - 16 * len(named) - 4) if high else top
    body += [_key(row, i, label, right, key_top) for row, (i, label) in enumerate(named)]
    name = html.escape(title or f"{ylabel} by {xlabel}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" style="background:#fff;max-width:100%;font:11px sans-serif"><title>{name}</title>'
        f"{''.join(body)}</svg>"
    )


def _finite(*columns):
    return [row for row in zip(*columns, strict=True) if all(map(math.isfinite, row))]


def _span(values):
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - pad, high + pad


def _path(xy, px, py):
    return " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in xy)


def _mark(i, x, y):
    """Circle, square, triangle or diamond, by the series' number."""
    colour = COLOURS[i % LOOKS]
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"',
        f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"',
        f'<path d="M{x:.1f} {y - 4.5:.1f}l4.5 8h-9z"',
        f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"',
    )
    return f'{shapes[i % 4]} fill="{colour}" stroke="#fff"/>'


def _axes(x0, x1, y0, y1, px, py, frame, xlabel, ylabel):
    left, right, top, bottom = frame
    lines = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#555"/>']
    for x in ticks(x0, x1, 6):
        lines.append(f'<text x="{px(x):.1f}" y="{bottom + 15}" text-anchor="middle" fill="#333">{x:.4g}</text>')
    for y in ticks(y0, y1):
        lines.append(
            f'<path d="M{left} {py(y):.1f}H{right}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{py(y) + 4:.1f}" text-anchor="end" fill="#333">{y:.4g}</text>'
        )
    look, middle = 'text-anchor="middle" fill="#111"', (top + bottom) / 2
    lines.append(f'<text x="{(left + right) / 2:.0f}" y="{bottom + 32}" {look}>{html.escape(xlabel)}</text>')
    lines.append(f'<text transform="translate(12 {middle:.0f}) rotate(-90)" {look}>{html.escape(ylabel)}</text>')
    return "".join(lines)


def _key(row, i, label, right, top):
    y, colour, dash = top + 12 + 16 * row, COLOURS[i % LOOKS], DASHES[i % LOOKS]
    line = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
    return (
        f'<path d="M{right - 24} {y - 4}h22" {line}/>{_mark(i, right - 13, y - 4)}'
        f'<text x="{right - 30}" y="{y}" text-anchor="end" fill="#111">{html.escape(str(label))}</text>'
    )
