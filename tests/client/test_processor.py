"""A device is known by a name that another board does not have, whatever its kernel writes."""

import platform

import pytest

from client import processor as module
from client.latency_table import Device
from client.processor import counts_in_32_bits, processor

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 142
model name\t: Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz
stepping\t: 10
flags\t\t: fpu vme avx2
"""


def arm64(*parts: str) -> str:
    """What a 64-bit Arm kernel writes of cores of these parts: no name at all."""
    return "\n".join(
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
        f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\n"
        "CPU revision\t: 3\n"
        for number, part in enumerate(parts)
    )


ARM32 = """processor\t: 0
model name\t: ARMv7 Processor rev 3 (v7l)
BogoMIPS\t: 270.00
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

Hardware\t: BCM2711
Revision\t: c03114
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
MIPS = (
    "system type\t\t: MediaTek MT7621 ver:1 eco:3\nprocessor\t\t: 0\ncpu model\t\t: MIPS 1004Kc V2.15\n"
)
NAMED = {
    "x86, by its name and not its number": (X86, None, "Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz"),
    "64-bit Arm, by its board": (
        arm64(*["0xd08"] * 4),
        "Raspberry Pi 4 Model B Rev 1.4\0",
        "Raspberry Pi 4 Model B Rev 1.4",
    ),
    "64-bit Arm in a container, by the line of Raspberry's kernels": (
        arm64(*["0xd03"] * 4) + "\nRevision\t: a020d3\nModel\t\t: Raspberry Pi 3 Model B Plus Rev 1.3\n",
        None,
        "Raspberry Pi 3 Model B Plus Rev 1.3",
    ),
    "64-bit Arm without a name, by its cores": (arm64("0xd0c", "0xd0c"), None, "0x41 0xd0c 0x0 3"),
    "big.LITTLE, by both kinds": (
        arm64("0xd03", "0xd03", "0xd08"),
        None,
        "0x41 0xd03 0x0 3, 0x41 0xd08 0x0 3",
    ),
    "32-bit Arm, by its board": (
        ARM32,
        "Raspberry Pi 4 Model B Rev 1.4\0",
        "Raspberry Pi 4 Model B Rev 1.4",
    ),
    "MIPS": (MIPS, None, "MIPS 1004Kc V2.15"),
    "nothing, by Python": ("", None, "what Python knows"),
    "no such files, by Python": (None, None, "what Python knows"),
}


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Has this device be one whose kernel writes these texts."""

    def become(cpu_info: str | None, board: str | None) -> None:
        for name, text in (("CPU_INFO", cpu_info), ("BOARD", board)):
            path = tmp_path / name
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
            monkeypatch.setattr(module, name, path)
        monkeypatch.setattr(platform, "processor", lambda: "what Python knows")

    return become


@pytest.mark.parametrize(("cpu_info", "board", "name"), NAMED.values(), ids=NAMED.keys())
def test_a_processor_is_named(system, cpu_info, board, name):
    system(cpu_info, board)
    assert processor() == name


def test_two_boards_of_64_bit_arm_are_two_devices(system):
    found = set()
    for board in ("Raspberry Pi 4 Model B Rev 1.4\0", "Raspberry Pi 5 Model B Rev 1.0\0", None):
        system(arm64("0xd08"), board)
        found.add(Device.here("torch 2.5", 1))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("cpu_info", "exact"),
    [
        (X86, False),
        (X86.replace("avx2", "avx2 avx512f avx512_vnni"), True),
        (X86.replace("avx2", "avx2 avx_vnni"), True),
        (arm64("0xd08"), True),
    ],
    ids=["x86", "x86 with AVX-512's VNNI", "x86 with AVX's VNNI", "Arm"],
)
def test_what_adds_up_products_of_8_bits_in_32_is_known(system, cpu_info, exact):
    system(cpu_info, None)
    assert counts_in_32_bits() is exact
