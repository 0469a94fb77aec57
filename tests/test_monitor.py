"""The monitor measures without disturbing, and its verdicts fit runs of real encoders that were looked at by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cass_scale.losses import infonce
from cass_scale.monitor import (
    PAIR,
    Monitor,
    between_cosine,
    linear_cka,
    matched_and_shuffled,
    output_std,
    rankme,
    verdict,
)
from cass_scale.types import ArmOutput


class Arms(nn.Module):
    """Two small arms with everything that could be disturbed: BatchNorm, dropout, a frozen part."""

    def __init__(self, names: tuple[str, ...] = ("cnn", "vit"), outputs: tuple[int, ...] = (12, 12)) -> None:
        super().__init__()
        self.bodies = nn.ModuleDict(
            {n: nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.ReLU()) for n in names}
        )
        self.heads = nn.ModuleDict(
            {n: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, k)) for n, k in zip(names, outputs, strict=True)}
        )

    def forward(self, images: Tensor) -> dict[str, ArmOutput]:
        features = {name: body(images) for name, body in self.bodies.items()}
        return {name: ArmOutput(f, self.heads[name](f)) for name, f in features.items()}


@pytest.fixture
def probe() -> Tensor:
    return torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_output_std_is_1_for_isotropic_and_0_for_constant() -> None:
    x = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0))
    assert output_std(x).item() == pytest.approx(1, abs=0.02)
    assert output_std(torch.ones(10, 50)).item() == pytest.approx(0, abs=1e-12)


def test_between_cosine_is_the_mean_over_pairs_of_different_images() -> None:
    x = torch.randn(7, 5, dtype=torch.float64)
    pairs = [torch.cosine_similarity(x[i], x[j], dim=0) for i in range(7) for j in range(7) if i != j]
    torch.testing.assert_close(between_cosine(x), torch.stack(pairs).mean())
    assert between_cosine(torch.ones(4, 3)).item() == pytest.approx(1, abs=1e-12)


def test_rankme_counts_directions_and_is_not_centred() -> None:
    basis = torch.linalg.qr(torch.randn(64, 64)).Q
    assert rankme(basis[:, :8]).item() == pytest.approx(8, rel=1e-3)
    noise = 1e-4 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    assert rankme(1.0 + noise).item() < 1.1  # a centred rank would be about 30: it sees the noise only
    assert rankme(torch.zeros(4, 4)).isfinite()


def test_rankme_reads_at_most_512_rows() -> None:
    x = torch.randn(600, 4)
    torch.testing.assert_close(rankme(x), rankme(x[:512]))


def test_cka_ignores_rotation_and_scale_and_is_low_for_independent_features() -> None:
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)).double()
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert linear_cka(x, 3 * x @ turn + 1).item() == pytest.approx(1)
    assert linear_cka(x, torch.randn(400, 9, generator=torch.Generator().manual_seed(1))).item() < 0.1
    assert linear_cka(x, torch.ones(400, 2)).item() == 0


def test_matched_and_shuffled_differ_only_when_the_image_is_in_the_outputs() -> None:
    x = torch.eye(8)
    matched, shuffled = matched_and_shuffled(x, 2 * x)
    assert (matched.item(), shuffled.item()) == (pytest.approx(0, abs=1e-9), pytest.approx(2))
    matched, shuffled = matched_and_shuffled(torch.ones(8, 4), torch.ones(8, 4))
    assert matched.item() == pytest.approx(shuffled.item(), abs=1e-9)


def test_row_has_the_keys_of_the_record(probe: Tensor) -> None:
    arms = Arms()
    each = ("output_std", "between_cosine", "rankme_outputs", "rankme_features")
    both = {"probe/cka", "probe/matched", "probe/shuffled"}
    row = Monitor(probe)(arms, arms)
    assert set(row) == {f"probe/{a}/{k}" for a in ("cnn", "vit") for k in each} | both
    assert all(type(v) is float and math.isfinite(v) for v in row.values())
    one = Arms(("cnn",), (5,))
    assert set(Monitor(probe)(one, one)) == {f"probe/cnn/{k}" for k in each}
    uneven = Arms(outputs=(12, 7))
    assert set(row) - set(Monitor(probe)(uneven, uneven)) == {"probe/matched", "probe/shuffled"}


def test_measuring_leaves_no_trace(probe: Tensor) -> None:
    arms = Arms().train()
    arms.bodies["cnn"].eval()  # a frozen part inside a training module
    flags = [m.training for m in arms.modules()]
    before = {k: v.clone() for k, v in arms.state_dict().items()}
    state = torch.get_rng_state()

    def noisy(images: Tensor) -> dict[str, ArmOutput]:
        torch.rand(3)  # an arm that draws
        return arms(images)  # type: ignore[no-any-return]

    first, second = Monitor(probe)(noisy, arms), Monitor(probe)(noisy, arms)
    assert first == second
    assert [m.training for m in arms.modules()] == flags
    assert all(torch.equal(v, before[k]) for k, v in arms.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_modes_come_back_when_an_arm_raises(probe: Tensor) -> None:
    arms = Arms().train()
    with pytest.raises(ZeroDivisionError):
        Monitor(probe)(lambda images: {"cnn": 1 // 0}, arms)  # type: ignore[dict-item]
    assert all(m.training for m in arms.modules())


def test_outputs_that_are_not_finite_are_a_verdict_not_a_crash(probe: Tensor) -> None:
    arms, monitor = Arms(), Monitor(probe)
    monitor(arms, arms)
    arms.bodies["vit"][1].weight.data.fill_(math.nan)
    found = monitor.verdict(monitor(arms, arms))
    assert found == [("vit", "its outputs are not finite numbers (NaN or infinity)")]


def test_chunks_do_not_change_the_numbers(probe: Tensor) -> None:
    arms = Arms()
    assert Monitor(probe, chunk=5)(arms, arms) == pytest.approx(Monitor(probe)(arms, arms), rel=1e-5)


def test_half_precision_arms_are_measured_in_full(probe: Tensor) -> None:
    arms = Arms()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        row = Monitor(probe)(arms, arms)
    assert row == pytest.approx(Monitor(probe)(arms, arms), rel=0.1, abs=0.02)


def test_first_row_is_the_baseline_and_a_resumed_run_can_set_it(probe: Tensor) -> None:
    arms, monitor = Arms(), Monitor(probe)
    row = monitor(arms, arms)
    assert monitor.verdict(row) == []
    arms.heads["cnn"][1].weight.data.zero_()
    assert [arm for arm, _ in monitor.verdict(monitor(arms, arms))] == ["cnn"]
    assert monitor.baseline == row
    resumed = Monitor(probe)
    resumed.baseline = row
    assert [arm for arm, _ in resumed.verdict(resumed(arms, arms))] == ["cnn"]


# (between-image cosine CNN, ViT, loss on true pairs, on shuffled pairs)
Numbers = tuple[float, float, float, float]
RANDOM: Numbers = (0.741, 0.991, 1.98, 1.98)  # the null control on brain MRI, random weights
PRETRAINED: Numbers = (0.60, 0.40, 1.93, 1.95)  # table 2, initial weights; its cosines are not recorded


def row_of(numbers: Numbers) -> dict[str, float]:
    keys = ("probe/cnn/between_cosine", "probe/vit/between_cosine", "probe/matched", "probe/shuffled")
    return dict(zip(keys, numbers, strict=True))


def judge(now: Numbers, start: Numbers) -> list[tuple[str, str]]:
    return verdict(row_of(now), row_of(start), spread=0.05, fraction=0.1, gap=0.1)


@pytest.mark.parametrize(
    "now",
    [(0.998, 0.9997, 0.0041, 0.0041), (0.9997, 0.9999, 1.2e-4, 1.2e-4), (1.0, 1.0, 4e-6, 4e-6)],
    ids=["epoch 1", "epoch 6", "epoch 40"],
)
def test_collapse_from_random_weights_is_found_in_both_arms_and_the_pair(now: Numbers) -> None:
    assert [arm for arm, _ in judge(now, RANDOM)] == ["cnn", "vit", PAIR]


@pytest.mark.parametrize("loss", [0.00241, 0.00005, 0.00032])
def test_collapse_from_pretrained_weights_is_found(loss: float) -> None:
    cosine = 1 - loss / 2  # what a shuffled loss this small leaves
    assert PAIR in [arm for arm, _ in judge((cosine, cosine, loss, loss), PRETRAINED)]


@pytest.mark.parametrize(
    ("now", "start"),
    [
        (RANDOM, RANDOM),  # the null control: loss 1.98 throughout
        ((0.70, 0.991, 1.96, 1.96), RANDOM),  # null, BatchNorm refreshed
        ((0.95, 0.93, 0.096, 0.279), PRETRAINED),  # CASS at lr 1e-5, falling
        ((0.10, 0.05, 0.60, 1.90), PRETRAINED),  # infonce
        ((0.02, 0.01, 0.30, 2.00), RANDOM),  # infonce from random weights
        ((0.70, 0.65, 0.3, 0.8), PRETRAINED),  # arms come closer, images told apart
        ((0.74, 0.875, 0.456, 0.460), RANDOM),  # sinkhorn, step 20: arms turn to each other, spread grows
    ],
)
def test_no_alarm(now: Numbers, start: Numbers) -> None:
    assert judge(now, start) == []


def test_constant_outputs_that_do_not_agree_are_found_in_each_arm() -> None:
    """infonce with constant outputs: its loss is ln B and the arms need not agree."""
    assert [arm for arm, _ in judge((1.0, 1.0, 1.4, 1.4), PRETRAINED)] == ["cnn", "vit"]


def test_one_arm_is_judged_by_its_spread() -> None:
    start = {"probe/net/between_cosine": 0.3}
    for now, found in ((0.97, ["net"]), (0.9, []), (0.3, [])):
        row = {"probe/net/between_cosine": now}
        assert [a for a, _ in verdict(row, start, spread=0.05, fraction=0.1, gap=0.1)] == found


def test_the_reasons_have_the_numbers() -> None:
    why = dict(judge((0.998, 0.9997, 0.0041, 0.0041), RANDOM))
    assert "all images get the same output" in why["cnn"]
    assert "0.9980, at the start 0.7410" in why["cnn"]
    assert "warning above 0.9741" in why["cnn"]
    assert "same image 0.0041, when they see different images 0.0041, at the start 1.98 and 1.98" in why[PAIR]


def test_two_arms_that_start_alike_are_judged_as_a_pair() -> None:
    """Two random ViTs: spread cannot fall to a tenth of next to nothing, but they agree about nothing."""
    assert [arm for arm, _ in judge((0.998, 0.997, 0.004, 0.004), (0.991, 0.991, 1.98, 1.98))] == [PAIR]


@pytest.mark.parametrize(("objective", "collapses"), [("cosine", True), ("infonce", False)])
def test_a_real_run_is_judged_rightly(probe: Tensor, objective: str, collapses: bool) -> None:
    torch.manual_seed(0)
    arms, monitor = Arms(), Monitor(probe)
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cosine": lambda x, y: (2 - 2 * torch.cosine_similarity(x, y)).mean(),
        "infonce": infonce,
    }
    monitor(arms, arms)
    optimizer = torch.optim.Adam(arms.parameters(), lr=1e-2)
    for _ in range(150):
        x, y = (out.outputs for out in arms(probe).values())
        optimizer.zero_grad()
        losses[objective](x, y).backward()
        optimizer.step()
    assert bool(monitor.verdict(monitor(arms, arms))) == collapses
