"""DINO's loss and heads against a slow twin, lightly, and vit-pytorch: values and gradients on the same inputs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor, nn
from vit_pytorch.dino import MLP, loss_fn

from cass_scale.errors import ConfigError
from cass_scale.losses import dino, sharpened
from cass_scale.methods.heads import authors_head, learner_head


def given(views: int, answers: int, images: int = 4, k: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the teacher and of the student, and a centre."""
    g = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(v, images, k, generator=g, dtype=torch.float64) for v in (views, answers))
    return teacher, student.requires_grad_(), torch.randn(k, generator=g, dtype=torch.float64)


def slow(teacher: Tensor, student: Tensor, centre: Tensor, sharp: float, soft: float) -> float:
    """Pair after pair, image after image, in plain numbers."""
    terms = []
    for t, s in [(t, s) for t in range(len(teacher)) for s in range(len(student)) if t != s]:
        for said, answer in zip(teacher[t].tolist(), student[s].tolist(), strict=True):
            targets = [math.exp((x - c) / sharp) for x, c in zip(said, centre.tolist(), strict=True)]
            norm = math.log(sum(math.exp(x / soft) for x in answer))
            terms.append(-sum(p / sum(targets) * (x / soft - norm) for p, x in zip(targets, answer, strict=True)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("views", "answers"), [(2, 10), (2, 2), (2, 1)])
def test_equals_its_slow_twin_and_its_gradient_is_right(views: int, answers: int) -> None:
    teacher, student, centre = given(views, answers)
    targets = sharpened(teacher, centre, temperature=0.4)
    ours = dino(targets, student, student_temperature=0.7)
    assert ours.item() == pytest.approx(slow(teacher, student, centre, 0.4, 0.7), rel=1e-10)
    assert torch.autograd.gradcheck(lambda z: dino(targets, z, student_temperature=0.7), (student,))


@pytest.mark.parametrize("answers", [10, 2])
def test_equals_lightly_with_its_centre(answers: int) -> None:
    teacher, student, centre = given(2, answers)
    theirs = DINOLoss(output_dim=9, student_temp=0.1).double()
    theirs.center.copy_(centre)
    want = theirs(list(teacher), list(student), teacher_temp=0.04)
    ours = dino(sharpened(teacher, centre, temperature=0.04), student, student_temperature=0.1)
    torch.testing.assert_close(ours, want)
    ours_grad, want_grad = (torch.autograd.grad(loss, student)[0] for loss in (ours, want))
    torch.testing.assert_close(ours_grad, want_grad)


def test_two_crops_each_equal_the_learners_loss() -> None:
    teacher, student, centre = given(2, 2)
    keys = {"teacher_temp": 0.04, "student_temp": 0.9, "centers": centre}
    want = (loss_fn(teacher[0], student[1], **keys) + loss_fn(teacher[1], student[0], **keys)) / 2
    ours = dino(sharpened(teacher, centre, temperature=0.04), student, student_temperature=0.9)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(torch.autograd.grad(ours, student)[0], torch.autograd.grad(want, student)[0])


def test_it_computes_in_float32_whatever_comes_in() -> None:
    teacher, student, centre = (x.detach().bfloat16() for x in given(2, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        targets = sharpened(teacher, centre.float(), temperature=0.04)
        inside = dino(targets, student)
    assert targets.dtype == inside.dtype == torch.float32
    assert torch.equal(inside, dino(sharpened(teacher.float(), centre.float(), temperature=0.04), student.float()))


def test_the_teacher_gets_no_gradient_and_large_scores_stay_finite() -> None:
    teacher, student, centre = given(2, 3)
    targets = sharpened((teacher * 1e6).requires_grad_(), centre, temperature=0.02)
    assert not targets.requires_grad
    torch.testing.assert_close(targets.sum(-1), torch.ones(2, 4, dtype=torch.float64))
    assert torch.isfinite(dino(targets, student * 1e4))


def test_a_collapse_to_the_uniform_answer_is_ln_k() -> None:
    same = torch.zeros(2, 4, 1024)
    assert dino(sharpened(same, same[0, 0], temperature=0.04), same).item() == pytest.approx(math.log(1024))


def test_views_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 1 of the teacher's, 1 of the student's: two or more work"):
        dino(torch.ones(1, 4, 3), torch.ones(1, 4, 3))


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("batchnorm", [False, True])
def test_the_authors_head_equals_lightlys(batchnorm: bool) -> None:
    torch.manual_seed(0)
    ours = authors_head(6, prototypes=20, hidden=12, bottleneck=5, batchnorm=batchnorm)
    theirs = DINOProjectionHead(6, 12, 5, 20, batch_norm=batchnorm)
    mine = {name.replace("mlp.", "layers."): value for name, value in ours.state_dict().items()}
    if batchnorm:  # lightly leaves out the biases that the authors' code has: BatchNorm takes them away again
        mine = {name: value for name, value in mine.items() if name not in ("layers.0.bias", "layers.3.bias")}
    mine["last_layer.weight_v"] = mine.pop("prototypes.weight")
    assert theirs.load_state_dict(mine, strict=False).unexpected_keys == []
    x = torch.randn(7, 6)
    one, other = ours(x), theirs(x)
    torch.testing.assert_close(one, other)
    aim = torch.randn(7, 20)
    mine_grad, theirs_grad = (gradients(F.mse_loss(y, aim), head) for y, head in ((one, ours), (other, theirs)))
    torch.testing.assert_close(mine_grad["prototypes.weight"], theirs_grad["last_layer.weight_v"])
    torch.testing.assert_close(mine_grad["mlp.0.weight"], theirs_grad["layers.0.weight"])


def test_the_learners_head_equals_its_mlp() -> None:
    torch.manual_seed(0)
    ours, theirs = learner_head(6, prototypes=20, hidden=5), MLP(6, 20, 4, 5)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x, aim = torch.randn(7, 6), torch.randn(7, 20)
    torch.testing.assert_close(ours(x), theirs(x))
    one, other = (gradients(F.mse_loss(head(x), aim), head) for head in (ours, theirs))
    torch.testing.assert_close(list(one.values()), list(other.values()))


def test_scores_are_cosines_in_float32_under_autocast() -> None:
    head = authors_head(6, prototypes=20, hidden=12, bottleneck=5)
    with torch.no_grad():
        head.prototypes.weight.mul_(100)  # its length is frozen at 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(torch.randn(7, 6))
    assert found.dtype == torch.float32 and found.abs().max() <= 1 + 1e-6
    assert not torch.equal(found, found.bfloat16().float())
