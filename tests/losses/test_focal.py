from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cass_scale.errors import ConfigError
from cass_scale.losses import class_weights, focal


def test_gamma_0_is_binary_cross_entropy() -> None:
    logits, targets = torch.randn(6, 4), torch.randint(0, 2, (6, 4)).float()
    torch.testing.assert_close(focal(logits, targets, gamma=0.0), F.binary_cross_entropy_with_logits(logits, targets))


def test_easy_elements_count_less() -> None:
    logits, targets = torch.tensor([[4.0]]), torch.tensor([[1.0]])
    full = F.binary_cross_entropy_with_logits(logits, targets)
    assert focal(logits, targets) < 1e-3 * full
    assert focal(-logits, targets) > 0.9 * F.binary_cross_entropy_with_logits(-logits, targets)


def test_negatives_count() -> None:
    """The trap of alpha=1 in the balanced form: a confident false positive would be free."""
    assert focal(torch.tensor([[5.0]]), torch.tensor([[0.0]])) > 4


def test_weight_multiplies_columns() -> None:
    logits, targets = torch.zeros(3, 2), torch.eye(2)[[0, 0, 1]]
    weight = torch.tensor([1.0, 3.0])
    torch.testing.assert_close(focal(logits, targets, weight=weight), 2 * focal(logits, targets))


def test_extreme_logits_give_finite_gradients() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    focal(logits, torch.tensor([[1.0, 1.0]])).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_official_weights_of_the_brain_mri_set() -> None:
    """The vector in the authors' notebook, for their counts: the commonest class weighs most."""
    weights = class_weights(torch.tensor([1321, 1457, 1595, 1339]), "official")
    torch.testing.assert_close(weights, torch.tensor([0.2, 0.597, 1.0, 0.253]), rtol=0, atol=5e-4)
    assert torch.equal(class_weights(torch.tensor([7, 7]), "official"), torch.ones(2))


def test_inverse_weights_give_every_class_the_same_say() -> None:
    counts = torch.tensor([10, 30, 60])
    weights = class_weights(counts, "inverse")
    torch.testing.assert_close(weights * counts, torch.full((3,), 100 / 3))
    assert torch.isfinite(class_weights(torch.tensor([0, 5]), "inverse")).all()


def test_none_is_ones_and_an_unknown_name_is_refused() -> None:
    assert torch.equal(class_weights(torch.tensor([1, 9])), torch.ones(2))
    with pytest.raises(ConfigError, match="class weights sqrt: none, inverse and official work"):
        class_weights(torch.tensor([1, 9]), "sqrt")  # type: ignore[arg-type]
