"""Which parameters decay, at which rate, by which optimizer, and what happens to their gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from goldfold.config.schema import Input, Model, Optim
from goldfold.errors import BadInput, GoldfoldError
from goldfold.models import Classifier, build_model, make_spec
from goldfold.optim import (
    add_penalties,
    carry_state,
    clip_gradients,
    make_optimizer,
    restore_optimizer,
    scaled_lr,
    set_momentum,
    set_rate,
)
from goldfold.tasks import Task
from goldfold.training.checkpoint import load_state, save_state

CATALOGUE = [
    "sgd", "momentum", "rmsprop", "rmsproptf", "adagrad", "adadelta", "adam", "adamw", "nadam", "radam", "adafactor", "adafactorbv",
    "novograd", "lamb", "lion", "adopt", "muon",
    "lookahead_radam", "lookahead_adamw", "lookahead_sgd", "lookahead_adafactor", "lookahead_lamb", "lookahead_novograd",
]  # fmt: skip


def network(backbone: str = "test_efficientnet") -> Classifier:
    spec = make_spec(Model(backbone=backbone), Input(size=32), Task("multiclass", ("a", "b")))
    torch.manual_seed(0)
    return build_model(spec)


class Small(nn.Module):
    """The least that an optimizer sees of a classifier: a backbone in groups of layers, a head and a branch."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(20, 18)
            self.blocks = nn.ModuleList([nn.Linear(18, 18), nn.Linear(18, 18)])
            self.norm = nn.LayerNorm(18)
            self.neck = nn.Linear(18, 18)

        def group_matcher(self, coarse: bool) -> dict[str, Any]:
            blocks = r"^blocks" if coarse else r"^blocks\.(\d+)"
            return {"stem": r"^stem", "blocks": [(blocks, None), (r"^norm", (99999,))]}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).tanh()
            for block in self.blocks:
                x = block(x).tanh()
            return cast(torch.Tensor, self.neck(self.norm(x)).tanh())

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = self.Backbone()
        self.branch = nn.Linear(2, 3)
        self.head = nn.Linear(21, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.head(torch.cat([self.backbone(x), self.branch(x[:, :2])], dim=1)))


def small() -> Any:
    return Small()


@pytest.fixture(scope="module")
def model() -> Classifier:
    return network()


def by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """The group of each parameter; fails where one lies in two."""
    groups = [(id(parameter), group) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(groups) == len(dict(groups))
    found = dict(groups)
    return {name: found[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in found}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lookahead_adamw", "AdamW"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_biases_and_norms_have_no_decay_unless_asked(name: str, decay_all: bool, model: Classifier) -> None:
    settings = Optim(name=name, lr=0.1, weight_decay=0.3, decay_all=decay_all)
    groups = by_name(make_optimizer(settings, model), model)
    assert set(groups) == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        expected = 0.3 if decay_all or parameter.ndim > 1 else 0.0
        assert groups[key]["weight_decay"] == expected, key


def test_a_step_shrinks_weights_and_leaves_biases() -> None:
    """Decay itself, not only its number in the group: with no gradient to follow, only it moves a weight."""
    network = small()
    optimizer = make_optimizer(Optim(name="adamw", weight_decay=0.5), network)
    set_rate(optimizer, 0.1)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        share = 0.95 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * share)


def test_the_rate_of_all_that_is_not_the_backbone_is_scaled() -> None:
    network = small()
    optimizer = make_optimizer(Optim(lr=0.1, head_lr_scale=10), network)
    set_rate(optimizer, 0.02)
    rates = {name: group["lr"] for name, group in by_name(optimizer, network).items()}
    assert {name.split(".")[0]: rate for name, rate in rates.items()} == {"backbone": 0.02, "branch": 0.2, "head": 0.2}


def test_layer_decay_is_the_geometric_series() -> None:
    """Layers from the head down; what no group matches (the neck) stands beside the head, as in timm."""
    network = small()
    optimizer = make_optimizer(Optim(lr=1, layer_decay=0.5, head_lr_scale=3), network)
    set_rate(optimizer, 0.1)
    depth = {"head": 0, "branch": 0, "neck": 0, "norm": 1, "blocks.1": 1, "blocks.0": 2, "stem": 3}
    for name, group in by_name(optimizer, network).items():
        layer = name.removeprefix("backbone.").rsplit(".", 1)[0]
        head = 3 if layer in ("head", "branch") else 1
        assert group["lr"] == pytest.approx(0.1 * 0.5 ** depth[layer] * head), name


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet", "test_convnext", "test_resnet"])
def test_layer_decay_agrees_with_timms_own_groups(backbone: str) -> None:
    import timm
    from timm.optim import param_groups_layer_decay

    ours = network(backbone)
    theirs = timm.create_model(backbone, num_classes=2)
    scales = {}
    for group in param_groups_layer_decay(theirs, layer_decay=0.7):
        scales |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
    expected = {name: scales[id(parameter)] for name, parameter in theirs.named_parameters()}
    groups = by_name(make_optimizer(Optim(layer_decay=0.7), ours), ours)
    checked = 0
    for name, group in groups.items():
        if name.removeprefix("backbone.") in expected and name.startswith("backbone."):
            assert group["lr_scale"] == pytest.approx(expected[name.removeprefix("backbone.")]), name
            checked += 1
    assert checked > 10
    assert {groups[name]["lr_scale"] for name in groups if not name.startswith("backbone.")} == {1.0}
    assert len({group["lr_scale"] for group in groups.values()}) > 3


def test_layer_decay_needs_a_backbone_that_names_its_layers() -> None:
    network = small()
    network.backbone = nn.Linear(20, 18)
    make_optimizer(Optim(), network)
    with pytest.raises(BadInput, match=r"optim\.layer_decay: this backbone does not say"):
        make_optimizer(Optim(layer_decay=0.9), network)


def test_what_may_never_train_is_left_out_and_what_may_is_handed_over() -> None:
    network = small()
    network.backbone.stem.requires_grad_(False)
    names = dict(network.named_parameters()).keys()
    stem = {name for name in names if "stem" in name}
    assert by_name(make_optimizer(Optim(), network), network).keys() == names - stem
    assert by_name(make_optimizer(Optim(), network, names), network).keys() == names
    with pytest.raises(GoldfoldError, match=r"no optimizer would get: head\.bias"):
        make_optimizer(Optim(), network, names - {"head.bias"})
    with pytest.raises(GoldfoldError, match=r"no parameter heed\.bias"):
        make_optimizer(Optim(), network, names | {"heed.bias"})
    network.requires_grad_(False)
    with pytest.raises(BadInput, match="nothing is left to train"):
        make_optimizer(Optim(), network)


def step(network: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    network(torch.randn(4, 20)).square().mean().backward()
    set_rate(optimizer, 0.05 / seed)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_optimizer_learns_and_goes_on_bit_identically(name: str, tmp_path: Path) -> None:
    """Steps of changing rate, layer decay and a frozen layer; 14 steps, so that Lookahead synchronises twice."""
    settings = Optim(name=name, layer_decay=0.8, weight_decay=0.1)

    def begin() -> tuple[Any, torch.optim.Optimizer]:
        network = small()
        optimizer = make_optimizer(settings, network, dict(network.named_parameters()).keys())
        network.backbone.stem.requires_grad_(False)
        return network, optimizer

    through, optimizer = begin()
    start = {key: value.clone() for key, value in through.state_dict().items()}
    for seed in range(1, 15):
        step(through, optimizer, seed)
        if seed == 8:
            state = {"model": through.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(tmp_path / "state", state)
    resumed, optimizer = begin()
    state = load_state(tmp_path / "state")
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for seed in range(9, 15):
        step(resumed, optimizer, seed)
    for key, value in through.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
        assert torch.equal(value, start[key]) == ("stem" in key), key
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("name", ["adamw", "adam", "lookahead_adamw"])
def test_one_kernel_over_all_parameters_does_as_the_plain_form(name: str) -> None:
    """Also where memory formats differ: the kernel goes by places in memory."""
    networks = [nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = []
    for model, fused in zip(networks, ({}, {"fused": False}), strict=True):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        whole = cast(Any, nn.Module())
        whole.backbone = model
        optimizers.append(make_optimizer(Optim(name=name, lr=0.01, args=fused), whole, device=torch.device("cpu")))
    assert [bool(optimizer.param_groups[0]["fused"]) for optimizer in optimizers] == [True, False]
    for seed in range(8):
        x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        for model, optimizer in zip(networks, optimizers, strict=True):
            model(x if seed % 2 else x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for first, second in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-6)


def test_lookahead_pulls_the_weights_back() -> None:
    """Its slow weights begin at the sixth step; at the twelfth they come half of the way after the fast ones."""
    ends = []
    slower: dict[str, Any] = {"lookahead_k": 2, "lookahead_alpha": 0.25}
    for name, args in (("momentum", {}), ("lookahead_momentum", {}), ("lookahead_momentum", slower)):
        walker = small()
        optimizer = make_optimizer(Optim(name=name, lr=0.01, momentum=0, weight_decay=0, args=args), walker)
        set_rate(optimizer, 0.01)
        start = walker.head.weight.detach().clone()
        for _ in range(12):
            walker.head.weight.grad = torch.ones_like(start)
            optimizer.step()
        ends.append((walker.head.weight.detach() - start).mean().item())
    assert ends[0] == pytest.approx(-0.12, rel=1e-3)
    assert ends[1] == pytest.approx(-0.09, rel=1e-3)
    slow = -0.02  # from the second step on, every second step a quarter of the way
    for _ in range(5):
        slow += 0.25 * -0.02
    assert ends[2] == pytest.approx(slow, rel=1e-3)


@pytest.mark.parametrize(("name", "near"), [("adamm", "adam"), ("lookahead_adamm", "adam"), ("sgdd", "sgd")])
def test_an_unknown_optimizer_names_near_ones(name: str, near: str, model: Classifier) -> None:
    with pytest.raises(BadInput, match=rf"optim\.name: timm has no optimizer '{name}'; did you mean .*{near}"):
        make_optimizer(Optim(name=name), model)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"name": "sgd", "momentum": 0}, r"optim: sgd cannot be made.*momentum"),
        ({"name": "sgd", "betas": (0.9, 0.99)}, r"optim\.betas: sgd has no betas"),
        ({"name": "adan", "betas": (0.9, 0.99)}, r"optim\.betas: adan has 3 betas and 2 are given"),
        ({"name": "adamw", "betas": (0.9, 1.5)}, r"optim: adamw cannot be made.*beta"),
        ({"name": "lion", "eps": 1e-6}, r"optim\.eps: lion has no eps"),
        ({"name": "lookahead_lion", "eps": 1e-6}, r"optim\.eps: lookahead_lion has no eps"),
        ({"name": "adam", "args": {"amsgrade": True}}, r"optim\.args\.amsgrade: adam takes no .*did you mean amsgrad\?"),
        ({"name": "adam", "args": {"lookahead_k": 3}}, r"optim\.args\.lookahead_k: adam takes no such argument"),
        ({"name": "adam", "args": {"betas": [0.9, 0.9]}}, r"optim\.args\.betas: has a key of its own; set optim\.betas"),
        ({"name": "lookahead_adam", "args": {"lookahead_k": 0}}, r"optim: lookahead_adam cannot be made"),
        ({"name": "adahessian"}, r"optim\.name: adahessian needs second derivatives"),
        ({"name": "lbfgs"}, r"optim\.name: timm has no optimizer 'lbfgs'"),
    ],
)  # fmt: skip
def test_what_an_optimizer_does_not_take_is_refused(settings: dict[str, Any], line: str, model: Classifier) -> None:
    with pytest.raises(BadInput, match=line):
        make_optimizer(Optim(**settings), model)


@pytest.mark.parametrize("name", ["bnbadamw8bit", "fusedlamb"])
def test_an_optimizer_of_a_missing_package_is_one_line(name: str, model: Classifier) -> None:
    with pytest.raises(BadInput, match=rf"optim\.name: {name} cannot be had here \(.+\)"):
        make_optimizer(Optim(name=name), model)


def test_values_reach_the_optimizer(model: Classifier) -> None:
    settings = Optim(name="adamw", betas=(0.8, 0.95), eps=1e-3, args={"amsgrad": True})
    group = make_optimizer(settings, model).param_groups[0]
    assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.8, 0.95), 1e-3, True)
    assert make_optimizer(Optim(name="sgd", momentum=0.7), model).param_groups[0]["momentum"] == 0.7
    group = make_optimizer(Optim(name="lookahead_rmsprop", args={"alpha": 0.5, "centered": True}), model).param_groups[
        0
    ]
    assert (group["alpha"], group["centered"]) == (0.5, True)
    assert make_optimizer(Optim(name="adan"), model).param_groups[0]["betas"] == (0.98, 0.92, 0.99)
    assert make_optimizer(Optim(lr=0.1), model, lr=0.4).defaults["lr"] == 0.4


@pytest.mark.parametrize(("scaling", "expected"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
def test_the_rate_scales_with_the_batch(scaling: str, expected: float) -> None:
    settings = Optim.model_validate({"lr": 5, "lr_scaling": scaling, "lr_batch": 128})
    batch_size, accumulate, processes = 64, 4, 2
    assert scaled_lr(settings, 0.1, batch_size * accumulate * processes) == pytest.approx(expected)


def test_momentum_can_be_set() -> None:
    for name, key, expected in (
        ("sgd", "momentum", 0.6),
        ("lookahead_sgd", "momentum", 0.6),
        ("adamw", "betas", (0.6, 0.999)),
        ("adan", "betas", (0.6, 0.92, 0.99)),
        ("lookahead_radam", "betas", (0.6, 0.999)),
    ):
        optimizer = make_optimizer(Optim(name=name), small())
        set_momentum(optimizer, 0.6)
        assert {group[key] for group in optimizer.param_groups} == {expected}, name
    for name in ("adagrad", "adadelta", "adafactor"):
        with pytest.raises(BadInput, match=r"momentum_cycle: the optimizer has neither"):
            set_momentum(make_optimizer(Optim(name=name), small()), 0.6)


def test_the_momentum_set_is_the_momentum_used() -> None:
    walker = small()
    optimizer = make_optimizer(Optim(name="momentum", momentum=0.9, weight_decay=0), walker)
    set_rate(optimizer, 1.0)
    start = walker.head.bias.detach().clone()
    for momentum in (0.9, 0.5, 0.0):
        set_momentum(optimizer, momentum)
        walker.head.bias.grad = torch.ones(2)
        optimizer.step()
    assert (start - walker.head.bias.detach()).tolist() == pytest.approx([1 + 1.5 + 1] * 2)


def test_penalties_are_the_gradients_of_their_sums() -> None:
    network, l1, l2 = small(), 0.03, 0.2
    inputs = torch.randn(4, 20)
    network.backbone.stem.requires_grad_(False)
    weights = [p for p in network.parameters() if p.ndim > 1 and p.requires_grad]
    penalty = sum(l1 * w.abs().sum() + l2 / 2 * w.square().sum() for w in weights)
    (network(inputs).square().mean() + penalty).backward()
    expected = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    network(inputs).square().mean().backward()
    plain = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    add_penalties(network, 0.0, 0.0)
    for name, p in network.named_parameters():
        assert p.grad is None or torch.equal(p.grad, plain[name])
    network.backbone.neck.weight.grad = None  # a layer that took no part in this step
    add_penalties(network, l1, l2)
    for name, p in network.named_parameters():
        if name == "backbone.neck.weight" or "stem" in name:
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, expected[name])
            assert p.ndim > 1 or torch.equal(p.grad, plain[name])


def with_gradients(network: Any, size: float) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter) * size
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def test_clipping_by_norm_keeps_the_direction() -> None:
    network = small()
    before = with_gradients(network, 5.0)
    clip_gradients(Optim(clip=2.0), network)
    total = math.sqrt(sum(gradient.square().sum().item() for gradient in before.values()))
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name] * 2.0 / total, rtol=1e-4, atol=1e-7)


def test_clipping_by_value() -> None:
    network = small()
    before = with_gradients(network, 1.0)
    clip_gradients(Optim(clip=0.3, clip_mode="value"), network)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, before[name].clamp(-0.3, 0.3))


def test_adaptive_clipping_spares_all_but_the_backbone() -> None:
    """Unit-wise: a row's gradient is at most clip x the norm of its weights (at least 1e-3)."""
    network = small()
    before = with_gradients(network, 1.0)
    clip_gradients(Optim(clip=0.1, clip_mode="agc"), network)
    for name, parameter in network.named_parameters():
        if name.startswith("backbone"):
            axes = tuple(range(1, parameter.ndim)) or (0,)
            most = 0.1 * parameter.detach().norm(dim=axes, keepdim=True).clamp(min=1e-3)
            norm = before[name].norm(dim=axes, keepdim=True)
            torch.testing.assert_close(parameter.grad, before[name] * (most / norm).clamp(max=1))
            assert not torch.equal(parameter.grad, before[name])
        else:
            assert torch.equal(parameter.grad, before[name]), name


def test_no_clipping_by_default() -> None:
    network = small()
    before = with_gradients(network, 100.0)
    clip_gradients(Optim(), network)
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in network.named_parameters())


# fused steps

GPU = torch.device("cuda")  # only named: torch fuses on the CPU as well, so the choice can be tested without a GPU


@pytest.mark.parametrize(
    ("settings", "fused"),
    [
        ({"name": "adamw"}, True),
        ({"name": "sgd"}, False),  # fails where layers thaw
        ({"name": "lookahead_adam"}, True),
        ({"name": "adagrad"}, False),  # torch has no fused form of it on a GPU
        ({"name": "lamb"}, False),
        ({"name": "adamw", "args": {"foreach": True}}, False),
        ({"name": "adamw", "args": {"fused": False}}, False),
    ],
)
def test_steps_are_fused_where_there_is_a_form_for_it(settings: dict[str, Any], fused: bool) -> None:
    on_gpu, on_cpu = (
        make_optimizer(Optim.model_validate(settings), small(), device=device) for device in (GPU, torch.device("cpu"))
    )
    assert bool(on_gpu.param_groups[0].get("fused")) == fused
    assert bool(on_cpu.param_groups[0].get("fused")) == fused


@pytest.mark.parametrize("name", ["adamw", "adam", "lookahead_adamw"])
def test_a_state_goes_over_to_a_machine_with_another_form_of_the_step(name: str, tmp_path: Path) -> None:
    """From a GPU to the CPU and back: the form is the machine's own, the moments and the count are the state's."""
    model = small()

    def steps(optimizer: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            model(torch.ones(4, 20)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    settings = Optim(name=name, lr=1e-3)
    old = make_optimizer(settings, model, device=GPU)
    steps(old, 2)
    for number, device in enumerate((None, GPU), 1):
        save_state(tmp_path / "state", {"optimizer": old.state_dict()})
        state = load_state(tmp_path / "state")["optimizer"]
        new = make_optimizer(settings, model, device=device)
        restore_optimizer(new, state)
        carried = make_optimizer(settings, model, device=device)
        carry_state(old, carried)
        for other in (new, carried):
            assert all(bool(group.get("fused")) == (device == GPU) for group in other.param_groups)  # None: plain
        steps(new, 1)
        counts = {float(moments["step"]) for moments in new.state_dict()["state"].values() if "step" in moments}
        assert counts == {2.0 + number}
        old = new


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_a_fused_step_is_the_plain_one(name: str, tmp_path: Path) -> None:
    """With channels-last weights, as they train; its state is the CPU's as well."""
    settings = Optim(name=name, lr=1e-2)
    found = {}
    for where, other in (("cpu", "cuda"), ("cuda", "cpu")):
        model = network().to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(settings, model, device=torch.device(where))
        for _ in range(2):
            torch.manual_seed(1)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape).to(parameter)
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
            optimizer.step()
            save_state(tmp_path / "state", {"optimizer": optimizer.state_dict()})
            model.to(other)
            optimizer = make_optimizer(settings, model, device=torch.device(other))
            restore_optimizer(optimizer, load_state(tmp_path / "state")["optimizer"])
        found[where] = {key: value.detach().cpu() for key, value in model.named_parameters()}
    for key, value in found["cpu"].items():
        assert torch.allclose(found["cuda"][key], value, atol=1e-5), key
