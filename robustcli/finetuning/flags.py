"""Which options of a fine-tuning exclude each other."""

from __future__ import annotations

from robustcli.core.errors import UsageError
from robustcli.core.ranks import ranks
from robustcli.finetuning.config import FinetuneConfig
from robustcli.training.processes import helped_run


def check_flags(config: FinetuneConfig) -> None:
    """Nothing, if the options go together.

    Raises:
        UsageError: Some exclude each other.
    """
    training = config.training
    if config.iterations is not None and training.epochs is not None:
        raise UsageError(
            "`--iterations` and `--epochs` exclude each other.",
            "Both say how long each mode is trained.",
            "Leave one out.",
        )
    if config.profile is not None and config.profile_only:
        raise UsageError(
            "`--profile` and `--profile-only` exclude each other.",
            "One takes a profile that is there, the other makes one.",
            "`--profile FILE --dry-run` shows what a profile would freeze.",
        )
    if config.sweep and not ("full" in config.modes and "freeze" in config.modes):
        raise UsageError(
            "`--sweep` compares with full fine-tuning, by the profile of `freeze`.",
            f"Asked for was {' and '.join(config.modes) or 'a profile alone'}.",
            "Use `--mode all`; modes that are there already are not trained again.",
        )
    if config.sweep and config.rule.pattern is not None:
        raise UsageError(
            f"`--sweep` needs a profile; `--freeze {config.rule.pattern}` measures none.",
            "Names decide without looking at gradients.",
            "Leave `--freeze` out: the sweep tries prefixes of the network by itself.",
        )
    started = ranks().world > 1 and helped_run() is None
    trainings = len(config.modes) + config.profile_only
    if started and (config.sweep or trainings != 1):
        raise UsageError(
            "torchrun trains one mode at a time.",
            f"Asked for were {trainings}: its processes end with the first.",
            "Name one with `--mode`, or use `--devices N` without torchrun.",
        )
