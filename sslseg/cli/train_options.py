"""Options of every command that trains: declared once, added to those of a command by ``with_train_flags``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from sslseg.cli.console import JsonFlag
from sslseg.cli.options import CropOption, DataOption, DeviceOption, LauncherOption, SplitOption, parse_size

if TYPE_CHECKING:
    from sslseg.artifacts.workspace import Workspace
    from sslseg.config.build import TrainOptions

IntOption = int | None


@dataclass(frozen=True)
class TrainFlags:
    """What the user typed; None where nothing was."""

    split: SplitOption = None
    data: DataOption = None
    model: Annotated[
        str | None,
        typer.Option(
            help="Preset, or path of your own mmseg config. Default: what the method's config or the run before names.",
            show_default=False,
        ),
    ] = None
    config: Annotated[
        str | None,
        typer.Option(help="Name of a config, such as cutmix/default, or path of your own.", show_default=False),
    ] = None
    iterations: Annotated[
        IntOption, typer.Option("--iterations", "--iters", help="Number of iterations.", show_default=False)
    ] = None
    epochs: Annotated[
        IntOption,
        typer.Option(
            help="Length in epochs instead; an epoch is one pass over the unlabeled images, for every method.",
            show_default=False,
        ),
    ] = None
    batch_size: Annotated[
        IntOption, typer.Option(help="Labeled images per iteration, over all ranks together.", show_default=False)
    ] = None
    unlabeled_batch_size: Annotated[
        IntOption, typer.Option(help="Unlabeled images per iteration; by default as many.", show_default=False)
    ] = None
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default=False)] = None
    crop: CropOption = None
    val_interval: Annotated[IntOption, typer.Option(help="Iterations between validations.", show_default=False)] = None
    workers: Annotated[IntOption, typer.Option(help="Processes that read and augment images.", show_default=False)] = (
        None
    )
    seed: Annotated[
        IntOption, typer.Option(help="Seed of weights, order and augmentation. Default: 0.", show_default=False)
    ] = None
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="auto: the weights that the model config names; none: random; or a checkpoint. Default: auto.",
            show_default=False,
        ),
    ] = None
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision, on a GPU.")] = False
    device: DeviceOption = "auto"
    launcher: LauncherOption = "none"
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Run directory; by default one in runs/, named after method and split.", show_default=False),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the run directory.")] = False
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any key of the config: a.b=value; repeatable. `sslseg methods NAME` lists the keys of a method.",
            show_default=False,
        ),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, run one iteration, write nothing.")] = (
        False
    )
    as_json: JsonFlag = False


def with_train_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the last parameter of ``command``, ``flags: TrainFlags``, by an option for each of its fields."""
    hints = get_type_hints(TrainFlags, include_extras=True)
    own = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
    added = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(TrainFlags)
    ]

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        flags = TrainFlags(**{field.name: values.pop(field.name) for field in fields(TrainFlags)})
        command(**values, flags=flags)

    del flat.__wrapped__
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + added
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def train_options(flags: TrainFlags, workspace: Workspace, *, method: str | None) -> TrainOptions:
    """Return the worker's options; flags win over ``sslseg.toml``."""
    from sslseg.config.assignments import parse_assignment
    from sslseg.config.build import TrainOptions
    from sslseg.plugins import AUTO, method_of

    names = (
        "model config iterations epochs batch_size unlabeled_batch_size lr crop val_interval workers seed pretrained"
    )
    given = {name: getattr(flags, name) for name in names.split()}
    given |= dict(method=method, device=flags.device if flags.device != "auto" else None)
    # These exclude each other, so one given as a flag also replaces the other of the file.
    replaced = [
        pair for pair in (("iterations", "epochs"), ("method", "config")) if any(given.get(key) for key in pair)
    ]
    chosen = {key: value for key, value in workspace.train().items() if not any(key in pair for pair in replaced)}
    chosen |= {key: value for key, value in given.items() if value is not None}
    if "config" in chosen and chosen.get("method", AUTO) == AUTO:
        chosen["method"] = method_of(chosen["config"])
    chosen["crop"] = parse_size(chosen.get("crop"))
    return TrainOptions(
        **chosen,
        amp=flags.amp,
        launcher=flags.launcher,
        resume=flags.resume,
        dry_run=flags.dry_run,
        assignments=dict(map(parse_assignment, flags.assignments or [])),
    )
