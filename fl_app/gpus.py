"""GPUs of a simulation: whether its workers can have what the profile gives to each, and train where the run says."""

from fl_app.errors import Refused
from fl_app.profiles import GPUS_EACH, Profile


def check_gpus(profile: Profile, device: str) -> None:
    """Raises Refused for GPUs that are not here, and for one that no worker sees.

    A worker that has GPUs of its own sees these alone, numbered from 0. One that has none to itself sees all.
    """
    each = float(profile.federation.get(GPUS_EACH, 0))
    if not each:
        return
    where = f"{GPUS_EACH} = {each:g} in profile {profile.name}"
    if "init-args-num-gpus" not in profile.federation:  # else Ray takes the number as it stands
        import torch  # here, as few simulations need it

        if (there := torch.cuda.device_count()) < each:
            why = "is built without CUDA" if torch.version.cuda is None else f"sees {there} here"
            raise Refused("there are not so many GPUs", where, f"PyTorch {why}: leave it out to train without")
    name, _, index = device.partition(":")
    if name == "cuda" and index and int(index) >= max(1, each):
        raise Refused(f"device={device}", where, "a worker sees its own GPUs alone, from cuda:0 on: use device=auto")
