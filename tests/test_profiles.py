"""Profiles: the decision for devices that this machine need not have, and the sentences where none can be made."""

import types

import pytest
import torch

from nbtools import profiles
from nbtools.errors import NbtoolsError

GIB = 2**30


@pytest.fixture
def cuda(monkeypatch):
    """Make torch answer as with one CUDA device of a given capability; is_bf16_supported must not be asked."""

    def forbidden(*args, **kwargs):
        raise AssertionError("is_bf16_supported says True on a T4, where every product is emulated")

    def pretend(capability, name="Toy", memory=16 * GIB):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", forbidden)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *a: types.SimpleNamespace(total_memory=memory))

    return pretend


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((6, 1), "float16"),
        ((7, 5), "float16"),
        ((8, 0), "bfloat16"),
        ((8, 9), "bfloat16"),
        ((9, 0), "bfloat16"),
        ((10, 0), "bfloat16"),
    ],
)
def test_the_capability_decides_the_compute_type(cuda, capability, dtype):
    cuda(capability, "Toy T4")
    found = profiles.decide()
    assert (found.name, found.device, found.dtype, found.processor) == ("gpu", "cuda", dtype, "Toy T4")
    assert found.gpu_memory_gb == 16 and found.autocast
    assert ".".join(map(str, capability)) in found.describe()


def test_a_t4_is_told_why_and_that_float16_needs_a_scaler():
    dtype, why = profiles.cuda_dtype((7, 5))
    assert dtype == "float16" and "emulated" in why and "scaler" in why


def test_cpu_on_a_machine_with_a_gpu_when_asked(cuda):
    cuda((9, 0))
    found = profiles.decide("cpu")
    assert (found.name, found.device, found.gpu_memory_gb) == ("cpu", "cpu", None)
    assert "NBTOOLS_PROFILE says so" in found.describe()


def test_without_a_gpu_the_processor_is_used(no_cuda):
    found = profiles.decide()
    assert (found.name, found.device) == ("cpu", "cpu")
    assert found.cores >= 1 and found.memory_gb > 0.1
    assert "no CUDA device" in found.describe()


def test_asking_for_a_gpu_without_one_is_an_error_not_a_fall_back(no_cuda):
    with pytest.raises(NbtoolsError, match="finds no CUDA device; set it to cpu, or install") as caught:
        profiles.decide("gpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["tpu", "GPU", "cuda", " "])
def test_another_word_is_named_with_the_way_out(wrong):
    with pytest.raises(NbtoolsError) as caught:
        profiles.decide(wrong)
    assert repr(wrong) in str(caught.value) and "cpu or gpu" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("set_to", ["cpu", "nonsense"])
def test_the_environment_is_read_once(monkeypatch, set_to):
    profiles.current.cache_clear()
    monkeypatch.setenv("NBTOOLS_PROFILE", set_to)
    try:
        if set_to == "nonsense":
            with pytest.raises(NbtoolsError, match="nonsense"):
                profiles.current()
        else:
            assert profiles.current() is profiles.current() and profiles.current().name == "cpu"
    finally:
        profiles.current.cache_clear()


@pytest.mark.parametrize(
    ("amx", "avx", "dtype"), [(True, True, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")]
)
def test_a_processor_uses_bfloat16_only_where_it_multiplies_it_in_hardware(monkeypatch, amx, avx, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    found, why = profiles.cpu_dtype()
    assert found == dtype and ("AMX" in why) == amx


def test_a_torch_without_those_probes_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert profiles.cpu_dtype()[0] == "float32"


def test_float32_means_no_autocast_and_describe_has_one_line_a_reason():
    toy = profiles.Profile("cpu", "cpu", "float32", 2, 23.4, None, "toy", ("first", "second"))
    assert not toy.autocast
    assert toy.describe().splitlines() == [
        "profile cpu: device cpu, compute type float32, 2 cores, 23 GiB memory",
        "  because first",
        "  because second",
    ]


def test_the_apple_gpu_is_reported_and_left_alone(no_cuda, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = profiles.decide()
    assert found.device == "cpu" and "Apple" in found.describe()
