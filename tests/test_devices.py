"""A device or an arithmetic that this machine lacks is an error that names the option."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opengcl import TrainConfig, train
from opengcl.devices import DeviceError, check_device, check_training_device
from opengcl.model import open_encoder

from .builders import MINILM, ranked


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if request.param else 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    return bool(request.param)


@pytest.mark.parametrize(
    ("device", "on_cpu", "on_gpu"),
    [
        (None, "", ""),
        ("cpu", "", ""),
        ("cuda", "use --device cpu", ""),
        ("cuda:1", "use --device cpu", ""),
        ("cuda:2", "use --device cpu", "cuda:0 to cuda:1"),
        ("gpu", "allowed: cpu, cuda", "allowed: cpu, cuda"),
        ("CUDA", "allowed: cpu, cuda", "allowed: cpu, cuda"),
        ("", "allowed: cpu, cuda", "allowed: cpu, cuda"),
    ],
)
def test_devices(device: str | None, on_cpu: str, on_gpu: str, gpu: bool) -> None:
    told = on_gpu if gpu else on_cpu
    if not told:
        check_device(device)
        return
    with pytest.raises(DeviceError, match=told):
        check_device(device)


@pytest.mark.parametrize(
    ("device", "precision", "on_cpu", "on_gpu"),
    [
        (None, "fp32", "", ""),
        ("cpu", "bf16", "", ""),
        ("cpu", "fp16", "--precision fp32", "--precision fp32"),
        (None, "fp16", "--precision fp32", ""),
        (None, "bf16", "--device cpu .*--precision fp32", "--precision fp32"),
        ("cuda", "bf16", "use --device cpu", "--precision fp32"),
        ("cuda", "fp16", "use --device cpu", ""),
        ("cuda:1", "fp32", "use --device cpu", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_arithmetics(device: str | None, precision: str, on_cpu: str, on_gpu: str, gpu: bool) -> None:
    told = on_gpu if gpu else on_cpu
    if not told:
        check_training_device(device, precision)
        return
    with pytest.raises(DeviceError, match=told):
        check_training_device(device, precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_training_and_opening_say_it_before_any_work(tmp_path: Path) -> None:
    data = ranked(tmp_path / "data")
    settings = {"data": str(data.path), "model": "tiny", "out": str(tmp_path / "run")}
    for more, told in (
        ({"precision": "bf16"}, "--device cpu"),
        ({"precision": "fp16", "device": "cpu"}, "--precision fp32"),
        ({"device": "cuda"}, "--device cpu"),
    ):
        with pytest.raises(DeviceError, match=told):
            train(TrainConfig(**settings, **more), progress=False)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    with pytest.raises(DeviceError, match="--device cpu"):
        open_encoder(MINILM, device="cuda")


def test_bf16_trains_on_the_cpu(tmp_path: Path) -> None:
    data = ranked(tmp_path / "data")
    config = TrainConfig(
        data=str(data.path),
        model="tiny",
        out=str(tmp_path / "run"),
        dim=16,
        batch_size=16,
        epochs=0.2,
        evaluations=0,
        precision="bf16",
        device="cpu",
    )
    assert (train(config, progress=False) / "metrics.json").is_file()
