"""A weights file fills the whole model, or nothing and says why; code in it never runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgewise.errors import WeightsError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet
from edgewise.models.weights import load_weights


def net(depth: Any = 8, width: int = 4, classes: int = 10) -> nn.Module:
    return build(CifarResNet(depth=depth, width=width), (3, 8, 8), classes)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "best": 0.9},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: prefixed(s, "module."),
        lambda s: {"state_dict": prefixed(s, "module._orig_mod.")},
        lambda s: {k: v for k, v in s.items() if "num_batches_tracked" not in k},
    ],
    ids=["bare", "state_dict", "model", "module", "compiled-ddp", "before-batches-were-counted"],
)
def test_wrappers_and_prefixes_come_off(tmp_path: Path, wrap: Any) -> None:
    source, target = net(), net()
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert same(source, target)


def test_safetensors_load_whatever_the_file_is_called(tmp_path: Path) -> None:
    source = net()
    for name in ("w.safetensors", "w.bin"):
        target = net()
        save_file(source.state_dict(), tmp_path / name)
        load_weights(target, tmp_path / name)
        assert same(source, target)


def test_old_torch_format_and_half_precision_load(tmp_path: Path) -> None:
    source, target = net().half(), net()
    torch.save(source.state_dict(), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    load_weights(target, tmp_path / "w.pt")
    assert same(source.float(), target)
    assert target.get_parameter("conv1.weight").dtype == torch.float32


def test_a_model_whose_own_keys_start_with_module_keeps_them(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    source, target = Wrapped(), Wrapped()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert same(source, target)


class Bomb:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, (self.path, os.O_CREAT | os.O_WRONLY)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, new_format: bool, bare: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.pth"
    content = Bomb(trace) if bare else {"state_dict": net().state_dict(), "extra": Bomb(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(
        WeightsError, match=r"more than tensors, such as .*state: \w+\.open.*\n  next: save the tensors alone"
    ):
        load_weights(net(), path)
    assert not trace.exists()


def test_a_plain_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.pt"
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(WeightsError):
        load_weights(net(), path)
    assert not trace.exists()


def test_the_bomb_is_live(tmp_path: Path) -> None:
    os.close(pickle.loads(pickle.dumps(Bomb(tmp_path / "trace"))))
    assert (tmp_path / "trace").exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"more than tensors, such as .*state: edgewise\.models\.cifar_resnet\.CifarResNet"
    ):
        load_weights(net(), tmp_path / "w.pth")


def test_another_depth_names_what_is_missing(tmp_path: Path) -> None:
    torch.save(net(8).state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"60 of 116 tensors missing \(layer1\.1\.conv1\.weight.*… 57 more\)"
    ) as error:
        load_weights(net(20), tmp_path / "w.pth")
    assert "another architecture" in error.value.hint
    torch.save(net(20).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"72 unexpected \(layer1\.1\.conv1\.weight"):
        load_weights(net(8), tmp_path / "w.pth")


def test_another_width_names_both_shapes(tmp_path: Path) -> None:
    torch.save(net(width=8).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"conv1\.weight: the file has \(8, 3, 3, 3\), the model \(4, 3, 3, 3\)"):
        load_weights(net(width=4), tmp_path / "w.pth")


def test_another_number_of_classes_is_told_in_words(tmp_path: Path) -> None:
    torch.save(net(classes=100).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="classifier tells 100 classes apart, the task has 10"):
        load_weights(net(), tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_and_not_loaded(tmp_path: Path, value: float) -> None:
    state = net().state_dict()
    state["layer2.0.bn1.running_var"][1] = value
    torch.save(state, tmp_path / "w.pth")
    model, untouched = net(), net()
    untouched.load_state_dict(model.state_dict())
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 of \d+ tensors \(layer2\.0\.bn1\.running_var\)"):
        load_weights(model, tmp_path / "w.pth")
    assert same(model, untouched)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.02, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, form: str, part: float) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(net().state_dict(), path)
    else:
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(WeightsError, match=r"empty|not a whole"):
        load_weights(net(), path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "expected a state dict .*, got list"),
        ({}, "no tensor, but: nothing"),
        ({"epoch": 3, "weights": {"a": 1}}, "no tensor, but: epoch, weights"),
        (torch.zeros(3), "got Tensor"),
    ],
)
def test_files_without_a_state_dict_are_refused(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=says):
        load_weights(net(), tmp_path / "w.pth")


def test_odd_entries_are_refused(tmp_path: Path) -> None:
    state: dict[str, Any] = dict(net().state_dict())
    torch.save(state | {"linear.bias": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"linear\.bias is a int, not a tensor"):
        load_weights(net(), tmp_path / "w.pth")
    torch.save(state | {"linear.bias": torch.zeros(10, dtype=torch.int8)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"linear\.bias: the file has torch\.int8, the model torch\.float32"):
        load_weights(net(), tmp_path / "w.pth")


def test_missing_files_folders_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_weights(net(), tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="can't be read"):
        load_weights(net(), tmp_path)
    (tmp_path / "page.pth").write_text("<html>404: not found</html>")
    with pytest.raises(WeightsError, match="not a whole torch or safetensors file"):
        load_weights(net(), tmp_path / "page.pth")
