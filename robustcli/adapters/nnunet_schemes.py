"""What plans and data sets call the normalisations.

Source: nnU-Net v2.1.1, `channel_name_to_normalization_mapping` and the classes that it names.
"""

from __future__ import annotations

from robustcli.core.names import find

CLASSES = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "RescaleTo01Normalization": "rescale_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
    "NoNormalization": "none",
}
"""nnU-Net's class to the scheme in `robustcli.adapters.nnunet_normalise.SCHEMES`."""
_CHANNEL_NAMES = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_0_1": "rescale_0_1",
    "rescale_to_0_1": "rescale_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}


def scheme_of_class(name: str) -> str:
    """The scheme that a plan's `normalization_schemes` calls `name`.

    Raises:
        UsageError: It is none of nnU-Net's own.
    """
    return CLASSES[find(name, CLASSES, kind="normalisation", listing="plans.json")]


def scheme_of_channel(name: str) -> str:
    """The scheme that a channel called `name` in `dataset.json` asks for; most ask for z-scores."""
    return _CHANNEL_NAMES.get(name.casefold(), "zscore")
