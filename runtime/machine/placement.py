"""Decides which GPUs each engine runs on, and checks what was asked for against what is there. Pure, before anything loads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speclrm.runtime.errors import CapacityError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speclrm.runtime.machine.hardware import Machine
    from speclrm.runtime.protocols import Role
    from speclrm.runtime.settings import EngineDtype, EngineSettings

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Placement:
    """The place of one engine.

    ``devices``: numbers of GPUs as programs see them, from 0; none leaves the choice to us. ``tensor_parallel``: how many
    GPUs share each layer, by default all devices of a stage; without GPUs, processor cores. ``pipeline_parallel``: how many
    stages the layers are dealt to. ``share``: the most of each GPU's memory that the engine takes, 0 to 1. ``replicas``:
    engines of this kind; the devices are dealt to them in order.
    """

    devices: tuple[int, ...] = ()
    tensor_parallel: int | None = None
    pipeline_parallel: int = 1
    share: float | None = None
    dtype: EngineDtype = "auto"
    replicas: int = 1

    @property
    def tensor(self) -> int:
        """How many GPUs share each layer of a replica."""
        return self.tensor_parallel or max(1, len(self.devices) // (self.pipeline_parallel * self.replicas))

    @property
    def size(self) -> int:
        """How many GPUs each replica takes."""
        return self.tensor * self.pipeline_parallel


def place(machine: Machine, asked: Mapping[Role, Placement]) -> dict[Role, tuple[int, ...]]:
    """Returns the GPUs of each role's engines, one replica after the other; none on a machine without.

    Engines that are not told go side by side, the target first, as far as there are GPUs; then they share the first ones.

    Raises:
        SettingsError: devices that are not there, or do not fit the parallel sizes; a share of memory that is not free.
        CapacityError: an engine is to be shared by more GPUs than there are.
    """
    count = len(machine.gpus)
    there = "no GPU" if not count else f"{count} GPU{'' if count == 1 else 's'} (0 to {count - 1})"
    for role, one in asked.items():
        if count or one.devices:
            _check_devices(role, one, count, there)
        else:
            _check_cores(role, one, len(machine.cores))
    taken = {device for one in asked.values() for device in one.devices}
    found: dict[Role, tuple[int, ...]] = {}
    for role in sorted(asked, reverse=True):  # the target first
        one = asked[role]
        free = [device for device in range(count) if device not in taken]
        wanted = one.size * one.replicas if count else 0
        chosen = free if len(free) >= wanted else [number % count for number in range(wanted)]
        found[role] = one.devices or tuple(chosen[:wanted])
        taken |= set(found[role])
    _check_shares(machine, asked, found)
    return {role: found[role] for role in asked}


def by_slices(settings: Mapping[Role, EngineSettings]) -> bool:
    """Whether engines share processor cores, or a GPU by time slices."""
    used: Counter[str | int] = Counter()
    for chosen in settings.values():
        if chosen.device == "cpu":
            used.update(chosen.cores * chosen.replicas)
        elif not chosen.mps:
            used.update(chosen.devices or ("0",) * chosen.replicas)
    return any(engines > 1 for engines in used.values())


def _check_devices(role: Role, one: Placement, count: int, there: str) -> None:
    flag = f"--{role.value}-devices {','.join(map(str, one.devices))}"
    if lacking := [str(device) for device in one.devices if not 0 <= device < count]:
        raise SettingsError(
            f"{flag}: this machine has {there}, so there is no {' and no '.join(lacking)}. `speclrm doctor` lists them."
        )
    if len(set(one.devices)) < len(one.devices):
        raise SettingsError(f"{flag} names a GPU twice.")
    if one.devices and one.size * one.replicas != len(one.devices):
        many = f"{one.replicas} {role.value}s, each" if one.replicas > 1 else f"a {role.value}"
        takes = f"which take {one.size * one.replicas} together" if one.replicas > 1 else f"which takes {one.size}"
        raise SettingsError(
            f"{flag}: {len(one.devices)} device{'' if len(one.devices) == 1 else 's'} cannot hold {many} of tensor "
            f"parallel size {one.tensor} and pipeline parallel size {one.pipeline_parallel}, {takes}. Name as "
            "many, or leave the sizes out."
        )
    if one.size > count:
        sizes = f"tensor parallel size {one.tensor_parallel or 1}"
        if one.pipeline_parallel > 1:
            sizes += f" and pipeline parallel size {one.pipeline_parallel}"
        raise CapacityError(
            f"A {role.value} of {sizes} needs {one.size} GPUs, and this machine has {there}. Leave it out."
        )


def _check_cores(role: Role, one: Placement, cores: int) -> None:
    """Without a GPU the parts of a layer are dealt to processor cores; vLLM runs no stages there."""
    if one.pipeline_parallel > 1:
        raise CapacityError(
            f"A {role.value} of pipeline parallel size {one.pipeline_parallel} needs {one.size} GPUs, and this machine has no "
            "GPU. Leave it out."
        )
    if one.size > cores:
        raise CapacityError(
            f"A {role.value} of tensor parallel size {one.size} needs {one.size} GPUs, or as many processor cores, and this "
            f"machine has no GPU and {cores} core{'' if cores == 1 else 's'}. Leave it out."
        )


def _check_shares(machine: Machine, asked: Mapping[Role, Placement], found: Mapping[Role, tuple[int, ...]]) -> None:
    for device, gpu in enumerate(machine.gpus):
        shares = {
            role: share * found[role].count(device)
            for role, one in asked.items()
            if (share := one.share) and device in found[role]
        }
        if sum(shares.values()) * gpu.total_bytes > gpu.free_bytes:
            flags = " and ".join(f"--{role.value}-gpu-memory-utilization {share:g}" for role, share in shares.items())
            raise SettingsError(share_error(flags, sum(shares.values()), machine, device))


def share_error(flags: str, share: float, machine: Machine, device: int) -> str:
    gpu = machine.gpus[device]
    return (
        f"{flags}: {share * gpu.total_bytes / GIB:.1f} GiB of GPU {device} ({gpu.name}), and {gpu.free_bytes / GIB:.1f} of "
        f"{gpu.total_bytes / GIB:.1f} GiB are free there. Give at most {int(gpu.free_bytes / gpu.total_bytes * 100) / 100:g}, "
        "or free memory."
    )
