"""What is known of a model by its name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from robustcli.adapters.catalogue import CATALOGUE


def test_the_file_is_the_last_part_of_the_address() -> None:
    entry = CATALOGUE["unet"]
    assert entry.weights_file is None
    assert replace(entry, weights_url="https://x.org/a%20b/w.pth").weights_file == "w.pth"


def test_a_run_keeps_the_name_of_its_network() -> None:
    assert replace(CATALOGUE["ulvm_v5"], name="my-run").network == "ulvm_v5"
    smp = replace(CATALOGUE["unet"], name="my-run", builder="smp", variant="Unet/resnet34")
    assert smp.network == "smp:Unet/resnet34"


def test_listing_needs_neither_torch_nor_pydantic() -> None:
    code = "import sys, robustcli.adapters.catalogue; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "timm", "pydantic", "numpy"} & set(done.stdout.split())
