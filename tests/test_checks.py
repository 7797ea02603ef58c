"""Bad arguments are refused in one sentence that says what came and what was expected."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from robrep.checks import check_images, check_labels, nonnegative, one_of, positive_int


def test_one_of() -> None:
    assert one_of("keep", "best", ("last", "best")) == "best"
    with pytest.raises(ValueError, match=r"keep is 'bset', expected one of 'last', 'best' \(did you mean 'best'\?\)"):
        one_of("keep", "bset", ("last", "best"))
    with pytest.raises(ValueError, match="expected one of 'a', 'b'$"):
        one_of("x", "zzzzzz", iter("ab"))
    with pytest.raises(ValueError, match="x is 3"):
        one_of("x", 3, "ab")  # type: ignore[arg-type]


def test_positive_int() -> None:
    assert positive_int("steps", 1) == 1
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"steps is {value}, expected at least 1"):
            positive_int("steps", value)
    for wrong in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match=re.escape(f"steps is {wrong!r}, expected an integer")):
            positive_int("steps", wrong)  # type: ignore[arg-type]


def test_nonnegative() -> None:
    for value in (0, 0.0, 2, np.float32(0.5), np.float64(0.5)):
        assert nonnegative("eps", value) == value  # type: ignore[arg-type]
        assert type(nonnegative("eps", value)) is float  # type: ignore[arg-type]
    for value in (-1e-9, math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match=f"eps is {value}, expected a finite number of at least 0"):
            nonnegative("eps", value)
    for wrong in ("0.1", None, True, 1j, [0.1]):
        with pytest.raises(TypeError, match="eps is .*expected a number"):
            nonnegative("eps", wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_check_images_passes_the_same_tensor(dtype: torch.dtype) -> None:
    x = torch.linspace(0, 1, 24).view(2, 1, 3, 4).to(dtype)
    assert check_images(x) is x
    assert check_images(x.requires_grad_()) is x


BAD_IMAGES: list[tuple[Any, type[Exception], str]] = [
    (np.zeros((1, 1, 2, 2)), TypeError, "x is a ndarray, expected a torch.Tensor"),
    (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), TypeError, r"dtype torch.uint8, expected floating point.*as_float"),
    (torch.zeros(1, 1, 2, 2, dtype=torch.bool), TypeError, "dtype torch.bool"),
    (torch.zeros(1, 1, 2, 2, dtype=torch.complex64), TypeError, "dtype torch.complex64"),
    (torch.zeros(1, 2, 2), ValueError, r"shape \(1, 2, 2\), expected N x C x H x W"),
    (torch.zeros(1, 1, 1, 2, 2), ValueError, r"shape \(1, 1, 1, 2, 2\)"),
    (torch.zeros(()), ValueError, r"shape \(\)"),
    (torch.zeros(0, 1, 2, 2), ValueError, r"shape \(0, 1, 2, 2\), expected at least one image"),
    (torch.zeros(1, 0, 2, 2), ValueError, "expected at least one image"),
    (torch.full((1, 1, 1, 2), 1.001), ValueError, r"values from 1.001 to 1.001, expected finite values in \[0, 1\]"),
    (torch.tensor([-1e-3, 1]).view(1, 1, 1, 2), ValueError, "values from -0.001 to 1"),
    (torch.tensor([0.5, math.nan]).view(1, 1, 1, 2), ValueError, "values from nan"),
    (torch.tensor([0.5, math.inf]).view(1, 1, 1, 2), ValueError, "to inf"),
    (torch.tensor([-math.inf, 0]).view(1, 1, 1, 2), ValueError, "from -inf"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD_IMAGES)
def test_check_images_refuses(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_images(x)
    with pytest.raises(error, match="^pictures "):
        check_images(x, "pictures")


def test_check_labels_passes() -> None:
    y = torch.tensor([0, 2, 1])
    assert check_labels(y) is y
    assert check_labels(y, 3, 3) is y


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        ([0, 1], TypeError, "y is a list, expected a torch.Tensor"),
        (torch.tensor([0, 1], dtype=torch.int32), TypeError, "y has dtype torch.int32, expected torch.int64"),
        (torch.tensor([0.0, 1.0]), TypeError, "y has dtype torch.float32"),
        (torch.tensor([[0, 1]]), ValueError, r"y has shape \(1, 2\), expected a vector"),
        (torch.tensor(1), ValueError, r"y has shape \(\)"),
        (torch.zeros(0, dtype=torch.int64), ValueError, r"y has shape \(0,\)"),
        (torch.tensor([0, 1, 2]), ValueError, "y has 3 labels, expected 2, one for each image"),
        (torch.tensor([0, 3]), ValueError, r"labels from 0 to 3, expected labels in 0 \.\.\. 2"),
        (torch.tensor([-1, 1]), ValueError, r"labels from -1 to 1, expected labels in 0 \.\.\. 2"),
    ],
)
def test_check_labels_refuses(y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_labels(y, 2, 3)


def test_check_labels_without_a_number_of_classes() -> None:
    with pytest.raises(ValueError, match="expected labels of at least 0"):
        check_labels(torch.tensor([-1]))
