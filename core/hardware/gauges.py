"""How busy the accelerators of a job are: NVIDIA's by NVML, Neuron's by `neuron-monitor`; without any library of ours.

A gauge looks at the devices that the process may use. Where there is nothing to ask, there is no gauge: a number that
is not known is None, never 0.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from treadle.hardware.pools import Kind

_NVML = "libnvidia-ml.so.1"
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Reading:
    """One device now. `share` is how busy it is, 0 to 1; None where the device does not tell."""

    name: str
    share: float | None
    memory_gib: float | None
    memory_total_gib: float | None


class Gauge(Protocol):
    """Reads devices until it is closed."""

    def read(self) -> list[Reading]:
        """The devices of this process now; empty where nothing was told yet."""
        ...

    def close(self) -> None:
        """Leaves nothing running."""
        ...


def open_gauge(kind: Kind) -> Gauge | None:
    """The gauge of a kind of accelerator; None for `cpu`, and where the machine has nothing that tells."""
    if kind == "gpu":
        with suppress(OSError, RuntimeError):
            return NvidiaGauge()
    elif kind != "cpu" and (program := shutil.which("neuron-monitor")):
        return NeuronGauge(program)
    return None


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class NvidiaGauge:
    """NVML, which comes with NVIDIA's driver. Memory is the device's: a job has its devices to itself.

    Raises:
        OSError: There is no NVML. RuntimeError: It does not work.
    """

    def __init__(self) -> None:
        self._nvml = ctypes.CDLL(_NVML)
        self._ask("nvmlInit_v2")
        self._devices = chosen([self._device(index) for index in range(self._count())])

    def read(self) -> list[Reading]:
        """See Gauge."""
        return [self._read(name, handle) for name, _, handle in self._devices]

    def close(self) -> None:
        """See Gauge."""
        with suppress(RuntimeError):
            self._ask("nvmlShutdown")

    def _ask(self, function: str, *arguments: Any) -> None:
        code = getattr(self._nvml, function)(*arguments)
        if code:
            raise RuntimeError(f"{function} of NVML gave {code}")

    def _count(self) -> int:
        count = ctypes.c_uint()
        self._ask("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return count.value

    def _device(self, index: int) -> tuple[str, str, ctypes.c_void_p]:
        handle, name, uuid = (
            ctypes.c_void_p(),
            ctypes.create_string_buffer(96),
            ctypes.create_string_buffer(96),
        )
        self._ask("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
        self._ask("nvmlDeviceGetName", handle, name, 96)
        self._ask("nvmlDeviceGetUUID", handle, uuid, 96)
        return name.value.decode(), uuid.value.decode(), handle

    def _read(self, name: str, handle: ctypes.c_void_p) -> Reading:
        busy, memory = _Utilization(), _Memory()
        share = used = total = None
        with suppress(RuntimeError):  # a slice of a GPU (MIG) tells no utilization
            self._ask("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(busy))
            share = busy.gpu / 100
        with suppress(RuntimeError):
            self._ask("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
            used, total = memory.used / _GIB, memory.total / _GIB
        return Reading(name, share, used, total)


def chosen(devices: Sequence[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    """Those of the devices (name, UUID, handle) in NVML's order that CUDA_VISIBLE_DEVICES leaves visible."""
    bound = os.environ.get("CUDA_VISIBLE_DEVICES")
    if bound is None:
        return list(devices)
    found: list[tuple[str, str, Any]] = []
    for entry in (part.strip() for part in bound.split(",")):
        if entry.isdigit():
            found += devices[int(entry) : int(entry) + 1]
        elif entry:
            found += [device for device in devices if device[1].startswith(entry)]
    return found


class NeuronGauge:
    """The newest report of a `neuron-monitor` of its own, which prints one every few seconds."""

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen(
            [program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._newest: list[Reading] = []
        threading.Thread(target=self._listen, name="treadle-neuron", daemon=True).start()

    def read(self) -> list[Reading]:
        """See Gauge."""
        return self._newest

    def close(self) -> None:
        """See Gauge."""
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                self._newest = neuron_readings(json.loads(line))


def neuron_readings(report: Any) -> list[Reading]:
    """One reading for all NeuronCores in use: `neuron-monitor` tells memory by process, not by core."""
    busy: list[float] = []
    memory = 0.0
    for runtime in report.get("neuron_runtime_data") or ():
        told = runtime["report"]
        cores = told.get("neuroncore_counters", {}).get("neuroncores_in_use", {})
        busy += [float(core["neuroncore_utilization"]) / 100 for core in cores.values()]
        memory += float(
            told.get("memory_used", {}).get("neuron_runtime_used_bytes", {}).get("neuron_device", 0)
        )
    if not busy:
        return []
    noun = "NeuronCore" if len(busy) == 1 else "NeuronCores"
    return [Reading(f"{len(busy)} {noun}", sum(busy) / len(busy), memory / _GIB, None)]
