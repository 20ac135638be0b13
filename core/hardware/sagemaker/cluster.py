"""What each machine of a SageMaker job of several machines runs: together they are a Ray cluster around one command.

    first machine   ray start --head, waits for the others, runs the command with RAY_ADDRESS, ends with its exit code
    the others      ray start --address=FIRST, report to the first, end when it does

SageMaker starts the same entrypoint on all machines, and ends the job when all of them ended. A machine reports over a
connection that stays: where it breaks, the other end is gone. Nothing is stopped here: the containers end with this.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

# Where training and processing jobs find who they are; the variable is for places that are laid out otherwise.
_CONFIGS = ("/opt/ml/input/config/resourceconfig.json", "/opt/ml/config/resourceconfig.json")
CONFIG_VARIABLE = "TREADLE_SAGEMAKER_CONFIG"
_RAY_PORT, _REPORT_PORT = 6379, 6378
_JOIN_S, _AGAIN_S = 900.0, 2.0
_PREEMPTED_EXIT = 75


def main(command: Sequence[str]) -> int:
    """The exit code of this machine: the command's on the first one."""
    found = [
        path for path in (os.environ.get(CONFIG_VARIABLE, ""), *_CONFIGS) if path and Path(path).is_file()
    ]
    if not found:
        print(f"treadle: no {_CONFIGS[0]} here: is this a job on SageMaker?", file=sys.stderr)
        return 64
    config = json.loads(Path(found[0]).read_text())
    # As the first process of its container it is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_PREEMPTED_EXIT))
    hosts, here = config["hosts"], config["current_host"]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Whoever reaches these ports is a machine of this job: no other gets into its network, or through its groups.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    return _lead(hosts, command) if here == min(hosts) else _follow(min(hosts), here)


def _lead(hosts: Sequence[str], command: Sequence[str]) -> int:
    """Runs the command once all machines are there."""
    first = min(hosts)
    with socket.create_server((first, _REPORT_PORT)) as desk:
        if code := _ray(
            "--head", f"--node-ip-address={first}", f"--port={_RAY_PORT}", "--include-dashboard=false"
        ):
            return code
        there: list[socket.socket] = []
        try:
            desk.settimeout(_JOIN_S)
            while len(there) < len(hosts) - 1:
                link = desk.accept()[0]
                link.settimeout(_JOIN_S)
                if link.recv(64):  # empty: it gave up, and may come again
                    there.append(link)
        except TimeoutError:
            print(
                f"treadle: only {len(there) + 1} of {len(hosts)} machines came within {_JOIN_S:g} s",
                file=sys.stderr,
            )
            return _PREEMPTED_EXIT
        return _run(command, {"RAY_ADDRESS": f"{first}:{_RAY_PORT}"})


def _run(command: Sequence[str], variables: dict[str, str]) -> int:
    """The exit code of the command, which gets this process's SIGTERM."""
    process = subprocess.Popen(command, env={**os.environ, **variables})

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    signal.signal(signal.SIGTERM, hand_on)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _follow(first: str, here: str) -> int:
    """Joins the cluster, and ends with the first machine."""
    end = time.monotonic() + _JOIN_S
    while True:
        try:
            link = socket.create_connection((first, _REPORT_PORT), timeout=_AGAIN_S)
            break
        except OSError as error:
            if time.monotonic() > end:
                print(f"treadle: {first} can't be reached from {here}: {error}", file=sys.stderr)
                return _PREEMPTED_EXIT
            time.sleep(_AGAIN_S / 4)
    with link:
        link.settimeout(None)
        # The first one listens before its Ray does.
        while _ray(f"--address={first}:{_RAY_PORT}", f"--node-ip-address={here}"):
            if time.monotonic() > end:
                return _PREEMPTED_EXIT
            time.sleep(_AGAIN_S)
        # Asked to end, the first machine comes to a good end only as long as the others work on.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        link.sendall(b"here")
        _wait_for_end(link)
    return 0


def _wait_for_end(link: socket.socket) -> None:
    try:
        while link.recv(64):
            pass
    except OSError:
        pass  # it was cut: the first machine is gone


def _ray(*options: str) -> int:
    """The exit code of `ray start`."""
    return subprocess.run(["ray", "start", *options], stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
