"""Triton's kernels: in the interpreter, compiled for GPUs that need not be there, and on a GPU if there is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm.gaussian import GaussianFilter, position_colour_features
from rrm.gaussian.exact import ExactKernel
from rrm.gaussian.lattice import BatchLattice, elevation_scales

triton = pytest.importorskip("triton")
HERE = Path(__file__).parent


def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "interpreted_gaussian.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout


def compiled(kernel: Any, types: list[str], constants: dict[str, Any], capability: int, **options: Any) -> Any:
    """Compile for a GPU of that capability; pointers are aligned, as torch's are."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assert len(types) + len(constants) == len(kernel.arg_names)
    signature = dict(zip(kernel.arg_names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(types) if kind.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, **options})


def check_no_spills(binary: Any, folder: Path) -> None:
    """The package's own assembler says how many registers went to memory."""
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    if not assembler.exists():
        return
    source = folder / "kernel.ptx"
    source.write_text(binary.asm["ptx"])
    target = re.search(r"\.target (\w+)", source.read_text())
    assert target is not None
    command = [assembler, "-v", f"-arch={target[1]}", source, "-o", folder / "kernel.cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert re.findall(r"(\d+) bytes spill", report) == ["0", "0"], report


@pytest.fixture(params=[80, 90])
def capability(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return request.param


@pytest.mark.parametrize(("channels", "dimensions", "include_self"), [(16, 2, True), (32, 5, True), (64, 5, False)])
def test_exact_compiles(capability: int, tmp_path: Path, channels: int, dimensions: int, include_self: bool) -> None:
    from rrm.gaussian import exact_triton, kernels_triton

    rows, columns, warps = exact_triton._ROWS, exact_triton._COLUMNS, exact_triton._WARPS
    constants = {"D": dimensions, "INCLUDE_SELF": include_self, "ROWS": rows, "COLUMNS": columns}
    constants |= {"WIDTH": channels, "PEAK": exact_triton._PEAK}
    types = ["*fp32", "*fp16", "*fp32", "*fp32", *["i32"] * 6]
    binary = compiled(
        kernels_triton.weighted_sums, types, constants, capability, num_warps=warps, num_stages=exact_triton._STAGES
    )
    check_no_spills(binary, tmp_path)
    # Each weight is worked out once, and without the steps that denormal numbers need.
    assert binary.asm["ptx"].count("ex2.approx.ftz.f32") == rows * columns // (32 * warps)


def test_splitting_compiles(capability: int, tmp_path: Path) -> None:
    from rrm.gaussian import kernels_triton

    types = ["*fp32", "*fp32", "*fp16", *["i32"] * 6]
    constants = {"BLOCK": 64, "WIDTH": 32, "PEAK": 15}
    check_no_spills(compiled(kernels_triton.split_values, types, constants, capability), tmp_path)


@pytest.mark.parametrize("dimensions", [2, 5])
def test_building_compiles(capability: int, tmp_path: Path, dimensions: int) -> None:
    from rrm.gaussian import kernels_triton, lattice_triton

    block = {"BLOCK": lattice_triton._POINTS}
    constants = {"D": dimensions, "SCALES": tuple(elevation_scales(dimensions).tolist()), "FACTOR": 0.9}
    constants |= {"SPARE": lattice_triton._SPARE, "PROBES": lattice_triton._PROBES, **block}
    types = ["*fp32", "*i64", "*i64", "*i32", "*i64", "*i32", "*i32", "*fp32", *["i32"] * 7]
    binary = compiled(kernels_triton.insert_points, types, constants, capability, enable_fp_fusion=False)
    check_no_spills(binary, tmp_path)
    assert "fma" not in binary.asm["ptx"]  # the CPU rounds products before it adds them
    types = ["*i64", "*i32", "*i64", "*i64", "*i32", "i32", "i32"]
    check_no_spills(compiled(kernels_triton.find_neighbours, types, block, capability), tmp_path)


@pytest.mark.parametrize(("kind", "channels", "lanes"), [("*fp32", 3, 4), ("*fp32", 21, 24), ("*fp64", 1, 1)])
def test_filtering_compiles(capability: int, tmp_path: Path, kind: str, channels: int, lanes: int) -> None:
    from rrm.gaussian import kernels_triton, lattice_triton

    block = {"LANES": lanes, "BLOCK": lattice_triton._CELLS}
    constants = {"CORNERS": 6, "CHANNELS": channels, **block}
    for kernel, types, given in (
        (kernels_triton.splat, [kind, "*i32", "*fp32", kind, *["i32"] * 5], constants),
        (kernels_triton.blur, [kind, kind, "*i32", "i32"], block),
        (kernels_triton.slice_points, [kind, "*i32", "*fp32", kind, *["i32"] * 5], constants),
    ):
        check_no_spills(compiled(kernel, types, given, capability), tmp_path)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def photo_features(batch: int, height: int, width: int) -> torch.Tensor:
    """Features of images with regions of like colour."""
    generator = torch.Generator().manual_seed(height)
    coarse = torch.rand(batch, 3, 5, 5, generator=generator) * 255
    fine = torch.rand(batch, 3, height, width, generator=generator) * 30
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear") + fine
    return position_colour_features(images, 20.0, 13.0)


@needs_gpu
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 21, 40, 81])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (64, 64), (61, 83)])
def test_exact_on_a_gpu(height: int, width: int, channels: int, include_self: bool) -> None:
    features = photo_features(2, height, width).cuda()
    values = torch.randn(2, channels, height * width, device="cuda").transpose(1, 2)
    result = GaussianFilter(features, "exact", include_self).apply(values)
    expected = ExactKernel(features.double(), include_self).filter(values.double(), transpose=False)
    assert torch.equal(result, GaussianFilter(features, "exact", include_self).apply(values))
    assert (result - expected).abs().max() <= 5e-6 * expected.abs().max()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 21, 40, 600])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (64, 64), (61, 83), (161, 162)])
def test_lattice_on_a_gpu(height: int, width: int, channels: int, dtype: torch.dtype) -> None:
    features = photo_features(3, height, width)
    values = torch.randn(3, height * width, channels, dtype=dtype)
    kernel, plain = GaussianFilter(features.cuda(), "lattice"), BatchLattice(features)
    assert kernel._kernel._neighbours.shape[2] == len(plain._blurs[0][0])
    for product, transpose in ((kernel.apply, False), (kernel.apply_transpose, True)):
        expected = plain.filter(values, transpose)
        assert (product(values.cuda()).cpu() - expected).abs().max() <= 5e-6 * expected.abs().max()


@needs_gpu
def test_one_colour_and_noise_on_a_gpu() -> None:
    """The fewest vertices, which all points meet at, and the most, for which the table must grow."""
    noise = torch.rand(2, 3, 200, 200, generator=torch.Generator().manual_seed(0)) * 255
    for images in (torch.zeros_like(noise), noise):
        features, values = position_colour_features(images, 5.0, 3.0), torch.ones(2, 200 * 200, 2)
        expected = BatchLattice(features).filter(values, transpose=False)
        result = GaussianFilter(features.cuda(), "lattice").apply(values.cuda()).cpu()
        assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_gpu
@pytest.mark.parametrize("backend", ["exact", "lattice"])
def test_filtering_does_not_wait_for_the_gpu(backend: str) -> None:
    kernel, values = GaussianFilter(photo_features(2, 30, 31).cuda(), backend), torch.rand(2, 930, 3, device="cuda")
    kernel.apply(values)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel.apply(values)
        kernel.apply_transpose(values)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("backend", ["exact", "lattice"])
def test_gradients_on_a_gpu(backend: str) -> None:
    features = (torch.rand(2, 13, 3, generator=torch.Generator().manual_seed(0)) * 3).cuda()
    values = torch.rand(2, 13, 2, dtype=torch.float64, device="cuda", requires_grad=True)
    kernel = GaussianFilter(features, backend)
    assert torch.autograd.gradcheck(kernel.apply, (values,), nondet_tol=1e-12)
