"""CASS as a module: which arm sees what, what the objective compares, what trains and what does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cass_scale import encoders, losses, optim
from cass_scale.encoders import ArmSpec, Encoder
from cass_scale.errors import ConfigError
from cass_scale.methods.base import Method, views_by_arm
from cass_scale.methods.cass import CASS
from cass_scale.methods.supervised import Supervised
from cass_scale.schedule import Rates
from cass_scale.types import Batch, Progress

SIZE, NOW = 32, Progress(0, 3, 12, 100)
CNN, VIT = ArmSpec("resnet10t", outputs=16), ArmSpec("vit_tiny_patch16_224", outputs=16)
BATCH = Batch(torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8), torch.arange(4))


def arms(cnn: ArmSpec = CNN, vit: ArmSpec = VIT) -> dict[str, tuple[Encoder, nn.Linear]]:
    return {"cnn": encoders.build(cnn, SIZE, 0), "vit": encoders.build(vit, SIZE, 1)}


def view(seed: int = 0) -> Tensor:
    return torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_objective_between_both_heads_and_reaches_every_weight() -> None:
    method = CASS(arms(), losses.cosine)
    out = method([view()], BATCH, NOW)
    (cnn, head), (vit, other) = arms().values()
    x, y = head(cnn(view())), other(vit(view()))
    torch.testing.assert_close(out.loss, (2 - 2 * torch.cosine_similarity(x, y)).mean())
    torch.testing.assert_close(out.metrics["agreement"], torch.cosine_similarity(x, y).mean())
    assert not out.metrics["agreement"].requires_grad
    out.loss.backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


def test_one_view_is_shared_and_two_are_each_arms_own() -> None:
    method = CASS(arms(), losses.cosine).eval()
    with torch.no_grad():
        shared, own = method.outputs([view(0)]), method.outputs([view(0), view(1)])
        direct = method.encoders()["vit"](view(1))
    assert torch.equal(own["cnn"].outputs, shared["cnn"].outputs)
    assert torch.equal(own["vit"].features, direct)
    assert not torch.allclose(own["vit"].features, shared["vit"].features)


def test_a_number_of_views_that_fits_no_arm_is_refused() -> None:
    x = [torch.zeros(1)] * 3
    assert views_by_arm(x[:1], ["cnn", "vit"]).keys() == {"cnn", "vit"}
    for wrong in ([], x):
        with pytest.raises(ConfigError, match=rf"views: {len(wrong)} views for 2 arms"):
            views_by_arm(wrong, ["cnn", "vit"])


def test_outputs_and_encoders_go_by_the_names_of_the_arms() -> None:
    pair = {"a_cnn": encoders.build(CNN, SIZE, 0), "b_cnn": encoders.build(CNN, SIZE, 1)}
    method = CASS(pair, losses.cosine)
    out = method.outputs([view()])
    assert list(out) == list(method.encoders()) == ["a_cnn", "b_cnn"]
    assert out["a_cnn"].features.shape == (4, 512)
    assert out["a_cnn"].outputs.shape == (4, 16)
    assert not torch.allclose(out["a_cnn"].outputs, out["b_cnn"].outputs)  # each arm has a seed of its own
    assert all(isinstance(encoder, Encoder) for encoder in method.encoders().values())


@pytest.mark.parametrize(
    ("one", "other"), [("resnet10t", "densenet121"), ("vit_tiny_patch16_224", "deit_tiny_patch16_224")]
)
def test_two_cnns_and_two_transformers(one: str, other: str) -> None:
    method = CASS(arms(ArmSpec(one, outputs=16), ArmSpec(other, outputs=16)), losses.infonce)
    loss = method([view()], BATCH, NOW).loss
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("objective", ["cosine", "infonce", "vicreg", "barlow", "sinkhorn"])
@pytest.mark.parametrize("projection", [0, 24])
def test_every_objective_trains_with_and_without_projector(objective: str, projection: int) -> None:
    method = CASS(arms(), getattr(losses, objective), projection=projection, projection_hidden=8)
    out = method([view(0), view(1)], BATCH, NOW)
    out.loss.backward()
    assert (out.loss.dtype, out.loss.shape) == (torch.float32, ())
    assert torch.isfinite(out.loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


def test_a_projector_replaces_the_heads_and_equalises_widths() -> None:
    unequal = arms(vit=ArmSpec("vit_tiny_patch16_224", outputs=7))
    method = CASS(unequal, losses.cosine, projection=24, projection_hidden=8)
    out = method.outputs([view()])
    assert {o.outputs.shape for o in out.values()} == {(4, 24)}
    assert sum(isinstance(m, nn.BatchNorm1d) for m in method.modules()) == 2
    assert not any(head is module for _, head in unequal.values() for module in method.modules())


def test_outputs_of_two_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"arms\.\*\.outputs: cnn 16, vit 7; the objective compares"):
        CASS(arms(vit=ArmSpec("vit_tiny_patch16_224", outputs=7)), losses.cosine)


def test_one_arm_or_three_are_refused() -> None:
    one = dict(list(arms().items())[:1])
    for wrong in (one, {**arms(), "third": one["cnn"]}):
        with pytest.raises(ConfigError, match=r"two arms with outputs of one width"):
            CASS(wrong, losses.cosine)


def test_each_arm_is_a_parameter_group_with_its_own_algorithm() -> None:
    method = CASS(arms(cnn=ArmSpec("resnet10t", outputs=16, optimizer="sgd")), losses.cosine)
    cnn, vit = method.param_groups()
    assert (cnn["arm"], cnn["algorithm"], cnn["lr_scale"]) == ("cnn", "sgd", 1.0)
    assert (vit["arm"], vit["algorithm"], vit["lr_scale"]) == ("vit", None, 1.0)
    grouped = [id(p) for p in (*cnn["params"], *vit["params"])]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters())


def test_the_null_control_moves_batchnorm_statistics_and_nothing_else() -> None:
    method = CASS(arms(), losses.cosine, frozen=True)
    keys = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "momentum": 0.9, "fused": True}
    optimizer = optim.build(method.param_groups(), **keys)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in method.state_dict().items()}
    for step in range(2):
        optim.set_rates(optimizer, Rates(1e-3, 0.1), 0)
        method([view(step)], BATCH, NOW).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {n for n in before if n.endswith(("running_mean", "running_var", "num_batches_tracked"))}


class Constant(nn.Module):
    """A body whose features are the same for every image and arm."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 512), 0.25)


def collapsed(*, noise_rule: bool, objective: object = losses.cosine) -> CASS:
    pair = {"a": encoders.build(CNN, SIZE, 0), "b": encoders.build(CNN, SIZE, 0)}
    for encoder, _ in pair.values():
        encoder.body = Constant()
    return CASS(pair, objective, noise_rule=noise_rule, seed=5)  # type: ignore[arg-type]


def test_the_noise_rule_disturbs_equal_outputs_only_where_it_is_asked_for() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(x: Tensor, y: Tensor) -> Tensor:
        seen.append((x, y))
        return losses.cosine(x, y)

    for noise_rule in (False, True):
        collapsed(noise_rule=noise_rule, objective=spy)([view()], BATCH, NOW)
    (x, y), (noisy_x, noisy_y) = seen
    assert torch.equal(x, y)
    torch.testing.assert_close(noisy_x - x, torch.full_like(x, 1e-6), rtol=0.2, atol=1e-8)
    assert not torch.equal(noisy_x, noisy_y)


def test_the_noise_rule_leaves_unequal_outputs_and_their_gradients_alone() -> None:
    seen = []
    for noise_rule in (False, True):
        method = CASS(arms(), losses.cosine, noise_rule=noise_rule)
        loss = method([view()], BATCH, NOW).loss
        loss.backward()
        seen.append([loss.detach(), *(p.grad for p in method.parameters())])
    assert all(p is not None and q is not None and torch.equal(p, q) for p, q in zip(*seen, strict=True))


def test_a_method_must_say_what_it_is() -> None:
    for name, call in {
        "forward": lambda m: m([], BATCH, NOW),
        "encoders": lambda m: m.encoders(),
        "outputs": lambda m: m.outputs([]),
    }.items():
        with pytest.raises(TypeError, match=f"Method must define {name}"):
            call(Method())


def test_supervised_scores_labels_and_needs_them() -> None:
    encoder, _ = encoders.build(CNN, SIZE, 0)
    method = Supervised({"cnn": (encoder, nn.Linear(encoder.dim, 3))}, nn.functional.cross_entropy)
    labelled = BATCH._replace(label=torch.tensor([0, 1, 2, 0]))
    wanted = nn.functional.cross_entropy(method.outputs([view()])["cnn"].outputs, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(method([view()], labelled, NOW).loss, wanted)
    assert method.encoders() == {"cnn": encoder}
    (group,) = method.param_groups()
    assert len(group["params"]) == len(list(method.parameters()))
    with pytest.raises(ValueError, match="needs a stream with labels"):
        method([view()], BATCH, NOW)
