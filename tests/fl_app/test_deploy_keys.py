"""`fl-app deploy init`: certificates that clients accept, keys that Flower reads, and nothing written over."""

import datetime
import stat
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from flwr.cli.supernode.register import try_load_public_key

from fl_app.deploy import certificates
from fl_app.deploy.folder import DeployFolder
from fl_app.deploy.making import initialise
from fl_app.errors import Refused
from fl_app.profiles import load_profile


def init(path: Path, hosts: Any = (), nodes: Any = (), **changes: Any) -> DeployFolder:
    folder = DeployFolder(path)
    initialise(folder, hosts, nodes, **{"days": 365, "site": False, "renew": False, **changes})
    return folder


@pytest.fixture
def made(tmp_path: Path) -> DeployFolder:
    return init(tmp_path / "fed", ["fl.example.org", "10.1.2.3", "fd00::7"], ["north", "south"])


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def extension(certificate: x509.Certificate, kind: Any) -> Any:
    return certificate.extensions.get_extension_for_class(kind)


def verified(folder: DeployFolder, host: str, when: datetime.datetime | None = None) -> list[x509.Certificate]:
    """The chain that a strict client builds for this host; raises VerificationError."""
    builder = PolicyBuilder().store(Store([read(folder.authority)]))
    try:
        subject: Any = x509.IPAddress(ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    builder = builder if when is None else builder.time(when)
    return builder.build_server_verifier(subject).verify(read(folder.server), [])


@pytest.mark.parametrize("host", ["fl.example.org", "10.1.2.3", "fd00::7", "localhost", "127.0.0.1", "::1"])
def test_a_strict_client_accepts_the_server_under_every_name_given_and_on_its_own_machine(
    made: DeployFolder, host: str
) -> None:
    assert verified(made, host) == [read(made.server), read(made.authority)]


def test_a_client_does_not_accept_another_name_another_authority_or_another_time(
    made: DeployFolder, tmp_path: Path
) -> None:
    with pytest.raises(VerificationError):
        verified(made, "other.example.org")
    with pytest.raises(VerificationError):
        verified(made, "fl.example.org", datetime.datetime.now() + datetime.timedelta(days=366))
    other = init(tmp_path / "other", ["fl.example.org"])
    made.authority.write_bytes(other.authority.read_bytes())
    with pytest.raises(VerificationError):
        verified(made, "fl.example.org")


def test_names_and_addresses_are_told_apart(made: DeployFolder) -> None:
    names = extension(read(made.server), x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["10.1.2.3", "fd00::7", "127.0.0.1", "::1"]


def test_the_authority_signs_servers_and_a_server_signs_nothing(made: DeployFolder) -> None:
    authority, server = read(made.authority), read(made.server)
    assert authority.issuer == authority.subject
    for certificate, is_authority in ((authority, True), (server, False)):
        basic, usage = extension(certificate, x509.BasicConstraints), extension(certificate, x509.KeyUsage)
        assert basic.critical
        assert usage.critical
        assert basic.value.ca is is_authority
        assert usage.value.key_cert_sign is usage.value.crl_sign is is_authority
        assert usage.value.digital_signature is not is_authority
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert extension(authority, x509.BasicConstraints).value.path_length == 0
    assert list(extension(server, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_server_is_valid_for_the_days_asked_and_not_longer_than_its_authority(tmp_path: Path) -> None:
    short = init(tmp_path / "short", days=20)
    assert certificates.days_left(read(short.server)) in (19, 20)
    assert certificates.days_left(read(short.authority)) in (3649, 3650)
    long = init(tmp_path / "long", days=20)
    initialise(long, [], [], days=7000, site=False, renew=True)
    assert read(long.server).not_valid_after_utc == read(long.authority).not_valid_after_utc


def test_a_nodes_key_is_what_flower_reads_on_both_sides(made: DeployFolder) -> None:
    private = load_ssh_private_key(made.node_key("north").read_bytes(), None)
    public = load_ssh_public_key(made.node_public_key("north").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert private.curve.name == "secp384r1"
    assert private.public_key() == public
    assert made.node_public_key("north").read_text().startswith("ecdsa-sha2-nistp384 ")
    assert made.node_public_key("north").read_text().endswith(" north\n")
    as_flower = try_load_public_key(made.node_public_key("north"))
    assert certificates.node_public_key(made.node_public_key("north").read_bytes()) == as_flower
    assert made.node_key("north").read_bytes() != made.node_key("south").read_bytes()


def test_private_keys_and_their_folders_are_open_to_their_owner_alone(made: DeployFolder) -> None:
    secrets = [made.authority_key, made.server_key, made.node_key("north"), made.node_key("south")]
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in secrets} == {"0o600"}
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in (made.path, made.path / "nodes")} == {"0o700"}


def content(folder: DeployFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_calling_it_again_adds_keys_of_new_nodes_and_changes_nothing(made: DeployFolder) -> None:
    before = content(made)
    added = initialise(made, ["fl.example.org"], ["north", "east"], days=10, site=False, renew=False)
    after = content(made)
    assert added == [made.node_key("east"), made.node_public_key("east")]
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == set(added)


def test_a_node_whose_public_key_alone_is_here_gets_no_other_one(made: DeployFolder) -> None:
    made.node_key("north").unlink()
    assert initialise(made, [], ["north"], days=365, site=False, renew=False) == []


def test_a_renewed_server_keeps_names_and_authority_and_its_predecessor_stays(made: DeployFolder) -> None:
    before, pair = content(made), (made.server.read_bytes(), made.server_key.read_bytes())
    for added in ("second.example.org", "third.example.org"):
        initialise(made, [added], [], days=30, site=False, renew=True)
        assert verified(made, added)
    assert verified(made, "10.1.2.3")
    assert made.server_pair()
    assert made.authority.read_bytes() == before[made.authority]
    aside = sorted(path.read_bytes() for path in made.path.glob("server.*.until-*"))
    assert len(aside) == 4
    assert set(pair) < set(aside)
    assert pair[0] != made.server.read_bytes()


def test_a_site_gets_its_key_and_nothing_else(tmp_path: Path) -> None:
    folder = init(tmp_path / "site", nodes=["north"], site=True)
    assert set(content(folder)) == {folder.node_key("north"), folder.node_public_key("north")}


def test_the_profile_of_the_folder_leads_to_its_server(made: DeployFolder) -> None:
    profile = load_profile("deployment", made.path)
    assert profile.connection == {"address": "127.0.0.1:8000", "root-certificates": str(made.authority)}
    made.set_address("127.0.0.1:9000")
    assert load_profile(None, made.path).connection["address"] == made.address() == "127.0.0.1:9000"


def test_your_organisations_certificates_are_left_alone_and_used(made: DeployFolder, tmp_path: Path) -> None:
    own = DeployFolder(tmp_path / "own")
    own.path.mkdir()
    for name in ("ca.crt", "server.pem", "server.key"):
        (own.path / name).write_bytes((made.path / name).read_bytes())
    own.server_key.chmod(0o600)
    own.server.write_bytes(made.server.read_bytes() + made.authority.read_bytes())  # a chain, as most are
    before = content(own)
    initialise(own, [], ["north"], days=365, site=False, renew=False)
    after = content(own)
    assert {path: after[path] for path in before} == before
    assert not own.authority_key.exists()
    assert own.server_pair().certificate == before[own.server]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hosts": ["https://fl.example.org"]}, ["is no host", "without scheme and port"]),
        ({"hosts": ["fl.example.org:8000"]}, ["is no host", "without scheme and port"]),
        ({"hosts": ["10.1.2.300"]}, ["is no host"]),
        ({"hosts": [""]}, ["is no host"]),
        ({"nodes": ["../north"]}, ["no name for a node"]),
        ({"nodes": ["north.pub"]}, ["no name for a node"]),
        ({"nodes": ["nord süd"]}, ["no name for a node"]),
        ({"days": 0}, ["0 days", "expected 1 to"]),
        ({"days": 10**6}, ["expected 1 to"]),
        ({"site": True, "hosts": ["fl.example.org"]}, ["certificates for a site"]),
        ({"renew": True}, ["no ca.key"]),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(
    tmp_path: Path, wrong: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(Refused) as refusal:
        init(tmp_path / "fed", **wrong)
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert not (tmp_path / "fed").exists()


def test_a_new_name_for_a_server_that_has_its_certificate_is_refused_with_the_way_to_get_it(
    made: DeployFolder,
) -> None:
    before = content(made)
    with pytest.raises(Refused, match=r"is not for new\.example\.org.*--renew"):
        initialise(made, ["new.example.org"], ["west"], days=365, site=False, renew=False)
    assert content(made) == before


def test_keys_that_others_can_read_or_that_do_not_go_together_are_refused(made: DeployFolder) -> None:
    made.server_key.chmod(0o640)
    with pytest.raises(Refused, match=r"others can read this private key.*chmod 600"):
        made.server_pair()
    made.server_key.chmod(0o600)
    made.server_key.write_bytes(made.authority_key.read_bytes())
    with pytest.raises(Refused, match=r"not the key of server\.pem"):
        made.server_pair()
    made.server_key.write_text("no key")
    with pytest.raises(Refused, match="no private key in PEM"):
        made.server_pair()
    made.server.write_text("no certificate")
    with pytest.raises(Refused, match="no certificate in PEM"):
        made.server_pair()


def expiring(made: DeployFolder, days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be so many days before the server's certificate expires."""
    then = read(made.server).not_valid_after_utc - datetime.timedelta(days=days, hours=1)
    monkeypatch.setattr(certificates, "_now", lambda: then)


def test_a_certificate_that_expires_soon_is_told_of_and_one_that_has_is_refused(
    made: DeployFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made.notices() == []
    expiring(made, 40, monkeypatch)
    assert made.notices() == []
    expiring(made, 29, monkeypatch)
    (notice,) = made.notices()
    assert "server.pem expires in 29 days, on " in notice
    assert "--renew" in notice
    expiring(made, -2, monkeypatch)
    assert "server.pem expired on " in made.notices()[0]
    with pytest.raises(Refused, match=r"expired on .*--renew"):
        made.server_pair()


@pytest.mark.parametrize(
    ("names", "host", "accepted"),
    [
        (["*.example.org"], "fl.example.org", True),
        (["*.example.org"], "a.b.example.org", False),
        (["FL.example.org"], "fl.EXAMPLE.org", True),
        (["10.0.0.1"], "10.0.0.1", True),
        (["10.0.0.1"], "10.0.0.2", False),
    ],
)
def test_whether_a_certificate_is_for_a_host(tmp_path: Path, names: list[str], host: str, accepted: bool) -> None:
    assert certificates.covers(read(init(tmp_path / "fed", names).server), host) is accepted
