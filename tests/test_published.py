"""The published numbers against a second transcription, typed row by row from the papers by another hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robrep.book import results

ROOT = Path(__file__).resolve().parent.parent

# (paper, table) -> row -> its numbers in the order of the columns, "-" where the print has none
SECOND = {
    ("nguyen2022", "2"): {
        "Standard Training": "92.82 0.00 0.00 79.09 0.00 0.00 60.39 0.00 0.00",
        "AT": "81.63 44.50 14.47 64.97 24.52 6.69 50.03 15.26 3.91",
        "TRADES": "77.03 48.01 22.55 63.14 25.97 7.78 48.32 15.92 3.97",
        "SimCLR": "91.25 0.63 0.15 84.31 0.84 0.12 82.15 0.55 0.11",
        "RoCL": "83.71 40.27 9.55 78.82 36.93 9.90 76.49 34.44 8.96",
        "SimCLR+Urkle": "82.31 42.56 14.29 77.47 38.76 12.94 74.82 37.56 12.22",
    },
    ("nguyen2022", "3"): {
        "Standard Training": "70.34 0.00 0.00 26.59 0.00 0.00 12.14 0.00 0.00",
        "AT": "52.87 19.46 6.80 21.05 5.30 1.52 12.46 3.26 0.95",
        "TRADES": "56.96 18.54 4.48 20.35 6.41 1.63 13.78 3.19 1.32",
        "SimCLR": "58.79 0.47 0.00 53.23 0.46 0.12 44.16 0.57 0.26",
        "RoCL": "52.19 22.00 8.35 40.60 18.86 7.25 30.23 13.83 5.55",
        "SimCLR+Urkle": "53.81 24.82 10.63 42.66 22.34 11.06 32.12 14.40 6.71",
    },
    ("nguyen2022", "4"): {"RoCL": "52.46 23.19", "SimCLR + Urkle": "51.19 25.69"},
    ("gowal2021", "1"): {
        "BYORL, l2": "33.85 53.23 57.88 10.09 22.51 28.24",
        "UAT-FT, l2": "37.71 42.16 53.23 3.68 10.80 14.43",
        "BYORL, linf": "24.18 36.30 37.28 5.28 10.12 14.82",
        "UAT-FT, linf": "23.47 36.52 37.79 2.18 4.88 7.21",
    },
    ("gowal2021", "2"): {
        "BYORL, AT head": "93.01 77.61 76.49 57.88 48.34 28.24",
        "BYORL, clean head": "93.19 77.09 77.54 57.66 49.20 27.17",
        "BYOL, AT head": "91.23 0.05",
        "BYOL, clean head": "94.76 0.00",
    },
    ("gowal2021", "3"): {
        "ResNet-34 x1": "78.02 41.30",
        "ResNet-34 x2": "80.80 43.24",
        "ResNet-34 x4": "81.32 43.19",
    },
    ("gowal2021", "4"): {
        "PGD, 5 steps": "85.26 1.05",
        "PGD, 10 steps": "81.44 37.88",
        "PGD, 20 steps": "80.29 42.58",
        "PGD, 40 steps": "79.60 43.41",
        "AutoPGD, 10 steps": "80.49 40.59",
        "AutoPGD, 20 steps": "80.53 43.27",
        "AutoPGD, 40 steps": "80.47 43.64",
        "AutoPGD, 60 steps": "80.69 43.64",
    },
    ("gowal2021", "5"): {
        "BYORL, AT head, linf": "65.14 45.44 62.39 41.58 47.07 31.57",
        "BYORL, clean head, linf": "65.27 43.83 62.40 41.06 47.64 31.99",
        "BYORL, AT head, l2": "69.64 65.48 66.39 61.90 55.06 51.00",
    },
    ("gowal2021", "6"): {
        "BYORL, AT head": "84.96 52.75 65.40 37.79 37.80 14.82",
        "BYORL, clean head": "86.57 50.94 65.75 36.51 39.51 12.21",
    },
    ("liu2025", "1"): {
        "Identity": "99.54 32.78 19.14 2.11 97.28 73.46 65.76 45.28",
        "Identity + LoRA": "98.44 43.11 33.55 8.38 97.54 65.50 55.96 28.18",
        "VAE": "94.71 57.23 46.45 34.78 92.80 71.47 62.54 56.03",
        "Vanilla": "99.31 34.10 22.09 7.87 97.05 73.92 66.84 55.45",
        "ARAE": "99.20 46.84 36.22 70.62 97.29 78.83 73.16 81.78",
        "CRoPD, λ = 0.1": "99.00 45.57 34.65 19.48 97.30 77.07 71.10 63.90",
        "CRoPD, λ = 1": "96.81 82.04 77.42 87.06 96.31 88.00 85.64 91.80",
        "CRoPD, λ = 10": "96.66 84.60 80.28 90.56 96.41 89.04 87.03 93.39",
        "Identity, fine-tuned": "99.40 70.13 64.45 21.02 99.30 95.96 95.39 96.41",
    },
    ("liu2025", "2"): {  # CIFAR-10, ImagenetTe, SVHN (no AutoAttack), CIFAR-100, Tiny-Imagenet (no AutoAttack)
        "Identity": "91.56 2.83 1.19 5.08 96.89 30.97 21.57 1.69 99.85 33.60 30.33 81.11 6.15 4.39 9.79 "
        "67.20 8.39 7.13",
        "Identity + LoRA": "88.10 3.90 1.78 96.97 33.28 21.43",
        "VAE": "66.62 14.10 7.70 15.27 96.57 59.91 45.31 13.03 88.09 14.17 8.27 44.21 6.67 3.82 13.76 54.43 15.42 9.97",
        "Vanilla": "90.93 10.04 4.95 6.93 92.30 54.55 47.88 30.62 99.79 93.43 67.79 80.09 58.18 55.94 18.48 "
        "67.23 13.07 10.70",
        "ARAE": "87.96 18.38 7.73 13.44 93.32 57.32 53.69 34.41 99.21 59.08 43.32 76.02 50.28 47.86 23.54 "
        "67.34 19.82 16.64",
        "CRoPD": "79.31 47.99 40.31 66.05 83.84 58.15 54.80 60.68 99.78 95.81 95.22 78.89 56.82 54.17 18.25 "
        "65.84 22.16 18.73",
    },
    ("liu2025", "3"): {
        "Identity": "81.11 6.15 4.39 91.56 2.83 1.19",
        "ARAE": "75.62 49.38 46.03 88.04 13.34 4.73",
        "CRoPD": "78.43 56.41 55.16 86.46 21.29 10.84",
    },
    ("liu2025", "8"): {
        "Encoder-Only": "65.58 28.08 25.61 66.09 41.95 41.57",
        "CRoPD": "79.31 47.99 40.31 83.84 58.15 54.80",
    },
    ("liu2025", "9"): {
        "CRoPD, 10% of the images, λ = 0.15": "79.28 11.92 8.43",
        "CRoPD, 20% of the images, λ = 1": "79.81 16.01 9.98",
        "CRoPD, 50% of the images, λ = 10": "81.85 25.75 14.33",
        "CRoPD, 100% of the images, λ = 10": "79.31 47.99 40.31",
    },
    ("liu2025", "10"): {
        "Identity": "98.41 1.40 0.74 98.77 0.21 0.00",
        "Vanilla": "98.31 1.00 0.35 96.08 9.15 5.04",
        "ARAE": "92.56 32.83 27.11 89.67 50.38 45.41",
        "CRoPD, λ = 0.1": "98.26 2.61 1.40 96.34 13.83 11.37",
        "CRoPD, λ = 1": "95.05 75.98 70.42 94.62 79.48 75.66",
        "CRoPD, λ = 10": "95.16 75.27 71.60 94.91 79.59 76.64",
        "Identity, fine-tuned": "98.77 0.21 0.00 97.66 76.51 71.83",
    },
    ("zhu2020", "1"): {
        "Hjelm et al. (2018) / Standard": "58.77±0.22 0.22±0.08 47.01±0.53 0.15±0.03",
        "Hjelm et al. (2018) / Robust": "29.75±1.49 15.08±0.63 22.79±1.42 10.28±0.52",
        "Worst-case MI / Standard": "62.54±0.12 14.06±0.69 50.29±0.58 10.98±0.49",
        "Worst-case MI / Standard (E.S.)": "51.59±3.34 27.53±0.81 48.55±0.63 13.52±0.16",
        "Worst-case MI / Robust": "52.34±0.17 31.52±0.31 43.55±0.10 25.15±0.10",
        "Fully-Supervised / Standard": "86.33±0.17 0.07±0.02 86.36±0.13 0.02±0.01",
        "Fully-Supervised / Robust": "70.71±0.58 40.50±0.27 72.44±0.59 39.98±0.16",
    },
}

# 70 of all 499 numbers, drawn by random.Random(9).sample(range(499), 70) with the papers in alphabetical order, then
# read once more in the papers with their spreads: paper | table | row | column | number
DRAWN = """
gowal2021 | text | BYORL, l2, all labels, further images | CIFAR-10 / Robust | 77.61
gowal2021 | text | Engstrom et al. (2019) | CIFAR-10 / Robust | 69.24
gowal2021 | 1 | BYORL, linf | CIFAR-100 / 1% / Robust | 5.28
gowal2021 | 1 | BYORL, linf | CIFAR-100 / 100% / Robust | 14.82
gowal2021 | 1 | UAT-FT, linf | CIFAR-100 / 1% / Robust | 2.18
gowal2021 | 1 | UAT-FT, linf | CIFAR-100 / 100% / Robust | 7.21
gowal2021 | 2 | BYORL, clean head | CIFAR-10 / Robust | 77.09
gowal2021 | 2 | BYORL, AT head | CIFAR-100 / Clean | 48.34
gowal2021 | 2 | BYORL, clean head | CIFAR-100 / Robust | 27.17
gowal2021 | 4 | PGD, 5 steps | CIFAR-10 / Robust | 1.05
gowal2021 | 4 | PGD, 20 steps | CIFAR-10 / Robust | 42.58
gowal2021 | 5 | BYORL, AT head, linf | ImageNet / 100% / Clean | 65.14
gowal2021 | 5 | BYORL, AT head, linf | ImageNet / 10% / Robust | 41.58
gowal2021 | 5 | BYORL, AT head, l2 | ImageNet / 100% / Robust | 65.48
gowal2021 | 6 | BYORL, AT head | CIFAR-10 / Robust | 52.75
gowal2021 | 6 | BYORL, clean head | CIFAR-100 / Clean | 39.51
liu2025 | 1 | Identity | Robust / PGD-10 | 73.46 ± 1.96
liu2025 | 1 | Identity | Robust / AutoAttack | 45.28 ± 2.14
liu2025 | 1 | Identity + LoRA | Clean / PGD-20 | 33.55 ± 2.09
liu2025 | 1 | VAE | Clean / PGD-10 | 57.23 ± 2.18
liu2025 | 1 | Vanilla | Clean / Natural | 99.31
liu2025 | 1 | ARAE | Robust / AutoAttack | 81.78 ± 1.67
liu2025 | 1 | CRoPD, λ = 0.1 | Robust / PGD-20 | 71.10 ± 1.99
liu2025 | 1 | CRoPD, λ = 1 | Robust / Natural | 96.31
liu2025 | 2 | Identity | CIFAR-10 / PGD-20 | 1.19 ± 0.21
liu2025 | 2 | Identity + LoRA | CIFAR-10 / Natural | 88.10
liu2025 | 2 | Identity + LoRA | CIFAR-10 / PGD-10 | 3.90 ± 0.37
liu2025 | 2 | CRoPD | CIFAR-10 / AutoAttack | 66.05 ± 0.95
liu2025 | 2 | Identity | ImagenetTe / PGD-20 | 21.57 ± 1.26
liu2025 | 2 | Identity + LoRA | ImagenetTe / Natural | 96.97
liu2025 | 2 | Vanilla | ImagenetTe / Natural | 92.30
liu2025 | 2 | ARAE | ImagenetTe / AutoAttack | 34.41 ± 1.46
liu2025 | 2 | Identity | SVHN / Natural | 99.85
liu2025 | 2 | Identity | SVHN / PGD-10 | 33.60 ± 0.35
liu2025 | 2 | Identity | CIFAR-100 / PGD-10 | 6.15 ± 0.47
liu2025 | 2 | VAE | CIFAR-100 / AutoAttack | 13.76 ± 0.67
liu2025 | 2 | Vanilla | Tiny-Imagenet / PGD-10 | 13.07 ± 0.68
liu2025 | 2 | ARAE | Tiny-Imagenet / Natural | 67.34
liu2025 | 8 | Encoder-Only | CIFAR-10 / Clean | 65.58 ± 0.94
liu2025 | 9 | CRoPD, 50% of the images, λ = 10 | PGD-10 | 25.75 ± 0.84
liu2025 | 10 | Identity | Clean / PGD-20 | 0.74 ± 0.38
liu2025 | 10 | Vanilla | Clean / Natural | 98.31
liu2025 | 10 | Vanilla | Clean / PGD-20 | 0.35 ± 0.25
liu2025 | 10 | Identity, fine-tuned | Clean / PGD-20 | 0.00 ± 0.00
liu2025 | 10 | Identity, fine-tuned | Robust / Natural | 97.66
nguyen2022 | 1 | AT | Adversarial Acc | 98.5 ± 0.2
nguyen2022 | 1 | VAE + Urkle | Adversarial Acc | 98.0 ± 0.1
nguyen2022 | 2 | Standard Training | Fully Labeled Data / 8/255 | 0.00
nguyen2022 | 2 | Standard Training | 5000 Labeled Data / Clean | 79.09
nguyen2022 | 2 | AT | 5000 Labeled Data / Clean | 64.97
nguyen2022 | 2 | AT | 5000 Labeled Data / 8/255 | 24.52
nguyen2022 | 2 | TRADES | 5000 Labeled Data / 16/255 | 7.78
nguyen2022 | 2 | RoCL | Fully Labeled Data / Clean | 83.71
nguyen2022 | 2 | RoCL | Fully Labeled Data / 8/255 | 40.27
nguyen2022 | 2 | SimCLR+Urkle | Fully Labeled Data / Clean | 82.31
nguyen2022 | 2 | SimCLR+Urkle | Fully Labeled Data / 16/255 | 14.29
nguyen2022 | 3 | Standard Training | Fully Labeled Data / 8/255 | 0.00
nguyen2022 | 3 | SimCLR | 5000 Labeled Data / Clean | 53.23
nguyen2022 | 3 | SimCLR | 1000 Labeled Data / Clean | 44.16
nguyen2022 | 3 | RoCL | Fully Labeled Data / 8/255 | 22.00
nguyen2022 | 3 | RoCL | 5000 Labeled Data / 8/255 | 18.86
nguyen2022 | 3 | RoCL | 5000 Labeled Data / 16/255 | 7.25
nguyen2022 | 3 | RoCL | 1000 Labeled Data / Clean | 30.23
nguyen2022 | 3 | SimCLR+Urkle | Fully Labeled Data / 8/255 | 24.82
nguyen2022 | 3 | SimCLR+Urkle | 1000 Labeled Data / 16/255 | 6.71
nguyen2022 | 4 | SimCLR + Urkle | Adversarial Acc | 25.69
zhu2020 | 1 | Hjelm et al. (2018) / Standard | Linear h / Natural | 47.01 ± 0.53
zhu2020 | 1 | Worst-case MI / Standard | MLP h / Natural | 62.54 ± 0.12
zhu2020 | 1 | Worst-case MI / Standard (E.S.) | MLP h / Adversarial | 27.53 ± 0.81
zhu2020 | 1 | Worst-case MI / Robust | MLP h / Natural | 52.34 ± 0.17
"""


@pytest.mark.parametrize("where", SECOND, ids=" ".join)
def test_two_transcriptions_agree(where: tuple[str, str]) -> None:
    paper, table = where
    rows: dict[str, list[str]] = {}
    for v in results.published(paper, table=table):
        spread = f"±{v.spread:.{v.decimals}f}" if v.spread is not None and paper == "zhu2020" else ""
        rows.setdefault(v.row, []).append(f"{v.value:.{v.decimals}f}{spread}")
    assert {row: " ".join(numbers) for row, numbers in rows.items()} == SECOND[where]


def test_numbers_drawn_at_random_agree_with_a_second_reading_and_so_do_their_spreads() -> None:
    printed = {(v.paper, v.table, v.row, v.column): str(v) for p in results.papers() for v in results.published(p)}
    lines = [line.split(" | ") for line in DRAWN.strip().splitlines()]
    assert len({tuple(line[:4]) for line in lines}) == len(lines) >= 60
    assert {line[0] for line in lines} == {"gowal2021", "liu2025", "nguyen2022", "zhu2020"}
    for *cell, number in lines:
        assert printed[tuple(cell)] == number, cell


def test_clean_numbers_have_no_threat() -> None:
    for paper in results.papers():
        for v in results.published(paper):
            clean = v.column.rsplit(" / ", 1)[-1] in ("Natural", "Clean", "Clean Acc")
            assert clean == (v.threat is None), f"{paper}, table {v.table}: {v.row}, {v.column}"


def test_the_page_shows_every_paper_and_says_which_has_no_number() -> None:
    cells = json.loads((ROOT / "book" / "paper_against_ours.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert sorted(re.findall(r'^show\("(\w+)"\)$', text, re.M)) == results.papers()
    assert "cemgil2019" not in results.papers() and "prints no numeric result" in text
    assert "results.count(values)" in text
