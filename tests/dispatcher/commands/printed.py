"""What a command has printed so far."""

import pytest


class Printed:
    """Collects standard output over several looks at it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def text(self) -> str:
        self._text += self._capsys.readouterr().out
        return self._text
