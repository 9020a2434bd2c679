"""What `fl-app deploy init` makes: certificates once, keys of nodes whenever there are new ones."""

from collections.abc import Sequence
from pathlib import Path

from fl_app.deploy import certificates
from fl_app.deploy.certificates import Pair
from fl_app.deploy.folder import DEFAULT_ADDRESS, DeployFolder, node_name
from fl_app.errors import Refused

_SECRET, _PUBLIC = 0o600, 0o644


def initialise(
    folder: DeployFolder, hosts: Sequence[str], nodes: Sequence[str], *, days: int, site: bool, renew: bool
) -> list[Path]:
    """Make what is missing and return it; what is there stays as it is.

    `site`: the folder of a site, which gets the keys of its nodes alone. `renew`: the server's certificate anew, from
    the same authority, its predecessor beside it under another name. Raises Refused before anything is written.
    """
    for name in nodes:
        node_name(name)
    for host in hosts:
        certificates.san(host)
    if site and (hosts or renew):
        raise Refused("certificates for a site", "--site", "the coordinator makes them; leave --san and --renew out")
    pair = None if site else _server_pair(folder, hosts, days, renew)
    authority = _new_authority(folder, days) if pair is None and not site and not folder.server.exists() else None
    if authority is not None:
        pair = certificates.new_server(authority, hosts, days)
    made = _write_certificates(folder, authority, pair)
    return made + [path for name in dict.fromkeys(nodes) for path in _node_key(folder, name)]


def _server_pair(folder: DeployFolder, hosts: Sequence[str], days: int, renew: bool) -> Pair | None:
    """A certificate from the authority that is there; None where none is wanted, or there is no authority."""
    there = folder.server.exists() or folder.server_key.exists()
    if renew or (folder.authority.exists() and not there):
        remedy = "it signs the server's certificate: put it back, or server.pem and server.key; for a site add --site"
        key = folder.read_secret(folder.authority_key, remedy)
        authority = Pair(folder.read(folder.authority, remedy), key)
        earlier = certificates.hosts_of(folder.read_certificate(folder.server, remedy)) if renew else []
        return certificates.new_server(authority, [*earlier, *hosts], days)
    if there:
        certificate = folder.read_certificate(folder.server, "put the server's certificate there")
        missing = [host for host in hosts if not certificates.covers(certificate, host)]
        if missing:
            what = f"server.pem is there already and is not for {', '.join(missing)}"
            raise Refused(what, str(folder.server), "add --renew for a new one with these names too")
    return None


def _new_authority(folder: DeployFolder, days: int) -> Pair:
    if folder.authority_key.exists():
        raise Refused("ca.key without ca.crt", str(folder.path), "put its certificate back, or move the key away")
    return certificates.new_authority(days)


def _write_certificates(folder: DeployFolder, authority: Pair | None, pair: Pair | None) -> list[Path]:
    files: list[tuple[Path, bytes, int]] = []
    if authority is not None:
        files += [(folder.authority, authority.certificate, _PUBLIC), (folder.authority_key, authority.key, _SECRET)]
    if pair is not None:
        _set_aside(folder)
        files += [(folder.server, pair.certificate, _PUBLIC), (folder.server_key, pair.key, _SECRET)]
    folder.make(folder.path)
    folder.make(folder.path / "nodes")  # where the public keys go that sites send
    for path, content, mode in files:
        folder.create(path, content, mode)
    if pair is not None and not folder.profile.exists():
        folder.set_address(DEFAULT_ADDRESS)
        return [path for path, _, _ in files] + [folder.profile]
    return [path for path, _, _ in files]


def _set_aside(folder: DeployFolder) -> None:
    """Give the certificate that is renewed, and its key, names of their own."""
    if not folder.server.exists():
        return
    day = certificates.day(folder.read_certificate(folder.server, "put the server's certificate there"))
    number = 1
    while any(_aside(path, day, number).exists() for path in (folder.server, folder.server_key)):
        number += 1
    for path in (folder.server, folder.server_key):
        if path.exists():
            path.rename(_aside(path, day, number))


def _aside(path: Path, day: str, number: int) -> Path:
    return path.with_name(f"{path.name}.until-{day}" + (f".{number}" if number > 1 else ""))


def _node_key(folder: DeployFolder, name: str) -> list[Path]:
    """Its two files where neither is there: of a node whose administrator made the key, only the public one is."""
    private, public = folder.node_key(name), folder.node_public_key(name)
    if private.exists() or public.exists():
        return []
    secret, told = certificates.new_node_key(name)
    folder.create(private, secret, _SECRET)
    folder.create(public, told, _PUBLIC)
    return [private, public]
