"""The three engines by name: where their programs are, how to get them, and their commands."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from workers.launch import sglang, trtllm, vllm
from workers.launch.spec import CannotLaunch, Command, EngineKind, EngineSpec

PROGRAMS: Mapping[EngineKind, str] = {
    EngineKind.VLLM: "vllm",
    EngineKind.SGLANG: "sglang",
    EngineKind.TRTLLM: "trtllm-serve",
}
CPU_ENVIRONMENT = Path(".venv-vllm")
"""Where `make vllm` puts a vLLM for the CPU."""
_HOW_TO_GET = {
    EngineKind.VLLM: "`make vllm` builds one for the CPU in .venv-vllm, and on a GPU machine "
    "`pip install vllm` in an environment of its own does",
    EngineKind.SGLANG: "on a GPU machine, `pip install sglang` in an environment of its own",
    EngineKind.TRTLLM: "on an NVIDIA machine, `pip install tensorrt-llm` in an environment of its "
    "own, or take NVIDIA's container",
}


def find_program(kind: EngineKind, asked: str | None = None) -> str:
    """The program that starts this engine: `asked`, or on PATH, or where `make vllm` puts it.

    Raises `CannotLaunch`, with the way to get it.
    """
    name = asked or PROGRAMS[kind]
    found = shutil.which(name)
    if found is None and not asked and kind is EngineKind.VLLM:
        found = shutil.which(CPU_ENVIRONMENT / "bin" / name)
    if found is None:
        raise CannotLaunch(
            f"there is no program {name!r}; to get {kind.value}: {_HOW_TO_GET[kind]}; where it is "
            "installed and not on PATH, give --engine-program"
        )
    return str(Path(found).absolute())


def has_accelerator() -> bool:
    """Whether this machine has an NVIDIA or AMD GPU that a process could open."""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd"))


def command(kind: EngineKind, program: str, spec: EngineSpec, directory: Path) -> Command:
    """What to run; files that it needs lie below `directory`. Raises `CannotLaunch`."""
    match kind:
        case EngineKind.VLLM:
            return vllm.command(program, spec)
        case EngineKind.SGLANG:
            return sglang.command(program, spec)
        case EngineKind.TRTLLM:
            return trtllm.command(program, spec, directory)
