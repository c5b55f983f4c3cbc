"""Averages of weights, each against its own definition."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from goldfold.averaging import Swa, average_states, greedy_soup, make_ema, update_batch_norm
from goldfold.config.schema import Input, Model
from goldfold.errors import BadInput
from goldfold.metrics import better, get_metric
from goldfold.models import Classifier, build_model, make_spec
from goldfold.tasks import Task
from goldfold.training.checkpoint import load_state, save_state

AUC, RMSE = (functools.partial(better, get_metric(name, None)) for name in ("auc", "rmse"))


def build(backbone: str = "test_resnet", layout: torch.memory_format = torch.channels_last) -> Classifier:
    torch.manual_seed(0)
    settings = Model(backbone=backbone, pretrained=False)
    model = build_model(make_spec(settings, Input(size=32), Task("multiclass", ("a", "b", "c"))))
    return model.to(memory_format=layout)  # type: ignore[call-overload]


def states(model: nn.Module, n: int) -> Iterator[dict[str, Tensor]]:
    """Change a network n times, buffers included, as training would; gives a copy of each state."""
    for seed in range(n):
        torch.manual_seed(seed)
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(7 * seed + 1))
        yield {name: tensor.clone() for name, tensor in model.state_dict().items()}


# EMA


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_is_the_hand_calculation_with_batch_norm_statistics(warmup: bool) -> None:
    model = build()
    assert "backbone.bn1.running_mean" in model.state_dict()
    ema = make_ema(model, 0.6, warmup)
    expected: dict[str, Tensor] = {}
    # 1 - n^(-2/3) at steps 1 to 5, at most the decay of 0.6; without warm-up the first step copies, the others decay.
    decays = [0.0, 0.370039, 0.519250, 0.6, 0.6] if warmup else [0.0, 0.6, 0.6, 0.6, 0.6]
    for step, (decay, state) in enumerate(zip(decays, states(model, 5), strict=True), 1):
        ema.update(model, step=step)
        for name, tensor in state.items():
            if tensor.is_floating_point():
                expected[name] = decay * expected.get(name, tensor) + (1 - decay) * tensor
            else:
                expected[name] = tensor
    found = ema.module.state_dict()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name
    assert found["backbone.bn1.num_batches_tracked"] == 29
    assert not torch.equal(found["head.weight"], model.head.weight)


def test_ema_is_timms_to_the_bit() -> None:
    """The lists that it gathers hold the network's tensors themselves: they follow a state that is loaded."""
    model = build()
    ours, theirs = make_ema(model, 0.9, True), ModelEmaV3(model, decay=0.9, use_warmup=True)
    for step, _ in enumerate(states(model, 4), 1):
        if step == 3:  # as a resumed training does
            ours.module.load_state_dict({name: 2 * value for name, value in ours.module.state_dict().items()})
            theirs.module.load_state_dict({name: 2 * value for name, value in theirs.module.state_dict().items()})
        ours.update(model, step=step)
        theirs.update(model, step=step)
    expected = theirs.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.module.state_dict().items())


def test_ema_predicts_in_inference_mode_and_leaves_the_network_alone() -> None:
    model = build().train()
    ema = make_ema(model, 0.9, True)
    model.frozen = [model.backbone.bn1]  # type: ignore[list-item]
    before = copy.deepcopy(model.state_dict())
    ema.update(model, step=1)
    ema.update(model, step=2)
    assert not any(module.training for module in ema.module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# SWA


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_swa_is_the_equal_average_of_the_states(layout: torch.memory_format) -> None:
    model, swa, seen = build(layout=layout), Swa(), []
    for state in states(model, 4):
        swa.update(model)
        seen.append(state)
    assert swa.count == 4
    swa.store(model)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, torch.stack([state[name] for state in seen]).mean(dim=0), atol=1e-6), name
        else:
            assert tensor == seen[-1][name] == 22
    assert model.backbone.conv1[0].weight.is_contiguous(memory_format=layout)  # type: ignore[index, union-attr]


def test_swa_of_one_state_is_that_state_and_of_a_constant_the_constant() -> None:
    model, swa = build(), Swa()
    (first,) = states(model, 1)
    for _ in range(5):
        swa.update(model)
        swa.store(model)
        assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())


def test_swa_does_not_follow_the_network_between_updates() -> None:
    model, swa = build(), Swa()
    changes = states(model, 2)
    first = next(changes)
    swa.update(model)
    next(changes)
    swa.store(model)
    assert torch.equal(model.head.weight, first["head.weight"])


def test_swa_goes_on_from_the_disk_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    model, through, second = build(), Swa(), Swa()
    for row, _ in enumerate(states(model, 4)):
        through.update(model)
        if row < 2:
            second.update(model)
        if row == 1:
            save_state(tmp_path / "state", {"swa": second.state_dict()})
            second = Swa()
            second.load_state_dict(load_state(tmp_path / "state")["swa"])
        elif row > 1:
            second.update(model)
    assert second.count == through.count == 4
    found, expected = second.state_dict()["average"], through.state_dict()["average"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_swa_averages_half_precision_in_single() -> None:
    layer, swa = nn.Linear(2, 1).half(), Swa()
    for value in (1.0, 1.0, 1.001):
        layer.weight.data.fill_(value)
        swa.update(layer)
    average = swa.state_dict()["average"]["weight"]
    assert average.dtype == torch.float32
    assert average[0, 0].item() == pytest.approx((2 + torch.tensor(1.001).half().item()) / 3, abs=1e-7)
    swa.store(layer)
    assert layer.weight.dtype == torch.float16


def test_swa_refuses_to_store_nothing_and_another_network() -> None:
    swa = Swa()
    with pytest.raises(ValueError, match="no state yet"):
        swa.store(nn.Linear(2, 1))
    swa.update(nn.Linear(2, 1))
    for call in (swa.store, swa.update):
        with pytest.raises(ValueError, match="another network's state: bias"):
            call(nn.Linear(2, 1, bias=False))


# Batch-norm statistics


def images(n: int, size: int = 8) -> list[Tensor]:
    torch.manual_seed(1)
    return [3 + torch.randn(size, 3, 32, 32).contiguous(memory_format=torch.channels_last) for _ in range(n)]


def test_statistics_are_the_mean_over_batches() -> None:
    layer = nn.BatchNorm2d(3, momentum=0.1)
    layer(100 + images(1)[0])
    batches = images(3)
    update_batch_norm(layer, layer, iter(batches))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert torch.allclose(layer.running_mean, torch.stack([b.mean(dim=(0, 2, 3)) for b in batches]).mean(dim=0))
    assert torch.allclose(
        layer.running_var, torch.stack([b.var(dim=(0, 2, 3)) for b in batches]).mean(dim=0), atol=1e-5
    )
    assert layer.momentum == 0.1


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_statistics_of_a_network_are_those_of_torch(backbone: str) -> None:
    ours = build(backbone)
    theirs = copy.deepcopy(ours)
    update_batch_norm(ours, ours, images(3))
    torch.optim.swa_utils.update_bn(images(3), theirs)
    found = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(found[name].float(), tensor.float(), atol=1e-6), name
    assert not torch.equal(found["backbone.bn1.running_mean"], torch.zeros_like(found["backbone.bn1.running_mean"]))


def test_only_batch_norm_trains_meanwhile_and_every_mode_comes_back() -> None:
    model = build().train()
    model.head_drop = nn.Dropout(0.5)
    model.head_drop.eval()
    model.frozen = [model.backbone.layer1]  # type: ignore[list-item]
    frozen_before = {name: value.clone() for name, value in model.backbone.layer1.state_dict().items()}  # type: ignore[union-attr, operator]
    modes = {name: module.training for name, module in model.named_modules()}
    during: list[set[type]] = []

    def forward(batch: Tensor) -> None:
        during.append({type(module) for module in model.modules() if module.training})
        assert not torch.is_grad_enabled()
        model(batch)

    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    update_batch_norm(model, forward, images(2))
    assert all(issubclass(kind, nn.BatchNorm2d) for kind in during[0])
    assert during[0]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    for name, value in model.backbone.layer1.state_dict().items():  # type: ignore[union-attr, operator]
        assert torch.equal(value, frozen_before[name]), name
    assert model.backbone.bn1.num_batches_tracked == 2  # type: ignore[union-attr]


def test_layers_that_are_not_reached_keep_their_statistics() -> None:
    model = nn.ModuleDict({"used": nn.BatchNorm2d(3), "idle": nn.BatchNorm2d(3)})
    idle = model["idle"]
    idle(images(1)[0])
    idle.num_batches_tracked.fill_(5)  # type: ignore[union-attr, operator]
    before = copy.deepcopy(idle.state_dict())
    update_batch_norm(model, model["used"], images(2))
    assert all(torch.equal(value, before[name]) for name, value in idle.state_dict().items())
    assert model["used"].num_batches_tracked == 2


def test_without_batch_norm_no_batch_is_read() -> None:
    def never() -> Iterator[Tensor]:
        pytest.fail("a batch was read")
        yield torch.zeros(1)

    update_batch_norm(nn.LayerNorm(3), lambda batch: None, never())
    model = build()
    model.frozen = [model.backbone]
    update_batch_norm(model, model, never())


def test_no_batches_or_a_failure_is_said_and_modes_come_back() -> None:
    layer = nn.BatchNorm2d(3)
    layer(images(1)[0])
    before, momentum = copy.deepcopy(layer.state_dict()), layer.momentum
    with pytest.raises(ValueError, match="no batches"):
        update_batch_norm(layer, layer, [])
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    layer.eval()
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        update_batch_norm(layer, layer, [torch.zeros(1, 3, 1, 1)])
    assert (layer.momentum, layer.training) == (momentum, False)


# Soups


def write(path: Path, value: float, batches: int = 0) -> Path:
    save_file({"w": torch.full((2, 2), value), "n": torch.tensor(batches)}, path)
    return path


def test_a_uniform_soup_is_the_mean_with_the_last_integers(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{row}", value, row) for row, value in enumerate((1.0, 2.0, 6.0))]
    state = average_states(paths)
    assert torch.equal(state["w"], torch.full((2, 2), 3.0))
    assert state["w"].dtype == torch.float32
    assert state["n"] == 2


def test_a_soup_sums_in_double(tmp_path: Path) -> None:
    # In single precision 2^24 + 1 is 2^24.
    paths = [write(tmp_path / f"{row}", value) for row, value in enumerate((2.0**24, 1.0, 1.0, 2.0))]
    assert average_states(paths)["w"][0, 0].item() == 2**22 + 1


def test_a_soup_of_networks_loads_and_is_the_mean(tmp_path: Path) -> None:
    model, kept, paths = build(), [], []
    for row, state in enumerate(states(model, 3)):
        paths.append(tmp_path / f"{row}.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, paths[-1])
        kept.append(state["backbone.bn1.running_var"])
    model.load_state_dict(average_states(paths))
    assert torch.allclose(model.backbone.bn1.running_var, torch.stack(kept).mean(dim=0))  # type: ignore[union-attr, arg-type]


def test_states_of_other_networks_and_broken_files_are_one_line(tmp_path: Path) -> None:
    first = write(tmp_path / "first", 1)
    save_file({"w": torch.zeros(2, 3), "n": torch.tensor(0)}, tmp_path / "shape")
    save_file({"v": torch.zeros(2, 2), "n": torch.tensor(0)}, tmp_path / "name")
    (tmp_path / "broken").write_bytes(b"no")
    for name, what in (
        ("shape", "not a state of the same network"),
        ("name", "same network as first: v, w differ"),
        ("broken", "not a whole safetensors file"),
        ("absent", "does not exist"),
    ):
        with pytest.raises(BadInput, match=what) as caught:
            average_states([first, tmp_path / name])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no states"):
        average_states([])


def test_a_greedy_soup_takes_what_does_not_harm(tmp_path: Path) -> None:
    # Weights -3, 1, 2, 9 and a score that wants a mean near 0: the best (1) begins, 2 harms, -3 mends, 9 harms.
    values, scores = (-3.0, 1.0, 2.0, 9.0), (0.3, 0.9, 0.8, 0.1)
    candidates = [(score, write(tmp_path / f"{v}", v, row)) for row, (v, score) in enumerate(zip(values, scores))]  # noqa: B905
    judged: list[float] = []

    def evaluate(state: dict[str, Tensor]) -> float:
        judged.append(state["w"][0, 0].item())
        return 1 / (1 + abs(judged[-1]))

    state, chosen = greedy_soup(candidates, evaluate, AUC)
    assert judged == [1, 1.5, -1, pytest.approx(7 / 3)]
    assert chosen == (0, 1)
    assert state["w"][0, 0] == -1  # as good as 1 alone: it does not fall
    assert state["n"] == 1


def test_a_greedy_soup_knows_scores_where_less_is_better(tmp_path: Path) -> None:
    candidates = [(error, write(tmp_path / f"{v}", v)) for v, error in ((4.0, 4.0), (-1.0, 1.0), (1.0, 1.0))]
    state, chosen = greedy_soup(candidates, lambda state: abs(state["w"][0, 0].item()), RMSE)
    assert chosen == (1, 2)
    assert state["w"][0, 0] == 0


def test_a_greedy_soup_is_measured_by_the_best_soup_so_far(tmp_path: Path) -> None:
    # 4, then with -2 the mean is 1; with 5 it would be 7/3, better than 4 was but worse than 1.
    candidates = [(float(row), write(tmp_path / f"{v}", v)) for row, v in enumerate((4.0, -2.0, 5.0))]
    _, chosen = greedy_soup(candidates, lambda state: abs(state["w"][0, 0].item()), RMSE)
    assert chosen == (0, 1)


def test_a_score_that_is_not_a_number_wins_nothing(tmp_path: Path) -> None:
    nan = float("nan")
    candidates = [
        (nan, write(tmp_path / "a", 5.0)),
        (0.5, write(tmp_path / "b", 1.0)),
        (0.4, write(tmp_path / "c", 3.0)),
    ]
    _, chosen = greedy_soup(candidates, lambda state: 0.5 if state["w"][0, 0] == 1 else nan, AUC)
    assert chosen == (1,)
    with pytest.raises(ValueError, match="no states"):
        greedy_soup([], lambda state: 0.0, AUC)
