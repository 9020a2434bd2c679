"""An error that no better command line would have prevented: the other machine, the network, a program that ended."""

from fl_app.errors import one_line


class Failed(RuntimeError):
    """Printed as ``error: <what>: <where>: <remedy>`` like a refusal, but with exit status 1."""

    def __init__(self, what: str, where: str, remedy: str) -> None:
        super().__init__(one_line(f"{what}: {where}: {remedy}"))
        self.what, self.where, self.remedy = what, where, remedy
