"""testbed_wheels: which torch goes into the image."""

import pytest
from ansible_modules import load

testbed_wheels = load("modules", "testbed_wheels")


@pytest.mark.parametrize(
    ("requires", "cuda"),
    [
        (["filelock", "sympy>=1.13.3", "networkx>=2.5.1"], False),
        (["filelock", 'nvidia-nccl-cu13==2.30.7; platform_system == "Linux"'], True),
        (["cuda-bindings<14,>=13.0.3"], True),
    ],
)
def test_a_build_that_brings_cuda_is_known_by_its_metadata(requires: list[str], cuda: bool) -> None:
    assert testbed_wheels.needs_cuda({"name": "torch", "requires_dist": requires}) is cuda


def test_a_build_without_requirements_brings_nothing() -> None:
    assert not testbed_wheels.needs_cuda({"name": "torch"})


def test_wheels_are_for_the_hosts_architecture_and_the_images_python() -> None:
    options = testbed_wheels.pip_target("aarch64", "3.11")
    assert {"--only-binary=:all:", "--python-version=3.11", "--platform=manylinux2014_aarch64"} <= set(options)
    assert not [option for option in options if "x86_64" in option]
