"""How a CPU is described: by what decides which kernels run on it."""

from easycore_ray.storage.machine import _describe_cpu, cpu

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
flags\t\t: fpu sse2 avx avx2 fma avx512f avx512_bf16

processor\t: 1
model name\t: another
"""
ARM = """processor\t: 0
Features\t: fp asimd bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def test_a_cpu_is_known_by_model_and_instructions():
    """Those of the first core; of the flags, those that arithmetic depends on."""
    assert _describe_cpu(X86) == "AMD EPYC, family 25, model 17 (avx avx2 fma avx512f avx512_bf16)"
    assert _describe_cpu(ARM) == "CPU implementer 0x41, CPU part 0xd40 (asimd bf16)"
    assert _describe_cpu("") == ""


def test_every_machine_has_a_description():
    """Where Linux says nothing, Python does."""
    assert cpu()
