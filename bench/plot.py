# SPDX-License-Identifier: MIT
"""Bar charts as SVG files, for benchmarks."""

import sys

WIDTH, LABEL, BAR, GAP = 860, 190, 15, 5
COLOURS = {"ours": "#90b8e0", "best": "#2b6cb0", "peer": "#888"}


def short(value):
    return f"{value / 1000:.1f}k" if value >= 10000 else f"{value / 1000:.2f}k"


def _panel(heading, rows, top):
    """A bar per row, as long as its share of the longest."""
    longest = max(value for *_, value in rows)
    out = [f'<text x="0" y="{top + 14}" font-weight="bold">{heading}</text>']
    for i, (label, colour, value) in enumerate(rows):
        y, length = top + 24 + i * (BAR + GAP), (WIDTH - LABEL - 80) * value / longest
        out.append(f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{label}</text>'
                   f'<rect x="{LABEL}" y="{y}" width="{length:.0f}" height="{BAR}" fill="{COLOURS[colour]}"/>'
                   f'<text x="{LABEL + length + 6:.0f}" y="{y + 12}">{short(value)}</text>')
    return out, top + 34 + len(rows) * (BAR + GAP)


def bars(path, title, panels):
    """Draws panels, (heading, [(label, a key of COLOURS, value)]), below each other."""
    out, top = [f'<text x="0" y="16" font-size="14" font-weight="bold">{title}</text>'], 30
    for heading, rows in panels:
        panel, top = _panel(heading, rows, top)
        out += panel
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" font-family="sans-serif" font-size="12">\n'
                   '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(out) + "\n</svg>\n")
    print(f"wrote {path}", file=sys.stderr)
