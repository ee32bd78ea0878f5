"""How each network is trained: rows of data, and which row serves when none is named.

Source of the rows of the paper: the training notebooks of "Mamba-Based Tumor Segmentation" (Crews
and Whalen, 2024), whose dice on LGG is `expected_dice`. Deviations of those from the printed table:
UL-VM-UNet's 0.79955 there is a slip for 0.79555, and SegFormer's 0.8454 is in no notebook (the only
recorded evaluation gives 0.7945). The row `paper` of classifiers is the code of "Mamba vs SOTA for
Vision Tasks" (2024), as it was run. The other rows are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from robustcli.core.errors import UsageError
from robustcli.core.names import find
from robustcli.nnunet.normalisation import Channel

Protocol = Literal["patient", "paper"]
"""How the images are split, and how a segmenter is trained and scored on them."""

WARMUP_SHARE = 0.05
FINAL_FACTOR = 0.01
PEAK_SHARE = 0.2


def constant(step: int, total: int) -> float:
    """1 at every step."""
    return 1.0


def warmup_cosine(step: int, total: int) -> float:
    """Linear from near 0 over the first 5 % of the steps, then half a cosine down to 1 %."""
    warm = max(1, round(WARMUP_SHARE * total))
    if step < warm:
        return (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, total - warm))
    return FINAL_FACTOR + (1 - FINAL_FACTOR) * (1 + math.cos(math.pi * done)) / 2


def triangular(step: int, total: int) -> float:
    """Linear from near 0 up over the first fifth of the steps, then linear down to 0.

    Source: Page, "How to train your ResNet" (2018), whose ResNet-9 peaks at epoch 5 of 24.
    """
    peak = max(1, round(PEAK_SHARE * total))
    if step < peak:
        return (step + 1) / peak
    return max(0.0, (total - step) / max(1, total - peak))


# Functions of the step rather than torch's schedulers, whose rate depends on the steps that an
# object has seen: a resumed training must have the rates of an unbroken one.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "warmup-cosine": warmup_cosine,
    "triangular": triangular,
}
"""Each gives the factor on the learning rate, of steps done and steps in all."""
EXTENDABLE = frozenset({"constant"})
"""Those that do not depend on how long the training is: more epochs may be added to them."""


BUNDLED = "nuclei-mini"
BUNDLED_CLASSES = "cifar10-mini"
OWN_RECIPE = "patient"
"""What one types for our own recipe where another serves when none is named."""
_PAPER = "Crews and Whalen 2024, training notebooks"
_OURS = "ours"


@dataclass(frozen=True)
class Patchwise:
    """Epochs of patches drawn at random, instead of passes over images, as nnU-Net trains.

    Source: nnU-Net v2.1.1, `nnUNetTrainer`.

    Args:
        iterations: Batches of an epoch, each an optimizer step.
        momentum: Of SGD, with Nesterov's correction.
        exponent: Of the learning rate's decay by the epoch.
        oversampling: The share of a batch, at its end, that is sure to show foreground.
        batch_dice: Whether the loss pools its dice over the batch; the plan may say otherwise.
        ema: The share of the old value in the moving average of the dice on validation patches.
        most_patch: Largest side of a patch in pixels; None leaves it to the plan.
        most_batch: Largest batch; None leaves it to the plan.
        channels: How each input channel is normalised; the plan may say otherwise.
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
    """How a recipe of classifiers trains otherwise than ours.

    Args:
        ema: The share of the old value in a moving average of the weights, per step; the average
            is validated, chosen and measured. None for none.
        momentum: Of SGD, with Nesterov's correction.
        mean: Of the normalisation, per channel, of values in [0, 1]; None for the network's own.
        std: Of the normalisation.
        outputs: Outputs of the network while it trains, if more than the classes; None for those.
        validates_on: The images of the validation, by which the best epoch is chosen.
        resident: Whether all images lie on the device, where batches are cut out and augmented.
        target: The validation top-1, a fraction, to which the seconds are counted.
        expected_top1: The published top-1 that it should come to, a fraction.
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
    """How a network is trained.

    Args:
        name: What the recipe is called where it is announced.
        loss: A name of `losses.LOSSES` or SMOOTHINGS, or nnU-Net's own.
        optimizer: Its name in torch.optim.
        lr: Its highest learning rate.
        weight_decay: Per step, decoupled for AdamW.
        schedule: A name of SCHEDULES, or nnU-Net's own.
        batch_size: Images a step over all processes.
        epochs: How many.
        window: Side of the squares that the network sees, in pixels.
        source: Who says so.
        accumulate: Steps whose gradients are added up.
        images_per_epoch: Images of an epoch; None for all.
        clip: Largest norm of the gradient; None for any.
        augmentation: A name of `samples.AUGMENTATIONS`, `samples.CROPS` or `shifts.SHIFTS`, or
            nnU-Net's own.
        patience: Epochs without better validation dice before stopping; None for never.
        precision: Of the forward pass.
        decision: Of what the 0.5 is that makes a pixel foreground.
        expected_dice: The published dice that it should come to, a fraction.
        paper_batch: Images pooled for one dice value, protocol `paper` only.
        patches: Where an epoch is so many random patches, nnU-Net's way; None for passes.
        photos: What only some recipes of classifiers have; None for the others.
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
"""The thirteen of Table I, as they were trained. The ResNets' evaluation is not on record: theirs
is taken to be as UMambaBot's."""
_NOT_IN_THE_PAPER = replace(_DICE, batch_size=16, source=f"{_OURS}, in the paper's manner")
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
"""Where ours differs from the one for every network: what attends or starts from pretrained weights
bears a smaller learning rate only."""
_BUNDLED_EPOCHS = {
    (True, False): 50, (True, True): 14, (False, False): 16, (False, True): 2,
}  # fmt: skip
"""Of (whether the network is small, whether it shall be quick)."""
_NNUNET = Recipe(
    "nnunet", "ce-minus-dice", "SGD", 1e-2, 3e-5, "poly", 12, 1000, 256,
    "nnU-Net v2.1.1, nnUNetTrainer; batch and window are the plan's",
    clip=12.0, augmentation="nnunet", patches=Patchwise(),
)  # fmt: skip
NAMED_RECIPES: dict[str, Recipe] = {
    "nnunet": _NNUNET,
    "nnunet-light": replace(
        _NNUNET, name="nnunet-light", batch_size=4, epochs=20, window=128,
        source="ours, for two CPU cores: nnU-Net v2.1.1 with fewer and smaller iterations, not "
        "what its published scores were trained with",
        patches=Patchwise(25, 10, most_patch=128, most_batch=4),
    ),
}  # fmt: skip
"""By name; batch and window are at most what a plan says, see `nnunet.planned`."""
SMOOTHINGS = {"cross-entropy": 0.0, "smoothed-cross-entropy": 0.1}
"""Losses by name, and what each takes from the true class to spread over all.
Source: Szegedy et al., "Rethinking the Inception Architecture" (2016), section 7."""
_CLASSES = Recipe(
    "classes", "smoothed-cross-entropy", "AdamW", 5e-4, 0.05, "warmup-cosine", 64, 20, 0, "ours",
    clip=1.0, augmentation="light",
)  # fmt: skip
CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)
VIM_OUTPUTS = 1000
"""Of the published Vim for CIFAR-10, whose head was left as it is for ImageNet."""
PUBLISHED_TOP1 = {"vim": 0.8947, "vit": 0.8619}
"""Best epoch on CIFAR-10's test images, patch 4, from the curves of the repository. The figure of
the paper shows another ViT, with patches of 8 (about 0.796)."""
_VIS = "Crews and Whalen 2024, Mamba vs SOTA for Vision Tasks, code as run"
FAIR_RATES: dict[str, float] = {
    "vim": 1e-3,
    "vit": 1e-3,
    "vmamba": 2e-3,
    "resnet": 2e-3,
    "resnet9": 2e-3,
    "cifar-resnet": 2e-3,
}
"""Peak learning rates of recipe `fair` by family: what AdamW is usually given for them at batches
of 128. `recipes/fair_learning_rates.py` compares others in few steps; docs/train-cls.md has what
came of it, and why no rate was changed."""
OTHER_RATE = 1e-3
"""Of every other family."""
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
        "ours, the same for all networks but for the learning rate of the family",
        clip=1.0, augmentation="randaugment", photos=Photowise(ema=0.999),
    ),
    "speedrun": Recipe(
        "speedrun", "smoothed-cross-entropy", "SGD", 0.4, 5e-4, "triangular", 512, 24, 0,
        "ours, after Page 2018, How to train your ResNet",
        clip=1.0, augmentation="shift-reflect", precision="bf16",
        photos=Photowise(momentum=0.9, resident=True, target=0.94),
    ),
}  # fmt: skip
"""By name; the window is the network's own. `usual_class_recipe` says which one serves."""


def usual_class_recipe(data: str) -> str:
    """The name of the recipe for classifiers on the data set `data` where none is named."""
    return BUNDLED_CLASSES if data == BUNDLED_CLASSES else _CLASSES.name


def class_recipe_for(name: str, model: str, family: str, *, quick: bool = False) -> Recipe:
    """The recipe `name` of CLASS_RECIPES as it is for the network `model` of `family`."""
    recipe = CLASS_RECIPES[name]
    if name == "fair":
        recipe = replace(recipe, lr=FAIR_RATES.get(family, OTHER_RATE))
    if name == "paper":
        assert recipe.photos is not None
        outputs = VIM_OUTPUTS if family == "vim" else None
        photos = replace(recipe.photos, outputs=outputs, expected_top1=PUBLISHED_TOP1.get(model))
        recipe = replace(recipe, photos=photos)
    return shortened_recipe(recipe) if quick else recipe


def recipe_for(model: str, protocol: Protocol, data: str, *, quick: bool = False) -> Recipe:
    """The default recipe of `model` on the data set `data`."""
    if protocol == "patient" and data == BUNDLED:
        return _for_the_bundled(own_recipe(model), model, quick)
    if protocol == "patient":
        return own_recipe(model, quick=quick)
    recipe = PAPER_RECIPES.get(model, _NOT_IN_THE_PAPER)
    return shortened_recipe(recipe) if quick else recipe


def own_recipe(model: str, *, quick: bool = False) -> Recipe:
    """Our own recipe for `model` under protocol `patient`, on data of any size."""
    recipe = PATIENT_RECIPES.get(model, _PATIENT)
    return shortened_recipe(recipe) if quick else recipe


def _for_the_bundled(recipe: Recipe, model: str, quick: bool) -> Recipe:
    """`recipe` for the 125 small images of the bundled set on 2 cores.

    UL-VM-UNet-v5 takes 5 minutes, or 2 if `quick`; its dice on the held-out images is then 0.87,
    or 0.88, where Otsu's threshold has 0.82. Larger networks take an hour or more to look at an
    image as often, and learn more from each look.
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
    """The shortest of its kind that shows something: two epochs of few images or patches."""
    few: dict[str, Any] = {"images_per_epoch": 512 if recipe.loss in SMOOTHINGS else 128}
    if recipe.photos is not None:
        few["photos"] = replace(recipe.photos, expected_top1=None)
    if recipe.patches is not None:
        few = {"patches": replace(recipe.patches, iterations=25, validation_iterations=2)}
    return replace(recipe, name=f"{recipe.name} quick", epochs=2, expected_dice=None, **few)


def listed() -> Iterator[tuple[str, str, Recipe]]:
    """Every row with what it is for or how it is typed, and how the data are split.

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
    """The recipe in a line, for announcing it."""
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
            f"The weights are averaged over the steps (share of the old value {photos.ema:g}); the "
            "average is validated and kept."
        )
    if photos.resident:
        parts.append("All images are held on the device and augmented there.")
    if photos.target is not None:
        parts.append(
            f"Seconds are counted until {100 * photos.target:g} % of the validation images are "
            "right (`--target`)."
        )
    return "".join(f" {part}" for part in parts)


def recipe_named(name: str, model: str, *, quick: bool = False) -> Recipe:
    """The recipe called `name`.

    Raises:
        UsageError: No recipe is called so; the message offers the nearest names.
    """
    if name in CLASS_RECIPES:
        raise UsageError(
            f"`--recipe {name}` is for classifiers.",
            f"`{model}` is a segmenter.",
            "The paper's training of segmenters is `--protocol paper`."
            if name == "paper"
            else f"Use one of {', '.join(f'`{known}`' for known in (*NAMED_RECIPES, OWN_RECIPE))}.",
        )
    names = (*NAMED_RECIPES, OWN_RECIPE)
    registered = find(name, names, kind="recipe", listing="robust list recipes")
    if registered == OWN_RECIPE:
        return own_recipe(model, quick=quick)
    recipe = NAMED_RECIPES[registered]
    return shortened_recipe(recipe) if quick else recipe
