"""nnU-Net's predictor on the results folder of a fine-tuning.

Needs `nnunetv2==2.1.2` (the release that U-Mamba copies), which is not a dependency.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.networks import create
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.models.umamba import UMamba
from robustcli.nnunet.files import upstream_state
from tests.finetuning.tunings import tiny_tuning, write_pretrained
from tests.training.images import write_pairs

pytest.importorskip("nnunetv2", reason="nnunetv2==2.1.2 is not installed")

PREDICTOR = "nnunetv2.inference.predict_from_raw_data"


class Upstream(nn.Module):
    """A network with the tensor names of U-Mamba's repository."""

    def __init__(self, network: UMamba) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    def load_state_dict(self, state: Any, *arguments: Any, **options: Any) -> Any:
        assert state.keys() == upstream_state(self.network).keys()
        own_state = self.network.state_dict()
        return self.network.load_state_dict({name: state[name] for name in own_state})


class Trainer:
    """The parts of `nnUNetTrainerUMambaBot` that the predictor uses, from the plan only."""

    @staticmethod
    def build_network_architecture(
        plans: Any,
        dataset: Any,
        configuration_manager: Any,
        channels: int,
        enable_deep_supervision: bool,
    ) -> nn.Module:
        options = configuration_manager.configuration
        features, most = (options["UNet_base_num_features"], options["unet_max_num_features"])
        strides = options["pool_op_kernel_sizes"]
        network = create("umamba", {
            "features": [min(most, features * 2**stage) for stage in range(len(strides))],
            "strides": [tuple(stride) for stride in strides],
            "n_conv": options["n_conv_per_stage_encoder"][0],
            "patch_size": tuple(options["patch_size"]),
            "in_channels": channels,
            "num_classes": plans.get_label_manager(dataset).num_segmentation_heads,
            "deep_supervision": enable_deep_supervision,
        })  # fmt: skip
        assert isinstance(network, UMamba)
        return Upstream(network)


def test_its_masks_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.inference import predict_from_raw_data as theirs

    data = write_pairs(tmp_path / "data", 14)
    start = write_pretrained(tmp_path / "start.safetensors")
    config = tiny_tuning(
        data, tmp_path / "run", start, mode="full", recipe="nnunet-light", epochs=1
    )
    mode = run_finetuning(config) / "full"
    (results,) = (mode / "nnunet").iterdir()
    monkeypatch.setattr(theirs, "recursive_find_python_class", lambda *_: Trainer)
    monkeypatch.setattr(torch, "half", torch.float32)  # float16 sums would be rounded to 11 bits
    predictor = theirs.nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=True, device=torch.device("cpu"),
        perform_everything_on_gpu=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.initialize_from_trained_model_folder(
        str(results), ("all",), checkpoint_name="checkpoint_final.pth"
    )
    segmenter = load(ModelRequest(str(mode)), "seg")
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
    channels = image.transpose(2, 0, 1)[:, None].astype(np.float32)
    probabilities = predictor.predict_single_npy_array(
        channels, {"spacing": [999, 1, 1]}, None, None, False
    )
    (mask,) = segmenter.predict([image])
    assert 0 < mask.mean() < 1
    assert np.array_equal(probabilities[0].astype(bool), mask)
