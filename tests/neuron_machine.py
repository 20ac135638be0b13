"""A machine with Neuron devices and AWS's SDK, as far as treadle looks at one: see tests/neuron/torch_neuronx.py."""

from __future__ import annotations

import stat
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

STAND_IN = Path(__file__).parent / "neuron"
VERSIONS = {"torch-neuronx": "2.9.0.2.11", "neuronx-cc": "2.22.0"}

# Runs before anything of treadle in an interpreter of such a machine.
_AT_START = """\
from pathlib import Path
from treadle.hardware import devices

for look in (devices.devices_seen, devices.missing_devices, devices.refuse_missing_devices):
    look.__kwdefaults__["dev"] = Path({dev!r})
"""


@dataclass(frozen=True, slots=True)
class NeuronMachine:
    """`python` is an interpreter there; `dev` holds the devices that it shows."""

    python: Path
    dev: Path
    libraries: Path

    def pools(self, kind: str = "inferentia") -> str:
        """The content of a pools.yaml."""
        return f"chips: {{accelerator: {kind}, count: 1, python: {self.python}, options: {{cores_per_device: 2}}}}\n"

    def be_here(self, patch: pytest.MonkeyPatch) -> None:
        """Makes this process run on the machine."""
        from treadle.hardware.devices import devices_seen

        patch.setitem(devices_seen.__kwdefaults__, "dev", self.dev)
        patch.syspath_prepend(str(self.libraries))
        patch.setitem(sys.modules, "torch_neuronx", _stand_in())


@cache
def _stand_in() -> ModuleType:
    """Imported once in a process: it registers an operator of torch."""
    found = spec_from_file_location("torch_neuronx", STAND_IN / "torch_neuronx.py")
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


def neuron_machine(folder: Path, *, devices: int = 1, **env: str) -> NeuronMachine:
    """A machine that shows some devices; `env` are variables of its interpreter."""
    dev, libraries, start = folder / "dev", folder / "libraries", folder / "start"
    for path in (dev, libraries, start):
        path.mkdir(parents=True)
    for number in range(devices):
        (dev / f"neuron{number}").touch()
    for name, version in VERSIONS.items():
        info = libraries / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (start / "sitecustomize.py").write_text(_AT_START.format(dev=str(dev)))
    python = folder / "python"
    paths = ":".join(map(str, (STAND_IN, libraries, start)))
    given = "".join(f" {name}='{value}'" for name, value in env.items())
    python.write_text(f"#!/bin/sh\nexec env PYTHONPATH='{paths}'{given} '{sys.executable}' \"$@\"\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return NeuronMachine(python, dev, libraries)
