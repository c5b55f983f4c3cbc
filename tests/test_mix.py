"""Mixup and CutMix: mass is conserved, the box is what the weight says, nothing is changed in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from goldfold.config.schema import Loss, Mix
from goldfold.losses import make_loss
from goldfold.mix import cut_box, draw_mix
from goldfold.tasks import Task


def mix_batch(
    settings: Mix, images: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mixing = draw_mix(settings, len(images), images.shape[2], images.shape[3], *seed)
    if mixing is None:
        return images, targets, weights
    return mixing.images(images), *mixing.targets(targets, weights)


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images that are constant and equal to their own row number; one-hot targets."""
    images = torch.arange(size, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    return images, torch.eye(size), torch.ones(size)


@pytest.mark.parametrize("settings", [Mix(mixup=0.4), Mix(cutmix=1.0), Mix(mixup=0.4, cutmix=1.0)])
def test_targets_keep_their_mass_and_inputs_stay(settings: Mix) -> None:
    images, targets, weights = batch()
    before = images.clone()
    for seed in range(20):
        _, mixed, mixed_weights = mix_batch(settings, images, targets, weights, seed)
        assert mixed.sum(1) == pytest.approx(torch.ones(6), abs=1e-6)
        assert mixed_weights.tolist() == pytest.approx([1.0] * 6)
    assert torch.equal(images, before)


@pytest.mark.parametrize("settings", [Mix(mixup=0.4), Mix(cutmix=1.0)])
def test_pixels_and_targets_are_mixed_by_the_same_share(settings: Mix) -> None:
    images, targets, weights = batch()
    values = torch.arange(6, dtype=torch.float32)
    changed = 0
    for seed in range(20):
        mixed_images, mixed, _ = mix_batch(settings, images, targets, weights, seed)
        # The mean pixel of a mix of constant images is the mix of their numbers.
        assert mixed_images.mean(dim=(1, 2, 3)).tolist() == pytest.approx((mixed @ values).tolist(), abs=1e-4)
        changed += not torch.equal(mixed_images, images)
    assert changed > 10


def test_soft_targets_pass_through() -> None:
    images, _, weights = batch(2)
    soft = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    _, mixed, _ = mix_batch(Mix(mixup=1.0), images, soft, weights, 3)
    low, high = soft.min(0).values, soft.max(0).values
    assert ((mixed >= low - 1e-6) & (mixed <= high + 1e-6)).all()


def test_mixed_weights_give_the_mixed_loss() -> None:
    """A pair's loss is share x its first source's weighted loss + (1 - share) x its second's."""
    images, _, _ = batch(2)
    targets, weights = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.2])
    loss = make_loss(Loss(), Task("multiclass", ("a", "b")))
    logits = torch.tensor([[0.3, -1.0], [0.3, -1.0]])
    for seed in range(10):
        mixed_images, mixed, mixed_weights = mix_batch(Mix(mixup=1.0), images, targets, weights, seed)
        share_of_second = mixed_images[:, 0, 0, 0]
        each = torch.stack([loss(logits[[0]], targets[[i]], weights[[i]]) for i in (0, 1)])
        expected = ((1 - share_of_second) * each[0] + share_of_second * each[1]).mean()
        assert loss(logits, mixed, mixed_weights) == pytest.approx(expected.item(), abs=1e-5)


def test_the_draw_is_a_function_of_the_seed() -> None:
    images, targets, weights = batch()
    first, again, other = (mix_batch(Mix(mixup=0.4), images, targets, weights, 1, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_probability_and_odd_batches() -> None:
    images, targets, weights = batch(5)
    touched = sum(
        not torch.equal(mix_batch(Mix(mixup=1, prob=0.3), images, targets, weights, s)[1], targets) for s in range(200)
    )
    assert 35 <= touched <= 85
    one = mix_batch(Mix(mixup=1.0), images[:1], targets[:1], weights[:1], 0)
    assert torch.equal(one[0], images[:1])


def test_cutmix_pastes_the_box_that_the_share_says() -> None:
    images, _, _ = batch()
    for seed in range(30):
        mixing = draw_mix(Mix(cutmix=1.0), 6, 16, 16, seed)
        assert mixing is not None
        assert mixing.box is not None
        top, bottom, left, right = mixing.box
        mixed = mixing.images(images)
        inside = torch.zeros(16, 16, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert (mixed[:, :, inside] == images[mixing.partner][:, :, inside]).all()
        assert (mixed[:, :, ~inside] == images[:, :, ~inside]).all()
        assert mixing.share == pytest.approx(1 - inside.float().mean().item())


def test_a_box_covers_what_is_left_of_the_share_and_stays_inside() -> None:
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        areas = []
        for _ in range(3000):
            top, bottom, left, right = cut_box(100, 60, share, rng)
            assert 0 <= top <= bottom <= 100
            assert 0 <= left <= right <= 60
            areas.append((bottom - top) * (right - left) / 6000)
        assert max(areas) == pytest.approx(1 - share, abs=0.05)


def test_metadata_is_mixed_by_the_same_share() -> None:
    mixing = draw_mix(Mix(mixup=1.0), 4, 8, 8, 1)
    assert mixing is not None
    values = torch.arange(4.0)[:, None]
    expected = mixing.share * values + (1 - mixing.share) * values[mixing.partner]
    assert torch.equal(mixing.values(values), expected)
