"""Where tables go, what devices are called, and which models are measured whole."""

from pathlib import Path

import pytest

from neusim.profiling import memory
from neusim.profiling.llm import planned_cache
from neusim.profiling.memory import GIB, TooLarge, free_ram, gpu_cache, plan_memory
from neusim.profiling.settings import TABLES, Settings, SettingsError, make_settings
from neustream.catalog import machine as devices
from neustream.catalog.accelerators import find_accelerator
from neustream.catalog.llms import OPT_SHAPES, load_shape


def test_tables_lie_by_device_and_model_and_tensor_parallelism() -> None:
    plain, _ = make_settings("facebook/opt-125m", device="cpu")
    assert plain.out == TABLES / devices.device_slug("cpu") / "opt-125m.json"
    spread_out, _ = make_settings("opt-125m", device="cpu", tp=2)
    assert spread_out.out.name == "opt-125m.tp2.json"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-80g-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA A100-PCIE-40GB", "a100-40g-pcie"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
    ],
)
def test_gpu_names_become_short(name: str, slug: str) -> None:
    assert devices.gpu_slug(name) == slug


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("AMD EPYC", "amd-epyc"),
        ("AMD EPYC 9R14 96-Core Processor", "amd-epyc-9r14"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "intel-xeon-platinum-8375c"),
        ("AMD Ryzen 7 5800X with Radeon Graphics", "amd-ryzen-7-5800x"),
        ("", "unknown"),
    ],
)
def test_cpu_names_become_short(name: str, slug: str) -> None:
    assert devices.cpu_slug(name) == slug


@pytest.mark.parametrize(
    ("name", "dtype", "free_gib", "layers"),
    [
        ("opt-125m", "float32", 23, None),
        ("opt-6.7b", "bfloat16", 24, None),
        ("opt-6.7b", "float32", 24, (2, 4)),
        ("opt-13b", "bfloat16", 20, (2, 4)),
        ("opt-66b", "bfloat16", 20, (2, 4)),
        ("opt-66b", "float16", 200, None),
    ],
)
def test_a_model_is_measured_whole_where_it_fits_and_by_layers_elsewhere(
    name: str, dtype: str, free_gib: int, layers: tuple[int, int] | None
) -> None:
    plan = plan_memory(load_shape(name), dtype, free_gib * GIB, layers=None, cache_tokens=65536)
    assert plan.layers == layers
    model = load_shape(name)
    taken = memory.ITEM_BYTES[dtype] * model.parameters(plan.depth) + plan.cache_bytes + memory.WORKSPACE_BYTES
    assert taken <= free_gib * GIB


def test_what_does_not_fit_by_layers_either_is_refused_with_sizes() -> None:
    with pytest.raises(TooLarge, match=r"opt-66b: 4 layers in float32 need 21\.\d GiB, and 13\.6 GiB can be taken"):
        plan_memory(load_shape("opt-66b"), "float32", 16 * GIB, layers=None, cache_tokens=65536)


def test_a_cgroup_limit_bounds_what_is_free() -> None:
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8388608 kB\n"}

    def read(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    assert free_ram(read) == 8 * GIB
    files |= {
        "/sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
        "/sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
        "/sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    }
    assert free_ram(read) == 2 * GIB
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_ram(read) == 8 * GIB


def test_parameter_counts_are_those_of_the_published_models() -> None:
    for name, published in (("opt-125m", 125e6), ("opt-350m", 331e6), ("opt-13b", 12.85e9), ("opt-66b", 65.7e9)):
        model = load_shape(name)
        assert model.parameters(model.num_layers) == pytest.approx(published, rel=0.01)


def test_a_model_is_spread_over_no_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(devices, "gpu_names", lambda: ["NVIDIA RTX A6000"] * 2)
    shape = OPT_SHAPES["opt-30b"]
    devices.check_tensor_parallel(shape, 2, "cuda")
    with pytest.raises(ValueError, match="--tp must be at most 2, the GPUs of this machine, got 4"):
        devices.check_tensor_parallel(shape, 4, "cuda")
    with pytest.raises(ValueError, match="--tp must divide the 56 heads of opt-30b, got 3"):
        devices.check_tensor_parallel(shape, 3, "cuda")


def test_kv_blocks_are_what_the_weights_leave_of_nine_tenths_of_the_memory():
    """opt-13b in 2 bytes an element: a block of 16 tokens takes 2 · 40 · 5120 · 2 · 16 bytes."""
    shape = OPT_SHAPES["opt-13b"]
    block = 2 * 40 * 5120 * 2 * 16
    memory = (shape.num_parameters * 2 + 10.5 * block) / 0.9
    assert shape.kv_blocks(memory, 2) == 10
    assert shape.kv_blocks(1e9, 2) == 0


@pytest.mark.parametrize(
    ("part", "title", "gigabytes_per_s"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB", 2039),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB", 1935),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40 GB", 1555),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40 GB", 1555),
    ],
)
def test_every_a100_is_known_by_its_part_name(part: str, title: str, gigabytes_per_s: int) -> None:
    found = find_accelerator(devices.gpu_slug(part))
    assert (found.title, found.bytes_per_s) == (title, gigabytes_per_s * 1e9)
    assert found.link.name.startswith("PCIe" if "PCI" in part.upper() else "NVLink")


def settings(device: str, tp: int = 1) -> Settings:
    return Settings("opt-13b", "opt-13b", device, device, "auto", tp, True, None, None, Path("x.json"))


@pytest.mark.parametrize(("space", "gib"), [(None, 4), ("0", 4), ("7", 7)])
def test_a_cpus_kv_blocks_are_those_of_the_experiments_engine(monkeypatch, space: str | None, gib: int) -> None:
    """A block of opt-13b takes 2 · 40 layers · 5120 · 4 B · 16 tokens in float32."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    if space is not None:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", space)
    cache = planned_cache(settings("cpu"), OPT_SHAPES["opt-13b"], "float32")
    blocks = gib * 2**30 // (2 * 40 * 5120 * 4 * 16)
    source = f"VLLM_CPU_KVCACHE_SPACE of {gib} GiB"
    assert cache.info == {"kv_blocks": blocks, "kv_block_size": 16, "kv_blocks_from": source}


def test_a_cache_size_that_vllm_cannot_read_is_refused_before_the_engine_loads(monkeypatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2.5")
    with pytest.raises(SettingsError, match=r"VLLM_CPU_KVCACHE_SPACE must be whole GiB, got '2.5'"):
        planned_cache(settings("cpu"), OPT_SHAPES["opt-13b"], "float32")


def test_a_gpus_kv_blocks_are_what_the_weights_leave_of_all_gpus_together(monkeypatch) -> None:
    monkeypatch.setattr(devices, "_nvidia_smi", lambda field: {"memory.total": ["46068 MiB"]}[field])
    shape = OPT_SHAPES["opt-13b"]
    cache = planned_cache(settings("cuda", tp=2), shape, "float16")
    assert cache.info["kv_blocks"] == shape.kv_blocks(2 * 46068 * 2**20, 2)
    assert cache.source == "90% of 90.0 GiB less the weights"


def test_where_the_weights_leave_no_room_a_table_names_no_blocks() -> None:
    assert gpu_cache(OPT_SHAPES["opt-66b"], "float16", 48e9).info == {}
