"""`fl-app deploy trust`: which bundles a site runs, and the signatures that a coordinator sends along."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from fl_app import __version__
from fl_app.bundle import build_bundle
from fl_app.commands import words
from fl_app.deploy.folder import DeployFolder, deploy_folder
from fl_app.deploy.signatures import Signature
from fl_app.deploy.trust import (
    accept,
    differing_files,
    held_signatures,
    make_key,
    read_bundle,
    sign,
    trust_own_key,
    trusted_keys,
)
from fl_app.errors import Refused, one_line
from fl_app.run_folder import write_atomically

trust = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Which bundles a site runs: those that a key it trusts has signed.",
)


_MOST_NAMED = 5
_LONGEST_NAME = 80


@trust.command()
def bundle(
    folder: words.Folder,
    out: Annotated[
        Path | None, typer.Option("-o", metavar="FILE.fab", help="default: DIR/trust/fl-app-HASH.fab")
    ] = None,
    debug: words.Debug = False,
) -> None:
    """Write the bundle that a run of the installed version sends: all its code, to be read."""
    content = build_bundle()
    digest = sha256(content).hexdigest()
    target = deploy_folder(folder)
    path = out.expanduser() if out else target.make(target.path / "trust") / f"fl-app-{digest[:12]}.fab"
    if path.exists() and not (path.is_file() and path.read_bytes() == content):
        raise Refused("this file is there already", str(path), "remove it, or name another with -o")
    try:
        write_atomically(path, content)
    except OSError as error:
        raise Refused("cannot write the bundle", str(path), f"{error.strerror}: choose another file") from error
    print(f"made {path}")
    print(f"sha256 {digest}")
    print("it is a zip: unzip it elsewhere to read it")


@trust.command("sign")
def sign_(
    folder: words.Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the key, made when it is missing")],
    bundle: Annotated[
        Path | None, typer.Option(metavar="FILE.fab", help="default: the bundle of the installed version")
    ] = None,
    differing: Annotated[
        bool, typer.Option("--differing", show_default=False, help="also one that is not the installed version's")
    ] = False,
    pin: Annotated[bool, typer.Option("--pin", show_default=False, help="and have the nodes trust this key")] = False,
    debug: words.Debug = False,
) -> None:
    """Sign a bundle that you have read. The signature goes to the coordinator and is no secret."""
    target = deploy_folder(folder)
    installed = build_bundle()
    content = installed if bundle is None else read_bundle(bundle)
    changed = differing_files(content, installed)
    compared = _compared(content == installed, changed)
    if changed and not differing:
        remedy = "read what differs, then sign it with --differing"
        raise Refused(f"the bundle is {compared}", str(bundle), remedy)
    made = make_key(target, name)
    signature, path = sign(target, name, content)
    for each in [*made, path]:
        print(f"made {each}")
    print(f"sha256 {signature.bundle}, {compared}")
    if pin:
        trust_own_key(target, name)
        _tell_trusted(target)
    print(f"next: send {path.name} to the coordinator, for fl-app deploy trust accept")


@trust.command("accept")
def accept_(
    folder: words.Folder,
    file: Annotated[list[Path], typer.Argument(metavar="FILE...", help=".pub to trust, .sig to send along")],
    debug: words.Debug = False,
) -> None:
    """At a site: trust the key of a .pub file. At the coordinator: send the signature of a .sig file with every run."""
    target = deploy_folder(folder)
    found = accept(target, file)
    signatures = [each for each in found if isinstance(each, Signature)]
    current = sha256(build_bundle()).hexdigest() if signatures else ""
    for each in signatures:
        print(f"{each.name} has signed {each.bundle}: {_place(each, current)}")
    if len(signatures) < len(found):
        _tell_trusted(target)


@trust.command("list")
def list_(
    folder: words.Folder,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Show the bundle of the installed version, the keys that nodes trust and the signatures that go with runs."""
    target = deploy_folder(folder)
    current = sha256(build_bundle()).hexdigest()
    keys, signatures = trusted_keys(target), held_signatures(target)
    if as_json:
        listed = [
            {"name": each.name, "key": each.public_key.id, "bundle": each.bundle, "signed_at": each.signed_at}
            for each in signatures
        ]
        trusted = None if keys is None else [{"name": name, "key": key.id} for name, key in keys.items()]
        print(json.dumps({"bundle": current, "trusted": trusted, "signatures": listed}, indent=2))
        return
    print(f"fl-app {__version__} sends bundle {current}")
    if keys is None:
        print("nodes of this folder run any bundle")
    else:
        _tell_trusted(target)
    for each in signatures:
        print(f"{each.name} ({each.public_key.id}) has signed {each.bundle}: {_place(each, current)}")


def _compared(same: bool, changed: Sequence[str]) -> str:
    if not changed:
        return f"{'the bundle' if same else 'with the files'} of fl-app {__version__} as installed here"
    # Whoever made the bundle chose the names.
    named = ", ".join(one_line(name)[:_LONGEST_NAME] for name in changed[:_MOST_NAMED])
    more = ", ..." if len(changed) > _MOST_NAMED else ""
    return f"NOT that of fl-app {__version__} as installed here: {len(changed)} files differ: {named}{more}"


def _place(signature: Signature, current: str) -> str:
    if signature.bundle == current:
        return f"the bundle that fl-app {__version__} sends"
    return f"NOT the bundle that fl-app {__version__} sends, which is {current}"


def _tell_trusted(folder: DeployFolder) -> None:
    keys = trusted_keys(folder) or {}
    print(f"nodes of this folder run no bundles but those signed by: {', '.join(keys)} (once restarted)")
