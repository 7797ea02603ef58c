"""The plotly figures that all chapters share.

Every function takes tensors, arrays or plain numbers and returns a ``plotly.graph_objects.Figure`` that

- says in ``layout.meta["alt"]`` what is to be seen, with its key numbers, built from the data;
- moves without a kernel: sliders switch between precomputed frames, and the axes are fixed so that frames compare;
- can be read in greyscale (each method has its colour, dash and marker), on a light and on a dark page (no colour of
  text or background is set here: the template decides) and at a width of 390 px (legend above a slider, else below);
- stays light: numbers are rounded to four digits, images are PNG.

Only trace types of plotly's cartesian bundle are used. ``live`` and ``control`` add what needs a running kernel, and
``source`` shows code.
"""

from __future__ import annotations

from robrep.book.figures.attacks import (
    accuracy_against_calls,
    ascent_curves,
    ball_picture,
    gradient_noise,
)
from robrep.book.figures.auditing import audit_figure
from robrep.book.figures.base import PALETTE, Style, styles
from robrep.book.figures.byorl import panels
from robrep.book.figures.comparison import against_budget, method_dots, method_plane, transfer_matrix
from robrep.book.figures.contrastive import code_moves, contrast_matrix, watched_training
from robrep.book.figures.cropd import curves_slider, ensemble_against_part, implied_sizes
from robrep.book.figures.images import attack_slider, captions, image_grid, perturbation
from robrep.book.figures.information import (
    bounds_of_cases,
    estimates_against_truth,
    information_pairs,
    linear_vulnerability_slider,
    released_slip,
    unit_vulnerability,
    vulnerability_against_gap,
    weak_beside_strong,
)
from robrep.book.figures.judging import audit_matrix, certified_beside_attacked, mask_slider, suite_bars
from robrep.book.figures.kernel import control, live
from robrep.book.figures.landscape import Plane, objective_line, objective_surface, plane
from robrep.book.figures.latent import kl_picture, latent_clouds, umap_embed
from robrep.book.figures.ledger import ledger_bars
from robrep.book.figures.listing import source
from robrep.book.figures.losses import bound_bars, training_curves
from robrep.book.figures.rates import accuracy_against_radius, accuracy_slider, label_curve, trade_off
from robrep.book.figures.smooth import accuracy_panels
from robrep.book.figures.transport import coupling_picture, encoder_line, entropic_objective

__all__ = [
    "PALETTE",
    "Plane",
    "Style",
    "accuracy_against_calls",
    "accuracy_against_radius",
    "accuracy_panels",
    "accuracy_slider",
    "against_budget",
    "ascent_curves",
    "attack_slider",
    "audit_figure",
    "audit_matrix",
    "ball_picture",
    "bound_bars",
    "bounds_of_cases",
    "captions",
    "certified_beside_attacked",
    "code_moves",
    "contrast_matrix",
    "control",
    "coupling_picture",
    "curves_slider",
    "encoder_line",
    "ensemble_against_part",
    "entropic_objective",
    "estimates_against_truth",
    "gradient_noise",
    "image_grid",
    "implied_sizes",
    "information_pairs",
    "kl_picture",
    "label_curve",
    "latent_clouds",
    "ledger_bars",
    "linear_vulnerability_slider",
    "live",
    "mask_slider",
    "method_dots",
    "method_plane",
    "objective_line",
    "objective_surface",
    "panels",
    "perturbation",
    "plane",
    "released_slip",
    "source",
    "styles",
    "suite_bars",
    "trade_off",
    "training_curves",
    "transfer_matrix",
    "umap_embed",
    "unit_vulnerability",
    "vulnerability_against_gap",
    "watched_training",
    "weak_beside_strong",
]
