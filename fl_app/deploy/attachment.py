"""Signatures put beside the bundle of a run, where the SuperLink finds them when a node asks for the bundle.

Flower's open-source build takes signatures from Flower Hub alone, and stores a bundle that is submitted without any. So
its own state class stores them in the SuperLink's database, on its machine, as soon as it has accepted the run. Nodes
ask for the bundle with a run's first message, which its ServerApp sends seconds later. One that asks before, or while
another start of the same bundle has just stored it without signatures, runs nothing of it, answers with an error and
is asked again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from fl_app.deploy.failure import Failed
from fl_app.deploy.folder import DeployFolder
from fl_app.deploy.signatures import Signature, verifications
from fl_app.deploy.trust import held_signatures
from fl_app.errors import Refused
from fl_app.profiles import Profile


def signatures_to_send(profile: Profile) -> Sequence[Signature]:
    """The signatures that the folder of a deployment's profile holds, of whichever bundles.

    Raises Refused for a damaged one, and where there are some but not the SuperLink's database.
    """
    if profile.is_local:
        return ()
    folder = DeployFolder(profile.folder)
    found = held_signatures(folder)
    if found and not folder.database.is_file():
        what = "this folder holds signatures, and not the SuperLink's database, where they have to go"
        remedy = f"call fl-app run on the SuperLink's machine with its folder, or remove {folder.signatures}"
        raise Refused(what, str(folder.database), remedy)
    return found


def attachment(profile: Profile) -> Callable[[str], None] | None:
    """What attaches the folder's signatures to the run with this id, in milliseconds; None where it holds none.

    Those of other bundles than the run's are left out. Raises Refused and, as its result does, Failed.
    """
    signatures = signatures_to_send(profile)
    if not signatures:
        return None
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.supercore.fab import Fab
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

    database = DeployFolder(profile.folder).database
    try:
        state = LinkStateFactory(str(database), NoOpFederationManager(), ObjectStoreFactory(str(database))).state()
    except Exception as error:
        raise _failure(database, error) from error

    def attach(run_id: str) -> None:
        try:
            runs = state.get_run_info(run_ids=[int(run_id)])
            bundle = state.get_fab(str(runs[0].fab_hash)) if runs else None
            if bundle is not None:
                own = [each for each in signatures if each.bundle == bundle.hash_str]
                state.store_fab(Fab(bundle.hash_str, bundle.content, verifications(own)))
        except Exception as error:
            raise _failure(database, error) from error
        if bundle is None:
            remedy = "name the folder of that SuperLink with --profiles"
            raise Failed(f"run {run_id} is of another SuperLink than these signatures", str(database), remedy)

    return attach


def _failure(database: Path, error: Exception) -> Failed:
    remedy = f"{type(error).__name__}: {error}"
    return Failed("the signatures cannot be put into the SuperLink's database", str(database), remedy)
