"""What the chapter on CRoPD claims, read from the records behind it: the live run and the committed ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robrep.book import results
from robrep.encoders import MaskedAutoEncoder, Projector
from robrep.foundation import Chain, FrozenFoundation

SUITE = ("PGD-10", "PGD-20", "APGD-CE", "APGD-T", "FAB-T", "Square")


@pytest.fixture
def recorded(root: Path) -> Path:
    return root / "book" / "results"


def some(folder: Path, row: str, variant: str = "") -> list[results.Run]:
    found = results.runs("cropd", scale="demo", dataset="digits", row=row, variant=variant, folder=folder)
    assert found, f"{row} {variant} is not recorded"
    assert [r.seed for r in found] == list(range(len(found)))
    return found


def three(folder: Path, row: str, variant: str = "") -> list[results.Run]:
    found = some(folder, row, variant)
    assert len(found) >= 3
    return found


def mean(found: list[results.Run], metric: str) -> float:
    return sum(r[metric].value for r in found) / len(found)


def check_gap(cropd: results.Run, rival: results.Run) -> None:
    assert cropd.settings == rival.settings and cropd.settings["eps"] == 0.1 and cropd.settings["weight"] == 1.0
    assert cropd["worst"].attack == rival["worst"].attack and cropd["worst"].n == rival["worst"].n == 300
    assert cropd["worst"].value - rival["worst"].value >= 0.15
    assert cropd["worst"].low > rival["worst"].high, "the intervals touch"


def check_attacks(one: results.Run) -> None:
    assert one["worst"].value <= one["pgd20"].value <= one["pgd10"].value <= one["clean"].value
    assert one["radius_1"].low <= 0.1, "at radius 1 any image may become any other"


@pytest.mark.book
def test_live_demo_run(demo_results: Path) -> None:
    live = {
        row: results.load_run("cropd", results.run_name("demo", "digits", row, 0), folder=demo_results)
        for row in ("identity", "vanilla", "cropd")
    }
    for row in ("identity", "vanilla"):
        check_gap(live["cropd"], live[row])
    for one in live.values():
        check_attacks(one)


@pytest.mark.parametrize("rival", ["identity", "vanilla"])
def test_recorded_runs(recorded: Path, rival: str) -> None:
    for a, b in zip(three(recorded, "cropd"), three(recorded, rival), strict=True):
        check_gap(a, b)
        check_attacks(a)
        check_attacks(b)


def test_arae_lies_between(recorded: Path) -> None:
    vanilla, arae, cropd = (mean(three(recorded, row), "worst") for row in ("vanilla", "arae", "cropd"))
    assert vanilla < arae < cropd


def test_robustness_is_not_a_cleaner_image(recorded: Path) -> None:
    """CRoPD rebuilds worse than Vanilla, and most of an attack's length comes out again."""
    vanilla, cropd = three(recorded, "vanilla"), three(recorded, "cropd")
    assert mean(cropd, "error") > 3 * mean(vanilla, "error")
    assert mean(cropd, "gain") > 0.5


def test_who_knows_the_preprocessor_breaks_more(recorded: Path) -> None:
    """Gradients through it are better than those past it, and both better than images made for the bare model."""
    for one in three(recorded, "cropd"):
        assert one["worst"].value <= one["pgd20"].value < one["through"].value < one["bare"].value


def test_no_attack_of_the_suite_is_below_the_worst_case(recorded: Path) -> None:
    for one in three(recorded, "cropd"):
        so_far = [one[f"until_{name}"].value for name in SUITE]
        assert so_far == sorted(so_far, reverse=True)
        assert min(one[f"alone_{name}"].value for name in SUITE) >= one["worst"].value
        assert one["worst"].value == pytest.approx(so_far[-1], abs=0.011)


def test_arae_shrinks_what_its_attack_looks_through(recorded: Path) -> None:
    for one in three(recorded, "arae"):
        assert one.curves["training_latent"]["y"][-1] < 1e-5


def test_with_labels_the_encoder_alone_is_better(recorded: Path) -> None:
    """Unlike in the paper's Table 8; the page says so."""
    for alone, cropd in zip(three(recorded, "encoder_only"), three(recorded, "cropd"), strict=True):
        assert alone["worst"].low > cropd["worst"].high


def test_few_images_and_other_classes_do(recorded: Path) -> None:
    """With as many steps a tenth of the images is nearly enough, and digits 0 to 4 teach for 5 to 9."""
    vanilla, cropd = three(recorded, "vanilla"), three(recorded, "cropd")
    assert mean(some(recorded, "cropd", "share=0.1"), "pgd20") > mean(cropd, "pgd20") - 0.1
    assert mean(some(recorded, "cropd", "below=5"), "pgd20_unseen") > mean(vanilla, "pgd20_unseen") + 0.05


def test_it_helps_less_before_a_robust_foundation_model(recorded: Path) -> None:
    gains = [
        mean(three(recorded, "cropd", v), "pgd20") - mean(three(recorded, "identity", v), "pgd20")
        for v in ("", "foundation=rocl")
    ]
    assert 0 < gains[1] < gains[0] / 2


def test_the_whole_suite_finds_little_more(recorded: Path) -> None:
    (one,) = some(recorded, "harder")
    assert 0 <= one["limited"].value - one["whole"].value <= 0.05


def test_lora_fits_and_does_not_defend(recorded: Path) -> None:
    """On the same small ViT-MAE: adapters read more clean images than a head alone, and nothing is left of it."""
    for lora, plain in zip(
        some(recorded, "lora", "foundation=mae"), some(recorded, "identity", "foundation=mae"), strict=True
    ):
        assert lora.settings == plain.settings and lora.settings["foundation"] == "mae"
        check_attacks(lora)
        check_attacks(plain)
        assert lora["clean"].low > plain["clean"].high and lora["worst"].high < 0.1


def test_a_vae_is_between_identity_and_cropd(recorded: Path) -> None:
    for one in some(recorded, "vae"):
        identity, cropd = (some(recorded, row)[one.seed]["worst"] for row in ("identity", "cropd"))
        check_attacks(one)
        assert one["worst"].attack == cropd.attack and one["worst"].n == cropd.n == 300
        assert identity.high < one["worst"].low and one["worst"].high < cropd.low


def lite(folder: Path, row: str, variant: str = "") -> results.Run:
    (one,) = results.runs("cropd", scale="lite", dataset="cifar2", row=row, variant=variant, seed=0, folder=folder)
    return one


@pytest.mark.parametrize("row", ["vae", "vanilla", "arae", "cropd"])
def test_rows_at_lite_are_judged_alike(recorded: Path, row: str) -> None:
    """The same images, attacks and foundation model as Identity; at radius 1 nothing is left."""
    one, plain = lite(recorded, row), lite(recorded, "identity")
    assert one.data == plain.data and one["worst"].n == 192
    for name in (
        "eps",
        "suite",
        "foundation",
        "foundation_widths",
        "foundation_epochs",
        "head_epochs",
        "robust_epochs",
    ):
        assert one.settings[name] == plain.settings[name]
    for head in ("", "_robust_head"):
        assert one[f"worst{head}"].attack == plain[f"worst{head}"].attack
        assert one[f"worst{head}"].value <= one[f"pgd20{head}"].value <= one[f"clean{head}"].value
    assert one["radius_1"].value == 0


def test_on_photographs_cropd_is_above_identity_and_vanilla(recorded: Path) -> None:
    """Clean heads, one seed, 192 images: the intervals are apart."""
    for row in ("identity", "vanilla"):
        assert lite(recorded, "cropd")["worst"].low > lite(recorded, row)["worst"].high


def test_on_photographs_the_small_vae_is_not_below_cropd(recorded: Path) -> None:
    """The page says that it keeps more, against the print, and that the intervals touch."""
    vae, cropd = (lite(recorded, row)["worst"] for row in ("vae", "cropd"))
    assert vae.value > cropd.value and vae.low <= cropd.high


def test_the_four_numbers_of_the_masks(recorded: Path) -> None:
    for one in some(recorded, "masking"):
        assert one["averaged_all"].value == pytest.approx(one["single_all"].value, abs=0.011)
        assert one["unstable_all"].value == 0 < one["unstable_quarter"].value
        assert one["single_all"].value <= one["averaged_quarter"].value < one["single_quarter"].value
    sums = [sum(one[name].value for one in some(recorded, "masking")) for name in ("single_all", "averaged_quarter")]
    assert sums[0] < sums[1]  # the page's means


def test_published_numbers_are_not_answered_by_demo_runs(recorded: Path) -> None:
    values = results.published("liu2025")
    assert len(values) == 252
    for value in values:
        answer = results.ours(value, folder=recorded)
        assert answer is None or answer.runs[0].scale in ("lite", "full")


def test_the_print_contradicts_itself_as_the_page_says() -> None:
    cells = {(v.table, v.row, v.column): v for v in results.published("liu2025")}
    assert cells["2", "CRoPD", "CIFAR-10 / AutoAttack"].value > cells["2", "CRoPD", "CIFAR-10 / PGD-20"].value
    for kind in ("Natural", "PGD-10", "PGD-20"):
        robust, fine_tuned = (
            cells["10", "Identity", f"Robust / {kind}"],
            cells["10", "Identity, fine-tuned", f"Clean / {kind}"],
        )
        assert robust.value == fine_tuned.value
    both = (
        cells["8", "CRoPD", "CIFAR-10 / Clean"],
        cells["9", "CRoPD, 100% of the images, λ = 10", "Clean"],
    )
    assert both[0].value == both[1].value and both[0].spread != both[1].spread


def test_intervals_of_svhn_belong_to_the_training_split() -> None:
    """n = 1.96^2 p (1 - p) / h^2: the other data sets come out at the size of their test split."""

    def implied(table: str, prefix: str) -> list[float]:
        found = [v for v in results.published("liu2025", table=table) if v.column.startswith(prefix)]
        return sorted(1.96**2 * v.value * (100 - v.value) / v.spread**2 for v in found if v.spread and 5 < v.value < 95)

    for table, prefix, test in (("1", "", 2_000), ("2", "CIFAR-10 ", 10_000), ("2", "ImagenetTe", 3_925)):
        sizes = implied(table, prefix)
        assert sizes[len(sizes) // 2] == pytest.approx(test, rel=0.05)
    svhn = implied("2", "SVHN")
    assert svhn[0] > 2 * 26_032 and svhn[len(svhn) // 2] == pytest.approx(73_257, rel=0.05)


def test_the_full_setting_constructs_and_has_the_papers_size() -> None:
    """Auto-encoder and projector, 18.45 million parameters; the chain with ViT-MAE-large runs on meta."""
    from transformers import ViTMAEConfig, ViTMAEModel

    from robrep.foundation import ViTMAE

    with torch.device("meta"):
        config = ViTMAEConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        large = ViTMAEModel(config)
        model = MaskedAutoEncoder.named("low_resolution", 32)
        projector = Projector(model.dim, 2048, 128)
        head = torch.nn.Linear(1024, 2)
        logits = Chain(FrozenFoundation(model, ViTMAE(large)), head)(torch.zeros(2, 3, 32, 32))
    size = sum(p.numel() for module in (model, projector) for p in module.parameters())
    assert abs(size - 18.45e6) < 2e4
    assert abs(sum(p.numel() for p in large.parameters()) - 303.3e6) < 1e6
    assert tuple(logits.shape) == (2, 2)
    with torch.device("meta"):  # Table 12 says 27.6 % of the foundation model: the large auto-encoder without projector
        share = sum(p.numel() for p in MaskedAutoEncoder.named("high_resolution", 224).parameters()) / 303.3e6
    assert round(100 * share, 1) == 27.6


def others(folder: Path, row: str) -> results.Run:
    (one,) = results.runs("cropd", scale="lite", dataset="cifar10", row=row, variant="", seed=0, folder=folder)
    assert one.settings["foundation"] == "pyautoattack" and one.settings["eps"] == 8 / 255
    return one


@pytest.mark.parametrize("row", ("identity", "vae", "vanilla", "arae", "cropd"))
def test_in_front_of_a_classifier_by_others_nothing_survives(recorded: Path, row: str) -> None:
    one = others(recorded, row)
    for head in ("", "_own_head", "_robust_head"):
        rates = [one[f"{name}{head}"] for name in ("clean", "pgd10", "pgd20", "worst")]
        assert [r.value for r in rates] == sorted((r.value for r in rates), reverse=True)
        assert rates[-1].value == 0 and rates[0].n == 200
    assert one["whole_own_head"].value == one["radius_1"].value == 0


def test_why_cropd_fails_in_front_of_it(recorded: Path) -> None:
    alone, m = others(recorded, "identity"), others(recorded, "cropd")
    assert m["clean_own_head"].high < m["clean"].value < 0.5 * alone["clean_own_head"].value
    bare = dict(zip((round(255 * r) for r in alone.curves["radius"]["x"]), alone.curves["radius"]["y"], strict=True))
    assert bare[0] == alone["clean_own_head"].value > 0.9 and bare[4] == 0 and 0.3 < bare[1] < 0.6
    assert 8 * m["gain"].value > 4, "what passes is more than the radius at which the bare classifier is lost"
    assert m["bare"].value > 0.9 * m["clean"].value, "an attack on the bare classifier hardly transfers"


def test_in_front_of_it_who_rebuilds_better_keeps_more_and_withstands_no_more(recorded: Path) -> None:
    alone = others(recorded, "identity").curves["radius"]
    rebuilt = [others(recorded, row) for row in ("vae", "vanilla", "arae", "cropd")]
    by_error = sorted(rebuilt, key=lambda m: m["error"].value)
    assert by_error == sorted(rebuilt, key=lambda m: m["clean"].value, reverse=True)
    curves = [m.curves["radius"] for m in rebuilt]
    assert [round(255 * r) for r in alone["x"]] == [0, 1, 2, 4, 8] and all(c["x"] == alone["x"] for c in curves)
    assert max(c["y"][1] for c in curves) < 0.5 * alone["y"][1]
    assert all(y < 0.1 for c in (alone, *curves) for y in c["y"][2:]), "less than guessing"
