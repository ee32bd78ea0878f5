"""Batch, window and normalisation of a training, as nnU-Net's plan has them.

The plan is that of the pretrained weights where they come from nnU-Net. Else nnU-Net's planner is
asked for the batch, with the patch and the halvings of the network itself: a patch of 256 pixels
where it has none.
Deviation: windows are squares, of the shorter side of a plan's patch.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.nnunet_topology import SMALLEST_EDGE, Topology, batch_size, topology
from robustcli.adapters.training_run import weights_in
from robustcli.adapters.weights_header import read_header
from robustcli.core.errors import RunError
from robustcli.data.decode import UnreadableImage
from robustcli.data.image_size import image_size
from robustcli.data.pairs import PairIndex
from robustcli.models.options import changed
from robustcli.models.umamba import VARIANTS
from robustcli.models.umamba_config import Pair, UMambaConfig
from robustcli.training.config import TrainConfig
from robustcli.training.recipes import Recipe

_FEATURES = (32, 512)  # of nnU-Net's plans: of the first stage, and the most of any
_CLASSES = 2


def planned(recipe: Recipe, config: TrainConfig, entry: ModelEntry, train: PairIndex) -> Recipe:
    """`recipe`, which has `patches`, with what the plan says and the user does not.

    Args:
        recipe: With all overrides.
        config: As typed.
        entry: The network.
        train: What is trained on; the sizes of its images are read.

    Raises:
        UsageError: The network has no such option, or the plan is not complete.
        RunError: An image cannot be read.
    """
    assert recipe.patches is not None
    network = _umamba(config, entry)
    window = config.window or _window(recipe, network)
    patches = recipe.patches
    if config.plan is not None:
        pools = bool(config.plan.settings.get("batch_dice", True))
        patches = replace(patches, channels=config.plan.channels, batch_dice=pools)
    batch = config.batch_size
    if batch is None:
        found = config.plan.batch_size if config.plan else _batch(window, network, train)
        batch = min(found, patches.most_batch or found)
    return replace(recipe, window=window, batch_size=batch, patches=patches)


def _umamba(config: TrainConfig, entry: ModelEntry) -> UMambaConfig | None:
    """What the network is built from, where that is a plan."""
    if entry.family != "umamba":
        return None
    header = None
    if config.weights is not None and not config.untrained:
        header = read_header(weights_in(config.weights))
    options = {**(header.arguments if header else {}), **config.model_args}
    return changed(VARIANTS[entry.variant], options, model=entry.variant)


def _window(recipe: Recipe, network: UMambaConfig | None) -> int:
    """The plan's patch, or less where the recipe has less and the network bears it."""
    assert recipe.patches is not None
    if network is None:
        return recipe.window
    patch, most = min(network.patch), recipe.patches.most_patch
    bound = any(network.tokens(stage)[1] for stage in range(len(network.features)))
    if most is None or most >= patch or bound:
        return patch
    step = max(network.reductions[-1])
    return min(patch, max(SMALLEST_EDGE * step, most // step * step))


def _batch(window: int, network: UMambaConfig | None, train: PairIndex) -> int:
    """By the rule of nnU-Net's planner."""
    patch: Pair = (window, window)
    halvings, features = topology(patch), _FEATURES
    if network is not None:
        halvings = Topology(patch, network.stage_strides)
        features = (network.features[0], max(network.features))
    sizes = [_size(train, number) for number in range(len(train.pairs))]
    shape = (round(median(h for h, _ in sizes)), round(median(w for _, w in sizes)))
    return batch_size(halvings, shape, len(sizes), classes=_CLASSES, features=features)


def _size(train: PairIndex, number: int) -> Pair:
    pair = train.pairs[number]
    try:
        return image_size(pair.image)
    except UnreadableImage as error:
        raise RunError(
            f"The image `{pair.image_id}` cannot be read.",
            f"{pair.image.path}: {error.reason}.",
            "Repair or remove it and its mask, then repeat the command.",
        ) from error
