"""The command that writes a trained model for programs that know nothing of this one."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from fl_app.caller import set_caller
from fl_app.commands import words
from fl_app.errors import Refused, one_line
from fl_app.model import Model


def export(
    model: words.ModelFile,
    onnx: Annotated[str, typer.Option(metavar="OUT.onnx", help="file to write; none that is there already")],
    check: Annotated[str | None, typer.Option(metavar="IN.csv", help="rows to check it on; default: random")] = None,
    delimiter: Annotated[str, typer.Option(help="of IN.csv: auto, comma, semicolon, tab or pipe")] = "auto",
    debug: words.Debug = False,
) -> None:
    """Write a model as ONNX, for columns in their own units, and check that it scores rows as predict does.

    Exit status 0 written, 1 it scored otherwise and was not kept, 2 refused.
    """
    for package in ("onnx", "onnxruntime"):
        _need(package)
    from fl_app.onnx_check import agreement, random_table, table_of_file
    from fl_app.onnx_export import onnx_model

    set_caller(Path.cwd())
    loaded, target = Model.load(Path(model)), Path(onnx)
    _check_target(target)
    written = onnx_model(loaded).SerializeToString()
    table = random_table(loaded.design) if check is None else table_of_file(loaded, Path(check), delimiter)
    found = agreement(loaded, written, table)
    if not found.holds:
        print(
            f"error: the ONNX model does not score as fl-app does: --onnx {onnx}: on {len(table)} rows they differ by "
            f"{found.difference:.0e}, more than {found.tolerance:.0e}; nothing was written",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    _write(target, written)
    outputs = f"{len(loaded.design.classes)} classes" if loaded.design.classes else "1 number"
    print(
        one_line(
            f"{onnx}: {len(loaded.design.schema.features)} features -> {outputs}, "
            f"agrees with fl-app on {found.rows} rows to {found.difference:.0e}"
        )
    )


def _need(package: str) -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise Refused(f"{package} cannot be imported", "fl-app export", 'pip install "fl-app[onnx]"') from error


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise Refused("this is a directory", f"--onnx {target}", "name a file in it")
    if target.exists() or target.is_symlink():
        raise Refused("this file is there already", f"--onnx {target}", "remove it, or choose another name")


def _write(target: Path, content: bytes) -> None:
    scratch = target.with_name(f".{target.name}.writing")
    try:
        scratch.write_bytes(content)
        scratch.replace(target)
    except OSError as error:
        raise Refused("cannot write", f"--onnx {target}", f"{error.strerror}: choose another file") from error
