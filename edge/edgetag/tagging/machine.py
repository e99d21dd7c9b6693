"""What a measurement holds for (the processor, the runtime and its threads), and memory."""

import platform
from pathlib import Path

import msgspec
import onnxruntime

CPUINFO = Path("/proc/cpuinfo")
DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")

# What makes eight bits fast or slow; virtual machines of one model name differ in it.
_INT8_INSTRUCTIONS = frozenset(
    {"avx2", "avx_vnni", "avx512bw", "avx512_vnni", "amx_int8"}
    | {"neon", "asimd", "asimddp", "i8mm", "sve", "svei8mm"}
)


class Machine(msgspec.Struct, frozen=True):
    """Where nets were measured. Two measurements can be compared if all of it is equal.

    Attributes:
        cpu: the model's name, or what there is instead.
        architecture: `x86_64`, `aarch64`, …
        instructions: those for eight bits or for wide vectors that the processor has.
        onnxruntime: its version.
        threads: of one net.
    """

    cpu: str
    architecture: str
    instructions: list[str]
    onnxruntime: str
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        parts = [self.cpu, self.architecture, *self.instructions, f"onnxruntime {self.onnxruntime}", threads]
        return ", ".join(parts)


def this_machine(threads: int) -> Machine:
    """The machine this process runs on."""
    cpuinfo = _text(CPUINFO)
    return Machine(
        cpu=cpu_model(cpuinfo, _text(DEVICE_TREE_MODEL)) or platform.processor() or "unknown",
        architecture=platform.machine(),
        instructions=int8_instructions(cpuinfo),
        onnxruntime=onnxruntime.__version__,
        threads=threads,
    )


def cpu_model(cpuinfo: str, device_tree_model: str) -> str:
    """The processor by name (x86), or by board and core numbers (arm); "" if neither is told.

    >>> cpu_model("processor : 0\\nmodel name : Intel(R) N100", "")
    'Intel(R) N100'
    >>> cpu_model("CPU implementer : 0x41\\nCPU part : 0xd08", "Raspberry Pi 4 Model B Rev 1.4\\0")
    'Raspberry Pi 4 Model B Rev 1.4 (0x41 0xd08)'
    """
    if names := _values(cpuinfo, "model name"):
        return " and ".join(names)
    cores = " ".join(_values(cpuinfo, "CPU implementer") + _values(cpuinfo, "CPU part"))
    board = device_tree_model.strip("\0\n ")
    return f"{board} ({cores})" if board and cores else board or cores


def int8_instructions(cpuinfo: str) -> list[str]:
    """
    >>> int8_instructions("flags : fpu avx2 avx512_vnni")
    ['avx2', 'avx512_vnni']
    """
    lines = _values(cpuinfo, "flags") + _values(cpuinfo, "Features")
    return sorted(_INT8_INSTRUCTIONS & {flag for line in lines for flag in line.split()})


def available_bytes() -> int | None:
    """Memory this process may still take: the machine's or its control group's; None if nobody tells."""
    bounds = [1024 * int(v.split()[0]) for v in _values(_text(MEMINFO), "MemAvailable") if v[:1].isdigit()]
    group = CGROUPS / _text(CGROUP).strip().rpartition("::/")[2]
    limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        bounds.append(max(0, int(limit) - int(used)))
    return min(bounds, default=None)


def resident_bytes() -> int:
    """Resident memory of this process; 0 where there is no /proc."""
    return 1024 * next((int(value.split()[0]) for value in _values(_text(STATUS), "VmRSS")), 0)


def _values(text: str, key: str) -> list[str]:
    """What lines `key : value` say, each value once, in order."""
    pairs = (line.partition(":") for line in text.splitlines())
    return list(dict.fromkeys(value.strip() for found, _, value in pairs if found.strip() == key))


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
