"""Puts plotly figures on a static page (a myst-nb MIME plug-in, found through its entry point).

plotly emits only its JSON, which Sphinx cannot show. Here it becomes a ``div`` that carries the JSON and a text
alternative; ``book/_assets/robrep-figures.js`` draws it when it nears the view, with plotly served by the site itself.
The text alternative is the figure's ``layout.meta["alt"]``; a figure without one is a warning, which fails the build.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any, ClassVar

MIME = "application/vnd.plotly.v1+json"
DEFAULT_HEIGHT = 450  # px, plotly's own


def alternative(figure: Mapping[str, Any]) -> str:
    """The figure's text alternative, ``layout.meta["alt"]``; "" if it has none."""
    meta = figure.get("layout", {}).get("meta")
    text = meta.get("alt", "") if isinstance(meta, Mapping) else ""
    return " ".join(text.split()) if isinstance(text, str) else ""


def figure_html(figure: Mapping[str, Any]) -> str:
    """One figure's HTML: a labelled box of its height, the alternative as text, the JSON for the script.

    The box is a group and not an image, within which a screen reader would not find the sliders and buttons.
    """
    layout = figure.get("layout", {})
    parts = {"data": figure.get("data", []), "layout": layout, "frames": figure.get("frames", [])}
    label = alternative(figure)
    data = json.dumps(parts, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    height = int(layout.get("height") or DEFAULT_HEIGHT)
    return (
        f'<div class="robrep-figure" role="group" aria-label="{escape(label)}" style="min-height:{height}px">'
        f'<noscript><p class="robrep-figure-text">Figure: {escape(label)}</p></noscript>'
        f'<script type="application/json">{data}</script></div>'
    )


class PlotlyRenderer:
    """Renders ``application/vnd.plotly.v1+json`` ahead of every other form of the same output."""

    mime_priority_overrides: ClassVar[list[tuple[str, str, int | None]]] = [("*", MIME, 900), ("html", MIME, 5)]

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[Any] | None:
        """Return the nodes of a figure, or None for any other MIME type."""
        if inline or data.mime_type != MIME:
            return None
        from docutils import nodes

        figure = json.loads(data.content) if isinstance(data.content, str) else data.content
        if not alternative(figure):
            from sphinx.util import logging

            title = (figure.get("layout", {}).get("title") or {}).get("text") or "no title"
            logging.getLogger(__name__).warning(
                "a plotly figure (%s) has no text alternative: set layout.meta['alt']",
                title,
                location=(renderer.renderer.document["source"], data.line),
            )
        return [nodes.raw(text=figure_html(figure), format="html", classes=["output", "plotly"])]
