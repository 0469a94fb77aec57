"""DINO as a module: equal to two reference implementations step by step; what moves, what rests, what is refused."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightly.loss import DINOLoss
from torch import Tensor, nn
from torch import distributed as td
from torch.nn.parallel import DistributedDataParallel
from vit_pytorch.dino import Dino as Learner

from cass_scale import encoders, losses, monitor, optim
from cass_scale.encoders import ArmSpec
from cass_scale.errors import ConfigError
from cass_scale.methods.dino import DINO
from cass_scale.methods.heads import authors_head, learner_head
from cass_scale.schedule import Rates
from cass_scale.types import Batch, Crop, Progress, ViewSpec

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
VIT = ArmSpec("vit_tiny_patch16_224", args={"dynamic_img_size": True, "depth": 2}, **PLAIN)  # type: ignore[arg-type]
CNN = ArmSpec("resnet10t", **PLAIN)  # type: ignore[arg-type]
BATCH = Batch(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4))
HEAD = partial(authors_head, prototypes=24, hidden=16, bottleneck=8)


def made(spec: ArmSpec = VIT, **keys: Any) -> DINO:
    torch.manual_seed(0)
    student_temperature = keys.pop("student_temperature", 0.1)
    objective = partial(losses.dino, student_temperature=student_temperature)
    return DINO({"arm": encoders.build(spec, 32, 0)}, objective, **{"head": HEAD, "freeze": 0} | keys)


def views(*sizes: int, images: int = 4, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(images, 3, size, size, generator=g) for size in sizes]


MULTICROP = (32, 32, 16, 16, 16)


def at(step: int, total: int = 10) -> Progress:
    return Progress(0, step, 4 * step, 4 * total)


def step(method: DINO, optimizer: torch.optim.Optimizer, crops: list[Tensor], number: int) -> Tensor:
    loss = method(crops, BATCH, at(number)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(at(number + 1))
    return loss.detach()


def sgd(method: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr)


class Given(nn.Module):
    """Hands out views that were chosen before, in place of random crops."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[Tensor] = []

    def forward(self, _: Tensor) -> Tensor:
        return self.left.pop(0)


def test_three_steps_equal_those_of_the_learner_that_the_paper_names() -> None:
    head = partial(learner_head, prototypes=24, hidden=16)
    ours = made(head=head, sees="locals", ema=0.9, ema_end=0.9, student_temperature=0.9)
    keys = {"hidden_layer": "head_drop", "projection_hidden_size": 16, "num_classes_K": 24, "image_size": 32}
    net = copy.deepcopy(ours.student.encoder.body)
    theirs = Learner(net, augment_fn=nn.Identity(), augment_fn2=nn.Identity(), **keys)  # type: ignore[arg-type]
    for part in (theirs.student_encoder, theirs.teacher_encoder):
        named = zip(part.projector.state_dict(), ours.student.head.state_dict().values(), strict=True)
        part.projector.load_state_dict(dict(named))
    theirs.global_crop, theirs.local_crop = Given(), Given()
    optimizers = sgd(ours), sgd(theirs.student_encoder)
    for number in range(3):
        crops = views(32, 32, 32, 32, seed=number)
        theirs.global_crop.left, theirs.local_crop.left = crops[:2], crops[2:]
        want = theirs(torch.zeros(4, 3, 32, 32))
        want.backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
        theirs.update_moving_average()
        torch.testing.assert_close(step(ours, optimizers[0], crops, number), want.detach())
    for mine, other in ((ours.student, theirs.student_encoder), (ours.teacher, theirs.teacher_encoder)):
        torch.testing.assert_close(list(mine.parameters()), list(other.parameters()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.centre, theirs.teacher_centers[0])


@pytest.mark.parametrize("spec", [VIT, CNN], ids=["vit", "cnn"])
def test_three_steps_equal_the_authors_loop_written_out_with_lightlys_loss(spec: ArmSpec) -> None:
    ours = made(spec)
    student, teacher = (copy.deepcopy(part) for part in (ours.student, ours.teacher))
    loss_of, optimizer, other = DINOLoss(24), sgd(ours), sgd(student)
    for number in range(3):
        crops = views(*MULTICROP, seed=number)
        with torch.no_grad():
            said = teacher(torch.cat(crops[:2])).outputs.chunk(2)
        features = torch.cat([student.encoder(torch.cat(crops[:2])), student.encoder(torch.cat(crops[2:]))])
        want = loss_of(list(said), list(student.head(features).chunk(5)), teacher_temp=0.04)
        want.backward()
        other.step()
        other.zero_grad()
        momentum = 1 - 0.004 * (1 + math.cos(math.pi * number / 10)) / 2
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(momentum).add_(fast, alpha=1 - momentum)
        torch.testing.assert_close(step(ours, optimizer, crops, number), want.detach())
    for mine, theirs in ((ours.student, student), (ours.teacher, teacher)):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.centre, loss_of.center[0, 0])


def test_crops_of_one_size_pass_as_one_batch_and_only_global_ones_reach_the_teacher() -> None:
    method, seen = made(), []
    for who in (method.teacher, method.student):
        who.encoder.register_forward_pre_hook(lambda _, images, who=who: seen.append((who, tuple(images[0].shape))))
    method(views(*MULTICROP), BATCH, at(0))
    assert seen == [
        (method.teacher, (8, 3, 32, 32)), (method.student, (8, 3, 32, 32)), (method.student, (12, 3, 16, 16))
    ]  # fmt: skip


def test_the_optimizer_holds_the_student_alone_and_each_weight_once() -> None:
    method = made(freeze=1)
    groups = method.param_groups()
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in method.student.parameters())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    method(views(*MULTICROP), BATCH, at(0)).loss.backward()
    assert all(p.grad is not None for p in method.student.parameters())
    names = {id(p): name for name, p in method.student.named_parameters()}
    bare = [names[id(p)] for group in groups if not group["decay_scale"] for p in group["params"]]
    assert {"encoder.body.norm.bias", "encoder.body.norm.weight", "head.mlp.0.bias"} <= set(bare)
    assert not any(name.endswith(("pos_embed", "mlp.0.weight", "prototypes.weight")) for name in bare)
    resting = [names[id(p)] for group in groups if group["frozen_epochs"] for p in group["params"]]
    assert resting == ["head.prototypes.weight"]


def test_prototypes_rest_in_the_first_epoch_and_decay_follows_its_schedule() -> None:
    method = made(freeze=1)
    optimizer = optim.build(method.param_groups(), name="adamw", lr=1.0, weight_decay=9.0, momentum=0.0, fused=True)
    rests, moves = method.student.head.prototypes.weight, method.student.encoder.body.cls_token
    for epoch in (0, 1):
        before = rests.detach().clone(), moves.detach().clone()
        optim.set_rates(optimizer, Rates(1e-3, 0.04 + epoch), epoch)
        step(method, optimizer, views(*MULTICROP, seed=epoch), epoch)
        assert torch.equal(rests, before[0]) is (epoch == 0) and not torch.equal(moves, before[1])
    assert sorted({group["weight_decay"] for group in optimizer.param_groups}) == [0.0, 1.04]


def test_each_gradient_is_cut_by_its_own_norm() -> None:
    cut = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    for p, size in zip(cut, (30.0, 4.0, 1.0), strict=True):
        p.grad = torch.tensor([size, 0.0, 0.0])
    optim.clip_each_([*cut, nn.Parameter(torch.zeros(1))], 3.0)
    assert [p.grad.norm().item() for p in cut if p.grad is not None] == pytest.approx([3.0, 3.0, 1.0])


def test_the_teacher_follows_from_its_first_share_to_rest() -> None:
    method = made(ema=0.5, ema_end=1.0)
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.zero_()
        for p in method.student.parameters():
            p.fill_(1.0)
    found = []
    for number in (1, 6, 101):
        method._means = [torch.zeros(24)]
        method.after_step(at(number, total=10 if number < 10 else 101))
        found.append(method.teacher.head.prototypes.weight[0, 0].item())
    assert found == pytest.approx([0.5, 0.625, 0.625], abs=1e-4)


def test_the_teacher_drops_nothing_and_batchnorm_keeps_its_own_statistics() -> None:
    method = made(ArmSpec("vit_tiny_patch16_224", args={"drop_path_rate": 0.5, "drop_rate": 0.5, "depth": 3}))
    method.train()
    one, other = (method.teacher(views(32)[0]).features for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(*(method.student(views(32)[0]).features for _ in range(2)))
    cnn = made(CNN)
    optimizer = sgd(cnn)
    step(cnn, optimizer, views(*MULTICROP), 0)
    mine, theirs = (part.encoder.body.bn1 for part in (cnn.student, cnn.teacher))
    assert theirs.num_batches_tracked == 1 and mine.num_batches_tracked == 2  # once per size of crop
    assert not torch.equal(mine.running_mean, theirs.running_mean)


def test_micro_batches_move_centre_and_teacher_once_per_step() -> None:
    whole, parts = made(), made()
    crops = views(*MULTICROP)
    whole(crops, BATCH, at(0))
    for half in (slice(0, 2), slice(2, 4)):
        before = parts.centre.clone()
        parts([crop[half] for crop in crops], BATCH, at(0))
        assert torch.equal(parts.centre, before)
    for method in (whole, parts):
        method.after_step(at(1))
    torch.testing.assert_close(parts.centre, whole.centre)
    assert whole.centre.abs().sum() > 0


def test_off_the_cpu_no_step_reads_data_back() -> None:
    """Tensors without data fail at anything that would have to wait for a device."""
    with torch.device("meta"):
        method = made()
        crops = [torch.empty(4, 3, size, size) for size in MULTICROP]
    method(crops, BATCH, at(0)).loss.backward()
    optim.clip_each_(method.student.parameters(), 3.0)
    method.after_step(at(1))
    assert method.centre.is_meta


def test_the_temperature_warms_up_with_the_samples_seen() -> None:
    method = made(temperature=0.07, temperature_start=0.04, warmup=0.3)
    assert [method._temperature(at(s)) for s in (0, 1, 3, 10)] == pytest.approx([0.04, 0.05, 0.07, 0.07])


def test_the_monitor_sees_the_teacher_and_tells_a_collapse_of_either_kind() -> None:
    method = made()
    probe = monitor.Monitor(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)))

    def look() -> list[str]:
        return [arm for arm, _ in probe.verdict(probe(lambda view: method.outputs([view]), method))]

    said = method.outputs(views(32))["arm"].outputs
    torch.testing.assert_close(said.sum(1), torch.ones(4))
    assert look() == []
    last = method.teacher.head.mlp[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(1.0)
    assert look() == ["arm"], "one answer for all"
    method.centre.copy_(method.teacher(views(32)[0]).outputs[0])
    assert look() == ["arm"], "the uniform answer"
    assert method(views(*MULTICROP), BATCH, at(0)).metrics["teacher_entropy"].item() == pytest.approx(1.0, abs=1e-3)


def test_both_networks_are_exported_the_teacher_under_the_arms_name() -> None:
    method = made(CNN)
    assert method.encoders() == {"arm": method.teacher.encoder, "arm_student": method.student.encoder}


@pytest.mark.parametrize(
    ("arms", "spec", "objective", "said"),
    [
        (2, ViewSpec((Crop(32, 2),)), "dino", "arms: a, b; DINO trains one encoder: choose it with arm=a or arm=b"),
        (1, ViewSpec((Crop(32, 2),)), "cosine", "objective=cosine: DINO works with dino"),
        (1, ViewSpec((Crop(32, 2),), per_arm="own"), "dino", "views.per_arm=own: DINO has one arm; use shared"),
        (1, ViewSpec((Crop(32),)), "dino", "sizes [32]; DINO's first 2 views are global, of one size"),
        (1, ViewSpec((Crop(32), Crop(16, 4))), "dino", "sizes [32, 16, 16, 16, 16]; DINO's first 2"),
        (1, ViewSpec((Crop(32, 2), Crop(16, 4))), "dino", ""),
    ],
)
def test_what_it_cannot_work_with_is_known_before_anything_is_built(
    arms: int, spec: ViewSpec, objective: str, said: str
) -> None:
    found = DINO.problems(dict(zip("ab"[:arms], (VIT, CNN), strict=False)), spec, objective)
    assert said in "".join(found) and len(found) == bool(said)


def test_two_arms_are_refused_when_built_too() -> None:
    pair = {name: encoders.build(CNN, 32, 0) for name in "ab"}
    with pytest.raises(ConfigError, match="choose it with arm=a or arm=b"):
        DINO(pair, losses.dino, head=HEAD)


def test_a_student_of_local_views_needs_some() -> None:
    with pytest.raises(ConfigError, match=r"method\.sees=locals: views\.crops has no local views"):
        made(sees="locals")(views(32, 32), BATCH, at(0))


def trained(model: nn.Module, method: DINO, crops: list[Tensor]) -> dict[str, Tensor]:
    """State after two steps, and the last loss."""
    optimizer = sgd(method)
    for number in range(2):
        loss = model(crops, BATCH, at(number)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(at(number + 1))
    return {"loss": loss.detach(), **method.state_dict()}


def half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    method = made()
    mine = [crop[4 * rank : 4 * rank + 4] for crop in views(*MULTICROP, images=8)]
    found = trained(DistributedDataParallel(method), method, mine)
    td.all_reduce(found["loss"])
    if rank == 1:
        torch.save(found | {"loss": found["loss"] / 2}, f"{folder}/found.pt")
    td.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(half, args=(str(tmp_path),), nprocs=2)
    found, method = torch.load(tmp_path / "found.pt", weights_only=True), made()
    torch.testing.assert_close(found, trained(method, method, views(*MULTICROP, images=8)), rtol=1e-4, atol=1e-5)
