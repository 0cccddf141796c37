"""Whether a device and an arithmetic can be had on this machine, told before any work."""

from __future__ import annotations

import re

import torch

_DEVICE = re.compile(r"cpu|cuda(:\d+)?|mps")


class DeviceError(ValueError):
    """A device or an arithmetic that this machine does not have; the message names the setting to change."""


def check_device(device: str | None) -> None:
    """Makes sure that a device is there.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or None for the best there is.

    Raises:
        DeviceError: It is another word, or is not there.
    """
    if device is None or device == "cpu":
        return
    if not _DEVICE.fullmatch(device):
        raise DeviceError(f"device is {device[:100]!r}; allowed: cpu, cuda, cuda:N or mps (--device)")
    kind, _, number = device.partition(":")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("device is 'mps', but this machine has no such processor; use --device cpu")
        return
    if not torch.cuda.is_available():
        why = "PyTorch was installed without CUDA" if torch.version.cuda is None else "PyTorch finds no GPU"
        raise DeviceError(f"device is {device!r}, but {why}; use --device cpu, or leave the device out")
    if number and int(number) >= torch.cuda.device_count():
        raise DeviceError(
            f"device is {device!r}; allowed here: cuda:0 to cuda:{torch.cuda.device_count() - 1} (--device)"
        )


def check_training_device(device: str | None, precision: str) -> None:
    """Makes sure that training in an arithmetic can be done on a device.

    Args:
        device: As in `check_device`; training takes the first GPU, or with ``torchrun`` one for each process.
        precision: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        DeviceError: It cannot, naming ``--device`` or ``--precision``.
    """
    check_device(device)
    if device not in (None, "cpu", "cuda"):
        raise DeviceError(
            f"device is {device!r}; training allows cpu or cuda (--device; CUDA_VISIBLE_DEVICES names one)"
        )
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if precision == "fp16" and not on_gpu:
        raise DeviceError("precision is 'fp16', which needs a GPU; on the CPU use --precision fp32, or bf16")
    if precision != "bf16":
        return
    if on_gpu and not torch.cuda.is_bf16_supported():
        raise DeviceError("precision is 'bf16', which this GPU does not have; use --precision fp32 or fp16")
    if not on_gpu and device is None:
        raise DeviceError(
            "precision is 'bf16', and there is no GPU; use --device cpu for bf16 on the CPU, or --precision fp32"
        )
