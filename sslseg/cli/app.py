"""The ``sslseg`` program: one Typer command for each module beside this one."""

from __future__ import annotations

import inspect as introspection
from typing import Annotated

import typer

from sslseg.cli import evaluate, export, init, inspect, merge, methods, pseudolabel, refine, split, train, verify

app = typer.Typer(
    name="sslseg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Semi-supervised segmentation: from a folder of images, a few of them labeled, to a good model.\n\n"
        "Every command prints one line on stdout, the path of what it made, and takes '-' for the path that the command"
        " before it in a pipeline printed. Without sslseg.toml a built-in synthetic dataset is used:\n\n"
        "sslseg split --ratio 1/8 && sslseg train && sslseg pseudolabel && sslseg eval"
    ),
)

for name, module in (
    ("init", init),
    ("split", split),
    ("train", train),
    ("pseudolabel", pseudolabel),
    ("refine", refine),
    ("eval", evaluate),
    ("methods", methods),
    ("export", export),
    ("merge", merge),
    ("verify", verify),
    ("inspect", inspect),
):
    # Typer would keep the line breaks of a docstring's later paragraphs.
    paragraphs = introspection.cleandoc(module.command.__doc__ or "").split("\n\n")
    app.command(name, help="\n\n".join(" ".join(text.split()) for text in paragraphs))(module.command)


def _version(value: bool) -> None:
    if value:
        from sslseg import __version__

        print(f"sslseg {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass
