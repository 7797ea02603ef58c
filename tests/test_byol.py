"""BYOL and BYORL: loss, moving average, who gets a gradient, what the attack leaves alone; networks, probes."""

from __future__ import annotations

import copy
import math
import shlex
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robrep.attacks import APGD, L2, PGD, Linf
from robrep.augmentations import digit_augmentation
from robrep.book import early_stopping, reproduce, results
from robrep.book.early_stopping import fit_stopped, train_head_stopped
from robrep.encoders import NormMLP, PreActResNet
from robrep.evaluation import robust_accuracy
from robrep.heads import Classifier, pseudo_labels
from robrep.losses import cosine_distance
from robrep.methods import BYOL, BYORL, AdversarialTraining, Supervised, ema_rate
from robrep.training import fit

AUGMENT = digit_augmentation()


def parts(seed: int = 0, double: bool = False) -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(seed)
    made = PreActResNet((1,), base=8), NormMLP(8, 16, 6), NormMLP(6, 16, 6)
    return tuple(m.double() if double else m for m in made)  # type: ignore[return-value]


def batch(n: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x, torch.zeros(n, dtype=torch.int64), torch.arange(n)


def robust(attack=None, threat=None, seed: int = 0) -> BYORL:
    return BYORL(*parts(seed), AUGMENT, attack or PGD(3), threat or Linf(0.1)).train()


def test_cosine_distance_is_that_of_unit_vectors() -> None:
    a, b = (torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    expected = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1)
    torch.testing.assert_close(cosine_distance(a, b), expected)
    torch.testing.assert_close(cosine_distance(3 * a, 0.1 * b), expected)
    torch.testing.assert_close(cosine_distance(a, -a), torch.full((7,), 4.0, dtype=torch.float64))
    assert torch.autograd.gradcheck(cosine_distance, (a.requires_grad_(), b.requires_grad_()))


def test_rate_follows_half_a_cosine() -> None:
    assert ema_rate(0, 100) == pytest.approx(0.996) and ema_rate(100, 100) == 1.0
    assert ema_rate(50, 100, 0.9) == pytest.approx(0.95)
    rates = [ema_rate(k, 40, 0.5) for k in range(41)]
    assert rates == sorted(rates)
    assert ema_rate(10, 40, 0.5) == pytest.approx(1 - 0.5 * (math.cos(math.pi / 4) + 1) / 2)


def test_loss_by_hand() -> None:
    """Symmetrised, the target's vectors constant; each view its own batch."""
    method = BYOL(*parts(), AUGMENT).train()
    x, y, ids = batch()
    twin = copy.deepcopy(method)
    v, w = twin.views(x, ids, 5)
    f, g, q, target = twin.encoder, twin.projector, twin.predictor, twin.target

    def unit(t: torch.Tensor) -> torch.Tensor:
        return t / t.norm(dim=1, keepdim=True)

    by_hand = sum(
        (unit(q(g(f(a)))) - unit(target(b))).square().sum(1).mean() for a, b in ((v, w), (w, v))
    )  # fmt: skip
    terms = method(x, y, ids, 5)
    assert list(terms) == ["byol"]
    torch.testing.assert_close(terms["byol"], by_hand)
    assert not torch.equal(v, w)


def test_only_the_online_networks_learn() -> None:
    method = robust()
    x, y, ids = batch()
    method(x, y, ids, 0)["byorl"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.predictor.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.encoder.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())


def test_moving_average_moves_parameters_and_no_statistics() -> None:
    method = BYOL(*parts(), AUGMENT, base_rate=0.9)
    before = [p.clone() for p in method.target.parameters()]
    statistics = [b.clone() for b in method.target.buffers()]
    with torch.no_grad():
        for p in method.parameters():
            if p.requires_grad:
                p.add_(1.0)
    for m in (method.encoder, method.projector):
        for b in m.buffers():
            b.add_(3)
    method.after_step(0, 10)
    for p, old in zip(method.target.parameters(), before, strict=True):
        torch.testing.assert_close(p, old + 0.1)
    assert all(torch.equal(a, b) for a, b in zip(method.target.buffers(), statistics, strict=True))
    method.after_step(10, 10)  # at the end tau is 1: the target stands still
    torch.testing.assert_close(next(method.target.parameters()), before[0] + 0.1)


def test_fit_moves_the_target() -> None:
    method = robust(PGD(1))
    before = copy.deepcopy(method.target.state_dict())
    x, y, _ = batch(16)
    fit(method, x, y, epochs=2, batch_size=8, lr=1e-2)
    after = method.target.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before if "weight" in k)
    assert not any(torch.equal(before[k], after[k]) for k in before if k.endswith("running_mean"))
    assert all(not m.training for m in method.modules())


@pytest.mark.parametrize("attack", [PGD(4), APGD(4)], ids=str)
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=str)
def test_attack_lowers_the_cosine_and_leaves_statistics_alone(attack, threat) -> None:
    method = robust(attack, threat)
    x, _, ids = batch()
    v, w = method.views(x, ids, 1)
    z = method.project(w)
    state = copy.deepcopy(method.state_dict())
    v_adv = method.worst(v, z, ids, 1)
    assert all(torch.equal(state[k], value) for k, value in method.state_dict().items())
    assert all(m.training for m in method.modules()) and all(p.grad is None for p in method.parameters())
    delta = (v_adv - v).flatten(1)
    size = delta.abs().amax(1) if isinstance(threat, Linf) else delta.norm(dim=1)
    assert size.max() <= threat.eps + 1e-6 and v_adv.min() >= 0 and v_adv.max() <= 1
    with torch.no_grad():
        random = threat.start(v, ids, 9)
        assert method.distance(v_adv, z).mean() > method.distance(v, z).mean() + 0.01
        assert method.distance(v_adv, z).mean() > method.distance(random, z).mean()


def test_each_view_is_attacked_against_the_targets_projection_of_the_other() -> None:
    calls = []

    def attack(objective, v, threat, *given, ids, seed):
        calls.append((v, given, ids))
        return v

    method = robust(attack)
    x, y, ids = batch()
    views = method.views(x, ids, 5)
    method.forward(x, y, ids, 5)
    targets = [method.project(v) for v in views]
    assert len(calls) == 2 and not torch.allclose(*targets)
    for number, (v, (z,), of) in enumerate(calls):
        assert torch.equal(v, views[number]) and torch.equal(of, 2 * ids + number)
        torch.testing.assert_close(z, targets[1 - number])


def test_the_printed_step_goes_the_wrong_way() -> None:
    """Eq. 6 of Gowal et al. adds the gradient of the cosine."""
    method = robust()
    x, _, ids = batch()
    v, w = method.views(x, ids, 1)
    z = method.project(w)
    right = method.worst(v, z, ids, 1)
    printed = PGD(3)(lambda x_, z_: -method.distance(x_, z_), v, Linf(0.1), z, ids=ids, seed=1)
    with torch.no_grad():
        clean = method.distance(v, z).mean()
        assert method.distance(printed, z).mean() < clean < method.distance(right, z).mean()


def test_attack_uses_the_batch_statistics() -> None:
    """Running statistics may be anything: the adversary does not change. And nobody leaves the batch early."""
    method, other = robust(), robust()
    for m in other.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean.fill_(7.0)
            m.running_var.fill_(0.01)
    x, _, ids = batch()
    v, w = method.views(x, ids, 1)
    z = method.project(w)
    torch.testing.assert_close(method.worst(v, z, ids, 1), other.worst(v, z, ids, 1))
    with pytest.raises(ValueError, match="leave_early"):
        robust(PGD(2, leave_early=True)).worst(v, z, ids, 1)


def test_same_seed_same_step() -> None:
    x, y, ids = batch()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first, second, third = (robust()(x, y, ids, seed)["byorl"] for seed in (4, 4, 5))
    assert first == second != third
    torch.manual_seed(3)
    assert torch.equal(state, torch.random.get_rng_state())


def test_bad_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="base_rate is 1.5"):
        BYOL(*parts(), AUGMENT, base_rate=1.5)


# --- networks ---------------------------------------------------------------------------------------------------------


def preact_parameters(w: int, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> int:
    """Counted by hand: stem, two 3 x 3 convolutions and two norms a block, a 1 x 1 shortcut where the width changes."""
    before = 64 * w
    total = 3 * 9 * before
    for stage, count in enumerate(blocks):
        after = 64 * w * 2**stage
        for block in range(count):
            total += 9 * before * after + 9 * after * after + 2 * before + 2 * after
            total += before * after if before != after else 0
            before = after
            assert block >= 0
    return total + 2 * before


@pytest.mark.parametrize("width", [1, 2, 4])
def test_preact_resnet_34(width: int) -> None:
    with torch.device("meta"):
        encoder = PreActResNet(width=width)
        assert encoder.dim == 512 * width
        assert sum(p.numel() for p in encoder.parameters()) == preact_parameters(width)
        assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 512 * width)
        seen = []
        encoder.features.stages[0].register_forward_hook(lambda *a: seen.append(a[2].shape))
        encoder(torch.zeros(2, 3, 32, 32))
        assert seen[0] == (2, 64 * width, 32, 32)  # the stem does not shrink the image


def test_preact_resnet_has_batch_norm_that_the_attack_can_hold_still() -> None:
    torch.manual_seed(0)
    encoder = PreActResNet((1, 1), base=8)
    method = BYORL(encoder, NormMLP(16, 8, 4), NormMLP(4, 8, 4), AUGMENT, PGD(2), Linf(0.1)).train()
    assert sum(isinstance(m, nn.BatchNorm2d) for m in encoder.modules()) == 5
    x, _, ids = batch(4)
    state = copy.deepcopy(method.state_dict())
    method.worst(x, method.target(x).detach(), ids, 0)
    assert all(torch.equal(state[k], v) for k, v in method.state_dict().items() if "target" not in k)


def test_bad_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="base is 12"):
        PreActResNet(base=12)
    assert NormMLP(8, 16, 6)[3].bias is None and NormMLP(8, 16, 6)[0].bias is not None


# --- pseudo-labels and probes -----------------------------------------------------------------------------------------


def test_pseudo_labels_keep_what_is_known() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 3)).train()
    x, _, _ = batch(40)
    y, labelled = torch.full((40,), 2), torch.tensor([3, 7, 8])
    made = pseudo_labels(model, x, y, labelled, batch_size=7)
    assert model.training and model[1].num_batches_tracked == 0
    rest = torch.ones(40, dtype=torch.bool)
    rest[labelled] = False
    assert (made[labelled] == 2).all()
    torch.testing.assert_close(made[rest], model.eval()(x).argmax(1)[rest])
    assert torch.equal(pseudo_labels(model, x, y, torch.arange(40)), y)
    with pytest.raises(ValueError, match="labelled runs from 3 to 40"):
        pseudo_labels(model, x, y, torch.tensor([3, 40]))


@pytest.mark.parametrize("attack", [None, PGD(2)], ids=["clean", "adversarial"])
def test_probe_keeps_the_best_epoch_and_the_encoder(attack) -> None:
    encoder = parts()[0].train()
    x, _, _ = batch(60)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    head, threat = nn.Linear(8, 2), Linf(0.02)
    state = copy.deepcopy(encoder.state_dict())
    history = train_head_stopped(
        encoder, head, x[:40], y[:40], (x[40:], y[40:]), PGD(2), threat, attack=attack, epochs=6, batch_size=16, lr=0.1
    )
    assert all(torch.equal(state[k], v) for k, v in encoder.state_dict().items())
    assert encoder.training and all(p.requires_grad for p in encoder.parameters())
    judged = [row["robust"] for row in history]
    kept = [row["robust"] for row in history if row["kept"]][-1]
    assert len(judged) == 6 and kept == max(judged)
    again = robust_accuracy(Classifier(encoder, head, 0), x[40:], y[40:], PGD(2), threat, seed=0).value
    assert again == pytest.approx(kept)


def test_the_first_of_the_best_epochs_is_kept_not_the_last_epoch_and_no_tie(monkeypatch) -> None:
    """The judge is told what to say, so that the best epoch is neither the first nor the last one."""
    x, _, _ = batch(40)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    torch.manual_seed(0)
    model = Classifier(parts()[0], nn.Linear(8, 2), 0)
    verdicts, states = [0.25, 0.75, 0.75, 0.5], []

    def judged(model, *args, **kwargs):
        states.append(copy.deepcopy(model.state_dict()))
        return SimpleNamespace(value=verdicts[len(states) - 1])

    monkeypatch.setattr(early_stopping, "robust_accuracy", judged)
    method = Supervised(model.encoder, model.head)
    history = fit_stopped(method, model, x, y, (x, y), PGD(1), Linf(0.1), epochs=4, batch_size=10, lr=0.05)
    assert [row["kept"] for row in history] == [1.0, 1.0, 0.0, 0.0] and [row["robust"] for row in history] == verdicts
    left = model.state_dict()
    same = [all(torch.equal(left[k], state[k]) for k in left) for state in states]
    assert same == [False, True, False, False]


def test_early_stopping_goes_on_where_it_was_cut_short(tmp_path, monkeypatch) -> None:
    """The best epoch so far is a part of the checkpoint."""
    x, _, _ = batch(60)
    y = (x.mean((1, 2, 3)) > 0.5).long()

    def trained(cache=None, judge_steps=2):
        f, _, _ = parts()
        torch.manual_seed(0)
        model = Classifier(f, nn.Linear(8, 2), 0)
        method = AdversarialTraining(f, model.head, PGD(2), Linf(0.02))
        judge = dict(judged_on=(x[40:], y[40:]), judge=PGD(judge_steps), threat=Linf(0.02), every=2)
        history = fit_stopped(method, model, x[:40], y[:40], **judge, epochs=6, batch_size=16, lr=0.05, cache=cache,
                              save_every=0)  # fmt: skip
        return history, model.state_dict()

    def same(a, b):
        return all(torch.equal(a[k], b[k]) for k in a)

    history, state = trained()
    assert [("robust" in row) for row in history] == [False, True] * 3
    seen, real = [], early_stopping.robust_accuracy

    def broken(*args, **kwargs):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(early_stopping, "robust_accuracy", broken)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    resumed, state_resumed = trained(tmp_path)
    assert len(seen) == 4, "the epochs that were judged before are not judged again"
    assert same(state, state_resumed)
    assert [row.get("robust") for row in resumed] == [row.get("robust") for row in history]
    assert len(list(tmp_path.glob("*.pt"))) == 1
    again, loaded = trained(tmp_path)
    assert len(seen) == 4 and same(state, loaded) and len(again) == 6, "a finished one is loaded"
    trained(tmp_path, judge_steps=3)
    assert len(list(tmp_path.glob("*.pt"))) == 2, "another judge is another training"


@pytest.mark.slow
@pytest.mark.parametrize(("table", "row"), [("4", "PGD, 5 steps"), ("text", "BYORL, l2, 500 labels")])
def test_the_command_of_a_published_number_records_what_answers_it(table, row, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path))
    numbers = [v for v in results.published("gowal2021", table=table) if v.row == row]
    _, _, _, chapter, *given = shlex.split(results.command(numbers[0]))
    given = reproduce.parse(given, reproduce.defaults(reproduce.find_chapter(chapter)))
    given |= {"SCALE": "smoke", "DATASET": "", "SETTINGS": given["SETTINGS"] | {"transfer": (), "shares": (0.01, 1)}}
    reproduce.reproduce(chapter, **given | {"SETTINGS": given["SETTINGS"] | {"suite_shares": (0.01, 1)}})
    (run,) = results.runs(chapter, row="byorl", folder=tmp_path)
    for value in numbers:
        asked = dict(setting.split("=") for setting in value.match["variant"].split("-"))
        assert all(str(run.settings[name]) == text for name, text in asked.items())
        assert value.match["metric"] in run.metrics


@pytest.mark.slow
def test_the_rival_is_a_row_and_heads_move_to_other_data(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ROBREP_RESULTS", str(tmp_path))
    reproduce.reproduce("byorl", SCALE="smoke", ROWS="uat_ft")
    whole, part = (
        results.load_run("byorl", f"smoke-digits-uat_ft-0{variant}", folder=tmp_path) for variant in ("", "-share=0.1")
    )
    assert whole["right"].value == 1 > part["right"].value
    for key in ("digits_0.1", "digits_1", "digits_1_clean_head"):
        clean, robust, suite = (whole[f"{kind}_{key}"] for kind in ("clean", "robust", "robust_suite"))
        assert clean.value >= robust.value
        assert suite.n * suite.value <= clean.n * clean.value, "the suite's images are some of all images"
    assert "robust_suite" in whole.metrics and "clean_digits_1" not in part.metrics
    assert len(list(results.runs("byorl", folder=tmp_path))) == 2
