"""Training recipes as rows of data, and the default recipe of each network.

Source of the paper's rows: the training notebooks of "Mamba-Based Tumor Segmentation" (Crews and
Whalen, 2024), whose dice on LGG is `expected_dice`. The notebooks deviate from the printed table:
0.79955 for UL-VM-UNet is a misprint of 0.79555, and no notebook contains SegFormer's 0.8454 (the
only recorded evaluation gives 0.7945). The row `paper` of classifiers follows the executed code of
"Mamba vs SOTA for Vision Tasks" (2024). The other rows are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from robustcli.adapters.catalogue import CIFAR100_MEAN, CIFAR100_STD
from robustcli.core.errors import UsageError
from robustcli.core.names import find
from robustcli.nnunet.normalisation import Channel

Protocol = Literal["patient", "paper"]
"""Defines the split of the images, and how a segmenter is trained and scored."""

WARMUP_SHARE = 0.05
FINAL_FACTOR = 0.01
PEAK_SHARE = 0.2


def constant(step: int, total: int) -> float:
    """The factor 1 at every step."""
    return 1.0


def warmup_cosine(step: int, total: int) -> float:
    """Linear warm-up over the first 5 % of the steps, then half a cosine down to 1 %."""
    warm = max(1, round(WARMUP_SHARE * total))
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step - warm) / max(1, total - warm))
    return FINAL_FACTOR + (1 - FINAL_FACTOR) * (1 + math.cos(math.pi * progress)) / 2


def triangular(step: int, total: int) -> float:
    """Linear increase from near 0 over the first fifth of the steps, then linear decrease to 0.

    Source: Page, "How to train your ResNet" (2018), whose ResNet-9 peaks at epoch 5 of 24.
    """
    peak = max(1, round(PEAK_SHARE * total))
    if step < peak:
        return (step + 1) / peak
    return max(0.0, (total - step) / max(1, total - peak))


# Functions of the step: the rates of torch's schedulers depend on the calls an object has seen, but
# a resumed training must have the rates of an uninterrupted one.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "warmup-cosine": warmup_cosine,
    "triangular": triangular,
}
"""Learning-rate factors as functions of the finished steps and the total number of steps."""
EXTENDABLE = frozenset({"constant"})
"""Schedules that do not depend on the total number of steps, so that epochs can be added later."""


BUNDLED = "nuclei-mini"
BUNDLED_CLASSES = "cifar10-mini"
OWN_RECIPE = "patient"
"""Name of our recipe on the command line, for networks with another default."""
_PAPER = "Crews and Whalen 2024, training notebooks"
_OURS = "ours"


@dataclass(frozen=True)
class Patchwise:
    """Settings of epochs of random patches instead of passes over images, as in nnU-Net.

    Source: nnU-Net v2.1.1, `nnUNetTrainer`.

    Args:
        iterations: Optimizer steps per epoch, one batch each.
        momentum: Nesterov momentum of SGD.
        exponent: Exponent of the polynomial learning-rate decay.
        oversampling: Share of the patches at the end of a batch that always contain foreground.
        batch_dice: Whether the dice of the loss is pooled over the batch; a plan overrides it.
        ema: Weight of the old value in the moving average of the dice on validation patches.
        most_patch: Largest side of a patch in pixels; None for that of the plan.
        most_batch: Largest batch; None for that of the plan.
        channels: Normalisation of each input channel; a plan overrides it.
    """

    iterations: int = 250
    validation_iterations: int = 50
    momentum: float = 0.99
    exponent: float = 0.9
    oversampling: float = 0.33
    batch_dice: bool = True
    ema: float = 0.9
    most_patch: int | None = None
    most_batch: int | None = None
    channels: tuple[Channel, ...] = (Channel(), Channel(), Channel())


@dataclass(frozen=True)
class Photowise:
    """Settings of classifier recipes that differ from our procedure.

    Args:
        ema: Weight of the old value in a moving average of the weights, per step; the average is
            validated, selected and scored. None for no average.
        momentum: Nesterov momentum of SGD.
        mean: Mean of the normalisation per channel, for values in [0, 1]; None for that of the
            network.
        std: Standard deviation of the normalisation per channel; None for that of the network.
        outputs: Number of outputs during training, if larger than the number of classes.
        validates_on: The images that select the best epoch.
        resident: Whether all images are stored on the device, which also augments the batches.
        target: Validation top-1, a fraction; the time to reach it is measured.
        expected_top1: The published top-1 to reproduce, a fraction.
    """

    ema: float | None = None
    momentum: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    outputs: int | None = None
    validates_on: Literal["val", "test"] = "val"
    resident: bool = False
    target: float | None = None
    expected_top1: float | None = None


@dataclass(frozen=True)
class Recipe:
    """All settings of a training.

    Args:
        name: Name of the recipe in announcements.
        loss: A name of `losses.LOSSES` or SMOOTHINGS, or the name of nnU-Net's loss.
        optimizer: Name of a class in torch.optim.
        lr: Peak learning rate.
        weight_decay: Weight decay per step, decoupled for AdamW.
        schedule: A name of SCHEDULES, or the name of nnU-Net's schedule.
        batch_size: Images per step, over all processes.
        epochs: Number of epochs.
        window: Side of the network's square input in pixels.
        source: Origin of the recipe, in words.
        accumulate: Number of batches whose gradients are averaged for one step.
        images_per_epoch: Images per epoch; None for all.
        clip: Largest norm of the gradient; None for no clipping.
        augmentation: A name of `mask_samples.AUGMENTATIONS` or `photo_samples.PHOTO_AUGMENTATIONS`,
            or the name of nnU-Net's augmentation.
        patience: Epochs without a better validation score before stopping; None for never.
        precision: Precision of the forward pass.
        decision: Whether a pixel is foreground from probability 0.5 or from logit 0.5.
        expected_dice: The published dice to reproduce, a fraction.
        paper_batch: Images pooled for one dice value, protocol `paper` only.
        patches: Settings of epochs of random patches (nnU-Net); None for passes over images.
        photos: Settings of some classifier recipes; None for the others.
    """

    name: str
    loss: str
    optimizer: Literal["Adam", "AdamW", "SGD"]
    lr: float
    weight_decay: float
    schedule: str
    batch_size: int
    epochs: int
    window: int
    source: str
    accumulate: int = 1
    images_per_epoch: int | None = None
    clip: float | None = None
    augmentation: str = "none"
    patience: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    decision: Literal["probability", "logit"] = "probability"
    expected_dice: float | None = None
    paper_batch: int | None = None
    patches: Patchwise | None = None
    photos: Photowise | None = None


_DICE = Recipe(
    "paper", "dice", "Adam", 3e-4, 0.0, "constant", 64, 100, 256, _PAPER,
    decision="logit", paper_batch=16,
)  # fmt: skip
_LIGHT = Recipe(
    "paper", "bce-dice", "AdamW", 3e-4, 0.01, "constant", 2, 100, 256, _PAPER, paper_batch=16
)
_PUBLISHED = {
    "ulvm": 0.79555, "ulvm_v1": 0.8409, "ulvm_v2": 0.8243, "ulvm_v3": 0.8109, "ulvm_v4": 0.8548,
    "ulvm_v5": 0.8633, "ulvm_v6": 0.8628,
}  # fmt: skip
PAPER_RECIPES: dict[str, Recipe] = {
    name: replace(_LIGHT, expected_dice=dice) for name, dice in _PUBLISHED.items()
} | {
    "umambabot": replace(_DICE, batch_size=32, expected_dice=0.8799),
    "umambabot_pp": replace(_DICE, expected_dice=0.8867),
    "unet": replace(_DICE, paper_batch=64, expected_dice=0.8929),
    "resnet18_seg": replace(_DICE, expected_dice=0.8648),
    "resnet50_seg": replace(_DICE, expected_dice=0.8672),
    "segformer": Recipe(
        "paper", "bce", "AdamW", 1e-4, 5e-5, "constant", 16, 100, 224, _PAPER,
        expected_dice=0.8454, paper_batch=16,
    ),
}  # fmt: skip
"""The thirteen networks of Table I, as they were trained. The evaluation of the ResNets is not
recorded; that of UMambaBot is assumed for them."""
_NOT_IN_THE_PAPER = replace(_DICE, batch_size=16, source=f"{_OURS}, following the paper's method")
_PATIENT = Recipe(
    OWN_RECIPE, "bce-dice", "AdamW", 1e-3, 0.01, "warmup-cosine", 16, 60, 256, _OURS,
    clip=1.0, augmentation="light",
)  # fmt: skip
PATIENT_RECIPES: dict[str, Recipe] = {
    "segformer": replace(_PATIENT, lr=2e-4),
    "vmunet": replace(_PATIENT, lr=5e-4),
    "resnet18_seg": replace(_PATIENT, lr=3e-4),
    "resnet50_seg": replace(_PATIENT, lr=3e-4),
}
"""Networks for which our recipe differs from the common one: attention and pretrained weights need
a smaller learning rate."""
_BUNDLED_EPOCHS = {
    (True, False): 50, (True, True): 14, (False, False): 16, (False, True): 2,
}  # fmt: skip
"""Settings by (whether the network is small, whether `--quick` is given)."""
_NNUNET = Recipe(
    "nnunet", "ce-minus-dice", "SGD", 1e-2, 3e-5, "poly", 12, 1000, 256,
    "nnU-Net v2.1.1, nnUNetTrainer; batch and window are the plan's",
    clip=12.0, augmentation="nnunet", patches=Patchwise(),
)  # fmt: skip
NAMED_RECIPES: dict[str, Recipe] = {
    "nnunet": _NNUNET,
    "nnunet-light": replace(
        _NNUNET, name="nnunet-light", batch_size=4, epochs=20, window=128,
        source="ours, for two CPU cores: nnU-Net v2.1.1 with fewer and smaller iterations, not the "
            "settings of its published scores",
        patches=Patchwise(25, 10, most_patch=128, most_batch=4),
    ),
}  # fmt: skip
"""Recipes by name; batch and window are at most those of a plan, see `NNUNet.planned`."""
SMOOTHINGS = {"cross-entropy": 0.0, "smoothed-cross-entropy": 0.1}
"""Classification losses by name, with their label smoothing.
Source: Szegedy et al., "Rethinking the Inception Architecture" (2016), section 7."""
_CLASSES = Recipe(
    "classes", "smoothed-cross-entropy", "AdamW", 5e-4, 0.05, "warmup-cosine", 64, 20, 0, "ours",
    clip=1.0, augmentation="light",
)  # fmt: skip
VIM_OUTPUTS = 1000
"""Number of outputs of the published Vim for CIFAR-10, whose head is that for ImageNet."""
PUBLISHED_TOP1 = {"vim": 0.8947, "vit": 0.8619}
"""Top-1 of the best epoch on CIFAR-10's test images with patch 4, from the repository's curves. The
paper's figure shows a ViT with patch 8 instead (about 0.796)."""
_VIS = "Crews and Whalen 2024, Mamba vs SOTA for Vision Tasks, code as run"
FAIR_RATES: dict[str, float] = {
    "vim": 1e-3,
    "vit": 1e-3,
    "vmamba": 2e-3,
    "resnet": 2e-3,
    "resnet9": 2e-3,
    "cifar-resnet": 2e-3,
}
"""Peak learning rates of recipe `fair` by family: usual values for AdamW at a batch size of 128.
`recipes/fair_learning_rates.py` compares other rates in a small budget; docs/train-cls.md describes
the results, and why no rate was changed."""
OTHER_RATE = 1e-3
"""Peak learning rate of every other family."""
CLASS_RECIPES: dict[str, Recipe] = {
    "classes": _CLASSES,
    "classes-light": replace(
        _CLASSES, name="classes-light", batch_size=32, epochs=5, source="ours, for two CPU cores"
    ),
    BUNDLED_CLASSES: replace(
        _CLASSES, name=BUNDLED_CLASSES, batch_size=32, epochs=12,
        source="ours, for the 960 bundled photos on two CPU cores",
    ),
    "paper": Recipe(
        "paper", "cross-entropy", "Adam", 1e-3, 0.0, "constant", 64, 100, 0, _VIS,
        augmentation="randaugment",
        photos=Photowise(mean=CIFAR100_MEAN, std=CIFAR100_STD, validates_on="test"),
    ),
    "fair": Recipe(
        "fair", "smoothed-cross-entropy", "AdamW", OTHER_RATE, 0.05, "warmup-cosine", 128, 100, 0,
        "ours, the same for all networks except for the learning rate of the family",
        clip=1.0, augmentation="randaugment", photos=Photowise(ema=0.999),
    ),
    "speedrun": Recipe(
        "speedrun", "smoothed-cross-entropy", "SGD", 0.4, 5e-4, "triangular", 512, 24, 0,
        "ours, after Page 2018, How to train your ResNet",
        clip=1.0, augmentation="shift-reflect", precision="bf16",
        photos=Photowise(momentum=0.9, resident=True, target=0.94),
    ),
}  # fmt: skip
"""Recipes by name; the window is the network's input size. For the default, see
`usual_class_recipe`."""


def usual_class_recipe(data: str) -> str:
    """Name of the default classifier recipe for the data set `data`."""
    return BUNDLED_CLASSES if data == BUNDLED_CLASSES else _CLASSES.name


def class_recipe_for(name: str, model: str, family: str) -> Recipe:
    """The recipe `name` of CLASS_RECIPES with the values for the network `model` of `family`."""
    recipe = CLASS_RECIPES[name]
    if name == "fair":
        recipe = replace(recipe, lr=FAIR_RATES.get(family, OTHER_RATE))
    if name == "paper":
        assert recipe.photos is not None
        outputs = VIM_OUTPUTS if family == "vim" else None
        photos = replace(recipe.photos, outputs=outputs, expected_top1=PUBLISHED_TOP1.get(model))
        recipe = replace(recipe, photos=photos)
    return recipe


def recipe_for(model: str, protocol: Protocol, data: str, *, quick: bool = False) -> Recipe:
    """The default recipe of `model` for the data set `data`."""
    recipe = PATIENT_RECIPES.get(model, _PATIENT)
    if protocol == "paper":
        recipe = PAPER_RECIPES.get(model, _NOT_IN_THE_PAPER)
    elif data == BUNDLED:
        return _for_the_bundled(recipe, model, quick)
    return shortened_recipe(recipe) if quick else recipe


def _for_the_bundled(recipe: Recipe, model: str, quick: bool) -> Recipe:
    """`recipe` for the 125 small images of the bundled set on 2 cores.

    UL-VM-UNet-v5 takes 5 minutes with dice 0.87 on the held-out images, or 2 minutes with dice 0.88
    if `quick`; Otsu's threshold has 0.82. Larger networks would take an hour or more for as many
    epochs, and need fewer.
    """
    small = model in _PUBLISHED
    return replace(
        recipe,
        name=f"{BUNDLED} quick" if quick else BUNDLED,
        epochs=_BUNDLED_EPOCHS[small, quick],
        window=128,
        batch_size=4,
        lr=2e-3 if small else recipe.lr,
        augmentation="light" if quick else "strong",
    )


def shortened_recipe(recipe: Recipe) -> Recipe:
    """`recipe` shortened to two epochs of few images or patches."""
    changes: dict[str, Any] = {"images_per_epoch": 512 if recipe.loss in SMOOTHINGS else 128}
    if recipe.photos is not None:
        changes["photos"] = replace(recipe.photos, expected_top1=None)
    if recipe.patches is not None:
        changes = {"patches": replace(recipe.patches, iterations=25, validation_iterations=2)}
    return replace(recipe, name=f"{recipe.name} quick", epochs=2, expected_dice=None, **changes)


def listed() -> Iterator[tuple[str, str, Recipe]]:
    """Every recipe as (network or option, split of the data, recipe).

    `*` stands for all other networks.
    """
    for name, recipe in {**PAPER_RECIPES, "*": _NOT_IN_THE_PAPER}.items():
        yield name, "paper", recipe
    for name, recipe in {**PATIENT_RECIPES, "*": _PATIENT}.items():
        yield name, "patient", recipe
    for name, recipe in NAMED_RECIPES.items():
        yield f"--recipe {name}", "patient", recipe
    for name, recipe in CLASS_RECIPES.items():
        yield f"--recipe {name}", "by class", recipe
    for family, rate in FAIR_RATES.items():
        yield f"--recipe fair ({family})", "by class", replace(CLASS_RECIPES["fair"], lr=rate)


def describe_recipe(recipe: Recipe) -> str:
    """One line about the recipe, for announcements."""
    per_epoch = "" if recipe.images_per_epoch is None else f" of {recipe.images_per_epoch} images"
    if recipe.patches is not None:
        per_epoch = f" of {recipe.patches.iterations} iterations"
    return (
        f"Recipe `{recipe.name}` ({recipe.source}): {recipe.epochs} "
        f"epoch{'s' * (recipe.epochs != 1)}{per_epoch}, batch "
        f"{recipe.batch_size}, window {recipe.window}, {recipe.loss} loss, {recipe.optimizer} at "
        f"{recipe.lr:g}, {recipe.schedule}, augmentation {recipe.augmentation}."
        f"{'' if recipe.photos is None else _describe_photos(recipe.photos)}"
    )


def _describe_photos(photos: Photowise) -> str:
    parts = []
    if photos.ema is not None:
        parts.append(
            f"The weights are averaged over the steps (weight of the old value {photos.ema:g}); "
            "the average is validated and saved."
        )
    if photos.resident:
        parts.append("All images are stored and augmented on the device.")
    if photos.target is not None:
        parts.append(
            f"Measures the time until {100 * photos.target:g} % of the validation images are "
            "correct (`--target`)."
        )
    return "".join(f" {part}" for part in parts)


def recipe_named(name: str, model: str) -> Recipe:
    """The recipe `name` for the segmenter `model`, for data of any size.

    Raises:
        UsageError: The recipe does not exist; the message lists the nearest names.
    """
    recipes = {**NAMED_RECIPES, OWN_RECIPE: PATIENT_RECIPES.get(model, _PATIENT)}
    if name in CLASS_RECIPES:
        raise UsageError(
            f"`--recipe {name}` is for classifiers.",
            f"`{model}` is a segmenter.",
            "The training of segmenters as in the paper is `--protocol paper`."
            if name == "paper"
            else f"Use one of {', '.join(f'`{known}`' for known in recipes)}.",
        )
    return recipes[find(name, recipes, kind="recipe", listing="robust list recipes")]
