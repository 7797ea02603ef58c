"""A project for a class: attack and defend a representation, judged on hidden images.

    python -m robrep.book.project start FOLDER        # write a first submission
    python -m robrep.book.project judge SUBMISSIONS   # a leaderboard of the folders in SUBMISSIONS

The page "A project" of the book says how it is played.
"""

from __future__ import annotations

from dataclasses import dataclass

from robrep.augmentations import Augment


@dataclass(frozen=True)
class Game:
    """What a class plays, at one scale.

    Attributes:
        data: the data set's name; participants train on its training images and choose on its validation images.
        radius: of the l-inf ball, in 255ths, so that an image rounded to 8 bits stays inside.
        images: number of hidden test images.
        audited: how many of them the audit sees.
        steps, queries: the most that the judge's attacks take.
        numbers: the most that a submission's weights may hold; fewer than it takes to store all images.
        flops: the most that its encoder may take for one image.
        entries: the most intermediate values that it may make for one image.
        change: turns test images into hidden ones.
    """

    data: str
    radius: int
    images: int
    audited: int
    steps: int
    queries: int
    numbers: int
    flops: int
    entries: int
    change: Augment

    @property
    def eps(self) -> float:
        """The radius in [0, 1]."""
        return self.radius / 255


def _turned(shift: float, flip: bool = False) -> Augment:
    return Augment(crop=None, flip=flip, rotate=10, shift=shift, zoom=0.1, jitter=None, grey_share=0)


GAMES = {
    "demo": Game("digits", 26, 300, 150, 40, 1000, 100_000, 20_000_000, 1_000_000, _turned(0.05)),
    "lite": Game("mnist", 25, 500, 150, 100, 2000, 2_000_000, 200_000_000, 4_000_000, _turned(0.05)),
    "lite-cifar10": Game(
        "cifar10", 8, 500, 150, 100, 2000, 12_000_000, 2_000_000_000, 16_000_000, _turned(0.05, flip=True)
    ),
}
