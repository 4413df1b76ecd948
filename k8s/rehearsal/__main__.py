"""Rehearse an overlay on a real control plane with simulated nodes: one line a step, a JSON line at the end.

Exit 0 if every step held, 1 if one failed (the JSON says which), 2 if the control plane could not be built or started.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from k8s.rehearsal.binaries import BuildFailed, build_binaries
from k8s.rehearsal.client import KubectlFailed
from k8s.rehearsal.control_plane import ControlPlane, StartFailed
from k8s.rehearsal.crds import fetch_crds
from k8s.rehearsal.disruptions import drain, lose_nodes
from k8s.rehearsal.failures import StepFailed
from k8s.rehearsal.install import apply_crds, check_diff, install, install_again, uninstall, wait_for_installation
from k8s.rehearsal.manifests import ROOT, Manifests
from k8s.rehearsal.nodes import Fleet
from k8s.rehearsal.policy import check_policy
from k8s.rehearsal.rehearsal import NAMESPACE, Rehearsal
from k8s.rehearsal.scaling import scale
from k8s.rehearsal.upgrade import roll_back, upgrade
from k8s.rehearsal.waiting import TimedOut
from k8s.rehearsal.waits import Waits

Step = Callable[[Rehearsal], str]
STEPS: dict[str, Step] = {
    "crds": apply_crds,
    "install": install,
    "rollouts": wait_for_installation,
    "install_again": install_again,
    "diff": check_diff,
    "policy": check_policy,
    "upgrade": upgrade,
    "roll_back": roll_back,
    "scale": scale,
    "drain": drain,
    "lose_nodes": lose_nodes,
    "diff_at_end": check_diff,
    "uninstall": uninstall,
}
NEEDED = {"crds", "install"}  # without them the rest has nothing to try


@dataclass
class Outcome:
    """Which steps held, which failed, and how long it took."""

    held: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    num_crds: int = 0
    num_applied: int = 0
    seconds: float = 0.0

    def to_json(self) -> str:
        """The last line: a key is true only if each step behind it ran and held."""
        line: dict[str, object] = {
            "applied": self.num_applied,
            "crds": self.num_crds,
            "rollouts_ok": {"rollouts", "scale"} <= self.held,
            "min_available_kept": {"upgrade", "roll_back", "drain"} <= self.held,
            "node_lost_recovered": "lose_nodes" in self.held,
            "policy_refused": "policy" in self.held,
            "diff_empty": {"install_again", "diff", "diff_at_end"} <= self.held,
            "nothing_left": "uninstall" in self.held,
            "failed": self.failed,
            "seconds": round(self.seconds, 1),
        }
        return json.dumps(line)


def run_steps(rehearsal: Rehearsal, say: Callable[[str], None], steps: Collection[str] = tuple(STEPS)) -> Outcome:
    """Run these steps in their order; one that fails is told and keeps no other from running, unless those need it."""
    outcome = Outcome()
    started = time.monotonic()
    for name, step in STEPS.items():
        if name not in steps or (NEEDED & set(outcome.failed) and name != "uninstall"):
            continue
        at = time.monotonic()
        try:
            found = step(rehearsal)
        except (StepFailed, KubectlFailed, TimedOut, httpx.HTTPError, OSError) as error:
            say(f"FAIL {name} ({time.monotonic() - at:.1f} s): {error}")
            outcome.failed.append(name)
        else:
            say(f"ok   {name} ({time.monotonic() - at:.1f} s): {found}")
            outcome.held.add(name)
    outcome.num_crds = len(rehearsal.crd_files) if "crds" in outcome.held else 0
    outcome.num_applied = len(rehearsal.objects) if "install" in outcome.held else 0
    outcome.seconds = time.monotonic() - started
    return outcome


@contextlib.contextmanager
def run_cluster(folder: Path, binaries: Path, say: Callable[[str], None]) -> Iterator[Fleet]:
    """A running cluster with its nodes, its files in `folder`. Raises StartFailed, TimedOut."""
    at = time.monotonic()
    with ControlPlane(binaries, folder) as control_plane, contextlib.closing(control_plane.connect()) as cluster:
        fleet = Fleet(control_plane, cluster)
        fleet.start()
        waits = Waits(cluster, NAMESPACE)
        waits.start()
        say(f"== Control plane and {len(fleet.nodes)} simulated nodes are up ({time.monotonic() - at:.1f} s)")
        try:
            yield fleet
        finally:
            waits.stop()


def main() -> None:
    """Run a rehearsal."""
    parser = argparse.ArgumentParser(prog="make k8s-rehearsal", description=__doc__)
    parser.add_argument("--overlay", default="prod", help="which of k8s/overlays to rehearse")
    parser.add_argument("--source", type=Path, default=ROOT, help="another checkout, to rehearse its k8s/")
    parser.add_argument("--keep", action="store_true", help="keep the logs, and say where they are")
    parser.add_argument("--build-only", action="store_true", help="build what is needed into the cache, and stop")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(line, flush=True)

    folder = Path(tempfile.mkdtemp(prefix="prefloop-rehearsal-"))
    try:
        binaries, crd_files = build_binaries(say), fetch_crds(say)
        if arguments.build_only:
            return
        manifests = Manifests(folder / "checkout", arguments.overlay, arguments.source)
        with run_cluster(folder / "cluster", binaries, say) as fleet:
            outcome = run_steps(Rehearsal(fleet, manifests, crd_files), say)
    except (BuildFailed, StartFailed, TimedOut) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    finally:
        if arguments.keep:
            say(f"== Logs are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    say(outcome.to_json())
    sys.exit(1 if outcome.failed else 0)


if __name__ == "__main__":
    main()
