"""Options and arguments that accept the URL of a run in an object store (`s3://bucket/run`).

The parameter type keeps the URL; when the command starts, the URL is replaced by the local folder
in which the command works (`core.working_copy`).
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustcli.cli.terminal import say_safely
from robustcli.core.errors import MachineError, RunError, UsageError
from robustcli.core.objects import kind_of_store, names_url, path_here
from robustcli.core.ranks import Ranks, ranks, store

if TYPE_CHECKING:
    from robustcli.core.working_copy import StoredPlace, Use

_POLL_S, _LONGEST_S = 0.2, 4 * 3600.0
_KEY, _READY, _FAILED = "working copy", "ready", "failed"


class LocalPath(click.Path):
    """Parameter type for a path of this machine; URLs are rejected."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the path.

        Raises:
            UsageError: The value is a URL.
        """
        path_here(value, "It" if param is None else f"`{param.opts[0]}`")
        return super().convert(value, param, ctx)


class RunPlace(LocalPath):
    """Parameter type for the folder of a run, or its URL in an object store.

    Args:
        use: How the command uses the run, see `working_copy.Use`.
        of_run: Whether existing objects at the URL must belong to a run.
        machines: Whether several machines of a job may work on the run.
        member: Whether the value may end with `:MODEL`; values are then strings, not paths.
    """

    def __init__(
        self, use: Use = "work", *, of_run: bool = True, machines: bool = False,
        member: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.use, self.of_run, self.machines, self.member = use, of_run, machines, member

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the path, or the URL as a `StoredPlace`.

        Raises:
            UsageError: The URL is not of a known store.
        """
        from robustcli.core.working_copy import StoredPlace

        if isinstance(value, StoredPlace):
            return value
        if names_url(value):
            kind_of_store(str(value))
            return StoredPlace(str(value).rstrip("/"))
        return str(value) if self.member else super().convert(value, param, ctx)


class PlacesCommand(click.Command):
    """A click command whose parameters can be URLs of runs in object stores.

    An option that takes one value cannot be repeated; click would use the last value silently.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Like click, but refuses a repeated option that takes one value.

        Raises:
            UsageError: An option is repeated.
        """
        if not ctx.resilient_parsing:
            _, typed = self.typed(ctx, args)
            for option in self.params:
                if _takes_one_value(option) and typed.count(option) > 1:
                    ctx.fail(
                        f"`{option.opts[0]}` takes one value, but {typed.count(option)} are given. "
                        "Run the command once per value."
                    )
        return super().parse_args(ctx, args)

    def typed(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[dict[str, Any], list[click.Parameter]]:
        """Raw values by name, and the parameters in order of `args`; none if help is asked for."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        if any(param.is_eager for param in order):  # `--help` ends the command
            return {}, []
        return values, order

    def invoke(self, ctx: click.Context) -> Any:
        """Replaces URLs by local folders and invokes the command.

        Raises:
            MachineError: The current folder was deleted; libraries would end without a reason.
        """
        from robustcli.core.working_copy import StoredPlace

        try:
            Path.cwd()
        except FileNotFoundError as error:
            raise MachineError(
                "The current folder does not exist any more.",
                "It was deleted or moved after this shell entered it.",
                "Change to an existing folder and repeat the command.",
            ) from error
        opened: dict[tuple[str, str], Path] = {}
        with ExitStack() as stack:
            for param in self.params:
                value = ctx.params.get(param.name or "")
                if not isinstance(param.type, RunPlace) or value is None:
                    continue
                several = value if isinstance(value, tuple) else (value,)
                folders = tuple(
                    _enter(stack, ctx, param.type, place, opened)
                    if isinstance(place, StoredPlace)
                    else place
                    for place in several
                )  # fmt: skip
                ctx.params[param.name or ""] = folders if isinstance(value, tuple) else folders[0]
            return super().invoke(ctx)


def _takes_one_value(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and not (param.multiple or param.is_flag or param.count)


def _enter(
    stack: ExitStack, ctx: click.Context, kind: RunPlace, place: StoredPlace,
    opened: dict[tuple[str, str], Path],
) -> Any:  # fmt: skip
    """The local folder for `place`, opened in `stack` unless this command has `opened` it."""
    url, colon, member = place.url, "", ""
    if kind.member and ":" in url.partition("://")[2]:
        scheme, _, location = url.partition("://")
        key, colon, member = location.partition(":")
        url = f"{scheme}://{key.rstrip('/')}"
    folder = opened.get((url, kind.use))
    if folder is None:
        folder = opened[url, kind.use] = _folder(stack, ctx, kind, url)
    return f"{folder}{colon}{member}" if kind.member else folder


def _folder(stack: ExitStack, ctx: click.Context, kind: RunPlace, url: str) -> Path:
    from robustcli.core import working_copy
    from robustcli.data.named_datasets import data_home

    def say(text: str) -> None:
        if not ctx.params.get("quiet"):
            say_safely(text, err=True)

    place = ranks()
    use = "look" if kind.use == "work" and ctx.params.get("dry_run") else kind.use
    if place.nodes > 1 and kind.use == "work" and not kind.machines:
        raise UsageError(
            f"`{url}` cannot be shared by {place.nodes} machines in `robust {ctx.info_name}`.",
            "Each machine would have a separate working copy, but all need the same checkpoint.",
            "Use a folder that all machines share, or processes on one machine.",
        )
    opened = working_copy.opened(url, data_home(), say, use, of_run=kind.of_run)
    if place.world == 1:
        return stack.enter_context(opened)
    if use != "work":
        raise UsageError(
            f"`{url}` can only be read by one process.",
            f"The launcher started {place.world} processes.",
            "Start the command without the launcher.",
        )
    messages = store(place)
    if not place.first:
        _await_first(place, messages)
        return working_copy.helper_folder(url, data_home())
    try:
        folder = stack.enter_context(opened)
    except BaseException:
        messages.set(_KEY, _FAILED)
        raise
    messages.set(_KEY, _READY)
    return folder


def _await_first(place: Ranks, messages: Any) -> None:
    """Waits until rank 0 has opened the run."""
    end = time.monotonic() + _LONGEST_S
    while not messages.check([_KEY]):
        if time.monotonic() > end:
            raise RunError(
                f"Process {place.rank} of {place.world} waited for the first process without "
                "success.",
                "The first process has not opened the run.",
                "Check its output, then repeat the command.",
            )
        time.sleep(_POLL_S)
    if messages.get(_KEY) != _READY.encode():
        raise click.exceptions.Exit(1)  # rank 0 prints the error
